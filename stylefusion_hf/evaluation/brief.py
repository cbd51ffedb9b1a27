"""The ruler's figures in half a minute, for a training in progress: on validation pairs, without intervals."""

from __future__ import annotations

import torch

from stylefusion_hf.evaluation.baselines import StyleFusionSwap
from stylefusion_hf.evaluation.evaluate import build_subject
from stylefusion_hf.evaluation.judges import Judges
from stylefusion_hf.evaluation.measuring import Subject, measure_jobs
from stylefusion_hf.evaluation.pairs import VALIDATION_SEED
from stylefusion_hf.evaluation.ruler import figures
from stylefusion_hf.evaluation.sections import global_rows


def brief(pipe, judges: Judges, pairs: int) -> dict[str, float]:
    """{"O hair": outside change, "T hair": transfer, ..., "G": pose error under all common codes, "kept": looks then}.

    Raises:
        ValueError: the judges do not fit the pipeline (see `build_subject`).
    """
    subject: Subject = build_subject(pipe, judges)
    jobs = [("stylefusion", leaf, 1.0) for leaf in subject.leaves]
    measured = measure_jobs(subject, {"stylefusion": StyleFusionSwap(pipe)}, jobs, pairs, VALIDATION_SEED)
    ones = torch.ones(1, pairs, dtype=torch.float64)
    found: dict[str, float] = {}
    for (_, leaf, _), columns in measured.items():
        row = figures(columns, ones, subject.heads[leaf])
        found |= {f"O {leaf}": float(row["outside"][0]), f"T {leaf}": float(row["transfer"][0])}
    common = global_rows(subject, pairs, VALIDATION_SEED)["all common codes"]
    return found | {"G": common["pose"].value, "kept": common["looks kept"].value}
