"""One step of a fusion training, timed part by part."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from stylefusion_hf.training.criterion import Criterion


class Clock:
    """Seconds a step by part, since the last reading."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, dict.fromkeys(("fusion", "generator", "segmenter", "objective"), 0.0)
        self.steps = 0

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = self._now()
        yield
        self.seconds[part] += self._now() - started

    def _now(self) -> float:
        if self.device.type == "cuda":  # kernels are queued: without waiting, the last part would get all the time
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def read(self) -> dict[str, float]:
        """{"s generator": seconds, ...}, and back to zero."""
        found = {f"s {name}": value / max(self.steps, 1) for name, value in self.seconds.items()}
        self.seconds, self.steps = dict.fromkeys(self.seconds, 0.0), 0
        return found


def cut(x: Tensor) -> Tensor:
    """The same numbers as a leaf of a new graph, so that each part's backward pass can be timed by itself."""
    return x.detach().requires_grad_()


class Transfers:
    """How much of each region's look single swaps have carried over of late; the same in all processes."""

    def __init__(self, regions: int, device: torch.device, decay: float = 0.98):
        self.mean, self.decay = torch.zeros(regions, device=device), decay

    def update(self, tally: Tensor, accelerator: Accelerator) -> None:
        """tally: (2, R), sums of 1 - T and their numbers."""
        left, number = accelerator.reduce(tally, "sum").unbind()
        new = 1 - left / number.clamp_min(1)
        self.mean = torch.where(number > 0, self.decay * self.mean + (1 - self.decay) * new, self.mean)

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean.cpu()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.mean = state["mean"].to(self.mean)


def backward(
    criterion: Criterion, model, ema, sample, transfer: Tensor, clock: Clock, accelerator: Accelerator, scale: float
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Adds a sample's gradients to the nets'. Losses by term, the tally of `Criterion`, and the images."""
    eye = criterion.eye
    with clock("objective"):
        targets = criterion.targets(sample, ema.fuse)
    with clock("fusion"):
        fused = model(criterion.codes(sample)).style_codes
    codes = cut(fused)
    with clock("generator"):
        image, maps = eye.render(codes)
    seen, seen_maps = cut(image), {r: cut(x) for r, x in maps.items()}
    with clock("segmenter"):
        probs = eye.segment(seen)
    believed = cut(probs)
    with clock("objective"):
        losses, tally = criterion(sample, targets, eye.describe(seen, seen_maps, believed), transfer)
        accelerator.backward(criterion.total(losses) * scale)
    with clock("segmenter"):
        if believed.grad is not None:
            probs.backward(believed.grad)
    with clock("generator"):
        found = [
            (x, y.grad) for x, y in ((image, seen), *((maps[r], seen_maps[r]) for r in maps)) if y.grad is not None
        ]
        torch.autograd.backward([x for x, _ in found], [grad for _, grad in found])
    with clock("fusion"):
        fused.backward(codes.grad)
    return losses, tally, seen.detach()


def discriminator_step(d, optimizer, plain: Tensor, fused: Tensor, accelerator: Accelerator) -> Tensor:
    """Fine-tunes the discriminator on plain against fused pictures; its loss."""
    d.requires_grad_(True)
    loss = F.softplus(-d(plain).logits).mean() + F.softplus(d(fused).logits).mean()
    optimizer.zero_grad()
    accelerator.backward(loss)
    optimizer.step()
    d.requires_grad_(False)
    return loss.detach()
