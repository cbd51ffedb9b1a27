"""The ruler's figures in half a minute, for a training in progress: on validation pairs, without intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from stylefusion_hf.evaluation.baselines import StyleFusionSwap
from stylefusion_hf.evaluation.evaluate import build_subject
from stylefusion_hf.evaluation.judges import Judges
from stylefusion_hf.evaluation.measuring import Job, Subject, measure_jobs
from stylefusion_hf.evaluation.methods import Method
from stylefusion_hf.evaluation.pairs import VALIDATION_SEED
from stylefusion_hf.evaluation.ruler import figures
from stylefusion_hf.evaluation.sections import global_rows


def locality_and_transfer(
    subject: Subject, methods: Mapping[str, Method], jobs: Sequence[Job], pairs: int
) -> dict[Job, tuple[float, float]]:
    """O and T of every job, each over all validation pairs."""
    ones = torch.ones(1, pairs, dtype=torch.float64)
    found = {}
    for job, columns in measure_jobs(subject, methods, jobs, pairs, VALIDATION_SEED).items():
        row = figures(columns, ones, subject.heads[job[1]])
        found[job] = float(row["outside"][0]), float(row["transfer"][0])
    return found


def brief(pipe, judges: Judges, pairs: int) -> dict[str, float]:
    """{"O hair": outside change, "T hair": transfer, ..., "G": pose error under all common codes, "kept": looks then}.

    Raises:
        ValueError: the judges do not fit the pipeline (see `build_subject`).
    """
    subject: Subject = build_subject(pipe, judges)
    jobs = [("stylefusion", leaf, 1.0) for leaf in subject.leaves]
    found: dict[str, float] = {}
    for (_, leaf, _), (o, t) in locality_and_transfer(
        subject, {"stylefusion": StyleFusionSwap(pipe)}, jobs, pairs
    ).items():
        found |= {f"O {leaf}": o, f"T {leaf}": t}
    common = global_rows(subject, pairs, VALIDATION_SEED)["all common codes"]
    return found | {"G": common["pose"].value, "kept": common["looks kept"].value}
