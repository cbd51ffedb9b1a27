"""The main figures in half a minute, for training logs: on validation pairs, without intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from stylefusion_hf.evaluation.evaluate import build_subject
from stylefusion_hf.evaluation.figures import figures
from stylefusion_hf.evaluation.fusion_swaps import StyleFusionSwap
from stylefusion_hf.evaluation.global_control import ALL_CODES, global_rows
from stylefusion_hf.evaluation.judges import Judges
from stylefusion_hf.evaluation.measuring import Job, Subject, measure_jobs
from stylefusion_hf.evaluation.methods import Method
from stylefusion_hf.evaluation.pairs import VALIDATION_SEED


def brief_figures(
    subject: Subject, methods: Mapping[str, Method], jobs: Sequence[Job], pairs: int, specific: bool = False
) -> dict[Job, dict[str, float]]:
    """Return the figures of every job over all validation pairs; `specific` adds S, which takes twice as long."""
    ones = torch.ones(1, pairs, dtype=torch.float64)
    found = {}
    for job, columns in measure_jobs(subject, methods, jobs, pairs, VALIDATION_SEED, specific=specific).items():
        row = figures(columns, ones, subject.heads[job[1]])
        found[job] = {name: float(draws[0]) for name, draws in row.items()}
    return found


def brief(pipe, judges: Judges, pairs: int) -> dict[str, float]:
    """Return {"S hair": specific transfer, "O hair": outside change, "T hair": transfer, ..., "G": pose error of all
    common codes at full strength, "kept": share of the looks that stays}.

    Raises:
        ValueError: the judges do not fit the pipeline (see `build_subject`).
    """
    subject: Subject = build_subject(pipe, judges)
    jobs = [("stylefusion", leaf, 1.0) for leaf in subject.leaves]
    found: dict[str, float] = {}
    measured = brief_figures(subject, {"stylefusion": StyleFusionSwap(pipe)}, jobs, pairs, specific=True)
    for (_, leaf, _), row in measured.items():
        found |= {f"S {leaf}": row["specific"], f"O {leaf}": row["outside"], f"T {leaf}": row["transfer"]}
    common = global_rows(subject, pairs, VALIDATION_SEED, (ALL_CODES,))[ALL_CODES]
    return found | {"G": common["pose"].value, "kept": common["looks kept"].value}
