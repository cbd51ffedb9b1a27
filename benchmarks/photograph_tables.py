"""How near a model comes to photographs, what its dials do to them, and how faces differ from other pictures.

The tables of `python -m benchmarks.photographs --table stages|likeness|leak`.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stylefusion_hf import Code, StyleFusionPhotoPipeline
from stylefusion_hf.core.code_files import load_codes, save_codes
from stylefusion_hf.evaluation.evaluate import build_subject
from stylefusion_hf.evaluation.fusion_swaps import StyleFusionSwap
from stylefusion_hf.evaluation.judges import load_judges
from stylefusion_hf.evaluation.pairs import TEST_SEED, Pairs, render, segment, style_codes
from stylefusion_hf.evaluation.report import table
from stylefusion_hf.evaluation.statistics import Estimate, ratio, resamples
from stylefusion_hf.imaging.images import to_tensor
from stylefusion_hf.imaging.photographs import read_photograph
from stylefusion_hf.pipelines.photo_inputs import align_face

Features = Callable[[Tensor], Tensor]  # pictures (B, 3, H, W) in [-1, 1] -> (B, D)


def cpu_seconds() -> float:
    """Return this process's CPU time, of all its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Cache:
    """Rows by name in a JSON file, so that an interrupted measurement goes on. Without a path, rows are kept here."""

    def __init__(self, path: str | None):
        self.path = Path(path) if path else None
        known = self.path is not None and self.path.exists()
        self.rows: dict[str, Any] = json.loads(self.path.read_text()) if known and self.path else {}

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return the row of that name, measured if it is new."""
        if name not in self.rows:
            self.rows[name] = measure()
            print(f"{name}: {self.rows[name]}", flush=True)
            if self.path is not None:
                self.path.write_text(json.dumps(self.rows, indent=1))
        return self.rows[name]


def mean(values: Sequence[float]) -> Estimate:
    """Return the mean with its 95 % interval."""
    x = torch.tensor(values, dtype=torch.float)
    return Estimate.of(ratio(resamples(len(x)), x, torch.ones(len(x))), len(x))


# --- Stages of the search --------------------------------------------------------------------------------------------


def stage_settings(starts: Sequence[str], steps: Sequence[int], tuning: int) -> dict[str, dict[str, Any]]:
    """Return {name: arguments of `StyleFusionPhotoPipeline.invert`} of the table's rows.

    Args:
        starts: what the search starts from, "mean" or "encoder".
        steps: of the search, a row for each number.
        tuning: steps of tuning, after the last of these.
    """
    stages: dict[str, dict[str, Any]] = {}
    for start in starts:
        name = {"mean": "mean face"}.get(start, start)
        stages[name] = {"start": start, "num_inference_steps": 0}
        stages |= {f"{name} + {n} steps": {"start": start, "num_inference_steps": n} for n in steps}
    if tuning:
        name = list(stages)[-1]
        stages[f"{name} + {tuning} of tuning"] = stages[name] | {"num_tuning_steps": tuning}
    return stages


def person(file: str) -> str:
    """Return whose photograph a file is, by the part of its name before a hyphen: `032-neutral.jpg`."""
    return Path(file).stem.split("-")[0]


def likeness(face: Tensor, made: Tensor, others: Tensor) -> float:
    """Return 1 minus the distance of features (D,) of a reconstruction and its face, as a share of the mean distance
    of the reconstruction and other people's faces (N, D): 1 for the same picture, 0 for anybody's."""
    return float(1 - (made - face).norm() / (made - others).norm(dim=1).mean())


def agreement(segmenter: Any, face: Tensor, made: Tensor) -> float:
    """Return the share of pixels in which a segmenter names the same region in two pictures (1, 3, H, W)."""
    a, b = (segmenter.segment(x).argmax(dim=1) for x in (face, made))
    return float((a == b).float().mean())


@torch.no_grad()
def measure_stages(
    pipe: StyleFusionPhotoPipeline,
    files: Sequence[str],
    landmarks: Sequence[Any],
    stages: dict[str, dict[str, Any]],
    features: Features | None,
    cache: Cache,
    segmenter: Any = None,
    codes: str | None = None,
    tuned: int | None = None,
) -> str:
    """Return the table of stages, over all photographs.

    Args:
        features: for the likeness, and for whether a reconstruction is nearer to its photograph than to those of all
            other people; None leaves both out.
        segmenter: judges the regions' agreement; None leaves it out.
        codes: a folder that keeps the codes of the longest search without tuning, for `inverted_codes`.
        tuned: how many of the photographs are tuned, which takes longest; None for all.
    """
    faces: dict[str, Any] = {}

    def face_of(file: str, points: Any) -> Tensor:
        if file not in faces:
            side = pipe.generator.config.resolution
            faces[file] = to_tensor([align_face(read_photograph(file).rgb(), points, side, file)], side)
        return faces[file]

    described: dict[str, Tensor] = {}
    if features is not None:
        described = {f: features(face_of(f, p))[0] for f, p in zip(files, landmarks, strict=True)}

    longest = [settings for settings in stages.values() if "num_tuning_steps" not in settings][-1]

    def measure(file: str, points: Any, settings: dict[str, Any]) -> dict[str, float]:
        face = face_of(file, points)
        before = cpu_seconds()
        out = pipe.invert(file, landmarks=points, **settings)
        row = {"seconds": cpu_seconds() - before, "MSE": float(out.mse[0]), "explained": float(out.explained[0])}
        if codes is not None and settings is longest:
            save_codes(kept_code(codes, file), {"face": out.codes})
        made = to_tensor(out.reconstructions, face.shape[-1])
        if features is not None:
            others = torch.stack([x for name, x in described.items() if person(name) != person(file)])
            seen = features(made)[0]
            row["likeness"] = likeness(described[file], seen, others)
            row["recognized"] = float((seen - described[file]).norm() < (seen - others).norm(dim=1).min())
        if segmenter is not None:
            row["regions"] = agreement(segmenter, face, made)
        return row

    measured: dict[str, list[Any]] = {stage: [] for stage in stages}
    for number, (file, points) in enumerate(zip(files, landmarks, strict=True)):
        for stage, settings in stages.items():
            if tuned is not None and number >= tuned and "num_tuning_steps" in settings:
                continue
            name = f"{stage}, {Path(file).stem}"
            measured[stage].append(cache.get(name, partial(measure, file, points, settings)))
    rows: dict[str, dict[str, Any]] = {}
    for stage, found in measured.items():
        rows[stage] = {"photographs": f"{len(found)}"}
        rows[stage] |= {name: mean([row[name] for row in found]) for name in found[0] if name != "seconds"}
        rows[stage]["CPU seconds"] = f"{np.mean([row['seconds'] for row in found]):.1f}"
    return table("start and search", rows)


# --- Pictures without a face -----------------------------------------------------------------------------------------


def draw_others() -> dict[str, Image.Image]:
    """Return drawn pictures without a face: noise, a gradient, stripes, a checkerboard, one color, discs."""
    random, side = np.random.default_rng(0), 256
    y, x = np.mgrid[0:side, 0:side] / side
    planes = {
        "noise": random.uniform(0, 1, (side, side, 3)),
        "gradient": np.stack([x, y, 1 - x], axis=-1),
        "stripes": np.repeat((np.sin(40 * x) > 0)[..., None], 3, axis=-1) * np.array([0.9, 0.5, 0.2]),
        "checkerboard": np.repeat(((8 * x).astype(int) + (8 * y).astype(int))[..., None] % 2, 3, axis=-1) * 1.0,
        "one color": np.full((side, side, 3), 0.5) + random.normal(0, 0.02, (side, side, 3)),
        "discs": np.stack([np.hypot(x - a, y - b) < 0.2 for a, b in ((0.3, 0.3), (0.6, 0.5), (0.5, 0.8))], -1) * 1.0,
    }
    return {name: Image.fromarray((255 * plane.clip(0, 1)).astype(np.uint8)) for name, plane in planes.items()}


@torch.no_grad()
def measure_likeness(
    pipe: StyleFusionPhotoPipeline,
    faces: dict[str, Any],
    others: dict[str, Any],
    steps: int,
    cache: Cache,
    codes: str | None = None,
) -> str:
    """Return what `explained` is for photographs of faces and for pictures that are none, and what separates them.

    Args:
        faces: {name: (photograph, landmarks or None)}.
        others: {name: picture}, squares that stand for aligned faces.
        codes: a folder that may keep codes of the faces from a search of as many steps.
    """
    # Landmarks whose square is the whole picture.
    full = np.array([[0.375, 0.4765], [0.625, 0.4765], [0.5, 0.6], [0.41, 0.7115], [0.59, 0.7115]])

    def measure(picture: Any, points: Any) -> float:
        search = search_settings(codes, picture, steps) if isinstance(picture, str) else {"num_inference_steps": steps}
        return float(pipe.invert(picture, landmarks=points, **search).explained[0])

    def square(picture: Image.Image) -> tuple[Image.Image, np.ndarray]:
        return picture, full * picture.width

    found = {name: cache.get(f"face {name}", partial(measure, *p)) for name, p in faces.items()}
    none = {n: cache.get(f"other {n}", partial(measure, *square(p))) for n, p in others.items()}
    low, high = min(found.values()), max(none.values())
    lines = [f"| {name} | {value:.2f} |" for name, value in sorted(none.items(), key=lambda item: -item[1])]
    lines += [f"| faces, lowest to highest of {len(found)} | {low:.2f} to {max(found.values()):.2f} |"]
    lines += [f"| faces, mean | {np.mean(list(found.values())):.2f} |"]
    middle = f"between them lies {(low + high) / 2:.2f}" if low > high else "they overlap"
    return "\n".join(["| picture | explained |", "|---|---|", *lines, "", f"Lowest face {low:.2f}, highest other"
                      f" {high:.2f}: {middle}."])  # fmt: skip


# --- Dials on photographs beside those on samples --------------------------------------------------------------------


@torch.no_grad()
def measure_leak(
    pipe: Any,
    codes: dict[str, Tensor],
    regions: Sequence[str],
    judges: str | None,
    cache: Cache,
    sources: int = 1,
) -> str:
    """Return the leak and outside change of dials turned from inverted photographs, and from samples.

    Args:
        pipe: a `StyleFusionPipeline`.
        codes: {name: style codes (1, S)} of inverted photographs.
        regions: those that are swapped with the same sources' in both.
        judges: the folder of the judges; None for those of the checkout.
        sources: number of samples that each photograph's dials turn to. As many other samples are turned to them,
            too.
    """
    subject = build_subject(pipe, load_judges(judges), batch=1)
    swap, generator = StyleFusionSwap(pipe), pipe.generator

    def measure(base: Tensor, number: int) -> dict[str, list[float]]:
        source = style_codes(generator, [TEST_SEED + 2 * number + 1])
        pictures = [render(pipe, s) for s in (base, source)]
        pairs = Pairs(base, source, *pictures, *(segment(pipe, x) for x in pictures))
        judged, row = subject.compare(pairs), {}
        for region in regions:
            after = subject.ruler.look(swap.swap(pairs, region, 1.0))
            columns = subject.ruler.measure(judged, region, after, thorough=False)
            row[region] = [float(columns[name]) for name in ("outside", "all", "outside_of", "counts")]
        return row

    rows: dict[str, dict[str, Any]] = {}
    found: dict[str, list[Any]] = {"photographs": [], "samples": []}
    for place, (name, style) in enumerate(codes.items()):
        for turned in found.values():
            turned.append([])  # this photograph's, or its samples', of all sources
        for number in range(place * sources, (place + 1) * sources):
            sample = style_codes(generator, [TEST_SEED + 2 * number])
            for kind, base in (("photographs", style), ("samples", sample)):
                label = f"leak, {kind}, {name}, source {number}"
                found[kind][-1].append(cache.get(label, partial(measure, base, number)))
    for region in regions:
        row: dict[str, Any] = {}
        for kind, each in found.items():
            columns = torch.tensor([[x[region] for x in own] for own in each])  # (photographs, sources, 4)
            outside, everything, swapped = (columns[..., :3] * columns[..., 3:]).sum(1).t()
            resampled = resamples(len(each))  # whole photographs, with all their sources
            row[f"leak, {kind}"] = Estimate.of(ratio(resampled, outside, everything), len(each))
            row[f"outside, {kind}"] = Estimate.of(ratio(resampled, outside, swapped), len(each))
        rows[region] = row
    return table("region", rows)


def kept_code(folder: str, file: str) -> Path:
    """Return where the code of a photograph is kept, in a folder that is made."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder, f"{Path(file).stem}.safetensors")


def search_settings(folder: str | None, file: str, steps: int) -> dict[str, Any]:
    """Return the arguments of a search: the code of a photograph that is kept in a folder, or as many steps."""
    if folder and (kept := kept_code(folder, file)).exists():
        return {"start": load_codes(kept)["face"], "num_inference_steps": 0}
    return {"num_inference_steps": steps}


def inverted_codes(
    pipe: StyleFusionPhotoPipeline, files: Sequence[str], landmarks: Sequence[Any], settings: dict[str, Any], path: str
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, style codes (1, S)) of photographs, searched once: codes are kept in the folder `path`."""
    for file, points in zip(files, landmarks, strict=True):
        kept = kept_code(path, file)
        if not kept.exists():
            save_codes(kept, {"face": pipe.invert(file, landmarks=points, **settings).codes})
        code: Code = load_codes(kept)["face"]
        with torch.no_grad():
            yield Path(file).stem, code.tensor if code.space == "s" else pipe.generator.to_style(code.tensor)
