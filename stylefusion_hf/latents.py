"""Moved to `stylefusion_hf.core.codes`; kept as docs/reference/stability.md promises."""

from stylefusion_hf.core.moved import forward

__getattr__ = forward(__name__, "stylefusion_hf.core.codes", "stylefusion_hf.models.latents")
