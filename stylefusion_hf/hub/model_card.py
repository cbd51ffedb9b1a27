"""Model cards: the README.md of a published pipeline. Nothing that somebody wrote is lost: only gaps are filled."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

PICTURE = "sheet.png"  # the widget's picture, beside the card
TAGS = ("stylefusion", "stylegan2", "image-editing")
MARK = re.compile(r"\n<!-- as published by stylefusion-hf: ([0-9a-f]{16}) -->\n\Z")
FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)

BODY = """# {name}

[StyleFusion](https://arxiv.org/abs/2107.07437) pictures of {size} x {size} pixels: one latent code for each region
({leaves}), fused into one harmonised picture of a StyleGAN2.

![A contact sheet: one region at a time taken from another code]({picture})

## Use
Needs the Python package `stylefusion-hf`.

```python
from stylefusion_hf import StyleFusionPipeline

pipe = StyleFusionPipeline.from_pretrained("{repo}")
out = pipe({call})
out.images[0].save("fused.png")
```

Plain diffusers loads it too: `DiffusionPipeline.from_pretrained("{repo}", trust_remote_code=True)`. The code that is
trusted then are one-line files here, which import that package; the form above runs no code of this repository.

## The model
Region tree: `{tree}`

| component | class | parameters |
|---|---|---|
{components}
"""
FIGURES = """
## Figures
`stylefusion evaluate`, {pairs} pairs of seeds, the region's own code swapped, 95 % intervals{note}. O is the squared
change outside the region as a share of what swapping the whole code would change there (0: perfectly local), T how
much of the source's look arrived (1: all); response 0 is a dead dial.

| region | outside change O | transfer T | response |
|---|---|---|---|
{rows}
"""


def body(pipe: Any, repo: str, report: Mapping[str, Any] | None) -> str:
    """The text of a card, from the pipeline's models and, where there is one, `stylefusion evaluate`'s report.json."""
    tree, config = pipe.fusion.tree, pipe.generator.config
    regions = [name for name in tree.active if name not in tree.fused]
    call = ["base=1", f'regions={{"{regions[-1]}": 7}}', *(["class_labels=0"] if config.label_dim else [])]
    rows = [
        f"| {name} | {type(model).__name__} | {sum(p.numel() for p in model.parameters()):,} |"
        for name, model in sorted(pipe.components.items())
        if hasattr(model, "parameters")
    ]
    text = BODY.format(
        name=repo.rpartition("/")[2],
        size=config.resolution,
        leaves=", ".join(tree.leaves),
        picture=PICTURE,
        repo=repo,
        call=", ".join(call),
        tree=tree,
        components="\n".join(rows),
    )
    return text + (figures(report) if report is not None else "")


def read_report(path: str | Path) -> dict[str, Any]:
    """A report.json of `stylefusion evaluate` with the section swaps; ValueError or OSError for anything else."""
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        figures(report)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no report.json of `stylefusion evaluate` with the section swaps: run it without --sections, or"
            " with --sections swaps"
        ) from error
    return dict(report)


def figures(report: Mapping[str, Any]) -> str:
    """The table of swaps as a section of a card."""

    def cell(figure: Mapping[str, float | None]) -> str:
        value, low, high = (figure[key] for key in ("value", "low", "high"))
        return "undefined" if value is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"

    rows = [
        f"| {region} | {cell(row['outside'])} | {cell(row['transfer'])} | {cell(row['response'])} |"
        for region, row in report["swaps"]["leaf"].items()
    ]
    settings = report["settings"]
    note = " (a quick look, not for publication)" if settings.get("quick") else ""
    return FIGURES.format(pairs=settings["pairs"], note=note, rows="\n".join(rows))


def with_figures(text: str, report: Mapping[str, Any]) -> str:
    """A card that somebody wrote, with the table of swaps at its end; ValueError if it has figures of its own."""
    if "\n## Figures" in text:
        raise ValueError("README.md has a section Figures: take it out, or publish without report")
    front = FRONT.match(text)
    below = text[front.end() :] if front else text
    return text if not below.strip() else MARK.sub("", text).rstrip("\n") + "\n" + figures(report)


def metadata(base_model: str | None, tags: Sequence[str] = (), picture: bool = True) -> dict[str, Any]:
    """What the Hub reads at the top of a card, but the licence; a base model only where it is known."""
    found: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "unconditional-image-generation"}
    found |= {"base_model": base_model} if base_model else {}
    found["tags"] = [*TAGS, *tags]
    if picture:
        found["widget"] = [{"text": "One region at a time taken from another code", "output": {"url": PICTURE}}]
    return found


def metadata_of(text: str) -> dict[str, Any]:
    """What stands at the top of a card; ValueError if that is no YAML mapping."""
    front = FRONT.match(text)
    try:
        own = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError as error:
        raise ValueError(f"the metadata of README.md are no YAML: {' '.join(str(error).split())}") from error
    if own is not None and not isinstance(own, dict):
        raise ValueError(f"the metadata of README.md are no mapping of names to values, but {type(own).__name__}")
    return own or {}


def complete(text: str, given: Mapping[str, Any], gaps: Mapping[str, Any], fallback: str) -> str:
    """A card with all its metadata.

    Args:
        text: the card so far; may be empty, or metadata alone.
        given: metadata that somebody asked for now; they win.
        gaps: metadata for the keys that neither has. Tags are added to those that are there.
        fallback: the text below the metadata, where `text` has none.

    Raises:
        ValueError: the metadata are no YAML.
    """
    front, own = FRONT.match(text), metadata_of(text)
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


# A card that is still what was published last may be replaced; one that somebody has changed since may not.


def marked(text: str) -> str:
    """The card with a line, invisible on the Hub, from which `is_as_published` tells whether it was changed."""
    text = MARK.sub("", text).rstrip("\n")
    return f"{text}\n\n<!-- as published by stylefusion-hf: {_hash(text)} -->\n"


def is_as_published(text: str) -> bool:
    """Whether nobody has changed the card since it was published from here."""
    found = MARK.search(text.replace("\r\n", "\n"))
    return found is not None and found[1] == _hash(MARK.sub("", text).rstrip("\n"))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
