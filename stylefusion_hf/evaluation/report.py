"""Figures as a markdown table and as JSON."""

import json
from collections.abc import Mapping
from pathlib import Path


def report(title: str, rows: Mapping[str, Mapping[str, float]], json_file: str | None = None) -> None:
    """Print rows {name: {column: figure}} as a table headed `title`; also write them to `json_file`, if given."""
    columns = list(next(iter(rows.values())))
    print(f"| {title} | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for name, row in rows.items():
        cells = (f"{row[c]:.3f}" if isinstance(row[c], float) else str(row[c]) for c in columns)
        print(f"| {name} | {' | '.join(cells)} |")
    if json_file:
        Path(json_file).write_text(json.dumps(rows, indent=2) + "\n")
        print(f"wrote {json_file}")
