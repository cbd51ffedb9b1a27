"""Moved to `stylefusion_hf.editing.directions`; this name is kept for one minor version (docs/reference/stability.md)."""

from stylefusion_hf.core.moved import forward

__getattr__ = forward(__name__, "stylefusion_hf.editing.directions")
