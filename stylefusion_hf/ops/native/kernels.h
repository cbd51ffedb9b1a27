// Interface of the kernels in plain pointers and numbers, without torch headers, so that nvcc can compile the CUDA
// side anywhere. kernels_cpu.cpp and kernels_cuda.cu implement the three functions; glue.cpp calls them.
#pragma once

#include <cstdint>

namespace stylefusion {

enum class Dtype { f32, f64, f16, bf16 };

// A dense picture: channels-first (NCHW) or channels-last (NHWC) in memory.
struct Image {
  int64_t batch, channels, height, width;
  bool channels_last;
};

// Zero insertion by `up`, padding (left and top; right and bottom follow from the size of the output), correlation
// with the outer product of `taps` with themselves, times gain, every `down`-th pixel. See ops/upfirdn2d.py.
struct Fir {
  const void* taps;  // CPU: double; CUDA: float, on the device. Already flipped for a convolution.
  int64_t n, up, down, left, top;
  double gain;
};

// clamp(act(x * scale + bias + noise) * gain) with act(v) = v > 0 ? v : v * slope. A null pointer means 1 or 0.
// All three are float, or double if the picture is.
struct Epilogue {
  const void* scale;    // (batch, channels)
  const void* bias;     // (channels)
  const void* noise;    // (1 or batch, height, width) of the output
  bool noise_per_sample;
  double slope, gain;
  double clamp;  // infinite for none
};

// Each returns nullptr or an error message. `stream` is a cudaStream_t, unused on CPUs. `epilogue` may be null.
const char* upfirdn2d(Dtype dtype, const void* x, void* y, const Image& in, const Image& out, const Fir& fir,
                      const Epilogue* epilogue, void* stream);
const char* bias_act(Dtype dtype, const void* x, void* y, const Image& image, const Epilogue& epilogue, void* stream);
// The gradient of act, gain and clamp, from their result y: grad * gain * (y > 0 ? 1 : slope) * (|y| < clamp).
const char* act_grad(Dtype dtype, const void* grad, const void* y, void* out, int64_t count, const Epilogue& epilogue,
                     void* stream);

}  // namespace stylefusion
