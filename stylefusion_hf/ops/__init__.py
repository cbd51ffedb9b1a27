"""The low-level operations of StyleGAN2, MobileStyleGAN and StyleGAN3, each with a plain reference and a fast path.

Fast paths use PyTorch's operators or, if built and enabled, native ones. Read it in this order:

    upfirdn2d.py        resampling with a FIR filter
    bias_act.py         scale, bias, noise, activation, gain and clamp
    modulated_conv.py   modulated convolution, with up- or downsampling; built on the two above
    wavelets.py         the inverse Haar transform of MobileStyleGAN
    separable.py        its depthwise convolution, and a whole block in one pass
    lowpass.py          design of StyleGAN3's low-pass filters
    filtered_lrelu.py   its nonlinearity: upsample, activate, downsample
    native/             C++ and CUDA kernels, how they are built, and when they are used
    context.py          whether tracing or function transforms are active, which restricts the fast paths
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
