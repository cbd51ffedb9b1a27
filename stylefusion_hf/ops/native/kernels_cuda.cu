// CUDA kernels: one thread per output number, in the output's memory order, so that adjacent threads write adjacent
// addresses. Sums are float. No torch headers: see kernels.h.
//
// The tests compile them for sm_80 and sm_90. They have never been run, for lack of a GPU.
#include "kernels.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <limits>

namespace stylefusion {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 20;  // far below the grid's limit of 2^31 - 1; threads loop over the rest

__device__ inline float load(float v) { return v; }
__device__ inline float load(__half v) { return __half2float(v); }
__device__ inline float load(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ inline void store(float v, float* to) { *to = v; }
__device__ inline void store(float v, __half* to) { *to = __float2half(v); }
__device__ inline void store(float v, __nv_bfloat16* to) { *to = __float2bfloat16(v); }

struct Finish {
  const float *scale, *bias, *noise;
  bool noise_per_sample, on;
  float gain, low_gain, clamp;
};

// The position of number `i` in a picture; divides in 32 bits if the picture is small enough (Index).
struct Place {
  int64_t b, c, y, x;
};

template <typename Index>
__device__ inline Place locate(int64_t i, const Image& image) {
  const Index w = Index(image.width), h = Index(image.height), channels = Index(image.channels);
  Index rest = Index(i);
  Place at;
  if (image.channels_last) {
    at.c = rest % channels, rest /= channels;
    at.x = rest % w, rest /= w;
    at.y = rest % h, at.b = rest / h;
  } else {
    at.x = rest % w, rest /= w;
    at.y = rest % h, rest /= h;
    at.c = rest % channels, at.b = rest / channels;
  }
  return at;
}

// Comparisons with NaN are false, so NaN is propagated.
__device__ inline float finish(float v, const Finish& f, const Image& image, const Place& at) {
  if (f.scale) v *= f.scale[at.b * image.channels + at.c];
  float add = f.bias ? f.bias[at.c] : 0.0f;
  if (f.noise) add += f.noise[((f.noise_per_sample ? at.b : 0) * image.height + at.y) * image.width + at.x];
  v += add;
  v *= v > 0.0f ? f.gain : f.low_gain;
  v = v < -f.clamp ? -f.clamp : v;
  return v > f.clamp ? f.clamp : v;
}

// kN, kUp, kDown: the filter's size and factors if known at compile time, to unroll the loops.
template <typename T, typename Index, int kN, int kUp, int kDown>
__global__ void upfirdn2d_kernel(const T* __restrict__ x, T* __restrict__ y, Image in, Image out, Fir fir, Finish f) {
  const int n = kN ? kN : int(fir.n), up = kUp ? kUp : int(fir.up), down = kDown ? kDown : int(fir.down);
  const float* __restrict__ taps = static_cast<const float*>(fir.taps);
  const int64_t step_c = in.channels_last ? 1 : in.height * in.width, step_x = in.channels_last ? in.channels : 1;
  const int64_t count = out.batch * out.channels * out.height * out.width, stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    const Place at = locate<Index>(i, out);
    // Position of the first tap in the upsampled picture, and the first taps that fall on pixels, not inserted zeros.
    const int64_t top = at.y * down - fir.top, left = at.x * down - fir.left;
    const int ky0 = int(((-top) % up + up) % up), kx0 = int(((-left) % up + up) % up);
    const T* __restrict__ plane = x + at.b * in.channels * in.height * in.width + at.c * step_c;
    float sum = 0.0f;
    for (int ky = ky0; ky < n; ky += up) {
      const int64_t row = (top + ky) / up;  // divides without remainder
      if (row < 0 || row >= in.height) continue;
      float line = 0.0f;
      for (int kx = kx0; kx < n; kx += up) {
        const int64_t column = (left + kx) / up;
        if (column >= 0 && column < in.width) line += load(plane[(row * in.width + column) * step_x]) * taps[kx];
      }
      sum += line * taps[ky];
    }
    sum *= float(fir.gain);
    store(f.on ? finish(sum, f, out, at) : sum, y + i);
  }
}

template <typename T, typename Index>
__global__ void bias_act_kernel(const T* __restrict__ x, T* __restrict__ y, Image image, Finish f) {
  const int64_t count = image.batch * image.channels * image.height * image.width;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    store(finish(load(x[i]), f, image, locate<Index>(i, image)), y + i);
  }
}

template <typename T>
__global__ void act_grad_kernel(const T* __restrict__ grad, const T* __restrict__ y, T* __restrict__ out,
                                int64_t count, float gain, float low_gain, float clamp, bool clamped) {
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    const float at = load(y[i]);
    const bool inside = !clamped || fabsf(at) < clamp;
    store(inside ? load(grad[i]) * (at > 0.0f ? gain : low_gain) : 0.0f, out + i);
  }
}

Finish to_finish(const Epilogue& e) {
  return {static_cast<const float*>(e.scale), static_cast<const float*>(e.bias), static_cast<const float*>(e.noise),
          e.noise_per_sample, true, float(e.gain), float(e.gain * e.slope), float(e.clamp)};
}

int64_t size(const Image& image) { return image.batch * image.channels * image.height * image.width; }

int blocks(int64_t count) {
  const int64_t wanted = (count + kThreads - 1) / kThreads;
  return int(wanted < kMaxBlocks ? wanted : kMaxBlocks);
}

template <typename Kernel, typename... Args>
const char* launch(Kernel kernel, int64_t count, void* stream, const Args&... args) {
  kernel<<<blocks(count), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args...);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <typename F>
const char* with_type(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::f32: return f(float());
    case Dtype::f16: return f(__half());
    case Dtype::bf16: return f(__nv_bfloat16());
    case Dtype::f64: break;
  }
  return "the CUDA kernels take float32, float16 and bfloat16";
}

template <typename F>
const char* with_index(int64_t count, const F& f) {
  return count <= std::numeric_limits<int32_t>::max() ? f(int32_t()) : f(int64_t());
}

}  // namespace

const char* upfirdn2d(Dtype dtype, const void* x, void* y, const Image& in, const Image& out, const Fir& fir,
                      const Epilogue* epilogue, void* stream) {
  const Finish f = epilogue ? to_finish(*epilogue) : Finish{};
  const int64_t count = size(out);
  if (count == 0) return nullptr;
  return with_type(dtype, [&](auto type) {
    using T = decltype(type);
    return with_index(count, [&](auto index) {
      using Index = decltype(index);
      auto kernel = upfirdn2d_kernel<T, Index, 0, 0, 0>;
      if (fir.n == 4 && fir.up == 1 && fir.down == 1) kernel = upfirdn2d_kernel<T, Index, 4, 1, 1>;
      if (fir.n == 4 && fir.up == 2 && fir.down == 1) kernel = upfirdn2d_kernel<T, Index, 4, 2, 1>;
      if (fir.n == 4 && fir.up == 1 && fir.down == 2) kernel = upfirdn2d_kernel<T, Index, 4, 1, 2>;
      return launch(kernel, count, stream, static_cast<const T*>(x), static_cast<T*>(y), in, out, fir, f);
    });
  });
}

const char* bias_act(Dtype dtype, const void* x, void* y, const Image& image, const Epilogue& epilogue, void* stream) {
  const int64_t count = size(image);
  if (count == 0) return nullptr;
  return with_type(dtype, [&](auto type) {
    using T = decltype(type);
    return with_index(count, [&](auto index) {
      return launch(bias_act_kernel<T, decltype(index)>, count, stream, static_cast<const T*>(x), static_cast<T*>(y),
                    image, to_finish(epilogue));
    });
  });
}

const char* act_grad(Dtype dtype, const void* grad, const void* y, void* out, int64_t count, const Epilogue& e,
                     void* stream) {
  if (count == 0) return nullptr;
  return with_type(dtype, [&](auto type) {
    using T = decltype(type);
    return launch(act_grad_kernel<T>, count, stream, static_cast<const T*>(grad), static_cast<const T*>(y),
                  static_cast<T*>(out), count, float(e.gain), float(e.gain * e.slope), float(e.clamp),
                  std::isfinite(e.clamp));
  });
}

}  // namespace stylefusion
