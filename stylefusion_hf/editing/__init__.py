"""Editing: `directions` finds directions in a generator's latent spaces; `core.edits` applies them to codes."""

from stylefusion_hf.core.moved import forward

__getattr__ = forward(__name__, "stylefusion_hf.core.edits")  # its names were here before 0.2
