"""What a model's card says about it: name, license, credits and limits, for the tab About. Imports no gradio.

A card is text from outside: sections are shortened, and shown as escaped plain text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

from stylefusion_hf import spaces_app
from stylefusion_hf.core.checks import shown
from stylefusion_hf.spaces_app import EMBEDDED
from stylefusion_hf.spaces_app.model_files import find_file
from stylefusion_hf.spaces_app.models import Model
from stylefusion_hf.spaces_app.results import title

CARD = "README.md"
EMBEDDED_CARD = Path(str(spaces_app.__file__)).parent / "embedded.md"
MAX_CARD = 2**18  # bytes that are read
MAX_SECTION, MAX_TITLE = 800, 80  # characters that are shown
SECTIONS = {  # heading on the page: first words of the headings of cards
    "License": ("license", "licence", "terms"),
    "Credits": ("credit", "acknowledg", "citation", "authors"),
    "Limits": ("limit", "bias", "out-of-scope", "intended use"),
}
COMMENT, FENCE = re.compile(r"<!--.*?-->", re.DOTALL), re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[([^\]\n]*)\]\([^)\n]*\)")
HEADING = re.compile(r"#{1,6}\s+(.*)")
LICENSE = re.compile(r"(license|license_name|license_link):\s*(.+)")


def find_card(model: Model) -> str:
    """Return the text of a model's card, at most MAX_CARD bytes; "" if it has none, or the Hub does not answer."""
    if model.name == EMBEDDED:
        return EMBEDDED_CARD.read_text(encoding="utf-8")
    path = find_file(model.pipe, CARD, fetch=True)
    if path is None:
        return ""
    try:
        with open(path, "rb") as file:
            return file.read(MAX_CARD).decode("utf-8", errors="replace")
    except OSError:
        return ""


def sections_of(card: str) -> dict[str, str]:
    """Return {heading: text} of what a card says: "" for its introduction, and the keys of SECTIONS that it has."""
    head, body = _split(card)
    found: dict[str, list[str]] = {"": []}
    section: str | None = ""
    for line in FENCE.sub("", COMMENT.sub("", body)).splitlines():
        heading = HEADING.match(line)
        if heading:
            words = heading[1].strip().lower()
            named = next((name for name, starts in SECTIONS.items() if words.startswith(starts)), None)
            # The first heading is the title, below which the introduction stands.
            section = named if named or any(found.values()) else ""
        elif section is not None:
            found.setdefault(section, []).append(line)
    texts = {name: _plain(lines) for name, lines in found.items()}
    if "License" not in texts and head:
        texts["License"] = shown(head, MAX_TITLE)
    return {name: text for name, text in texts.items() if text}


def describe_model(model: Model) -> str:
    """Return HTML about a model, escaped: its name, what its card says, and what the Space knows about it."""
    texts = sections_of(find_card(model))
    parts = [f"<h3>{escape(shown(model.name, MAX_TITLE))}</h3>"]
    parts += [f"<p>{escape(texts.pop(''))}</p>"] if "" in texts else []
    parts.append(f"<p>{escape(facts(model))}</p>")
    if advice := how_to_get_dials(model):
        parts.append(f"<p>{escape(advice)}</p>")
    for name in SECTIONS:
        if name in texts:
            parts.append(f"<h4>{escape(name)}</h4><p>{escape(texts[name])}</p>")
    if not texts.keys() & SECTIONS:
        parts.append(
            "<p>Its card names neither a license nor limits: ask whoever made it before you use pictures.</p>"
        )
    return "".join(parts)


def facts(model: Model) -> str:
    """Say in a sentence or two what a model can do here."""
    names = [title(name).lower() for name in model.regions]
    text = f"Pictures of {model.resolution} pixels"
    text += f"; regions: {', '.join(names)}." if len(names) > 1 else "; no regions."
    if not model.has_segmenter:
        text += " It has no segmenter, so regions have no outlines."
    if not model.has_encoder:
        text += " It has no encoder, so uploads are read by optimization alone, which takes longer."
    return text


def how_to_get_dials(model: Model) -> str:
    """Say how a generator without fusion nets gets a dial for each region; "" for a model with regions."""
    if len(model.regions) > 1:
        return ""
    return (
        "This generator has no fusion nets, so one dial sets the whole picture: `stylefusion regions` finds regions in"
        " it, and `stylefusion train fusion` gives each of them a dial."
    )


def _split(card: str) -> tuple[str, str]:
    """Return the license in a card's YAML header, and the text below the header."""
    lines = card.lstrip("\ufeff").splitlines()
    if not lines or lines[0].strip() != "---":
        return "", card
    end = next((i for i, line in enumerate(lines[1:], 1) if line.strip() == "---"), 0)
    found = map(LICENSE.fullmatch, map(str.strip, lines[1:end]))
    named: dict[str, str] = {match[1]: match[2] for match in found if match}
    license_name = named.get("license_name") if named.get("license") in (None, "other") else named["license"]
    return (license_name or "").strip("\"' "), "\n".join(lines[end + 1 :])


def _plain(lines: list[str]) -> str:
    """Return Markdown as plain text of at most MAX_SECTION characters, without tables, tags and pictures."""
    text = " ".join(" ".join(_sentences(lines)).split())
    text = shown(text, len(text) or 1)
    return text if len(text) <= MAX_SECTION else text[: MAX_SECTION - 3].rsplit(" ", 1)[0] + "..."


def _sentences(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if not line.lstrip().startswith(("|", "<", "![", "[![")):
            yield LINK.sub(r"\1", line).replace("`", "").replace("**", "").strip().removeprefix("- ")
