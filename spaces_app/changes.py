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


def name_at(model: Model, place: int) -> str:
    """Return the recipe field or the region of a dial."""
    return (BASE, COMMON, *model.regions)[place]


def unchanged(model: Model, settings: Settings) -> Settings:
    """Return the settings as the controls show them."""
    return settings


def shuffle(model: Model, settings: Settings, places: Sequence[int]) -> Settings:
    """Draw new seeds for these dials."""
    for place in places:
        name = name_at(model, place)
        dial = settings.dial(name, model.regions)
        settings = settings.with_dial(name, model.regions, replace(dial, seed=random.randrange(MAX_DRAWN_SEED)))
    return settings


def shuffle_unlocked(model: Model, settings: Settings) -> Settings:
    """Draw new seeds for every dial that is not locked."""
    places = [0, *([1] if model.has_common else []), *range(2, 2 + len(model.regions))]
    free = [place for place in places if not settings.dial(name_at(model, place), model.regions).locked]
    return shuffle(model, settings, free)


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
