"""The log of a training: averaged scalars and single figures, for `log.jsonl`, a tracker and the progress bar."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from stylefusion_hf.training.checkpoints import describe_last_good, explain_write_errors


class Log:
    """Averages scalars between reports, and writes them."""

    def __init__(self, accelerator: Accelerator, args: argparse.Namespace):
        self.accelerator, self.path = accelerator, Path(args.output_dir) / "log.jsonl"
        self.sums: dict[str, tuple[Any, int]] = {}

    def add(self, **values: torch.Tensor | float) -> None:
        """Add scalars to the averages of the next report."""
        for name, value in values.items():
            value = value.detach().float() if isinstance(value, torch.Tensor) else float(value)
            total, n = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value, n + 1)

    def note(self, step: int, values: dict[str, float]) -> None:
        """Write figures that are not averaged as an entry of their own, without undefined ones. Main process only."""
        values = {k: v for k, v in values.items() if np.isfinite(v)}
        if values:
            self.accelerator.log(values, step=step)
            self._append(step, {k: round(v, 6) for k, v in values.items()})

    def _append(self, step: int, values: dict[str, float | None]) -> None:
        with explain_write_errors(self.path), open(self.path, "a", encoding="utf-8") as f:
            f.write(json.dumps({"step": step, **values}) + "\n")

    def report(self, step: int, bar: Any = None) -> dict[str, float]:
        """Write and return this process's means since the last report; every process must call it.

        Raises:
            FloatingPointError: a mean of any process is not finite; says where the last good checkpoint is.
        """
        means = {name: float(total) / n for name, (total, n) in self.sums.items()}
        self.sums = {}
        self.accelerator.log(means, step=step)
        if self.accelerator.is_main_process:
            self._append(step, {k: round(v, 6) if np.isfinite(v) else None for k, v in means.items()})
            if bar is not None:
                bar.set_postfix({k: f"{v:.3g}" for k, v in list(means.items())[:4]})
        bad = ", ".join(k for k, v in means.items() if not np.isfinite(v))
        bad = next((names for names in gather_object([bad]) if names), "")
        if bad:
            raise FloatingPointError(
                f"{bad} is not finite at step {step}; {describe_last_good(self.path.parent)}, and lower"
                " --learning_rate"
            )
        return means
