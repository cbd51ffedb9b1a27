"""A `RegionSegmenter` from anything that labels generated pictures: clusters, a few-shot head, a large Hub model.

    segmenter, report = distil(generator, labeller_teacher(labeller), labeller.config.regions)

The teacher labels sampled pictures once; the student learns them from the pixels alone, degraded as for
`stylefusion train segmenter`, so that it holds on fused pictures and on real ones, where no feature maps are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.core.memory import (
    POOL_SHARE,
    RENDER_SHARE,
    STEP_SHARE,
    backward_bytes,
    chunk_size,
    forward_bytes,
    memory_budget,
)
from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.core.randomness import step_generator
from stylefusion_hf.imaging.degradation import degrade
from stylefusion_hf.models.labeller import FeatureLabeller
from stylefusion_hf.models.sampling import draw_codes
from stylefusion_hf.models.segmenter import RegionSegmenter, segmenter_channels
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.regions.agreement import region_iou

# (images (B, 3, H, W) in [-1, 1], feature maps {h: (B, C, h, h)}) -> logits or probabilities (B, R, h, w)
Teacher = Callable[[Tensor, Mapping[int, Tensor]], Tensor]
HELD_OUT = 128  # pictures, at most, on which student and teacher are compared
CHECKED = 8  # of these, full pictures that a student of previews is compared on
SAMPLES, STEPS, BATCH = (1500, 240), (500, 150), (16, 8)  # defaults, for full pictures and for previews
PREVIEW_CHANNELS = (8, 16, 32, 64, 96)  # narrow at the top, where most of the time goes


def labeller_teacher(labeller: FeatureLabeller) -> Teacher:
    """A labeller as a teacher."""
    return lambda images, maps: labeller.label(maps, images.shape[-2])


def distil(
    generator: StyleGenerator,
    teacher: Teacher,
    regions: Sequence[str],
    samples: int | None = None,
    steps: int | None = None,
    batch: int | None = None,
    channels: Sequence[int] | None = None,
    learning_rate: float = 2e-3,
    seed: int = 0,
    progress: bool = True,
    memory_gib: float | None = None,
    resolution: int | None = None,
    teacher_resolution: int | None = None,
    labelled: LabelledSamples | None = None,
) -> tuple[RegionSegmenter, dict[str, float]]:
    """Train a segmenter on a teacher's labels, on the generator's device.

    Args:
        generator: frozen, in eval mode.
        teacher: labels pictures; its maps' channels are `regions`.
        regions: names of the regions.
        samples: pictures that are labeled, truncated by psi from 0.5 to 1 and partly style-mixed; no more than a
            quarter of the memory holds. 1500 if left out, or 240 where the student sees previews.
        steps: optimizer steps; 500 if left out, or 150.
        batch: pictures per step, whatever their size: where memory asks for it, a few at a time. 16 if left out, or 8.
        channels: of the segmenter's levels; by the pictures' size if left out.
        learning_rate: at first; it falls to 0 along a cosine.
        seed: of samples, weights and degradation.
        memory_gib: what may be used; the device's own memory, or 8 GiB on a CPU, if left out.
        resolution: height of the pictures that the student sees, the generator's own; full ones if left out.
        teacher_resolution: height of the pictures and feature maps that the teacher sees; full ones if left out.
        labelled: what `label_samples` gave, for several students of the same pictures.

    Returns:
        The segmenter in eval mode, and its IoU with the teacher by region (and "mean") on held-out samples. Where the
        student sees previews, it reduces larger pictures to their size; "mean on full pictures" is its agreement on
        some of these.

    Raises:
        ValueError: a count below 1, or channels that the segmenter refuses.
    """
    device, full = generator.device, generator.config.resolution
    size, budget = resolution or full, memory_budget(device, memory_gib)
    samples, steps, batch = (
        usual[size < full] if given is None else given
        for given, usual in ((samples, SAMPLES), (steps, STEPS), (batch, BATCH))
    )
    if min(samples, steps, batch) < 1:
        raise ValueError(f"samples, steps and batch are at least 1, got {samples}, {steps} and {batch}")
    if labelled is None:
        labelled = label_samples(generator, teacher, samples, size, teacher_resolution, seed, progress, budget)
    pictures, truth, held = labelled.pictures, labelled.truth, labelled.held
    count = len(pictures)

    def at(index: Tensor | slice) -> tuple[Tensor, Tensor]:
        return pictures[index].to(device).float().div(127.5).sub(1), truth[index].to(device).long()

    # Model.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        longer = max(generator.size_at(size))
        usual = PREVIEW_CHANNELS if size < full else segmenter_channels(longer)
        widths = list(usual if channels is None else channels)
        student = RegionSegmenter(
            regions=list(regions),
            channels=widths,
            img_channels=pictures.shape[1],
            resolution=longer if size < full else None,
        )
    student = student.to(device).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.06)

    # Loss: cross entropy with the teacher's labels, of a batch in parts that fit into memory.
    batch = min(batch, count - held)
    one = at(slice(0, 1))
    weights = list(student.parameters())
    each = backward_bytes(lambda: F.cross_entropy(student.segment(one[0]), one[1]), weights)
    part = chunk_size(each, budget * STEP_SHARE, batch)
    for step in tqdm(range(steps), desc="segmenter", disable=not progress, leave=False):
        draw = step_generator(seed, step, purpose=6)
        index = held + torch.randint(count - held, (batch,), generator=draw)
        optimizer.zero_grad()
        x, y = at(index)
        x = degrade(x, draw) if x.shape[1] == 3 else x
        for images, labels in zip(x.split(part), y.split(part), strict=True):
            (F.cross_entropy(student.segment(images), labels) * len(images) / batch).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    student = student.eval().requires_grad_(False)
    x, y = at(slice(0, held))
    found = region_iou(student, x.cpu(), y.cpu(), batch=chunk_size(each, budget * RENDER_SHARE, 64))
    if size < full:
        found["mean on full pictures"] = _check_full(generator, student, labelled)
    return student, found


@dataclass(frozen=True)
class LabelledSamples:
    """Sampled pictures (N, 3, H, W) uint8 of style codes (N, S), with a teacher's labels (N, H, W) uint8; the first
    `held` are held out.
    """

    codes: Tensor
    pictures: Tensor
    truth: Tensor
    held: int


@torch.no_grad()
def label_samples(
    generator: StyleGenerator,
    teacher: Teacher,
    samples: int,
    size: int,
    teacher_resolution: int | None = None,
    seed: int = 0,
    progress: bool = True,
    budget: int | None = None,
) -> LabelledSamples:
    """Render samples of a height of `size` px and have the teacher label them; in the host's memory.

    Arguments as in `distil`.
    """
    full = generator.config.resolution
    seen = teacher_resolution or full
    budget = memory_budget(generator.device) if budget is None else budget
    render = chunk_size(
        forward_bytes(generator.feature_sizes, max(seen, size), generator.aspect), budget * RENDER_SHARE, 64
    )
    height, width = generator.size_at(size)
    held = min(HELD_OUT, max(1, samples // 8))
    count = max(held + 1, min(samples + held, int(budget * POOL_SHARE) // (4 * height * width)))
    parts: list[Tensor] = []
    marks: list[Tensor] = []
    codes = draw_codes(generator, count, step_generator(seed, 0, purpose=5), 0.5, 0.2)
    for s in tqdm(codes.split(render), desc="labeling samples", disable=not progress, leave=False):
        picture, maps = generator.synthesis(s, return_features=True, up_to=seen)
        picture = picture.clamp(-1, 1)
        probs = teacher(picture, maps)
        if probs.shape[-2] > size:
            probs = F.adaptive_avg_pool2d(probs, (height, width))
        elif probs.shape[-2] < size:
            probs = F.interpolate(probs, size=(height, width), mode="bilinear", align_corners=False)
        if size != seen:
            picture = generator.synthesis(s, up_to=size).clamp(-1, 1)
        parts.append(picture.add(1).mul(127.5).round().to(torch.uint8).cpu())
        marks.append(probs.argmax(1).to(torch.uint8).cpu())
    return LabelledSamples(codes, torch.cat(parts), torch.cat(marks), held)


@torch.no_grad()
def _check_full(generator: StyleGenerator, student: RegionSegmenter, labelled: LabelledSamples) -> float:
    """Return the mean IoU of a student of previews with its labels, on full pictures of held-out samples."""
    chosen = slice(0, min(labelled.held, CHECKED))
    size = (labelled.pictures.shape[-2], labelled.pictures.shape[-1])
    pictures = [
        F.adaptive_avg_pool2d(generator.synthesis(s).clamp(-1, 1), size) for s in labelled.codes[chosen].split(1)
    ]
    return region_iou(student, torch.cat(pictures).cpu(), labelled.truth[chosen].long())["mean"]
