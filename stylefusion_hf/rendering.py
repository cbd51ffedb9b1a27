"""`python -m stylefusion_hf.rendering`: moved to `stylefusion_hf.export.rendering` (docs/reference/stability.md)."""

from stylefusion_hf.core.moved import forward

__getattr__ = forward(__name__, "stylefusion_hf.export.rendering")

if __name__ == "__main__":
    import runpy

    runpy.run_module("stylefusion_hf.export.rendering", run_name="__main__")
