"""The dials of the Compose tab: their controls, what these show for given settings, and the initial settings."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from stylefusion_hf.spaces_app.changes import places
from stylefusion_hf.spaces_app.model_text import how_to_get_dials
from stylefusion_hf.spaces_app.models import Model
from stylefusion_hf.spaces_app.results import title, view_uri
from stylefusion_hf.spaces_app.settings import BASE, COMMON, Dial, RecipeField, Settings, read_seed, source

OWN = -1  # value of the class control: each seed has its own class
# Gradio shows a number whose initial value is None as 0. It therefore starts as an empty text, which EMPTY_TO_NONE
# turns back into None before the server sees it. (For a component class of our own, gradio would write a file next to
# its source.)
EMPTY = ""
EMPTY_TO_NONE = "(...values) => values.map((value) => (value === '' ? null : value))"
# (base, seeds of the regions in the model's order; surplus seeds are ignored). Chosen by benchmarks/space_examples.py.
EXAMPLES: tuple[tuple[int, tuple[int | None, ...]], ...] = (
    (1, (None, 35, None, None, 49, 37)),
    (4, (None, None, 48, 25, None, None)),
    (6, (40, 25, None, None, None, 37)),
    (11, (43, None, 54, 51, 49, None)),
)


class Card:
    """The controls of one dial.

    Args:
        number: used in the ids of its elements.
        label: the name of what it controls.
        full: whether it has all controls; the base, which follows nothing, has neither strength nor reset.
    """

    def __init__(self, number: int | str, label: str, full: bool = True):
        self.strength = self.reset = self.note = None
        with gr.Group(elem_id=f"sf-dial-{number}", elem_classes="sf-dial"):
            self.thumbnail = gr.HTML(elem_classes="sf-thumbnail", apply_default_css=False, js_on_load=None)
            hint = "as the base" if full else "a seed"
            self.seed = gr.Number(label=label, placeholder=hint, elem_classes="sf-seed")
            with gr.Row(elem_classes="sf-buttons"):
                self.shuffle = gr.Button("Shuffle", size="sm", min_width=50)
                if full:
                    self.reset = gr.Button("Reset", size="sm", min_width=50)
                self.lock = gr.Checkbox(label="Lock", container=False, min_width=50, elem_classes="sf-lock")
            self.seed.value = EMPTY
            if full:
                self.strength = gr.Slider(0, 1, 1, step=0.01, label="Strength", elem_classes="sf-strength", buttons=[])
            else:
                self.note = gr.HTML(elem_classes="sf-note", apply_default_css=False, js_on_load=None, visible=False)

    @property
    def values(self) -> list[Any]:
        """The controls that hold settings, in the order of `Settings.values`."""
        return [self.seed, self.lock] if self.strength is None else [self.seed, self.strength, self.lock]

    @property
    def others(self) -> list[Any]:
        """The other controls whose properties change."""
        return [self.thumbnail, self.shuffle, *(each for each in (self.reset, self.note) if each)]

    def properties(self, code: Any, dial: Dial) -> dict[Any, dict[str, Any]]:
        """Return {control: its properties}; `code` is the dial's own code, None if it follows the base.

        A control that does nothing says why.
        """
        free = not dial.locked
        looks: dict[Any, dict[str, Any]] = {
            self.seed: {"interactive": free},
            self.shuffle: {"interactive": free},
        }
        if self.strength is not None:
            name = "Strength" if free else "Strength, locked"
            name = name if code is not None else "Follows the base"
            looks[self.strength] = {"interactive": free and code is not None, "label": name}
        if self.reset is not None:
            looks[self.reset] = {"interactive": free and code is not None}
        return looks

    def picture(self, model: Model, name: str, code: Any, follows: Any, kind_of_all: Any = None) -> str:
        """Return the thumbnail's HTML: of a region, what of the source's picture it is.

        Args:
            model: the model in use.
            name: the dial's name: a region, `BASE` or `COMMON`.
            code: the dial's own code; None if it follows the base.
            follows: the base's code.
            kind_of_all: the class of all seeds; None for each seed's own.
        """
        region = None if isinstance(name, RecipeField) else name
        image = model.thumbnails([follows if code is None else code], kind_of_all, region)[0]
        kind, alt = "sf-follows" if code is None else "sf-own", f"{display_name(name)}: {describe_code(code)}"
        return f'<img class="{kind}" src="{view_uri(model, image)}" alt="{escape(alt)}">'


def check_seeds(model: Model, settings: Settings) -> Settings:
    """Return the settings, or raise a ValueError that names the first dial with something else than a seed."""
    for name in (BASE, COMMON, *model.regions):
        seed = settings.dial(name, model.regions).seed
        if seed is not None:
            read_seed(seed, display_name(name))
    return settings


def explain_base(model: Model, settings: Settings) -> str:
    """Say why the base changes little or nothing in the present picture, or why it has the only dial; else ""."""
    if places(model) == [0]:
        return how_to_get_dials(model)

    def is_own(name: str) -> bool:
        dial = settings.dial(name, model.regions)
        return source(settings, name, dial) is not None and dial.strength == 1

    if not all(is_own(name) for name in model.regions):
        return ""
    if model.has_common and not is_own(COMMON):
        return f"Sets {display_name(COMMON).lower()} only: every region has a code of its own. Reset one of them."
    return "Changes nothing now: everything has a code of its own. Reset one of the other dials."


def explain_psi(settings: Settings) -> str:
    """Describe the slider of the truncation; where it changes nothing, say why."""
    codes = [settings.base, settings.common, *settings.regions]
    if all(dial.seed is None for dial in codes):
        return "Changes nothing now: no part of this picture comes from a seed"
    return "How far from the average picture (truncation psi); the thumbnails keep the model's own"


def describe_code(code: Any) -> str:
    """Describe a code in words."""
    if code is None:
        return "as the base"
    return f"seed {code}" if isinstance(code, int) else "from a photograph"


def display_name(name: str) -> str:
    """Return the name under which the page shows a dial."""
    if isinstance(name, RecipeField):
        return "Base picture" if name == BASE else "Pose and layout"
    return title(name)


def caption(model: Model, settings: Settings) -> str:
    """Describe in one line what a picture is made of."""
    parts = []
    for name in (BASE, COMMON, *model.regions):
        code = source(settings, name, settings.dial(name, model.regions))
        if code is not None:
            shown = "base" if name is BASE else display_name(name).lower()
            parts.append(f"{shown} {code if isinstance(code, int) else '◻'}")
    kept = settings.kept
    extra = [name for name in kept.get("regions", {}) if name not in model.regions]
    extra += list(kept.get("nodes", {}))
    parts += [f"{title(name).lower()} as in the recipe" for name in extra]
    parts += [f"{title(name).lower()} edited" for name in kept.get("edits", {})]
    parts += ["refined"] if "refine_steps" in kept else []
    parts += [f"class {class_of(settings)}"] if class_of(settings) != OWN else []
    return " · ".join(parts) + f" · psi {settings.psi:g}"


def class_choices(model: Model) -> list[tuple[str, int]]:
    """Return the choices of the class control."""
    return [("Each seed's own", OWN), *((f"Class {i}", i) for i in range(model.classes))]


def class_of(settings: Settings) -> int:
    """Return the class of all seeds, or OWN. A recipe's label vector also counts as OWN, and is kept."""
    labels = settings.kept.get("class_labels") or [OWN]  # in a recipe's JSON form: a list, here with one entry
    return labels[0] if isinstance(labels[0], int) else OWN


def blank_settings(model: Model, base: int) -> Settings:
    """Return settings with a base and nothing else."""
    return Settings(Dial(base), Dial(), tuple(Dial() for _ in model.regions), model.psi)


def example_settings(model: Model, index: int) -> Settings:
    """Return the settings of one of EXAMPLES."""
    base, seeds = EXAMPLES[index]
    settings = blank_settings(model, base)
    if places(model) == [0]:
        return settings
    for name, seed in zip(model.regions, seeds, strict=False):
        if seed is not None:
            settings = settings.with_dial(name, model.regions, Dial(seed))
    return settings


def thumbnail_values(model: Model, cards: Sequence[Card], settings: Settings) -> dict[Any, str]:
    """Return {control: its value} of the thumbnails of a model's dials."""
    follows, label = source(settings, BASE, settings.base), settings.kept.get("class_labels")
    names = (BASE, COMMON, *model.regions)
    shown = [
        (card, name) for place, (card, name) in enumerate(zip(cards, names, strict=False)) if place in places(model)
    ]
    return {
        card.thumbnail: card.picture(
            model, name, source(settings, name, settings.dial(name, model.regions)), follows, label
        )
        for card, name in shown
    }


def changed_properties(
    model: Model, cards: Sequence[Card], was: Settings | None, settings: Settings, thumbnails: bool = True
) -> dict[Any, dict[str, Any]]:
    """Return {control: the properties that change}, except the controls' values.

    Args:
        model: the model in use.
        cards: the dials of the base, of what is shared, and of every region; surplus ones are ignored.
        was: the settings shown so far; None to return all properties.
        settings: the settings to show.
        thumbnails: whether to draw those that change.
    """
    changed: dict[Any, dict[str, Any]] = {}
    follows, label = source(settings, BASE, settings.base), settings.kept.get("class_labels")
    for card, name in zip(cards, (BASE, COMMON, *model.regions), strict=False):
        dial = settings.dial(name, model.regions)
        code = source(settings, name, dial)
        look = card.properties(code, dial)
        if was is None:
            changed |= look
        else:
            before = was.dial(name, model.regions)
            code_before, follows_before = source(was, name, before), source(was, BASE, was.base)
            old = card.properties(code_before, before)
            changed |= {control: new for control, new in look.items() if new != old[control]}
            now = (code, follows if code is None else None, label)
            if now == (code_before, follows_before if code_before is None else None, was.kept.get("class_labels")):
                continue
        if thumbnails:
            changed[card.thumbnail] = {"value": card.picture(model, name, code, follows, label)}
    note = explain_base(model, settings)
    if cards[0].note is not None and (was is None or note != explain_base(model, was)):
        changed[cards[0].note] = {"value": escape(note), "visible": bool(note)}
    return changed
