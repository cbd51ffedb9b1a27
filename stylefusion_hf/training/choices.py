"""What the flags of the trainers choose among. Parsing a command line must not import torch, so these have no other home.

Each is explained where it is used: losses in `gan_losses.py`, terms in `criterion.py`, features in `networks.py`,
references in `references.py`, shares in `sampling.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

LOSSES = ("logistic", "relativistic")
AUGMENTATIONS = ("color", "translation", "cutout")
TERMS = ("outside", "looks", "locality", "transfer", "regions", "pooled", "spatial", "pose", "layout", "realism")
FEATURES = ("maps", "texture")
REFERENCES = ("warped", "aligned", "unaligned")
