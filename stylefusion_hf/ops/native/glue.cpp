// torch bindings of the kernels: bounds checks, memory layouts, and implementations of the operators that
// registration.py defines. Compiled once for CPUs and, with STYLEFUSION_CUDA and a CUDA build of torch, once for GPUs.
// Python (upfirdn2d.py, bias_act.py) checks arguments with messages for users; these checks are the last safeguard.
#include "kernels.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <functional>
#include <limits>
#include <optional>

#ifdef STYLEFUSION_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace {

using at::Tensor;
using std::optional;

#ifdef STYLEFUSION_CUDA
#define STYLEFUSION_DEVICE CUDA
struct Device {
  explicit Device(const Tensor& x) : guard(x.device()), stream(c10::cuda::getCurrentCUDAStream().stream()) {}
  c10::cuda::CUDAGuard guard;
  void* stream;
};
#else
#define STYLEFUSION_DEVICE CPU
struct Device {
  explicit Device(const Tensor&) {}
  void* stream = nullptr;
};
#endif

void check(const char* error) { TORCH_CHECK(!error, "stylefusion: ", error); }

stylefusion::Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat: return stylefusion::Dtype::f32;
    case at::kDouble: return stylefusion::Dtype::f64;
    case at::kHalf: return stylefusion::Dtype::f16;
    case at::kBFloat16: return stylefusion::Dtype::bf16;
    default: TORCH_CHECK(false, "stylefusion: no native operator for ", x.scalar_type());
  }
}

at::ScalarType sum_type(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// The result's layout, which is the input's; registration.py's fake kernels follow the same rule.
at::MemoryFormat layout_of(const Tensor& x) {
  const bool last = x.dim() == 4 && !x.is_contiguous() && x.stride(1) == 1;
  return last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

// (B, C) counts as a picture of one pixel.
stylefusion::Image image_of(const Tensor& x, at::MemoryFormat layout) {
  if (x.dim() == 2) return {x.size(0), x.size(1), 1, 1, true};
  return {x.size(0), x.size(1), x.size(2), x.size(3), layout == at::MemoryFormat::ChannelsLast};
}

// Owns the memory that the pointers in `epilogue` refer to.
struct Holder {
  Tensor scale, bias, noise;
  stylefusion::Epilogue epilogue{};

  Holder(const Tensor& x, const stylefusion::Image& out, const optional<Tensor>& scale_, const optional<Tensor>& bias_,
         const optional<Tensor>& noise_, bool lrelu, double gain, double clamp) {
    if (scale_.has_value()) {
      scale = dense(x, *scale_);
      TORCH_CHECK(scale.dim() == 2 && scale.size(0) == out.batch && scale.size(1) == out.channels,
                  "stylefusion: scale ", scale.sizes(), " is not (", out.batch, ", ", out.channels, ")");
      epilogue.scale = scale.const_data_ptr();
    }
    if (bias_.has_value()) {
      bias = dense(x, *bias_);
      TORCH_CHECK(bias.dim() == 1 && bias.size(0) == out.channels, "stylefusion: bias ", bias.sizes(), " is not (",
                  out.channels, ",)");
      epilogue.bias = bias.const_data_ptr();
    }
    if (noise_.has_value()) {
      noise = dense(x, *noise_);
      TORCH_CHECK(noise.dim() == 4 && (noise.size(0) == 1 || noise.size(0) == out.batch) && noise.size(1) == 1 &&
                      noise.size(2) == out.height && noise.size(3) == out.width,
                  "stylefusion: noise ", noise.sizes(), " is not (1 or ", out.batch, ", 1, ", out.height, ", ",
                  out.width, ")");
      epilogue.noise = noise.const_data_ptr();
      epilogue.noise_per_sample = noise.size(0) > 1;
    }
    epilogue.slope = lrelu ? 0.2 : 1.0;
    epilogue.gain = gain;
    epilogue.clamp = clamp;
  }

  static Tensor dense(const Tensor& x, const Tensor& t) {
    TORCH_CHECK(t.device() == x.device(), "stylefusion: ", t.device(), " beside ", x.device());
    return t.to(sum_type(x)).contiguous();
  }
};

double limit(optional<double> clamp) { return clamp.value_or(std::numeric_limits<double>::infinity()); }

Tensor resample(const Tensor& x_, const Tensor& taps_, int64_t up, int64_t down, at::IntArrayRef padding, double gain,
                bool flip, const std::function<Holder(const Tensor&, const stylefusion::Image&)>& make_epilogue) {
  TORCH_CHECK(x_.dim() == 4 && taps_.dim() == 1 && taps_.numel() > 0 && up > 0 && down > 0 && padding.size() == 4,
              "stylefusion: upfirdn2d of ", x_.sizes(), " and ", taps_.sizes(), " by ", up, " / ", down);
  const Device device(x_);
  const auto layout = layout_of(x_);
  const Tensor x = x_.contiguous(layout);
  const auto in = image_of(x, layout);
  const int64_t n = taps_.numel();
  const int64_t w = in.width * up + padding[0] + padding[1], h = in.height * up + padding[2] + padding[3];
  TORCH_CHECK(w >= n && h >= n, "stylefusion: a filter of ", n, " taps on ", h, " x ", w, " padded pixels");
  const stylefusion::Image out{in.batch, in.channels, (h - n) / down + 1, (w - n) / down + 1, in.channels_last};
  const Tensor y = at::empty({out.batch, out.channels, out.height, out.width}, x.options().memory_format(layout));
  if (y.numel() == 0) return y;
  TORCH_CHECK(x.numel() > 0, "stylefusion: upfirdn2d of an empty picture ", x.sizes());
#ifdef STYLEFUSION_CUDA
  Tensor taps = taps_.to(x.device(), at::kFloat);
#else
  Tensor taps = taps_.to(at::kCPU, at::kDouble);
#endif
  taps = flip ? taps.contiguous() : taps.flip(0);  // a convolution flips its taps
  const stylefusion::Fir fir{taps.const_data_ptr(), n, up, down, padding[0], padding[2], gain};
  if (!make_epilogue) {
    check(stylefusion::upfirdn2d(dtype_of(x), x.const_data_ptr(), y.data_ptr(), in, out, fir, nullptr, device.stream));
  } else {
    const Holder holder = make_epilogue(x, out);
    check(stylefusion::upfirdn2d(dtype_of(x), x.const_data_ptr(), y.data_ptr(), in, out, fir, &holder.epilogue,
                                 device.stream));
  }
  return y;
}

Tensor upfirdn2d(const Tensor& x, const Tensor& taps, int64_t up, int64_t down, at::IntArrayRef padding, double gain,
                 bool flip) {
  return resample(x, taps, up, down, padding, gain, flip, {});
}

Tensor upfirdn2d_bias_act(const Tensor& x, const Tensor& taps, int64_t up, int64_t down, at::IntArrayRef padding,
                          double fir_gain, const optional<Tensor>& scale, const optional<Tensor>& bias,
                          const optional<Tensor>& noise, bool lrelu, double gain, optional<double> clamp) {
  return resample(x, taps, up, down, padding, fir_gain, false, [&](const Tensor& dense, const stylefusion::Image& out) {
    return Holder(dense, out, scale, bias, noise, lrelu, gain, limit(clamp));
  });
}

Tensor bias_act(const Tensor& x_, const optional<Tensor>& scale, const optional<Tensor>& bias,
                const optional<Tensor>& noise, bool lrelu, double gain, optional<double> clamp) {
  TORCH_CHECK(x_.dim() == 4 || x_.dim() == 2, "stylefusion: bias_act of ", x_.sizes());
  const Device device(x_);
  const auto layout = layout_of(x_);
  const Tensor x = x_.contiguous(layout);
  const auto image = image_of(x, layout);
  const Tensor y = at::empty_like(x, x.options().memory_format(layout));
  if (y.numel() == 0) return y;
  const Holder holder(x, image, scale, bias, noise, lrelu, gain, limit(clamp));
  check(stylefusion::bias_act(dtype_of(x), x.const_data_ptr(), y.data_ptr(), image, holder.epilogue, device.stream));
  return y;
}

Tensor act_grad(const Tensor& grad_, const Tensor& y_, bool lrelu, double gain, optional<double> clamp) {
  TORCH_CHECK(grad_.sizes() == y_.sizes() && grad_.scalar_type() == y_.scalar_type() && grad_.device() == y_.device(),
              "stylefusion: a gradient ", grad_.sizes(), " for ", y_.sizes());
  const Device device(y_);
  const auto layout = layout_of(y_);
  const Tensor grad = grad_.contiguous(layout), y = y_.contiguous(layout);
  const Tensor out = at::empty_like(y, y.options().memory_format(layout));
  if (out.numel() == 0) return out;
  stylefusion::Epilogue epilogue{nullptr, nullptr, nullptr, false, lrelu ? 0.2 : 1.0, gain, limit(clamp)};
  check(stylefusion::act_grad(dtype_of(y), grad.const_data_ptr(), y.const_data_ptr(), out.data_ptr(), y.numel(),
                              epilogue, device.stream));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(stylefusion, STYLEFUSION_DEVICE, m) {
  m.impl("upfirdn2d", upfirdn2d);
  m.impl("upfirdn2d_bias_act", upfirdn2d_bias_act);
  m.impl("bias_act", bias_act);
  m.impl("act_grad", act_grad);
}
