"""The three operations that StyleGAN2 is made of, each with a plain reference beside its fast path.

Fast paths are PyTorch's operators or, where they are built and wanted, native ones: see `native/__init__.py`.
"""

from stylefusion_hf.ops.bias_act import bias_act, upfirdn2d_bias_act
from stylefusion_hf.ops.modulated_conv import conv2d_resample, modulated_conv2d, modulated_conv2d_act
from stylefusion_hf.ops.upfirdn2d import setup_filter, upfirdn2d

__all__ = [
    "bias_act",
    "conv2d_resample",
    "modulated_conv2d",
    "modulated_conv2d_act",
    "setup_filter",
    "upfirdn2d",
    "upfirdn2d_bias_act",
]
