// MobileStyleGAN's operators on CPUs: the inverse Haar transform and the depthwise 3 x 3 convolution, each with the
// style that scales its input and with a gradient, and a whole block in strips of rows that stay in the caches.
//
// All maps are channels-last inside; inputs of another layout are converted. References: ops/wavelets.py and
// ops/separable.py, which also check arguments; the checks here are the last safeguard.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <tuple>

namespace {

using at::Tensor;
using std::optional;

template <typename T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

constexpr int64_t kGrain = 32768;       // minimum of numbers per thread
constexpr int64_t kRows = 16;           // rows of a partial sum: fixed, so that sums do not depend on threads
constexpr int64_t kPixels = 16;         // pixels of a depthwise row that are computed channel by channel
constexpr int64_t kStrip = 1 << 17;     // numbers of a strip of a block's widest map: all its maps take 1 to 2 MiB

at::ScalarType sum_type(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

Tensor last(const Tensor& x) { return x.contiguous(at::MemoryFormat::ChannelsLast); }

Tensor empty_last(const Tensor& like, int64_t b, int64_t c, int64_t h, int64_t w) {
  return at::empty({b, c, h, w}, like.options().memory_format(at::MemoryFormat::ChannelsLast));
}

void check_shape(const Tensor& t, at::IntArrayRef shape, const char* name) {
  TORCH_CHECK(t.sizes() == shape, "stylefusion: ", name, " ", t.sizes(), " is not ", shape);
  TORCH_CHECK(t.device().is_cpu(), "stylefusion: ", name, " is on ", t.device());
}

// The scale of an operator's input channels, (B, C), times a factor; that factor everywhere if there is none.
Tensor scale_of(const Tensor& x, const optional<Tensor>& scale, double factor) {
  const int64_t b = x.size(0), c = x.size(1);
  if (!scale.has_value()) return at::empty({b, c}, x.options().dtype(sum_type(x))).fill_(factor);
  check_shape(*scale, {b, c}, "scale");
  return scale->to(sum_type(x)).mul(factor).contiguous();
}

// Depthwise weights (C, 1, 3, 3) as nine rows of C numbers, times a scale per sample: (B, 9, C).
Tensor taps_of(const Tensor& x, const Tensor& weight, const optional<Tensor>& scale) {
  const int64_t c = x.size(1);
  check_shape(weight, {c, 1, 3, 3}, "depthwise weight");
  const Tensor taps = weight.to(sum_type(x)).reshape({c, 9}).t();
  return (taps.unsqueeze(0) * scale_of(x, scale, 1.0).unsqueeze(1)).contiguous();
}

// Memory that begins at a cache line, as tensors do: vectors that cross one take twice as long to load.
struct Buffer {
  explicit Buffer(int64_t count) : tensor(at::empty({count}, at::kFloat)) {}
  float* get() const { return tensor.data_ptr<float>(); }
  Tensor tensor;
};

// --- Rows ------------------------------------------------------------------------------------------------------------

// One row of W pixels with 4 C bands -> two rows of 2 W pixels with C channels. `scale` (4 C) includes the factor 1/2.
template <typename T, typename A>
void inverse_haar_row(const T* __restrict__ x, const A* __restrict__ scale, T* __restrict__ above,
                      T* __restrict__ below, int64_t width, int64_t c) {
  for (int64_t i = 0; i < width; ++i, x += 4 * c, above += 2 * c, below += 2 * c) {
    const T* __restrict__ details = x + c;
    const A* __restrict__ by = scale + c;
    for (int64_t k = 0; k < c; ++k) {
      const A low = static_cast<A>(x[k]) * scale[k], vertical = static_cast<A>(details[3 * k]) * by[3 * k];
      const A horizontal = static_cast<A>(details[3 * k + 1]) * by[3 * k + 1];
      const A diagonal = static_cast<A>(details[3 * k + 2]) * by[3 * k + 2];
      const A up = low + vertical, down = low - vertical, rise = horizontal + diagonal, fall = horizontal - diagonal;
      above[k] = static_cast<T>(up + rise), above[k + c] = static_cast<T>(up - rise);
      below[k] = static_cast<T>(down + fall), below[k + c] = static_cast<T>(down - fall);
    }
  }
}

// The transposed operation on the gradients of two rows; adds x * gradient, without the scale, to `sums` (4 C).
template <typename T, typename A>
void haar_row(const T* __restrict__ above, const T* __restrict__ below, const T* __restrict__ x,
              const A* __restrict__ scale, T* __restrict__ out, A* __restrict__ sums, int64_t width, int64_t c) {
  for (int64_t i = 0; i < width; ++i, x += 4 * c, out += 4 * c, above += 2 * c, below += 2 * c) {
    for (int64_t k = 0; k < c; ++k) {
      const A g00 = above[k], g01 = above[k + c], g10 = below[k], g11 = below[k + c];
      const A top = g00 + g01, bottom = g10 + g11, left = g00 - g01, right = g10 - g11;
      const A half = A(0.5);
      const A bands[4] = {half * (top + bottom), half * (top - bottom), half * (left + right), half * (left - right)};
      out[k] = static_cast<T>(bands[0] * scale[k]);
      sums[k] += bands[0] * static_cast<A>(x[k]);
      for (int64_t j = 0; j < 3; ++j) {
        const int64_t at = c + 3 * k + j;
        out[at] = static_cast<T>(bands[j + 1] * scale[at]);
        sums[at] += bands[j + 1] * static_cast<A>(x[at]);
      }
    }
  }
}

// Sixteen or eight channels of a pixel. Compilers split it where the processor's vectors are shorter.
template <typename A>
struct Vector {
  typedef A Type __attribute__((vector_size(64)));
  static constexpr int64_t size = 64 / sizeof(A);

  template <typename T>
  static Type load(const T* from) {
    Type v;
    if constexpr (std::is_same_v<T, A>) {
      std::memcpy(&v, from, sizeof(v));
    } else {
      for (int64_t i = 0; i < size; ++i) v[i] = static_cast<A>(from[i]);
    }
    return v;
  }
};

// One pixel of a depthwise convolution. kLeft and kRight: whether it has a neighbor there.
template <bool kLeft, bool kRight, typename V, typename F>
inline V depthwise_pixel(const V* taps, const F& load) {
  V sum = load(0, 0) * taps[1] + load(1, 0) * taps[4] + load(2, 0) * taps[7];
  if constexpr (kLeft) sum += load(0, -1) * taps[0] + load(1, -1) * taps[3] + load(2, -1) * taps[6];
  if constexpr (kRight) sum += load(0, 1) * taps[2] + load(1, 1) * taps[5] + load(2, 1) * taps[8];
  return sum;
}

// `load(row, x)` and `store(x, sum)` of some channels, for the pixels x0 to x1 of a row.
template <typename V, typename Load, typename Store>
inline void depthwise_channels(const V* taps, int64_t x0, int64_t x1, int64_t width, const Load& load,
                               const Store& store) {
  auto at = [&](int64_t x) { return [&load, x](int64_t row, int64_t shift) { return load(row, x + shift); }; };
  if (width == 1) return store(0, depthwise_pixel<false, false>(taps, at(0)));
  if (x0 == 0) store(0, depthwise_pixel<false, true>(taps, at(0)));
  const int64_t end = std::min(x1, width - 1);
  for (int64_t x = std::max<int64_t>(x0, 1); x < end; ++x) store(x, depthwise_pixel<true, true>(taps, at(x)));
  if (x1 == width) store(width - 1, depthwise_pixel<true, false>(taps, at(width - 1)));
}

// A row of W pixels from three, with taps (9, C), which stay in registers for some pixels.
template <typename T, typename A>
void depthwise_row(const T* const* rows, const A* taps, A* dst, int64_t width, int64_t c) {
  using V = Vector<A>;
  for (int64_t x0 = 0; x0 < width; x0 += kPixels) {
    const int64_t x1 = std::min(x0 + kPixels, width);
    int64_t k = 0;
    for (; k + V::size <= c; k += V::size) {
      typename V::Type by[9];
      for (int64_t j = 0; j < 9; ++j) by[j] = V::load(taps + j * c + k);
      const T *const r[3] = {rows[0] + k, rows[1] + k, rows[2] + k};
      depthwise_channels(
          by, x0, x1, width, [&](int64_t row, int64_t x) { return V::load(r[row] + x * c); },
          [&](int64_t x, const auto& sum) { std::memcpy(dst + x * c + k, &sum, sizeof(sum)); });
    }
    for (; k < c; ++k) {
      A by[9];
      for (int64_t j = 0; j < 9; ++j) by[j] = taps[j * c + k];
      depthwise_channels(
          by, x0, x1, width, [&](int64_t row, int64_t x) { return static_cast<A>(rows[row][x * c + k]); },
          [&](int64_t x, A sum) { dst[x * c + k] = sum; });
    }
  }
}

// The rows above, at and below row y of a map whose rows `begin` to `end` exist; `zeros` stands for the others.
template <typename T>
struct Neighbors {
  const T* rows[3];
  Neighbors(const T* map, const T* zeros, int64_t y, int64_t height, int64_t row_size)
      : rows{y > 0 ? map + (y - 1) * row_size : zeros, map + y * row_size,
             y + 1 < height ? map + (y + 1) * row_size : zeros} {}
};

// --- The inverse Haar transform --------------------------------------------------------------------------------------

Tensor inverse_haar(const Tensor& x_, const optional<Tensor>& scale_) {
  TORCH_CHECK(x_.dim() == 4 && x_.size(1) % 4 == 0, "stylefusion: inverse_haar of ", x_.sizes());
  const int64_t b = x_.size(0), c = x_.size(1) / 4, h = x_.size(2), w = x_.size(3);
  const Tensor y = empty_last(x_, b, c, 2 * h, 2 * w);
  if (y.numel() == 0) return y;
  const Tensor x = last(x_), scale = scale_of(x, scale_, 0.5);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "inverse_haar", [&] {
    using A = Acc<scalar_t>;
    const auto* from = x.const_data_ptr<scalar_t>();
    const auto* by = scale.const_data_ptr<A>();
    auto* to = y.data_ptr<scalar_t>();
    const int64_t size = 4 * c * w;
    at::parallel_for(0, b * h, std::max<int64_t>(kGrain / size, 1), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        scalar_t* above = to + row * size;
        inverse_haar_row(from + row * size, by + row / h * 4 * c, above, above + size / 2, w, c);
      }
    });
  });
  return y;
}

// -> gradients of x and of scale (B, 4 C).
std::tuple<Tensor, Tensor> inverse_haar_grad(const Tensor& grad_, const Tensor& x_, const optional<Tensor>& scale_) {
  TORCH_CHECK(x_.dim() == 4 && x_.size(1) % 4 == 0, "stylefusion: inverse_haar of ", x_.sizes());
  const int64_t b = x_.size(0), c = x_.size(1) / 4, h = x_.size(2), w = x_.size(3), blocks = (h + kRows - 1) / kRows;
  check_shape(grad_, {b, c, 2 * h, 2 * w}, "gradient");
  const Tensor out = empty_last(x_, b, 4 * c, h, w);
  const Tensor sums = at::zeros({b, blocks, 4 * c}, x_.options().dtype(sum_type(x_)));
  if (out.numel() == 0) return {out, sums.sum(1)};
  const Tensor x = last(x_), grad = last(grad_.to(x.scalar_type())), scale = scale_of(x, scale_, 1.0);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "inverse_haar_grad", [&] {
    using A = Acc<scalar_t>;
    const auto *from = grad.const_data_ptr<scalar_t>(), *maps = x.const_data_ptr<scalar_t>();
    const auto* by = scale.const_data_ptr<A>();
    auto* to = out.data_ptr<scalar_t>();
    auto* sum = sums.data_ptr<A>();
    const int64_t size = 4 * c * w;
    at::parallel_for(0, b * blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t sample = i / blocks, top = i % blocks * kRows;
        for (int64_t y = top; y < std::min(top + kRows, h); ++y) {
          const int64_t at = (sample * h + y) * size;
          haar_row(from + at, from + at + size / 2, maps + at, by + sample * 4 * c, to + at, sum + i * 4 * c, w, c);
        }
      }
    });
  });
  return {out, sums.sum(1)};
}

// --- The depthwise convolution ---------------------------------------------------------------------------------------

Tensor depthwise(const Tensor& x_, const Tensor& weight, const optional<Tensor>& scale) {
  TORCH_CHECK(x_.dim() == 4, "stylefusion: depthwise of ", x_.sizes());
  const int64_t b = x_.size(0), c = x_.size(1), h = x_.size(2), w = x_.size(3);
  const Tensor y = empty_last(x_, b, c, h, w);
  const Tensor x = last(x_), taps = taps_of(x, weight, scale);
  if (y.numel() == 0) return y;
  const Tensor zeros = at::zeros({w * c}, x.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "depthwise", [&] {
    using A = Acc<scalar_t>;
    const auto *from = x.const_data_ptr<scalar_t>(), *zero = zeros.const_data_ptr<scalar_t>();
    const auto* by = taps.const_data_ptr<A>();
    auto* to = y.data_ptr<scalar_t>();
    at::parallel_for(0, b * h, std::max<int64_t>(kGrain / (w * c), 1), [&](int64_t begin, int64_t end) {
      std::unique_ptr<A[]> line(new A[w * c]);
      for (int64_t row = begin; row < end; ++row) {
        const int64_t sample = row / h;
        const Neighbors<scalar_t> near(from + sample * h * w * c, zero, row % h, h, w * c);
        constexpr bool direct = std::is_same_v<scalar_t, A>;
        A* const sums = direct ? reinterpret_cast<A*>(to + row * w * c) : line.get();
        depthwise_row(near.rows, by + sample * 9 * c, sums, w, c);
        if (!direct) std::copy(sums, sums + w * c, to + row * w * c);
      }
    });
  });
  return y;
}

// -> gradients of x and of scale (B, C).
std::tuple<Tensor, Tensor> depthwise_grad(const Tensor& grad_, const Tensor& x_, const Tensor& weight,
                                          const optional<Tensor>& scale_) {
  TORCH_CHECK(x_.dim() == 4, "stylefusion: depthwise of ", x_.sizes());
  const int64_t b = x_.size(0), c = x_.size(1), h = x_.size(2), w = x_.size(3), blocks = (h + kRows - 1) / kRows;
  check_shape(grad_, x_.sizes(), "gradient");
  const Tensor out = empty_last(x_, b, c, h, w);
  const Tensor sums = at::zeros({b, blocks, c}, x_.options().dtype(sum_type(x_)));
  const Tensor x = last(x_), taps = taps_of(x, weight.flip({2, 3}), {}), scale = scale_of(x, scale_, 1.0);
  if (out.numel() == 0) return {out, sums.sum(1)};
  const Tensor grad = last(grad_.to(x.scalar_type())), zeros = at::zeros({w * c}, x.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "depthwise_grad", [&] {
    using A = Acc<scalar_t>;
    const auto *from = grad.const_data_ptr<scalar_t>(), *maps = x.const_data_ptr<scalar_t>();
    const auto* zero = zeros.const_data_ptr<scalar_t>();
    const auto *by = taps.const_data_ptr<A>(), *factors = scale.const_data_ptr<A>();
    auto* to = out.data_ptr<scalar_t>();
    auto* all_sums = sums.data_ptr<A>();
    at::parallel_for(0, b * blocks, 1, [&](int64_t begin, int64_t end) {
      std::unique_ptr<A[]> line(new A[w * c]);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t sample = i / blocks, top = i % blocks * kRows;
        A* __restrict__ sum = all_sums + i * c;
        const A* __restrict__ factor = factors + sample * c;
        for (int64_t row = top; row < std::min(top + kRows, h); ++row) {
          const Neighbors<scalar_t> near(from + sample * h * w * c, zero, row, h, w * c);
          const scalar_t* __restrict__ map = maps + (sample * h + row) * w * c;
          scalar_t* __restrict__ dst = to + (sample * h + row) * w * c;
          depthwise_row(near.rows, by + sample * 9 * c, line.get(), w, c);
          for (int64_t p = 0; p < w * c; p += c) {
            const A* __restrict__ value = line.get() + p;
            for (int64_t k = 0; k < c; ++k) {
              dst[p + k] = static_cast<scalar_t>(value[k] * factor[k]);
              sum[k] += value[k] * static_cast<A>(map[p + k]);
            }
          }
        }
      }
    });
  });
  return {out, sums.sum(1)};
}

// --- A block ---------------------------------------------------------------------------------------------------------

// Parameters of a separable convolution with its activation.
struct Separable {
  Tensor taps, pointwise, bias, noise;  // (B, 9, in), (in, out), (out), (1 or B, height, width) or undefined
  int64_t in, out;

  Separable(int64_t batch, int64_t in_, int64_t height, int64_t width, const Tensor& depthwise_,
            const Tensor& pointwise_, const Tensor& bias_, const optional<Tensor>& noise_,
            const optional<Tensor>& scale)
      : in(in_), out(pointwise_.size(0)) {
    check_shape(pointwise_, {out, in, 1, 1}, "pointwise weight");
    check_shape(bias_, {out}, "bias");
    taps = taps_of(at::empty({batch, in, 0, 0}, at::kFloat), depthwise_, scale);
    pointwise = pointwise_.to(at::kFloat).reshape({out, in}).t();
    // Libraries multiply faster by rows of the inputs, which pays for the copy where there are many pixels.
    if (batch * height * width >= 1024) pointwise = pointwise.contiguous();
    bias = bias_.to(at::kFloat).contiguous();
    if (noise_.has_value()) {
      check_shape(*noise_, {noise_->size(0) == 1 ? 1 : batch, 1, height, width}, "noise");
      noise = noise_->to(at::kFloat).contiguous();
    }
  }

  // Rows y to y + count of picture `sample`, from the depthwise sums `from`.
  void finish(const float* from, float* to, int64_t sample, int64_t y, int64_t count, int64_t width) const {
    const auto options = at::TensorOptions().dtype(at::kFloat);
    const int64_t pixels = count * width;
    Tensor result = at::from_blob(to, {pixels, out}, options);
    at::mm_out(result, at::from_blob(const_cast<float*>(from), {pixels, in}, options), pointwise);
    const float* __restrict__ b = bias.const_data_ptr<float>();
    const float* map = nullptr;
    if (noise.defined()) {
      map = noise.const_data_ptr<float>() + ((noise.size(0) > 1 ? sample : 0) * noise.size(2) + y) * width;
    }
    for (int64_t p = 0; p < pixels; ++p) {
      float* __restrict__ pixel = to + p * out;
      const float at = map ? map[p] : 0.0f;
      for (int64_t c = 0; c < out; ++c) {
        const float v = pixel[c] + (b[c] + at);
        pixel[c] = v > 0.0f ? v : v * 0.2f;
      }
    }
  }
};

// Some rows of a map, of which those to be used again move to the front as later ones are added.
struct Strip {
  Buffer buffer;
  float* data;
  int64_t row_size, begin = 0, end = 0;

  Strip(int64_t rows, int64_t row_size_) : buffer(rows * row_size_), data(buffer.get()), row_size(row_size_) {}
  float* row(int64_t y) const { return data + (y - begin) * row_size; }
  void restart(int64_t y) { begin = end = y; }
  void drop_before(int64_t y) {
    if (y <= begin) return;
    std::memmove(data, row(y), sizeof(float) * (end - y) * row_size);
    begin = y;
  }
};

// Depthwise sums of rows y to y + count of the map of `height` rows in `strip`.
void depthwise_strip(const Strip& strip, const float* zeros, const float* taps, float* to, int64_t y, int64_t count,
                     int64_t height, int64_t width, int64_t c) {
  const float* map = strip.data - strip.begin * strip.row_size;
  for (int64_t i = y; i < y + count; ++i, to += width * c) {
    const Neighbors<float> near(map, zeros, i, height, width * c);
    depthwise_row(near.rows, taps, to, width, c);
  }
}

// Writes `count` rows of pixels (4 * colors numbers each) as 2 x 2 cells of a channels-first picture from row 2 y on.
void shuffle_pixels(const float* from, const float* bias, float* picture, int64_t colors, int64_t y, int64_t count,
                    int64_t height, int64_t width) {
  for (int64_t i = 0; i < count; ++i, from += width * colors * 4) {
    for (int64_t c = 0; c < colors; ++c) {
      for (int64_t dy = 0; dy < 2; ++dy) {
        const float* __restrict__ src = from + c * 4 + dy * 2;
        const float left = bias[c * 4 + dy * 2], right = bias[c * 4 + dy * 2 + 1];
        float* __restrict__ dst = picture + ((c * height + y + i) * 2 + dy) * 2 * width;
        for (int64_t x = 0; x < width; ++x, src += colors * 4) dst[2 * x] = src[0] + left, dst[2 * x + 1] = src[1] + right;
      }
    }
  }
}

// See ops/separable.py. Each thread works on a range of rows, strip by strip.
Tensor wavelet_block(const Tensor& x_, const Tensor& scale_, const Tensor& depthwise1, const Tensor& pointwise1,
                     const Tensor& bias1, const optional<Tensor>& noise1, const Tensor& scale2,
                     const Tensor& depthwise2, const Tensor& pointwise2, const Tensor& bias2,
                     const optional<Tensor>& noise2, const optional<Tensor>& image_weight,
                     const optional<Tensor>& image_bias) {
  TORCH_CHECK(x_.dim() == 4 && x_.size(1) % 4 == 0 && x_.scalar_type() == at::kFloat, "stylefusion: wavelet_block of ",
              x_.sizes(), " ", x_.scalar_type());
  const int64_t b = x_.size(0), c = x_.size(1) / 4, h = x_.size(2), w = x_.size(3), height = 2 * h, width = 2 * w;
  const Tensor x = last(x_), scale = scale_of(x, scale_, 0.5);
  const Separable first(b, c, height, width, depthwise1, pointwise1, bias1, noise1, {});
  const Separable second(b, first.out, height, width, depthwise2, pointwise2, bias2, noise2, scale2);
  const int64_t inner = first.out, outer = second.out, most = std::max({c, inner, outer});
  Tensor y, weight, bias;
  int64_t colors = 0;
  if (image_weight.has_value()) {
    TORCH_CHECK(image_bias.has_value() && image_weight->dim() == 3 && image_weight->size(1) % 4 == 0,
                "stylefusion: image weight ", image_weight->sizes());
    colors = image_weight->size(1) / 4;
    check_shape(*image_weight, {b, 4 * colors, outer}, "image weight");
    check_shape(*image_bias, {4 * colors}, "image bias");
    weight = image_weight->to(at::kFloat).transpose(1, 2).contiguous(), bias = image_bias->to(at::kFloat).contiguous();
    y = at::empty({b, colors, 2 * height, 2 * width}, x.options().memory_format(at::MemoryFormat::Contiguous));
  } else {
    y = empty_last(x, b, outer, height, width);
  }
  if (y.numel() == 0) return y;
  const Tensor zero_row = at::zeros({width * most}, x.options());
  const float *zeros = zero_row.const_data_ptr<float>(), *from = x.const_data_ptr<float>();
  float* const to = y.data_ptr<float>();
  const int64_t rows = 2 * std::max<int64_t>(1, std::min(h, kStrip / (2 * width * most)));  // of a strip

  at::parallel_for(0, b * h, std::max<int64_t>(1, 128 / width), [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowAutograd no_gradients;
    Strip transformed(rows + 4, width * c), middle(rows + 2, width * inner);
    const Buffer sums((rows + 2) * width * std::max(c, inner));
    const Buffer features(colors ? rows * width * outer : 0), pixels(rows * width * 4 * colors);
    while (begin < end) {  // picture by picture
      const int64_t sample = begin / h, top = begin % h * 2, bottom = top + 2 * std::min(end - begin, h - begin % h);
      begin += (bottom - top) / 2;
      const float *maps = from + sample * h * w * 4 * c, *by = scale.const_data_ptr<float>() + sample * 4 * c;
      transformed.restart(std::max<int64_t>(top - 2, 0)), middle.restart(std::max<int64_t>(top - 1, 0));
      for (int64_t y0 = top; y0 < bottom; y0 += rows) {
        const int64_t y1 = std::min(y0 + rows, bottom), middle_end = std::min(y1 + 1, height);
        // The transform, as far as the first convolution sees: one row further than its results.
        transformed.drop_before(middle.end - 1);
        while (transformed.end < std::min(middle_end + 1, height)) {
          float* above = transformed.row(transformed.end);
          inverse_haar_row(maps + transformed.end / 2 * w * 4 * c, by, above, above + width * c, w, c);
          transformed.end += 2;
        }
        // The first convolution, one row further than the second one's results.
        middle.drop_before(y0 - 1);
        const int64_t m0 = middle.end, count = middle_end - m0;
        middle.end = middle_end;
        if (count > 0) {
          depthwise_strip(transformed, zeros, first.taps.const_data_ptr<float>() + sample * 9 * c, sums.get(), m0,
                          count, height, width, c);
          first.finish(sums.get(), middle.row(m0), sample, m0, count, width);
        }
        // The second convolution.
        depthwise_strip(middle, zeros, second.taps.const_data_ptr<float>() + sample * 9 * inner, sums.get(), y0,
                        y1 - y0, height, width, inner);
        float* const result = colors ? features.get() : to + (sample * height + y0) * width * outer;
        second.finish(sums.get(), result, sample, y0, y1 - y0, width);
        if (colors) {
          const auto options = at::TensorOptions().dtype(at::kFloat);
          Tensor out = at::from_blob(pixels.get(), {(y1 - y0) * width, 4 * colors}, options);
          at::mm_out(out, at::from_blob(result, {(y1 - y0) * width, outer}, options), weight[sample]);
          shuffle_pixels(pixels.get(), bias.const_data_ptr<float>(), to + sample * colors * 4 * height * width, colors,
                         y0, y1 - y0, height, width);
        }
      }
    }
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(stylefusion, CPU, m) {
  m.impl("inverse_haar", inverse_haar);
  m.impl("inverse_haar_grad", inverse_haar_grad);
  m.impl("depthwise", depthwise);
  m.impl("depthwise_grad", depthwise_grad);
  m.impl("wavelet_block", wavelet_block);
}
