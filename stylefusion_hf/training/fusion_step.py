"""One step of a fusion training, with the time of each part."""

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from stylefusion_hf.training.criterion import Criterion
from stylefusion_hf.training.samples import Sample


class Clock:
    """Measures seconds per step by part, since the last reading."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, dict.fromkeys(("fusion", "generator", "segmenter", "objective"), 0.0)
        self.steps = 0

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = self._now()
        yield
        self.seconds[part] += self._now() - started

    def _now(self) -> float:
        if self.device.type == "cuda":  # kernels are queued: without waiting, the last part would get all their time
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def read(self) -> dict[str, float]:
        """Return {"s generator": seconds, ...}, and start again at zero."""
        found = {f"s {name}": value / max(self.steps, 1) for name, value in self.seconds.items()}
        self.seconds, self.steps = dict.fromkeys(self.seconds, 0.0), 0
        return found


def detached(x: Tensor) -> Tensor:
    """Return the same values as a leaf of a new graph, so that each part's backward pass is timed separately."""
    return x.detach().requires_grad_()


class Transfers:
    """The recent transfer of each region's look in single swaps; the same in all processes."""

    def __init__(self, regions: int, device: torch.device, decay: float = 0.98):
        self.mean, self.decay = torch.zeros(regions, device=device), decay

    def update(self, tally: Tensor, accelerator: Accelerator) -> None:
        """Update the moving averages. tally: (2, R), sums of 1 - T, and their numbers."""
        left, number = accelerator.reduce(tally, "sum").unbind()
        new = 1 - left / number.clamp_min(1)
        self.mean = torch.where(number > 0, self.decay * self.mean + (1 - self.decay) * new, self.mean)

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean.cpu()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.mean = state["mean"].to(self.mean)


def backward(
    criterion: Criterion,
    model,
    ema,
    sample: Sample,
    transfer: Tensor,
    clock: Clock,
    accelerator: Accelerator,
    scale: float,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Add a sample's gradients to the nets', in as many parts as memory requires.

    Returns:
        The losses by term; the tally of `Criterion`; the images, of which there are none without a discriminator.
    """
    losses: dict[str, Tensor] = {}
    tallies, images = [], []
    parts = list(sample.parts(criterion.plan.chunk))
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            found, tally, image = _backward(criterion, model, ema, part, sample, transfer, clock, accelerator, scale)
        losses = {name: losses[name] + value if losses else value for name, value in found.items()}
        tallies.append(tally)
        images.append(image if criterion.discriminator is not None else image[:0])
    return losses, torch.stack(tallies).sum(dim=0), torch.cat(images)


def _backward(
    criterion: Criterion, model, ema, sample: Sample, whole: Sample, transfer, clock: Clock, accelerator, scale: float
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Do one part of `backward`."""
    networks = criterion.networks
    # Forward: codes -> fused code -> picture and feature maps -> segmentation -> losses.
    with clock("objective"):
        references = criterion.targets(sample, ema.fuse)
    with clock("fusion"):
        fused = model(criterion.codes(sample)).style_codes
    codes = detached(fused)
    with clock("generator"):
        image, maps = networks.render(codes)
    seen, seen_maps = detached(image), {r: detached(x) for r, x in maps.items()}
    with clock("segmenter"):
        probs = networks.segment(seen)
    believed = detached(probs)
    with clock("objective"):
        found = networks.describe(seen, seen_maps, believed)
        losses, tally = criterion(sample, references, found, transfer, whole)
        accelerator.backward(criterion.total(losses) * scale)
    # Backward, in the opposite order.
    with clock("segmenter"):
        if believed.grad is not None:
            probs.backward(believed.grad)
    with clock("generator"):
        pairs = [(image, seen), *((maps[r], seen_maps[r]) for r in maps)]
        pairs = [(x, y.grad) for x, y in pairs if y.grad is not None]
        torch.autograd.backward([x for x, _ in pairs], [grad for _, grad in pairs])
    with clock("fusion"):
        fused.backward(codes.grad)
    return {name: value.detach() for name, value in losses.items()}, tally, seen.detach()


def discriminator_step(d, optimizer, plain: Tensor, fused: Tensor, accelerator: Accelerator) -> Tensor:
    """Fine-tune the discriminator on plain against fused pictures, and return its loss."""
    d.requires_grad_(True)
    loss = F.softplus(-d(plain).logits).mean() + F.softplus(d(fused).logits).mean()
    optimizer.zero_grad()
    accelerator.backward(loss)
    optimizer.step()
    d.requires_grad_(False)
    return loss.detach()
