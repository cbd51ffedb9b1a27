"""Model cards, the README.md of published pipelines. Existing text and metadata are kept; only gaps are filled."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from stylefusion_hf.core.region_names import spell_out

PICTURE = "sheet.png"  # the widget's picture, in the same folder
TAGS = ("stylefusion", "stylegan2", "image-editing")
MARK = re.compile(r"\n<!-- as published by stylefusion-hf: ([0-9a-f]{16}) -->\n\Z")
FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)

BODY = """# {name}

[StyleFusion](https://arxiv.org/abs/2107.07437) pictures of {width} x {height} pixels: one latent code for each region
({leaves}), fused into one harmonious picture by a {generator}.

![A contact sheet: one region at a time taken from another code]({picture})

## Use
Needs the Python package `stylefusion-hf`.

```python
from stylefusion_hf import StyleFusionPipeline

pipe = StyleFusionPipeline.from_pretrained("{repo}")
out = pipe({call})
out.images[0].save("fused.png")
```

Plain diffusers can load it too: `DiffusionPipeline.from_pretrained("{repo}", trust_remote_code=True)`. The code that
this trusts is one-line files in this repository, which import the package; the form above runs no code from here.

## The model
Region tree: `{tree}`

| component | class | parameters |
|---|---|---|
{components}
"""
FIGURES = """
## Figures
`stylefusion evaluate`, {pairs} pairs of seeds, the region's own code swapped, 95% intervals{note}. O is the squared
change outside the region relative to swapping the whole code (0: perfectly local), T the share of the source's look
that was transferred (1: all of it); a response of 0 means that the dial has no effect.

| region | outside change O | transfer T | response |
|---|---|---|---|
{rows}
"""


def write_body(pipe: Any, repo: str, report: Mapping[str, Any] | None) -> str:
    """Generate the text of a card from the pipeline's models and, if given, a report of `stylefusion evaluate`."""
    tree, config = pipe.fusion.tree, pipe.generator.config
    regions = tree.swappable
    call = ["base=1", f'regions={{"{regions[-1]}": 7}}', *(["class_labels=0"] if config.label_dim else [])]
    rows = [
        f"| {name} | {type(model).__name__} | {sum(p.numel() for p in model.parameters()):,} |"
        for name, model in sorted(pipe.components.items())
        if hasattr(model, "parameters")
    ]
    text = BODY.format(
        name=repo.rpartition("/")[2],
        width=pipe.generator.picture_size[1],
        height=pipe.generator.picture_size[0],
        generator=type(pipe.generator).__name__.removesuffix("Generator"),
        leaves=", ".join(tree.leaves),
        picture=PICTURE,
        repo=repo,
        call=", ".join(call),
        tree=tree,
        components="\n".join(rows),
    )
    return text + (figures_table(report) if report is not None else "")


def read_report(path: str | Path) -> dict[str, Any]:
    """Read a report.json of `stylefusion evaluate` with the section swaps; ValueError or OSError for anything else."""
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        figures_table(report)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a report.json of `stylefusion evaluate` with the section swaps: run it without --sections,"
            " or with --sections swaps"
        ) from error
    return dict(report)


def figures_table(report: Mapping[str, Any]) -> str:
    """Format the table of swaps as a section of a card."""

    def cell(figure: Mapping[str, float | None]) -> str:
        value, low, high = (figure[key] for key in ("value", "low", "high"))
        return "undefined" if value is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"

    rows = [
        f"| {spell_out(region)} | {cell(row['outside'])} | {cell(row['transfer'])} | {cell(row['response'])} |"
        for region, row in report["swaps"]["leaf"].items()
    ]
    settings = report["settings"]
    note = " (a quick look, not for publication)" if settings.get("quick") else ""
    return FIGURES.format(pairs=settings["pairs"], note=note, rows="\n".join(rows))


def add_figures(text: str, report: Mapping[str, Any]) -> str:
    """Append the table of swaps to an existing card; ValueError if it already has figures."""
    if "\n## Figures" in text:
        raise ValueError("README.md has a section Figures: take it out, or publish without report")
    front = FRONT.match(text)
    below = text[front.end() :] if front else text
    return text if not below.strip() else MARK.sub("", text).rstrip("\n") + "\n" + figures_table(report)


def default_metadata(base_model: str | None, tags: Sequence[str] = (), picture: bool = True) -> dict[str, Any]:
    """Return the metadata for the top of a card, except the license; the base model only if known."""
    found: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "unconditional-image-generation"}
    found |= {"base_model": base_model} if base_model else {}
    found["tags"] = [*TAGS, *tags]
    if picture:
        found["widget"] = [{"text": "One region at a time taken from another code", "output": {"url": PICTURE}}]
    return found


def read_metadata(text: str) -> dict[str, Any]:
    """Read the metadata at the top of a card; ValueError if they are not a YAML mapping."""
    front = FRONT.match(text)
    try:
        own = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError as error:
        raise ValueError(f"the metadata of README.md are not YAML: {' '.join(str(error).split())}") from error
    if own is not None and not isinstance(own, dict):
        raise ValueError(f"the metadata of README.md must map names to values, but are of type {type(own).__name__}")
    return own or {}


def complete(text: str, given: Mapping[str, Any], gaps: Mapping[str, Any], fallback: str) -> str:
    """Return a card with all its metadata.

    Args:
        text: the card so far; may be empty, or metadata only.
        given: metadata from the caller; they take precedence.
        gaps: metadata for keys that neither has. Tags are added to existing ones.
        fallback: the text below the metadata if `text` has none.

    Raises:
        ValueError: the metadata are not YAML.
    """
    front, own = FRONT.match(text), read_metadata(text)
    below = text[front.end() :] if front else text
    merged = {**own, **given, **{key: value for key, value in gaps.items() if key not in own and key not in given}}
    tags = [own.get("tags") or [], given.get("tags") or [], gaps.get("tags") or []]
    merged["tags"] = list(
        dict.fromkeys(tag for group in tags for tag in ([group] if isinstance(group, str) else group))
    )
    if below.strip() and merged == own:
        return text
    listed = yaml.safe_dump(merged, sort_keys=False, allow_unicode=True, width=119)
    return f"---\n{listed}---\n{below if below.strip() else fallback}"


# A card may be replaced if it is still as last published; one that was changed since may not.


def add_mark(text: str) -> str:
    """Append a line, invisible on the Hub, by which `is_unchanged` detects changes to the card."""
    text = MARK.sub("", text).rstrip("\n")
    return f"{text}\n\n<!-- as published by stylefusion-hf: {_hash(text)} -->\n"


def is_unchanged(text: str) -> bool:
    """Return whether the card is as it was published by this package."""
    found = MARK.search(text.replace("\r\n", "\n"))
    return found is not None and found[1] == _hash(MARK.sub("", text).rstrip("\n"))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
