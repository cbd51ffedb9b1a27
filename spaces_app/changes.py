"""Changes of the settings that the buttons of the Compose tab make.

Dials are numbered: 0 is the base, 1 what the regions share, 2 and up are the model's regions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from stylefusion_hf.spaces_app.models import Model
from stylefusion_hf.spaces_app.settings import BASE, COMMON, Dial, Settings, source

MAX_DRAWN_SEED = 10_000  # random seeds are smaller than this: short numbers are easy to pass on
REFINE_STEPS = 6  # of the button Refine
SURPRISES = 2  # regions that a surprise changes at most


def name_at(model: Model, place: int) -> str:
    """Return the recipe field or the region of a dial."""
    return (BASE, COMMON, *model.regions)[place]


def places(model: Model) -> list[int]:
    """Return the numbers of the dials that a model has.

    A single region is the whole picture, as in a converted generator without fusion nets: the base alone has a dial.
    """
    if len(model.regions) == 1 and not model.has_common:
        return [0]
    return [0, *([1] if model.has_common else []), *range(2, 2 + len(model.regions))]


def unchanged(model: Model, settings: Settings) -> Settings:
    """Return the settings as the controls show them."""
    return settings


def shuffle(model: Model, settings: Settings, chosen: Sequence[int]) -> Settings:
    """Draw new seeds for these dials."""
    for place in chosen:
        name = name_at(model, place)
        dial = settings.dial(name, model.regions)
        settings = settings.with_dial(name, model.regions, replace(dial, seed=random.randrange(MAX_DRAWN_SEED)))
    return settings


def surprise(model: Model, settings: Settings) -> Settings:
    """Draw a new base and new seeds for one or two regions; the other dials follow the base again.

    If every region had a seed of its own, the base would change nothing, and pictures would resemble each other more.
    Locked dials stay as they are. With a locked base, the other dials stay too.

    Raises:
        ValueError: all dials are locked.
    """
    free = [place for place in places(model) if not settings.dial(name_at(model, place), model.regions).locked]
    if not free:
        raise ValueError("all dials are locked: unlock one, and press Surprise me again")
    regions = [place for place in free if place > 1] or [place for place in free if place == 1]
    drawn = random.sample(regions, min(random.randint(1, SURPRISES), len(regions)))
    if 0 in free:
        for place in set(free) - {0, *drawn}:
            settings = reset_dial(model, settings, place)
        drawn = [0, *drawn]
    return shuffle(model, settings, drawn)


def refine(model: Model, settings: Settings) -> Settings:
    """Ask for a refinement of the picture.

    Raises:
        ValueError: nothing that it could improve.
    """
    own = [settings.dial(name, model.regions) for name in model.regions]
    sources = [source(settings, name, dial) for name, dial in zip(model.regions, own, strict=True)]
    if all(code is None for code in sources) and not {"regions", "nodes", "edits"} & set(settings.kept):
        raise ValueError("every region follows the base: choose another look for one, then refine")
    return replace(settings, kept={**settings.kept, "refine_steps": REFINE_STEPS})


def reset_dial(model: Model, settings: Settings, place: int) -> Settings:
    """Make a dial follow the base again."""
    return settings.with_dial(name_at(model, place), model.regions, Dial())


def lock_dial(model: Model, settings: Settings, place: int) -> Settings:
    """Apply a dial's lock: a locked dial that follows the base gets the base's code as its own, and so keeps it."""
    name = name_at(model, place)
    dial = settings.dial(name, model.regions)
    if not dial.locked or source(settings, name, dial) is not None:
        return settings
    code = source(settings, BASE, settings.base)
    if isinstance(code, int):
        return settings.with_dial(name, model.regions, replace(dial, seed=code))
    return settings.with_dial(name, model.regions, dial, code)
