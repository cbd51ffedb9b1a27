"""`python -m stylefusion_hf.rendering` is now `python -m stylefusion_hf.cli render` (docs/reference/stability.md)."""

from stylefusion_hf.core.moved import forward

__getattr__ = forward(__name__, "stylefusion_hf.export.rendering")

if __name__ == "__main__":
    import sys

    from stylefusion_hf.cli import main

    sys.exit(main(["render", *sys.argv[1:]]))
