"""Region names as people read them. Files, recipes, arguments and flags keep the names as they are: the keys."""

from __future__ import annotations

# Names and words in the trees and label maps that are published for faces, such as CelebAMask-HQ's.
WHOLE = {
    "u_lip": "upper lip",
    "l_lip": "lower lip",
    "eye_g": "eyeglasses",
    "ear_r": "earring",
    "neck_l": "necklace",
}
WORDS = {"bg": "background", "bkg": "background", "fg": "foreground", "cloth": "clothes"}
SIDES = {"l": "left", "r": "right"}  # before what they are a side of


def spell_out(name: str) -> str:
    """Return a region's name in words: "bg_clothes" -> "background clothes". Unknown words stay as they are."""
    if name.lower() in WHOLE:
        return WHOLE[name.lower()]
    words = [WORDS.get(word.lower(), word) for word in name.replace("_", " ").split()]
    if len(words) > 1:
        words[0] = SIDES.get(words[0].lower(), words[0])
    return " ".join(words) or name
