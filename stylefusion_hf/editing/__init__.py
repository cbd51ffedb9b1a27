"""Editing: finding directions in a generator's latent spaces.

Read `directions.py`: SeFa, GANSpace, linear boundaries and style channels. `core/edits.py` applies them to codes.
"""

from stylefusion_hf.core.moved import forward

__getattr__ = forward(__name__, "stylefusion_hf.core.edits")  # its names were here before 0.2
