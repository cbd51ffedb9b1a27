// CPU kernels: plain loops over contiguous memory, which the compiler vectorizes.
//
// One code path handles both memory layouts. A picture is `outer` planes of height x width pixels of `inner` numbers:
// channels-first has outer = batch * channels and inner = 1, channels-last outer = batch and inner = channels. Each
// tile of an output row goes through three passes that stay in the L1 cache: the vertical taps sum rows of the input,
// the horizontal taps sum pixels of that result, and the epilogue writes the output. The feature map is read and
// written once.
#include "kernels.h"

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <type_traits>

namespace stylefusion {
namespace {

template <typename T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

constexpr int64_t kTile = 4096;   // numbers of an output row processed together: 16 KiB of float
constexpr int64_t kGrain = 32768; // minimum of numbers per thread

int64_t tile_pixels(int64_t inner) { return std::max<int64_t>(kTile / inner, 16); }

// --- Epilogue --------------------------------------------------------------------------------------------------------

template <typename A>
struct Finish {
  const A *scale, *bias, *noise;
  int64_t noise_stride, channels;
  bool channels_last;
  A gain, low_gain, clamp;

  Finish(const Epilogue& e, const Image& out)
      : scale(static_cast<const A*>(e.scale)), bias(static_cast<const A*>(e.bias)),
        noise(static_cast<const A*>(e.noise)), noise_stride(e.noise_per_sample ? out.height * out.width : 0),
        channels(out.channels), channels_last(out.channels_last), gain(static_cast<A>(e.gain)),
        low_gain(static_cast<A>(e.gain * e.slope)), clamp(static_cast<A>(e.clamp)) {}

  // Comparisons with NaN are false, so NaN is propagated.
  A act(A v) const {
    v *= v > A(0) ? gain : low_gain;
    v = v < -clamp ? -clamp : v;
    return v > clamp ? clamp : v;
  }

  // `pixels` pixels of plane `outer`, from pixel `start` on; src and dst point at the first of them.
  template <typename In, typename Out>
  void run(const In* __restrict__ src, Out* __restrict__ dst, int64_t outer, int64_t start, int64_t pixels) const {
    const Finish f = *this;  // a copy, so that the compiler knows that dst does not alias it
    f.run_here(src, dst, outer, start, pixels);
  }

  template <typename In, typename Out>
  void run_here(const In* __restrict__ src, Out* __restrict__ dst, int64_t outer, int64_t start, int64_t pixels) const {
    if (!channels_last) {
      const A s = scale ? scale[outer] : A(1), b = bias ? bias[outer % channels] : A(0);
      if (noise) {
        const A* __restrict__ n = noise + (outer / channels) * noise_stride + start;
        for (int64_t i = 0; i < pixels; ++i) dst[i] = static_cast<Out>(act(static_cast<A>(src[i]) * s + (b + n[i])));
      } else {
        for (int64_t i = 0; i < pixels; ++i) dst[i] = static_cast<Out>(act(static_cast<A>(src[i]) * s + b));
      }
      return;
    }
    const A* n = noise ? noise + outer * noise_stride + start : nullptr;
    const A* __restrict__ s = scale ? scale + outer * channels : nullptr;
    const A* __restrict__ b = bias;
    for (int64_t p = 0; p < pixels; ++p, src += channels, dst += channels) {
      const A at = n ? n[p] : A(0);
      if (s && b) {
        for (int64_t c = 0; c < channels; ++c) dst[c] = static_cast<Out>(act(static_cast<A>(src[c]) * s[c] + (b[c] + at)));
      } else if (s) {
        for (int64_t c = 0; c < channels; ++c) dst[c] = static_cast<Out>(act(static_cast<A>(src[c]) * s[c] + at));
      } else if (b) {
        for (int64_t c = 0; c < channels; ++c) dst[c] = static_cast<Out>(act(static_cast<A>(src[c]) + (b[c] + at)));
      } else {
        for (int64_t c = 0; c < channels; ++c) dst[c] = static_cast<Out>(act(static_cast<A>(src[c]) + at));
      }
    }
  }
};

// --- FIR -------------------------------------------------------------------------------------------------------------

// dst[i] (+)= sum of K rows, each with its tap.
template <int K, bool kAdd, typename T, typename A>
void sum_rows(const T* const* rows, const A* taps, A* __restrict__ dst, int64_t count) {
  const T* __restrict__ r0 = rows[0];
  const T* __restrict__ r1 = rows[K > 1 ? 1 : 0];
  const T* __restrict__ r2 = rows[K > 2 ? 2 : 0];
  const T* __restrict__ r3 = rows[K > 3 ? 3 : 0];
  for (int64_t i = 0; i < count; ++i) {
    A sum = static_cast<A>(r0[i]) * taps[0];
    if (K > 1) sum += static_cast<A>(r1[i]) * taps[1];
    if (K > 2) sum += static_cast<A>(r2[i]) * taps[2];
    if (K > 3) sum += static_cast<A>(r3[i]) * taps[3];
    dst[i] = kAdd ? dst[i] + sum : sum;
  }
}

template <bool kAdd, typename T, typename A>
void sum_up_to_four_rows(int64_t k, const T* const* rows, const A* taps, A* dst, int64_t count) {
  if (k == 4) sum_rows<4, kAdd>(rows, taps, dst, count);
  else if (k == 3) sum_rows<3, kAdd>(rows, taps, dst, count);
  else if (k == 2) sum_rows<2, kAdd>(rows, taps, dst, count);
  else sum_rows<1, kAdd>(rows, taps, dst, count);
}

// One output pixel of `inner` numbers: K taps (`k` if K is 0) on adjacent pixels.
template <int K, int kInner, typename A>
inline void sum_pixels(const A* __restrict__ src, const A* taps, int64_t k, A* __restrict__ dst, int64_t inner) {
  const int64_t n = kInner ? kInner : inner;
  for (int64_t c = 0; c < n; ++c) {
    A sum = src[c] * taps[0];
    const int64_t count = K ? K : k;
    for (int64_t j = 1; j < count; ++j) sum += src[c + j * n] * taps[j];
    dst[c] = sum;
  }
}

// The horizontal taps, regrouped by phase: output x uses only the taps k0, k0 + up, ... on pixels, not on zeros.
template <typename A>
struct Phases {
  int64_t n, up, down, left;
  std::unique_ptr<A[]> taps;     // phase p: taps[p * per ...], the taps p, p + up, ...
  std::unique_ptr<int64_t[]> count;
  int64_t per;

  explicit Phases(const Fir& fir) : n(fir.n), up(fir.up), down(fir.down), left(fir.left), per((fir.n + fir.up - 1) / fir.up) {
    const auto* all = static_cast<const double*>(fir.taps);
    taps = std::make_unique<A[]>(up * per);
    count = std::make_unique<int64_t[]>(up);
    for (int64_t p = 0; p < up; ++p) {
      for (int64_t k = p; k < n; k += up) taps[p * per + count[p]++] = static_cast<A>(all[k]);
    }
  }
  int64_t phase(int64_t x) const { return ((left - x * down) % up + up) % up; }
  // The first input column that output x depends on; may lie outside.
  int64_t column(int64_t x) const { return (x * down + phase(x) - left) / up; }  // divides without remainder
};

template <int kInner, typename A>
void across_general(const Phases<A>& ph, const A* tmp, int64_t base, A* dst, int64_t x0, int64_t x1, int64_t inner) {
  const int64_t n = kInner ? kInner : inner;
  int64_t p = ph.phase(x0);
  const A* src = tmp + (ph.column(x0) - base) * n;
  for (int64_t x = x0; x < x1; ++x, dst += n) {
    const int64_t k = ph.count[p];
    const A* taps = ph.taps.get() + p * ph.per;
    if (k == 4) sum_pixels<4, kInner>(src, taps, k, dst, n);
    else if (k == 2) sum_pixels<2, kInner>(src, taps, k, dst, n);
    else if (k > 0) sum_pixels<0, kInner>(src, taps, k, dst, n);
    else std::fill(dst, dst + n, A(0));  // fewer taps than `up`: all taps fall on inserted zeros
    for (p -= ph.down; p < 0; p += ph.up) src += n;  // phase and column of x + 1 without a division
  }
}

// Output pixels x0 to x1 from the vertical sums, whose first pixel is column `base`.
template <typename A>
void across(const Phases<A>& ph, const A* __restrict__ tmp, int64_t base, A* __restrict__ dst, int64_t x0, int64_t x1,
            int64_t inner) {
  const int64_t count = x1 - x0;
  const A* taps = ph.taps.get();
  if (ph.n == 4 && ph.up == 1 && ph.down == 1) {
    const A t0 = taps[0], t1 = taps[1], t2 = taps[2], t3 = taps[3];
    for (int64_t i = 0; i < count * inner; ++i) {
      dst[i] = tmp[i] * t0 + tmp[i + inner] * t1 + tmp[i + 2 * inner] * t2 + tmp[i + 3 * inner] * t3;
    }
  } else if (ph.n == 4 && ph.up == 1 && ph.down == 2 && inner == 1) {
    const A t0 = taps[0], t1 = taps[1], t2 = taps[2], t3 = taps[3];
    for (int64_t i = 0; i < count; ++i) {
      const A* s = tmp + 2 * i;
      dst[i] = s[0] * t0 + s[1] * t1 + s[2] * t2 + s[3] * t3;
    }
  } else if (ph.n == 4 && ph.up == 2 && ph.down == 1 && inner == 1) {
    // Outputs alternate between the phases; the second of a pair starts at the same column or at the next.
    const A *a = taps + ph.phase(x0) * 2, *b = taps + ph.phase(x0 + 1) * 2;
    const A a0 = a[0], a1 = a[1], b0 = b[0], b1 = b[1];
    const A* sa = tmp + (ph.column(x0) - base);
    const A* sb = tmp + (ph.column(x0 + 1) - base);
    int64_t i = 0;
    for (; i < count / 2; ++i) {
      dst[2 * i] = sa[i] * a0 + sa[i + 1] * a1;
      dst[2 * i + 1] = sb[i] * b0 + sb[i + 1] * b1;
    }
    if (count % 2) dst[2 * i] = sa[i] * a0 + sa[i + 1] * a1;
  } else if (inner == 1) {
    across_general<1>(ph, tmp, base, dst, x0, x1, inner);
  } else if (inner == 3) {
    across_general<3>(ph, tmp, base, dst, x0, x1, inner);
  } else {
    across_general<0>(ph, tmp, base, dst, x0, x1, inner);
  }
}

template <typename T>
void fir_rows(const T* x, T* y, const Image& in, const Image& out, const Fir& fir, const Epilogue* epilogue) {
  using A = Acc<T>;
  const int64_t inner = in.channels_last ? in.channels : 1;
  const int64_t outer = in.channels_last ? in.batch : in.batch * in.channels;
  const int64_t pixels = std::min(tile_pixels(inner), out.width);
  // Input columns that `pixels` outputs can depend on.
  const int64_t columns = ((pixels - 1) * fir.down + fir.n - 1) / fir.up + 2;
  const Phases<A> phases(fir);
  const auto* taps = static_cast<const double*>(fir.taps);
  const bool direct = std::is_same_v<T, A> && !epilogue;
  const Finish<A> finish(epilogue ? *epilogue : Epilogue{nullptr, nullptr, nullptr, false, 1.0, 1.0, INFINITY}, out);
  const int64_t row_size = out.width * inner;

  at::parallel_for(0, outer * out.height, std::max<int64_t>(kGrain / row_size, 1), [&](int64_t begin, int64_t end) {
    std::unique_ptr<A[]> sums(new A[columns * inner]), results(new A[direct ? 1 : pixels * inner]);
    std::unique_ptr<A[]> row_taps(new A[fir.n]);
    std::unique_ptr<const T*[]> rows(new const T*[fir.n]), shifted(new const T*[fir.n]);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t plane = row / out.height, oy = row % out.height;
      int64_t k_rows = 0;  // the input rows that this output row depends on, and their taps
      for (int64_t k = 0; k < fir.n; ++k) {
        const int64_t at = oy * fir.down + k - fir.top;
        if (at < 0 || at % fir.up || at / fir.up >= in.height) continue;
        row_taps[k_rows] = static_cast<A>(taps[k] * fir.gain);
        rows[k_rows++] = x + (plane * in.height + at / fir.up) * in.width * inner;
      }
      for (int64_t x0 = 0; x0 < out.width; x0 += pixels) {
        const int64_t x1 = std::min(x0 + pixels, out.width);
        // Columns from `base` to `stop` are needed; those outside the picture are zeros.
        const int64_t first = x0 * fir.down - fir.left, last = (x1 - 1) * fir.down + fir.n - 1 - fir.left;
        const int64_t base = first >= 0 ? (first + fir.up - 1) / fir.up : -(-first / fir.up);  // rounded up
        const int64_t stop = (last >= 0 ? last / fir.up : -((-last + fir.up - 1) / fir.up)) + 1;  // rounded down
        const int64_t from = std::min(std::max<int64_t>(base, 0), stop), to = std::max(std::min(stop, in.width), from);
        A* const middle = sums.get() + (from - base) * inner;
        if (k_rows == 0) {
          std::fill(sums.get(), sums.get() + (stop - base) * inner, A(0));
        } else {
          std::fill(sums.get(), middle, A(0));
          std::fill(middle + (to - from) * inner, sums.get() + (stop - base) * inner, A(0));
          for (int64_t k = 0; k < k_rows; ++k) shifted[k] = rows[k] + from * inner;
          const int64_t head = std::min<int64_t>(k_rows, 4);
          sum_up_to_four_rows<false>(head, shifted.get(), row_taps.get(), middle, (to - from) * inner);
          for (int64_t k = 4; k < k_rows; k += 4) {
            const int64_t some = std::min<int64_t>(k_rows - k, 4);
            sum_up_to_four_rows<true>(some, shifted.get() + k, row_taps.get() + k, middle, (to - from) * inner);
          }
        }
        T* const target = y + row * row_size + x0 * inner;
        if constexpr (std::is_same_v<T, A>) {
          if (direct) {
            across(phases, sums.get(), base, target, x0, x1, inner);
            continue;
          }
        }
        across(phases, sums.get(), base, results.get(), x0, x1, inner);
        if (epilogue) {
          finish.run(results.get(), target, plane, oy * out.width + x0, x1 - x0);
        } else {
          for (int64_t i = 0; i < (x1 - x0) * inner; ++i) target[i] = static_cast<T>(results[i]);
        }
      }
    }
  });
}

template <typename F>
const char* with_type(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::f32: f(float()); return nullptr;
    case Dtype::f64: f(double()); return nullptr;
    case Dtype::f16: f(c10::Half()); return nullptr;
    case Dtype::bf16: f(c10::BFloat16()); return nullptr;
  }
  return "unknown dtype";
}

}  // namespace

const char* upfirdn2d(Dtype dtype, const void* x, void* y, const Image& in, const Image& out, const Fir& fir,
                      const Epilogue* epilogue, void*) {
  return with_type(dtype, [&](auto type) {
    using T = decltype(type);
    fir_rows(static_cast<const T*>(x), static_cast<T*>(y), in, out, fir, epilogue);
  });
}

const char* bias_act(Dtype dtype, const void* x, void* y, const Image& image, const Epilogue& epilogue, void*) {
  return with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t inner = image.channels_last ? image.channels : 1, area = image.height * image.width;
    const int64_t outer = image.channels_last ? image.batch : image.batch * image.channels;
    const Finish<Acc<T>> finish(epilogue, image);
    const auto* src = static_cast<const T*>(x);
    auto* dst = static_cast<T*>(y);
    at::parallel_for(0, outer * area, std::max<int64_t>(kGrain / inner, 1), [&](int64_t begin, int64_t end) {
      while (begin < end) {  // plane by plane
        const int64_t plane = begin / area, start = begin % area, count = std::min(end - begin, area - start);
        finish.run(src + begin * inner, dst + begin * inner, plane, start, count);
        begin += count;
      }
    });
  });
}

const char* act_grad(Dtype dtype, const void* grad, const void* y, void* out, int64_t count, const Epilogue& e, void*) {
  return with_type(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Acc<T>;
    const A gain = static_cast<A>(e.gain), low = static_cast<A>(e.gain * e.slope), clamp = static_cast<A>(e.clamp);
    const bool clamped = std::isfinite(e.clamp);
    // By value: references could alias the output, which would prevent vectorization.
    at::parallel_for(0, count, kGrain, [=](int64_t begin, int64_t end) {
      const T* __restrict__ g = static_cast<const T*>(grad) + begin;
      const T* __restrict__ v = static_cast<const T*>(y) + begin;
      T* __restrict__ d = static_cast<T*>(out) + begin;
      const A positive = gain, negative = low, limit = clamp;
      if (!clamped) {
        for (int64_t i = 0; i < end - begin; ++i) {
          d[i] = static_cast<T>(static_cast<A>(g[i]) * (static_cast<A>(v[i]) > A(0) ? positive : negative));
        }
        return;
      }
      for (int64_t i = 0; i < end - begin; ++i) {
        const A at = static_cast<A>(v[i]);
        const A inside = static_cast<A>(g[i]) * (at > A(0) ? positive : negative);
        // Select, do not multiply by zero: outside, the gradient of clamp is 0 even for an infinite one.
        d[i] = static_cast<T>(std::abs(at) < limit ? inside : A(0));
      }
    });
  });
}

}  // namespace stylefusion
