"""What the dials of the page say, and the recipe that says the same. No gradio, no torch.

A recipe may hold more than dials show: codes of photographs, edits, nodes, inner regions. That is `kept`, and goes
into every picture until a dial with a seed of its own takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

FIELDS = ("nodes", "edits", "class_labels", "truncation_cutoff", "noise_mode", "noise_seeds")  # of what is kept
DEFAULT = ("noise_mode", "const")  # which every complete recipe has


class RecipeField(str):
    """A recipe's field as a dial's name: equal to its text, but a region of that name is no field."""


BASE, COMMON = RecipeField("base"), RecipeField("global_code")  # the dials that are no region


@dataclass(frozen=True)
class Dial:
    """A code's source: `seed` None is what was kept for it, else what the base gives. `strength` from 0 to 1."""

    seed: int | None = None
    strength: float = 1.0
    locked: bool = False


@dataclass(frozen=True)
class Settings:
    """One state of the page.

    Args:
        base: the code of all that nothing else sets; its strength is not used.
        common: the code that the regions share.
        regions: one dial for each of the model's regions.
        psi: truncation.
        kept: the rest of a recipe, in its own JSON form.
    """

    base: Dial
    common: Dial
    regions: tuple[Dial, ...]
    psi: float
    kept: Mapping[str, Any] = field(default_factory=dict)

    def values(self) -> list[Any]:
        """What the page's controls show, in the order of `from_values`: psi, the base's seed and lock, then seed,
        strength and lock of what is shared and of every region."""
        row: list[Any] = [self.psi, self.base.seed, self.base.locked]
        for dial in (self.common, *self.regions):
            row += [dial.seed, dial.strength, dial.locked]
        return row

    @classmethod
    def from_values(cls, values: Sequence[Any], count: int, kept: Mapping[str, Any]) -> Settings:
        """The inverse of `values`, of a model with `count` regions; further values are ignored."""
        psi, seed, locked = values[:3]
        rest = values[3 : 6 + 3 * count]
        dials = [
            Dial(_whole(seed), 1.0 if strength is None else float(strength), bool(locked))
            for seed, strength, locked in zip(rest[0::3], rest[1::3], rest[2::3], strict=True)
        ]
        base = Dial(_whole(seed), locked=bool(locked))
        return cls(base, dials[0], tuple(dials[1:]), 1.0 if psi is None else float(psi), kept)

    def dial(self, name: str, names: Sequence[str]) -> Dial:
        """The dial of a region, of `BASE` or of `COMMON`."""
        if isinstance(name, RecipeField):
            return self.base if name == BASE else self.common
        return self.regions[names.index(name)]

    def turned(self, name: str, names: Sequence[str], dial: Dial, code: Any = None) -> Settings:
        """With this dial; `code`, in a recipe's JSON form, is kept for it instead of what was."""
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


def _whole(seed: Any) -> int | None:
    return None if seed is None else int(seed)


def source(settings: Settings, name: str, dial: Dial) -> Any:
    """The code that a dial stands for: a seed, the JSON form of a code, or None where the base's is taken."""
    if dial.seed is not None:
        return dial.seed
    kept = settings.kept
    return kept.get(name) if isinstance(name, RecipeField) else kept.get("regions", {}).get(name)


def to_recipe(settings: Settings, names: Sequence[str], root: str) -> dict[str, Any]:
    """The recipe of these settings; `names` and `root` as in `from_recipe`."""
    base = source(settings, BASE, settings.base)
    if base is None:
        raise ValueError("the base portrait needs a seed: type a number, or press Shuffle")
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
    """The settings of a checked recipe of one picture (`Recipe.to_dict`).

    Args:
        recipe: with a number as `truncation_psi`.
        names: of the model's regions.
        root: of its tree; the name under which a recipe has the strength of the global code.
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
    shown = {name for name in names if name in recipe.get("regions", {})}  # whose strength a dial has
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


def of_class(settings: Settings, label: int | None) -> Settings:
    """With this class for all seeds; None for each one's own."""
    kept = {key: value for key, value in settings.kept.items() if key != "class_labels"}
    return replace(settings, kept=kept if label is None else kept | {"class_labels": [label]})


# ----------------------------------------------------------------------------------------------------
# What a visitor's session remembers.

MAX_STEPS = 100  # of undo
MAX_CHARACTERS = 2**22  # of the recipes in a session's steps; a text that several share counts once
ONE_TURN = 2.0  # seconds: events of one dial that follow each other faster are one step


@dataclass
class History:
    """The settings so far; `at` is the present one. `control` and `time`: what was turned last, and when."""

    steps: list[Settings]
    at: int = 0
    control: str = ""
    time: float = 0.0

    @property
    def present(self) -> Settings:
        """What the page shows."""
        return self.steps[self.at]

    def push(self, settings: Settings, control: str, time: float) -> History:
        """With a new present; what was undone before is forgotten, and a dial that is still turning is one step.

        `control` is the dial; "" for what is always a step of its own.
        """
        turning = control == self.control != "" and time - self.time < ONE_TURN and self.at == len(self.steps) - 1
        steps = [*self.steps[: self.at + (0 if turning and self.at else 1)], settings][-MAX_STEPS:]
        while len(steps) > 1 and _characters(steps) > MAX_CHARACTERS:
            del steps[: max(len(steps) // 4, 1)]
        return History(steps, len(steps) - 1, control, time)

    def move(self, by: int) -> History:
        """Back (-1) or forth (1), as far as there is something."""
        return History(self.steps, min(max(self.at + by, 0), len(self.steps) - 1))


def _characters(steps: Sequence[Settings]) -> int:
    """Of all texts in what was kept."""
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
