"""The dials of the tab "Compose": their controls, what they show for settings, and the settings to begin with."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from stylefusion_hf.spaces_app.models import Model
from stylefusion_hf.spaces_app.results import data_uri, title
from stylefusion_hf.spaces_app.settings import BASE, COMMON, Dial, RecipeField, Settings, source

MAX_SEED = 2**32 - 1
OWN = -1  # in the control of classes: every seed is of its own
# The page shows a number that starts as None as 0. So it starts as an empty text, which CLEAN makes None again before
# the server gets it. (A component of our own would have gradio write a file beside its source.)
EMPTY = ""
CLEAN = "(...values) => values.map((value) => (value === '' ? null : value))"
# (base, seeds for the regions in the model's order, as far as it has so many)
EXAMPLES: tuple[tuple[int, tuple[int | None, ...]], ...] = (
    (1, (None, 21, None, None, 24, 31)),
    (4, (None, None, 26, None, 11, None)),
    (6, (None, 31, None, 21, None, 1)),
    (11, (24, None, 31, None, 4, 26)),
)


class Card:
    """The controls of one dial.

    Args:
        number: in its elements' ids.
        label: whose dial.
        most: whether it has all controls; the base, which nothing lies below, has neither strength nor reset.
    """

    def __init__(self, number: int | str, label: str, visible: bool = True, most: bool = True):
        self.strength = self.reset = None
        with gr.Group(elem_id=f"sf-dial-{number}", elem_classes="sf-dial", visible=visible) as self.group:
            self.thumbnail = gr.HTML(elem_classes="sf-thumbnail", apply_default_css=False, js_on_load=None)
            hint = "as the base" if most else "a seed"
            self.seed = gr.Number(label=label, precision=0, placeholder=hint, elem_classes="sf-seed")
            with gr.Row(elem_classes="sf-buttons"):
                self.shuffle = gr.Button("Shuffle", size="sm", min_width=50)
                if most:
                    self.reset = gr.Button("Reset", size="sm", min_width=50)
                self.lock = gr.Checkbox(label="Lock", container=False, min_width=50, elem_classes="sf-lock")
            self.seed.value = EMPTY
            if most:
                self.strength = gr.Slider(0, 1, 1, step=0.01, label="Strength", elem_classes="sf-strength", buttons=[])

    @property
    def values(self) -> list[Any]:
        """The controls that hold settings, in the order of `Settings.values`."""
        return [self.seed, self.lock] if self.strength is None else [self.seed, self.strength, self.lock]

    @property
    def others(self) -> list[Any]:
        """The rest of what `look` changes."""
        return [self.group, self.thumbnail, self.shuffle, *([self.reset] if self.reset else [])]

    def look(self, code: Any, dial: Dial) -> dict[Any, dict[str, Any]]:
        """control -> its properties; `code` is what the dial stands for."""
        free = not dial.locked
        looks: dict[Any, dict[str, Any]] = {
            self.seed: {"interactive": free},
            self.shuffle: {"interactive": free},
        }
        if self.strength is not None:
            looks[self.strength] = {"interactive": free and code is not None}
        if self.reset is not None:
            looks[self.reset] = {"interactive": free and code is not None}
        return looks

    def picture(self, model: Model, label: str, code: Any, follows: Any, kind_of_all: Any = None) -> str:
        """The thumbnail's HTML; `kind_of_all`: the class of all seeds, None for their own."""
        image = model.thumbnails([follows if code is None else code], kind_of_all)[0]
        kind = "sf-follows" if code is None else "sf-own"
        return f'<img class="{kind}" src="{data_uri(image)}" alt="{escape(label)}: {escape(told(code))}">'


def told(code: Any) -> str:
    """A code in words."""
    if code is None:
        return "as the base"
    return f"seed {code}" if isinstance(code, int) else "from a photograph"


def named(name: str) -> str:
    """A dial's name for people."""
    if isinstance(name, RecipeField):
        return "Base portrait" if name == BASE else "Pose and layout"
    return title(name)


def caption(model: Model, settings: Settings) -> str:
    """What a picture is made of, in a line."""
    parts = []
    for name in (BASE, COMMON, *model.regions):
        code = source(settings, name, settings.dial(name, model.regions))
        if code is not None:
            shown = "base" if name is BASE else named(name).lower()
            parts.append(f"{shown} {code if isinstance(code, int) else '◻'}")
    kept = settings.kept
    extra = [name for name in kept.get("regions", {}) if name not in model.regions]
    extra += list(kept.get("nodes", {}))
    parts += [f"{title(name).lower()} as in the recipe" for name in extra]
    parts += [f"{title(name).lower()} edited" for name in kept.get("edits", {})]
    parts += [f"class {class_of(settings)}"] if class_of(settings) != OWN else []
    return " · ".join(parts) + f" · psi {settings.psi:g}"


def classes(model: Model) -> list[tuple[str, int]]:
    """The choices of the control of classes."""
    return [("Each seed's own", OWN), *((f"Class {i}", i) for i in range(model.classes))]


def class_of(settings: Settings) -> int:
    """The class of all seeds, or OWN; a recipe's label vector is shown as that, too, and stays as it is."""
    labels = settings.kept.get("class_labels") or [OWN]  # in a recipe's JSON form: a list, here of one picture's
    return labels[0] if isinstance(labels[0], int) else OWN


def blank(model: Model, base: int) -> Settings:
    """A base and nothing else."""
    return Settings(Dial(base), Dial(), tuple(Dial() for _ in model.regions), model.psi)


def example(model: Model, index: int) -> Settings:
    """One of EXAMPLES."""
    base, seeds = EXAMPLES[index]
    settings = blank(model, base)
    for name, seed in zip(model.regions, seeds, strict=False):
        if seed is not None:
            settings = settings.turned(name, model.regions, Dial(seed))
    return settings


def looks(model: Model, cards: Sequence[Card], was: Settings | None, settings: Settings) -> dict[Any, dict[str, Any]]:
    """control -> what changes about it from `was` (None: everything) to `settings`, beside its value.

    Args:
        cards: of the base, of what is shared, of every region (there may be more).
    """
    changed: dict[Any, dict[str, Any]] = {}
    follows, label = source(settings, BASE, settings.base), settings.kept.get("class_labels")
    for card, name in zip(cards, (BASE, COMMON, *model.regions), strict=False):
        dial = settings.dial(name, model.regions)
        code = source(settings, name, dial)
        look = card.look(code, dial)
        if was is None:
            changed |= look
        else:
            before = was.dial(name, model.regions)
            code_before, follows_before = source(was, name, before), source(was, BASE, was.base)
            old = card.look(code_before, before)
            changed |= {control: new for control, new in look.items() if new != old[control]}
            now = (code, follows if code is None else None, label)
            if now == (code_before, follows_before if code_before is None else None, was.kept.get("class_labels")):
                continue
        changed[card.thumbnail] = {"value": card.picture(model, named(name), code, follows, label)}
    return changed
