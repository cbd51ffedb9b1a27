"""What the trainers' flags choose among, and their defaults: a command line is parsed without importing torch.

The losses are explained in `gan_losses.py`, augmentations in `augment.py`, terms in `criterion.py`, features in
`networks.py`, references in `references.py`, and the two objectives' weights in `composed.py` and `contrastive.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

LOSSES = ("logistic", "relativistic")  # of a generator and a discriminator
AUGMENTATIONS = ("color", "translation", "cutout")
TERMS = (
    "outside",
    "leak",
    "looks",
    "locality",
    "transfer",
    "regions",
    "pooled",
    "spatial",
    "pose",
    "layout",
    "realism",
)
FEATURES = ("maps", "texture")
REFERENCES = ("warped", "aligned", "unaligned")
COMPOSED_WEIGHTS = {"locality": 1.0, "transfer": 1.5, "regions": 0.3, "pose": 0.5, "layout": 0.05}
CONTRASTIVE_WEIGHTS = {"spatial": 1.0}
# The paper's global dials: every inner node of the tree, on each level, gets a code of its own.
CONTRASTIVE_SHARES = {"single_share": 0.0, "inner_shares": [0.0, 0.0, 1.0, 0.0], "deficit": 0.0}


def parse_augmentations(text: str) -> tuple[str, ...]:
    """Parse `"none"` or a comma-separated choice of `AUGMENTATIONS`."""
    names = () if text in ("", "none") else tuple(part.strip() for part in text.split(","))
    unknown = [n for n in names if n not in AUGMENTATIONS]
    if unknown:
        raise ValueError(f"unknown augmentation {unknown[0]!r}; choose none or some of {', '.join(AUGMENTATIONS)}")
    return names


@dataclass(frozen=True)
class Shares:
    """How often each kind of sample is drawn.

    Args:
        codes: samples whose leaves hold 1, 2 or 3 codes, or one per leaf.
        single: of those with 2 codes, the share in which one leaf differs and every inner code is the base's.
        subtree: of the others with 2 or 3 codes, the share that swaps complete subtrees, including inner codes.
        inner: samples whose inner codes are the base's; all the same fresh code; all independent; or (the authors'
            expansion) in which each swapped leaf's parent takes the leaf's. The first is skipped if all leaves hold
            the base.
        root: of samples whose leaves all hold the base, the share in which only the root's code differs.
        twin: share of the other samples that are followed by a twin, which differs in one leaf.
    """

    codes: tuple[float, float, float, float] = (0.12, 0.6, 0.1, 0.18)
    single: float = 0.75
    subtree: float = 0.5
    inner: tuple[float, float, float, float] = (0.4, 0.25, 0.2, 0.15)
    root: float = 0.4
    twin: float = 0.0

    def __post_init__(self) -> None:
        for name in ("codes", "inner"):
            given = getattr(self, name)
            if len(given) != 4 or min(given) < 0 or not abs(sum(given) - 1) <= 1e-6:
                raise ValueError(f"the shares of {name} must be four numbers from 0 that sum to 1, got {list(given)}")
        if self.codes[0] and not self.inner[1] + self.inner[2]:
            raise ValueError(
                "samples with one code need inner codes that differ: give the second or third share of inner"
            )
        for name in ("single", "subtree", "root", "twin"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"the share {name} must be from 0 to 1, got {getattr(self, name)}")
