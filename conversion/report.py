"""What a conversion did: the table on the screen, conversion.json, and the model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stylefusion_hf.core.files import write_text

NVIDIA_NOTICE = (
    "NVIDIA releases its StyleGAN2 code and models under the Nvidia Source Code License-NC: research and evaluation"
    " only, no commercial use. That holds for the converted weights too."
)
LICENCES = {
    "nvidia": NVIDIA_NOTICE,
    "tensorflow": NVIDIA_NOTICE,
    "rosinality": (
        "The code that this layout comes from is MIT-licensed, the weights have the licence of whoever trained them. "
        "Many such files are conversions of NVIDIA's models: " + NVIDIA_NOTICE
    ),
    "e4e": (
        "The encoders' code is MIT-licensed; the generator inside is most often NVIDIA's, converted: " + NVIDIA_NOTICE
    ),
    "mobilestylegan": (
        "For research and other non-commercial use. MobileStyleGAN's code is Apache-2.0, but its published network was"
        " distilled from NVIDIA's FFHQ StyleGAN2, whose mapping network it keeps: NVIDIA Source Code License,"
        " non-commercial. The photographs of FFHQ, too, are for non-commercial use. Whatever is trained on samples of"
        " this network carries the same note."
    ),
    "stylefusion": (
        "The fusion nets are released by the StyleFusion authors under the MIT licence; the generator has a licence of"
        " its own: " + NVIDIA_NOTICE
    ),
    "directions": "The directions have the licence of whoever made them, and are of use with one generator only.",
}


@dataclass
class Report:
    """Everything that is known of a conversion.

    Attributes:
        kind: one of `sources.KINDS`.
        sources: file -> its name, size and sha256, as "source", "generator file", "net all".
        parts: what was written, as "generator" -> config and parameter count.
        unused: names of the source's tensors that are in none of them.
        notes: what the user should know.
        check: figures of the self-check.
        comparison: lines of the comparison with a reference: what, error, tolerance.
        files: what was written, with sizes.
        weights: files of weights that were written, with their sha256.
    """

    kind: str
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    check: dict[str, Any] = field(default_factory=dict)
    comparison: list[tuple[str, float, float]] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)

    @property
    def mismatches(self) -> list[str]:
        """The lines of the comparison that are beyond their tolerance."""
        return [what for what, error, tolerance in self.comparison if not error <= tolerance]

    def table(self) -> str:
        """The report for a screen."""
        rows: list[tuple[str, str]] = [("kind", self.kind)]
        rows += [(name, f"{facts['name']}, {size(facts['bytes'])}") for name, facts in self.sources.items()]
        for name, facts in self.parts.items():
            rows += [(name if i == 0 else "", line) for i, line in enumerate(facts["lines"])]
        rows += [("unused keys" if i == 0 else "", line) for i, line in enumerate(grouped(self.unused))]
        if self.check:
            rows.append(("self-check", ", ".join(f"{k} {v}" for k, v in self.check.items())))
        for i, (what, error, tolerance) in enumerate(self.comparison):
            verdict = "ok" if error <= tolerance else "DIFFERS"
            rows.append(("reference" if i == 0 else "", f"{what}: {error:.2g} (up to {tolerance:g}) {verdict}"))
        rows += [("note" if i == 0 else "", line) for i, line in enumerate(self.notes)]
        files = [f"{name}, {size(n)}" for name, n in self.files.items()]
        rows += [("written" if i == 0 else "", line) for i, line in enumerate(files)]
        rows.append(("licence", LICENCES[self.kind]))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"  {printable(name):<{width}}  {printable(text)}" for name, text in rows)

    def save(self, folder: Path) -> None:
        """conversion.json: the whole report, with every unused name."""
        text = json.dumps(asdict(self), indent=2, default=str)
        write_text(folder / "conversion.json", text + "\n")


def printable(text: str) -> str:
    """One line that any terminal and file can hold: names in checkpoints and of files can be anything."""
    return "".join(c if c.isprintable() else "?" for c in text)


def size(n: int) -> str:
    """1234567 -> "1.2 MB"."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= factor:
            return f"{n / factor:.1f} {unit}"
    return f"{n} bytes"


def grouped(names: Sequence[str], most: int = 12) -> list[str]:
    """Names, those of a common origin in one line: "encoder.* (523 tensors)"."""
    if not names:
        return ["none"]
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.replace("/", ".").split(".")[0], []).append(name)
    lines = [
        ", ".join(members)
        if len(members) <= 3
        else f"{head}...: {len(members)} tensors, {members[0]} to {members[-1]}"
        for head, members in groups.items()
    ]
    rest = len(lines) - most
    return [*lines[:most], f"and {rest} more; all are in conversion.json"] if rest > 0 else lines


def model_card(report: Report, title: str) -> str:
    """README.md of the converted folder: where it comes from, how it is loaded, under which licence."""
    noncommercial = report.kind != "directions"
    architecture = "mobilestylegan" if report.kind == "mobilestylegan" else "stylegan2"
    front = ["---", "library_name: diffusers", f"tags: [{architecture}, stylefusion, unconditional-image-generation]"]
    if noncommercial:
        front += ["license: other", "license_name: see-the-licence-section"]
    lines = [*front, "---", "", f"# {title}", "", "Converted by `stylefusion convert`; nothing was uploaded.", ""]
    lines += ["| | |", "|---|---|", f"| kind | {report.kind} |"]
    for name, facts in report.sources.items():
        lines.append(f"| {name} | `{facts['name']}`, {facts['bytes']:,} bytes, sha256 `{facts['sha256']}` |")
    for name, facts in report.parts.items():
        lines.append(f"| {name} | {'; '.join(facts['lines'])} |")
    lines += [f"| {name} | sha256 `{digest}` |" for name, digest in report.weights.items()]
    if report.check:
        lines.append("| self-check | " + ", ".join(f"{k} {v}" for k, v in report.check.items()) + " |")
    lines += ["", "## Use", "", "```python", *_usage(report), "```", ""]
    lines += ["## Licence", "", LICENCES[report.kind], ""]
    if report.notes:
        lines += ["## Notes", "", *(f"- {note}" for note in report.notes), ""]
    lines += ["Every tensor of the source that was not used is listed in `conversion.json`.", ""]
    return "\n".join(lines)


def _usage(report: Report) -> list[str]:
    if report.kind == "directions":
        return [
            "from stylefusion_hf.core.edits import load_directions",
            "",
            'directions = load_directions("directions.safetensors")  # name -> Direction',
            "# pipe(base=1, edits={region: directions[name](1.5)}): with the generator that they were made for",
        ]
    generator = "MobileStyleGANGenerator" if report.kind == "mobilestylegan" else "StyleGAN2Generator"
    return [
        f"from stylefusion_hf import StyleFusionPipeline, {generator}",
        "",
        'pipe = StyleFusionPipeline.from_pretrained("this folder")',
        "pipe(base=1).images[0]",
        f'generator = {generator}.from_pretrained("this folder", subfolder="generator")',
    ]
