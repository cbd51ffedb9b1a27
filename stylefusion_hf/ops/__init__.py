"""The three operations that StyleGAN2 is made of, each with a plain reference beside its fast path."""

from stylefusion_hf.ops.bias_act import bias_act
from stylefusion_hf.ops.modulated_conv import conv2d_resample, modulated_conv2d
from stylefusion_hf.ops.upfirdn2d import setup_filter, upfirdn2d

__all__ = ["bias_act", "conv2d_resample", "modulated_conv2d", "setup_filter", "upfirdn2d"]
