"""The diffusers pipelines, one per file.

What they do: fuse one latent code per region into a picture, walk between codes, and invert pictures to codes.
Read `steps.py` (recipe -> style codes -> pictures, shared by all) and `fuse.py` first; then `walk.py` and
`interpolate.py` (walks through keyframes), `targets.py`, `inversion_inputs.py` and `invert.py` (inversion).
`output.py` holds the output classes; `pipeline.py` is the entry point for `custom_pipeline=`.
"""
