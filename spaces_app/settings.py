"""The settings of the page's dials, and their conversion to and from recipes. Imports neither gradio nor torch.

A recipe may contain more than the dials show: codes of photographs, edits, nodes, inner regions. This is `kept`, and
goes into every picture until a dial with its own seed replaces it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stylefusion_hf.core.checks import short
from stylefusion_hf.core.seeds import MAX_SEED

FIELDS = (
    "nodes",
    "edits",
    "class_labels",
    "truncation_cutoff",
    "translate",
    "rotate",
    "refine_steps",
    "noise_mode",
    "noise_seeds",
)  # fields of a recipe that are kept
DEFAULT = ("noise_mode", "const")  # present in every complete recipe


class RecipeField(str):
    """A recipe's field as the name of a dial. It equals its text, but a region of the same name is a plain string."""


BASE, COMMON = RecipeField("base"), RecipeField("global_code")  # the dials that are not regions


@dataclass(frozen=True)
class Dial:
    """The state of a dial. With `seed` None its code is the one in `kept`, else the base's. `strength`: 0 to 1."""

    seed: int | None = None
    strength: float = 1.0
    locked: bool = False


@dataclass(frozen=True)
class Settings:
    """One state of the page.

    Args:
        base: dial of everything that is not set otherwise; its strength is not used.
        common: dial of what the regions share.
        regions: one dial per region of the model.
        psi: truncation.
        kept: the rest of a recipe, in its JSON form.
    """

    base: Dial
    common: Dial
    regions: tuple[Dial, ...]
    psi: float
    kept: Mapping[str, Any] = field(default_factory=dict)

    def values(self) -> list[Any]:
        """Return the values of the page's controls, in the order of `from_values`.

        These are psi, the base's seed and lock, then seed, strength and lock of `common` and of every region.
        """
        row: list[Any] = [self.psi, self.base.seed, self.base.locked]
        for dial in (self.common, *self.regions):
            row += [dial.seed, dial.strength, dial.locked]
        return row

    @classmethod
    def from_values(cls, values: Sequence[Any], count: int, kept: Mapping[str, Any]) -> Settings:
        """Convert the values of the controls of a model with `count` regions; surplus values are ignored."""
        psi, seed, locked = values[:3]
        rest = values[3 : 6 + 3 * count]
        dials = [
            Dial(_to_int(seed), 1.0 if strength is None else float(strength), bool(locked))
            for seed, strength, locked in zip(rest[0::3], rest[1::3], rest[2::3], strict=True)
        ]
        base = Dial(_to_int(seed), locked=bool(locked))
        return cls(base, dials[0], tuple(dials[1:]), 1.0 if psi is None else float(psi), kept)

    def dial(self, name: str, names: Sequence[str]) -> Dial:
        """Return the dial of a region, of `BASE` or of `COMMON`."""
        if isinstance(name, RecipeField):
            return self.base if name == BASE else self.common
        return self.regions[names.index(name)]

    def with_dial(self, name: str, names: Sequence[str], dial: Dial, code: Any = None) -> Settings:
        """Return the settings with a dial replaced; `code`, in a recipe's JSON form, replaces what was kept for it."""
        field = isinstance(name, RecipeField)
        kept, regions = dict(self.kept), dict(self.kept.get("regions", {}))
        (kept if field else regions).pop(name, None)
        kept.pop("regions", None)
        if code is not None:
            (kept if field else regions)[name] = code
        if regions:
            kept["regions"] = regions
        if field and name == BASE:
            return replace(self, kept=kept, base=dial)
        if field:
            return replace(self, kept=kept, common=dial)
        at = list(names).index(name)
        return replace(self, kept=kept, regions=(*self.regions[:at], dial, *self.regions[at + 1 :]))


def _to_int(seed: Any) -> Any:
    """Convert a whole number to an int; others stay as they are, for `read_seed` to refuse."""
    return int(seed) if isinstance(seed, float) and seed.is_integer() else seed


def read_seed(value: Any, name: str) -> int:
    """Return the seed that a visitor typed, or raise a ValueError that begins with `name`."""
    seed = _to_int(value)
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        shown = short(seed if isinstance(seed, str) else str(seed))
        raise ValueError(f"{name}: {shown} is not a seed: give an integer from 0 to {MAX_SEED}")
    return seed


def source(settings: Settings, name: str, dial: Dial) -> Any:
    """Return the code of a dial: a seed, a code in JSON form, or None if it follows the base."""
    if dial.seed is not None:
        return dial.seed
    kept = settings.kept
    return kept.get(name) if isinstance(name, RecipeField) else kept.get("regions", {}).get(name)


def to_recipe(settings: Settings, names: Sequence[str], root: str) -> dict[str, Any]:
    """Convert settings to a recipe; `names` and `root` as in `from_recipe`."""
    base = source(settings, BASE, settings.base)
    if base is None:
        raise ValueError("the base picture needs a seed: type a number, or press Shuffle")
    kept = settings.kept
    strengths = dict(kept.get("strength", {}))
    regions = {name: code for name, code in kept.get("regions", {}).items() if name not in names}
    recipe: dict[str, Any] = {"version": 1, "num_images": 1, str(BASE): base}
    for name, dial in zip(names, settings.regions, strict=True):
        code = source(settings, name, dial)
        if code is not None:
            regions[name] = code
            if dial.strength != 1:
                strengths[name] = dial.strength
    if regions:
        recipe["regions"] = regions
    common = source(settings, COMMON, settings.common)
    if common is not None:
        recipe[str(COMMON)] = common
        if settings.common.strength != 1:
            strengths[root] = settings.common.strength
    recipe |= {name: kept[name] for name in FIELDS if name in kept}
    recipe["truncation_psi"] = settings.psi
    if strengths:
        recipe["strength"] = strengths
    return recipe


def from_recipe(recipe: Mapping[str, Any], names: Sequence[str], root: str) -> Settings:
    """Convert a checked recipe of one picture (`Recipe.to_dict`) to settings.

    Args:
        recipe: its `truncation_psi` must be a number.
        names: names of the model's regions.
        root: root of its tree, under which a recipe stores the strength of the global code.
    """
    strength, regions = recipe.get("strength", 1.0), dict(recipe.get("regions", {}))
    of = strength if isinstance(strength, Mapping) else {}
    every = 1.0 if isinstance(strength, Mapping) else strength
    kept = {name: recipe[name] for name in FIELDS if name in recipe and (name, recipe[name]) != DEFAULT}
    dials = []
    for name in names:
        code = regions.get(name)
        if isinstance(code, int):
            del regions[name]
        dials.append(Dial(code if isinstance(code, int) else None, of.get(name, every) if code is not None else 1.0))
    base, common = recipe["base"], recipe.get(COMMON)
    for name, code in ((BASE, base), (COMMON, common), ("regions", regions or None)):
        if code is not None and not isinstance(code, int):
            kept[str(name)] = code
    shown = {name for name in names if name in recipe.get("regions", {})}  # a dial has their strength
    others = {*regions, *kept.get("nodes", {})} - shown
    if strengths := {name: of.get(name, every) for name in others if of.get(name, every) != 1}:
        kept["strength"] = strengths
    return Settings(
        base=Dial(base if isinstance(base, int) else None),
        common=Dial(common if isinstance(common, int) else None, of.get(root, every) if common is not None else 1.0),
        regions=tuple(dials),
        psi=recipe["truncation_psi"],
        kept=kept,
    )


def unrefined(settings: Settings) -> Settings:
    """Return the settings as the fusion nets draw them: a refinement is of one picture, and ends when it changes."""
    return replace(settings, kept={key: value for key, value in settings.kept.items() if key != "refine_steps"})


def with_class(settings: Settings, label: int | None) -> Settings:
    """Return the settings with this class for all seeds; None for each seed's own."""
    kept = {key: value for key, value in settings.kept.items() if key != "class_labels"}
    return replace(settings, kept=kept if label is None else kept | {"class_labels": [label]})


# ----------------------------------------------------------------------------------------------------
# Undo and redo.

MAX_STEPS = 100  # undo steps
MAX_CHARACTERS = 2**22  # in the recipes of a session's steps; a text that several steps share counts once
TURN_SECONDS = 2.0  # events of one dial at shorter intervals count as one step


@dataclass
class History:
    """The settings of a session so far.

    Args:
        steps: the settings, oldest first.
        at: index of the present settings.
        control: the dial that was turned last; "" if none was.
        time: when that was, in seconds of a monotonic clock.
    """

    steps: list[Settings]
    at: int = 0
    control: str = ""
    time: float = 0.0

    @property
    def present(self) -> Settings:
        """The settings that the page shows."""
        return self.steps[self.at]

    def push(self, settings: Settings, control: str, time: float) -> History:
        """Return the history with new present settings; undone steps are dropped.

        Args:
            settings: the new settings.
            control: the dial that was turned; consecutive turns of it are one step. "" for a separate step.
            time: the present time, in seconds of a monotonic clock.
        """
        turning = control == self.control != "" and time - self.time < TURN_SECONDS and self.at == len(self.steps) - 1
        steps = [*self.steps[: self.at + (0 if turning and self.at else 1)], settings][-MAX_STEPS:]
        while len(steps) > 1 and _count_characters(steps) > MAX_CHARACTERS:
            del steps[: max(len(steps) // 4, 1)]
        return History(steps, len(steps) - 1, control, time)

    def move(self, by: int) -> History:
        """Return the history moved back (-1) or forward (1), within its steps."""
        return History(self.steps, min(max(self.at + by, 0), len(self.steps) - 1))


def _count_characters(steps: Sequence[Settings]) -> int:
    """Count the characters of all distinct texts in what the steps keep."""
    found: dict[int, int] = {}
    left: list[Any] = [step.kept for step in steps]
    while left:
        item = left.pop()
        if isinstance(item, str):
            found[id(item)] = len(item)
        elif isinstance(item, Mapping):
            left += [*item, *item.values()]
        elif isinstance(item, (list, tuple)):
            left += item
    return sum(found.values())
