"""The portrait judge's training: the renderer's labels, the degraded pictures, the loss and the held-out figures."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.data.avatar_choices import CLOTHES, EYEBROWS, EYES, FACIAL_HAIR, GLASSES, HAIR, HATS, MOUTHS
from stylefusion_hf.data.avatar_parts import load_part
from stylefusion_hf.data.avatar_render import CENTER_X, CENTER_Y, FRAME
from stylefusion_hf.data.avatar_spec import NONE, REGION_FIELDS, AvatarSpec
from stylefusion_hf.data.avatars import avatar_spec
from stylefusion_hf.evaluation.judges import PortraitJudge, portrait_channels
from stylefusion_hf.imaging.alignment import warp
from stylefusion_hf.imaging.degradation import degrade
from stylefusion_hf.training.datasets import ArrayDataset

# The ends of the head on the renderer's 264 x 280 canvas, before posing.
CANVAS_POINTS = {"crown": (132.0, 51.0), "chin": (132.0, 171.0)}
CLASSES: dict[str, tuple[str, ...]] = {
    "top": (*HAIR, *HATS),
    "clothes": tuple(CLOTHES),
    "mouth": tuple(MOUTHS),
    "facial_hair": (NONE, *FACIAL_HAIR),
    "eyes": tuple(EYES),
    "eyebrows": tuple(EYEBROWS),
    "glasses": (NONE, *GLASSES),
}
# Clothes whose color is that of a shirt under a jacket: less than an eighth of the visible clothes.
HIDDEN_FABRIC = ("blazer_shirt", "blazer_sweater", "bond_suit", "shirt_wick")
COLORS = {"skin_colour": "skin", "clothes_colour": "clothes", "top_colour": "hair", "background_colour": "background"}


# --- Labels ----------------------------------------------------------------------------------------------------------


def new_judge(resolution: int) -> PortraitJudge:
    """Return an untrained judge of avatars, with a class for every part that the renderer draws."""
    region_of = {field: region for region, fields in REGION_FIELDS.items() for field in fields}
    attributes = {name: {"region": region_of[name], "classes": list(classes)} for name, classes in CLASSES.items()}
    channels = portrait_channels(resolution)
    return PortraitJudge("avatars", list(CANVAS_POINTS), attributes, COLORS, resolution, channels)


def avatar_points(spec: AvatarSpec) -> list[list[float]]:
    """Return (x, y) of crown and chin in the avatar's picture, in `affine_grid`'s units.

    The renderer's pose moves a point p of the canvas to middle + shift FRAME + scale R(rotation) (p - center), in the
    frame's units.
    """
    angle, points = math.radians(spec.rotation), []
    for x, y in CANVAS_POINTS.values():
        dx, dy = spec.scale * (x - CENTER_X), spec.scale * (y - CENTER_Y)
        across = dx * math.cos(angle) - dy * math.sin(angle)
        down = dx * math.sin(angle) + dy * math.cos(angle)
        points.append([2 * (across / FRAME + spec.shift_x), 2 * (down / FRAME + spec.shift_y)])
    return points


def avatar_colors(spec: AvatarSpec) -> tuple[list[list[float]], list[bool]]:
    """Return the RGB in [-1, 1] of `COLORS`, and which of them are visible: not every part has its spec's color."""
    field = "hat_colour" if spec.attributes["has_hat"] else "hair_colour"
    holes = ("{hair}",) if field == "hair_colour" else ("{hat}", "{fabric}")
    shows = any(hole in load_part("top", spec.top).image for hole in holes)
    ends = [_rgb(color) for color in (spec.background_from, spec.background_to)]
    background = [sum(levels) / 2 for levels in zip(*ends, strict=True)]
    colors = [_rgb(spec.skin_colour), _rgb(spec.clothes_colour), _rgb(getattr(spec, field)), background]
    return colors, [True, spec.clothes not in HIDDEN_FABRIC, shows, True]


def _rgb(color: str) -> list[float]:
    return [level / 127.5 - 1 for level in bytes.fromhex(color[1:])]


class PortraitDataset(ArrayDataset):
    """Avatars with the renderer's labels.

    Items: {"image": (3, H, W) in [-1, 1], "points": (P, 2), "classes": (A,) in the order of `CLASSES`, "colors":
    (C, 3) in the order of `COLORS`, "shown": (C,), which colors are visible}.
    """

    def __init__(self, images: np.ndarray, specs: Sequence[AvatarSpec]):
        super().__init__(images)
        painted = [avatar_colors(spec) for spec in specs]
        order = {name: {part: i for i, part in enumerate(classes)} for name, classes in CLASSES.items()}
        self.answers = {
            "points": torch.tensor([avatar_points(spec) for spec in specs]),
            "classes": torch.tensor([[order[name][getattr(spec, name)] for name in CLASSES] for spec in specs]),
            "colors": torch.tensor([colors for colors, _ in painted]),
            "shown": torch.tensor([shown for _, shown in painted]),
        }

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {**super().__getitem__(i), **{name: answers[i] for name, answers in self.answers.items()}}


def avatar_dataset(images: np.ndarray, first: int, seed: int) -> PortraitDataset:
    """Return the labeled data set of images (N, H, W, 3) of the avatars first, first + 1, ..."""
    return PortraitDataset(images, [avatar_spec(first + i, seed) for i in range(len(images))])


# --- Degradation -----------------------------------------------------------------------------------------------------


def resample(x: Tensor, points: Tensor, draw: torch.Generator, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """Rotate, scale and shift images (B, 3, H, W) and their points (B, P, 2) slightly, which also softens the images.

    Never mirrors, since side partings and winks would change sides. A quarter stays unchanged and sharp; half pass
    through a coarser grid.
    """
    b, _, h, w = x.shape

    def spread(size: float, *shape: int) -> Tensor:
        return ((torch.rand(b, *shape, generator=draw, dtype=torch.float32) * 2 - 1) * size * strength).to(points)

    angle, scale, shift = spread(math.radians(8)), spread(0.07).exp(), spread(0.08, 2)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    # `warp` takes the map from target to source; points move the other way.
    turn = torch.stack([torch.stack([cos, sin], dim=-1), torch.stack([-sin, cos], dim=-1)], dim=1)
    back = torch.linalg.inv(turn)
    theta = torch.cat([turn, -(turn @ shift[..., None])], dim=2)
    moved = warp(x, theta)
    moved_points = torch.einsum("bij,bpj->bpi", back, points) + shift[:, None]
    size = int(torch.randint(h // 2, h, (1,), generator=draw))
    coarse = F.interpolate(moved, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    coarse = F.interpolate(coarse, size=(h, w), mode="bicubic", align_corners=False)
    kind = torch.randint(4, (b,), generator=draw).to(x.device)
    images = torch.where((kind < 2)[:, None, None, None], coarse, moved)
    same = kind == 3
    return (
        torch.where(same[:, None, None, None], x, images),
        torch.where(same[:, None, None], points, moved_points),
    )


# --- Loss ------------------------------------------------------------------------------------------------------------


def judge_loss(
    judge, batch: dict[str, Tensor], draw: torch.Generator, strength: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of a batch of a `PortraitDataset`, and its parts to log. `strength`: of degradation."""
    x, points = batch["image"], batch["points"]
    if strength:
        x, points = resample(x, points, draw, strength)
    seen = degrade(x, draw, strength) if strength else x
    # Colors are read from the clean picture, since degradation changes them.
    found, logits, colors, _ = judge(seen, x, return_dict=False)
    place = F.smooth_l1_loss(found.float(), points, beta=0.02)
    kinds = [F.cross_entropy(logits[name].float(), batch["classes"][:, i]) for i, name in enumerate(CLASSES)]
    kind = torch.stack(kinds).mean()
    wrong = (torch.stack([colors[name] for name in COLORS], dim=1).float() - batch["colors"]).abs().mean(dim=2)
    color = (wrong * batch["shown"]).sum() / batch["shown"].sum().clamp_min(1)
    return 20 * place + 2 * kind + color, {"points": place, "kinds": kind, "colours": color}


# --- Held-out figures ------------------------------------------------------------------------------------------------


@torch.no_grad()
def judge_figures(judge: PortraitJudge, data: PortraitDataset, draw: torch.Generator | None = None) -> dict[str, Any]:
    """Measure the judge on avatars; with `draw` they are degraded (but colors are read from the clean pictures).

    Returns {"points, mean distance in picture widths", "rotation, median error in degrees" and "... mean ...",
    "accuracy": {attribute: share}, "colors, mean error of 255": {color: levels}}.
    """
    device, found, right, wrong = judge.device, [], [], []
    for start in range(0, len(data), 64):
        items = [data[i] for i in range(start, min(start + 64, len(data)))]
        batch = {name: torch.stack([item[name] for item in items]).to(device) for name in items[0]}
        x = batch["image"]
        out = judge.judge(degrade(x, draw) if draw is not None else x, painted=x)
        found.append(out.points.cpu())
        guesses = torch.stack([out.attributes[name].argmax(1) for name in CLASSES], dim=1)
        right.append((guesses == batch["classes"]).float().cpu())
        off = (torch.stack([out.colours[name] for name in COLORS], dim=1) - batch["colors"]).abs().mean(dim=2)
        wrong.append(off.masked_fill(~batch["shown"], math.nan).cpu() * 127.5)
    points, truth = torch.cat(found), data.answers["points"]
    turns = rotation_error(points, truth)
    figures: dict[str, Any] = {
        "points, mean distance in picture widths": float((points - truth).norm(dim=2).mean() / 2),
        "rotation, median error in degrees": float(turns.median()),
        "rotation, mean error in degrees": float(turns.mean()),
        "accuracy": dict(zip(CLASSES, torch.cat(right).mean(dim=0).tolist(), strict=True)),
        "colors, mean error of 255": dict(zip(COLORS, torch.cat(wrong).nanmean(dim=0).tolist(), strict=True)),
    }
    return figures


def rotation_error(points: Tensor, truth: Tensor) -> Tensor:
    """Return the angle (B,) in degrees between the lines from the first to the second of predicted and true points.

    points, truth: (B, P, 2).
    """
    (ax, ay), (bx, by) = ((p[:, 1] - p[:, 0]).unbind(dim=1) for p in (points, truth))
    return torch.atan2(ax * by - ay * bx, ax * bx + ay * by).abs().rad2deg()
