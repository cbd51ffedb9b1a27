"""The report of a conversion: the printed table, conversion.json, and the model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from stylefusion_hf.conversion.credits import CREDITS, LIMITS
from stylefusion_hf.core.files import write_text

NVIDIA_NOTICE = (
    "NVIDIA releases its StyleGAN code and models under the Nvidia Source Code License-NC: research and evaluation"
    " only, no commercial use. This also applies to the converted weights."
)
LICENSES = {
    "nvidia": NVIDIA_NOTICE,
    "tensorflow": NVIDIA_NOTICE,
    "rosinality": (
        "The code that defines this layout is MIT-licensed; the weights have the license chosen by whoever trained "
        "them. Many such files are conversions of NVIDIA's models: " + NVIDIA_NOTICE
    ),
    "e4e": (
        "The encoders' code is MIT-licensed; the generator inside is usually converted from NVIDIA's: " + NVIDIA_NOTICE
    ),
    "mobilestylegan": (
        "For research and other non-commercial use. MobileStyleGAN's code is Apache-2.0, but its published network was"
        " distilled from NVIDIA's FFHQ StyleGAN2, whose mapping network it keeps: NVIDIA Source Code License,"
        " non-commercial. The photographs of FFHQ are also for non-commercial use. The same restrictions apply to"
        " models trained on samples of this network."
    ),
    "stylefusion": (
        "The fusion nets are released by the StyleFusion authors under the MIT license; the generator has its own"
        " license: " + NVIDIA_NOTICE
    ),
    "directions": "The directions have the license chosen by whoever made them, and work with one generator only.",
}


@dataclass
class Report:
    """The facts about a conversion.

    Attributes:
        kind: one of `sources.KINDS`.
        sources: role, such as "source", "generator file" or "net all" -> file name, size and sha256.
        parts: component that was written, such as "generator" -> config and description.
        unused: names of the source's tensors that are in none of the components.
        notes: messages for the user.
        credits, limits: what the model card says about nets that were added, beside what it says about the generator.
        check: figures of the self-check.
        comparison: comparison with a reference: (quantity, error, tolerance).
        generator: the class of the generator.
        files: written files -> size in bytes.
        weights: written weight files -> sha256.
    """

    kind: str
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    credits: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    check: dict[str, Any] = field(default_factory=dict)
    comparison: list[tuple[str, float, float]] = field(default_factory=list)
    generator: str = "StyleGAN2Generator"
    files: dict[str, int] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)

    @property
    def mismatches(self) -> list[str]:
        """The compared quantities whose error exceeds the tolerance."""
        return [what for what, error, tolerance in self.comparison if not error <= tolerance]

    def table(self) -> str:
        """Return the report as a table for the terminal."""
        rows: list[tuple[str, str]] = [("kind", self.kind)]
        rows += [(name, f"{facts['name']}, {size(facts['bytes'])}") for name, facts in self.sources.items()]
        for name, facts in self.parts.items():
            rows += [(name if i == 0 else "", line) for i, line in enumerate(facts["lines"])]
        rows += [("unused keys" if i == 0 else "", line) for i, line in enumerate(group_names(self.unused))]
        if self.check:
            rows.append(("self-check", ", ".join(f"{k} {v}" for k, v in self.check.items())))
        for i, (what, error, tolerance) in enumerate(self.comparison):
            verdict = "ok" if error <= tolerance else "DIFFERS"
            rows.append(("reference" if i == 0 else "", f"{what}: {error:.2g} (up to {tolerance:g}) {verdict}"))
        rows += [("note" if i == 0 else "", line) for i, line in enumerate(self.notes)]
        files = [f"{name}, {size(n)}" for name, n in self.files.items()]
        rows += [("written" if i == 0 else "", line) for i, line in enumerate(files)]
        rows.append(("license", LICENSES[self.kind]))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"  {printable(name):<{width}}  {printable(text)}" for name, text in rows)

    def save(self, folder: Path) -> None:
        """Write conversion.json, the complete report with all unused names."""
        text = json.dumps(asdict(self), indent=2, default=str)
        write_text(folder / "conversion.json", text + "\n")


def printable(text: str) -> str:
    """Replace unprintable characters: names of files and of tensors in checkpoints are untrusted."""
    return "".join(c if c.isprintable() else "?" for c in text)


def size(n: int) -> str:
    """Format a number of bytes: 1234567 -> "1.2 MB"."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= factor:
            return f"{n / factor:.1f} {unit}"
    return f"{n} bytes"


def group_names(names: Sequence[str], most: int = 12) -> list[str]:
    """Summarize tensor names in lines, one per common prefix: "encoder...: 523 tensors, first to last"."""
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


def next_step(report: Report, folder: str) -> str:
    """Return the command that comes next for a converted folder, its path quoted for the shell."""
    folder = f"./{folder}" if folder.startswith("-") else folder
    given = quote(folder)
    if report.kind == "directions":
        file = quote(f"{folder}/directions.safetensors")
        return f"stylefusion directions sheet --file {file} --model MODEL --out directions.png"
    if report.kind == "stylefusion" or "segmenter" in report.parts:  # the folder has fusion nets
        return f"stylefusion sheet --model {given} --out sheet.png"
    return f"stylefusion train fusion --model {given} --regions auto --output_dir {quote(f'{folder}-fused')}"


def model_card(report: Report, title: str) -> str:
    """Return the converted folder's README.md: its source, how to load it, and its license."""
    noncommercial = report.kind != "directions"
    architecture = report.generator.removesuffix("Generator").lower()
    front = ["---", "library_name: diffusers", f"tags: [{architecture}, stylefusion, unconditional-image-generation]"]
    if noncommercial:
        front += ["license: other", "license_name: see-the-license-section"]
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
    lines += ["Next, in the folder above this one:", "", "```bash", printable(next_step(report, title)), "```", ""]
    lines += ["## License", "", LICENSES[report.kind], ""]
    lines += ["## Credits", "", *(f"{text}\n" for text in (CREDITS[report.kind], *report.credits))]
    lines += ["## Limits", "", *(f"{text}\n" for text in (*report.limits, LIMITS[report.kind]))]
    if report.notes:
        lines += ["## Notes", "", *(f"- {note}" for note in report.notes), ""]
    lines += ["`conversion.json` lists every unused tensor of the source.", ""]
    return "\n".join(lines)


def _usage(report: Report) -> list[str]:
    if report.kind == "directions":
        return [
            "from stylefusion_hf.core.edits import load_directions",
            "",
            'directions = load_directions("directions.safetensors")  # name -> Direction',
            "# pipe(base=1, edits={region: directions[name](1.5)}), with the generator that they were made for",
        ]
    return [
        f"from stylefusion_hf import StyleFusionPipeline, {report.generator}",
        "",
        'pipe = StyleFusionPipeline.from_pretrained("this folder")',
        "pipe(base=1).images[0]",
        f'generator = {report.generator}.from_pretrained("this folder", subfolder="generator")',
    ]
