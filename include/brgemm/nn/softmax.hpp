// Softmax over the last axis, and its gradient.
#pragma once

#include <algorithm>
#include <bit>

#include "../core/activation.hpp"
#include "../loops/buffers.hpp"
#include "../loops/elementwise.hpp"

namespace brgemm::inline abi_0::detail {

/// exp(x) for x <= 0, 0 below -104, NaN of NaN; off by at most 1.5 ULP, subnormal results by one of their last places
/// more. A text of fused and exact operations: the same bits for every instruction set.
BRGEMM_ALWAYS_INLINE inline float exp_of_negative(float x) noexcept {
  constexpr float whole = 0x1.8p+23f;  // added, it leaves an integer
  x = x < -104.0f ? -104.0f : x;
  const float n = __builtin_fmaf(x, 0x1.715476p0f, whole) - whole;
  float r = __builtin_fmaf(x, -0x1.715476p0f, n);  // n - r = x log2(e)
  r = __builtin_fmaf(x, -0x1.4ae0cp-26f, r);
  // Not emit_exp2_series: only what is inlined for certain is vectorised.
  float series = exp2_series[0];
  series = __builtin_fmaf(series, r, exp2_series[1]);
  series = __builtin_fmaf(series, r, exp2_series[2]);
  series = __builtin_fmaf(series, r, exp2_series[3]);
  series = __builtin_fmaf(series, r, exp2_series[4]);
  series = __builtin_fmaf(series, r, exp2_series[5]);
  const float mantissa = __builtin_fmaf(series, r, 1.0f);
  // 2^n in two factors, of which the first keeps the product normal; 1.5 * 2^23 + 127 has the exponent in its last
  // bits.
  const float low = n < -100.0f ? n + 100.0f : 0.0f;
  const auto power = [](float e) BRGEMM_ALWAYS_INLINE {
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(e + 12583039.0f) << 23);
  };
  return mantissa * power(n - low) * power(low);
}

}  // namespace brgemm::inline abi_0::detail

namespace brgemm::inline abi_0::nn {

/// x and y are (rows, classes), f32, classes adjacent: for pictures rows is images * height * width.
struct softmax_desc {
  index rows = 1;  ///< the most of one call
  index classes = 1;
  friend bool operator==(const softmax_desc&, const softmax_desc&) = default;
};

/// y = exp(x - max) / sum of exp(x - max), in each row. A checked desc: any number of threads may call it at once with
/// different memory. It owns nothing and allocates nothing.
///
/// A row's largest x is subtracted first, so no exp overflows; exp is off by less than 2 ULP. A sum over classes is 16
/// chains from +0, chain j over the classes with index mod 16 = j in ascending order, added as ((0+8)+(4+12)) + ...:
/// pairs 8 apart, then 4, 2 and 1. A row with a NaN, an infinity above all, or nothing but -infinity is all NaN. Equal
/// bits for any number of threads and instruction set.
///
/// Errors of calls are invalid_argument with the argument's name, found before anything is written. What is written
/// overlaps nothing else, but y may be x, and dx may be y or dy.
class softmax {
 public:
  /// Errors: invalid_argument with the field: sizes below 1, tensors beyond 2^62 bytes.
  static result<softmax> plan(const softmax_desc& d) noexcept {
    for (const auto& [name, value] : {std::pair{"rows", d.rows}, std::pair{"classes", d.classes}}) {
      if (value < 1) return error(errc::invalid_argument, name, "%s is %ld; it must be 1 or more", name, value);
    }
    if (d.rows > (index{1} << 60) / d.classes) {
      return error(errc::invalid_argument, "rows", "%ld rows of %ld classes have more than 2^62 bytes", d.rows,
                   d.classes);
    }
    return softmax(d);
  }

  const softmax_desc& description() const noexcept { return d_; }
  index x_bytes() const noexcept { return d_.rows * d_.classes * 4; }

  /// The first `rows` rows.
  result<void> forward(loops::executor_ref threads, index rows, const float* x, float* y) const noexcept {
    if (auto r = check(rows, {"y", y, rows * d_.classes * 4}, {{"x", x, rows * d_.classes * 4}}); !r) return r;
    for_rows(threads, rows, [x, y](index first, index classes) BRGEMM_ALWAYS_INLINE {
      const float* const from = x + first;
      float* const to = y + first;
      float largest = from[0];
      for (index c = 1; c < classes; ++c) largest = from[c] > largest ? from[c] : largest;
      for (index c = 0; c < classes; ++c) to[c] = detail::exp_of_negative(from[c] - largest);
      const float sum = sum_of(classes, [to](index c, float s) BRGEMM_ALWAYS_INLINE { return s + to[c]; });
      for (index c = 0; c < classes; ++c) to[c] = to[c] / sum;
    });
    return {};
  }

  /// dx = y * (dy - sum of y * dy), from forward's y.
  result<void> backward(loops::executor_ref threads, index rows, const float* y, const float* dy,
                        float* dx) const noexcept {
    const index bytes = rows * d_.classes * 4;
    if (auto r = check(rows, {"dx", dx, bytes}, {{"y", y, bytes}, {"dy", dy, bytes}}); !r) return r;
    for_rows(threads, rows, [y, dy, dx](index first, index classes) BRGEMM_ALWAYS_INLINE {
      const float* const of_y = y + first;
      const float* const of_dy = dy + first;
      float* const to = dx + first;
      const float sum = sum_of(classes, [of_y, of_dy](index c, float s)
                                            BRGEMM_ALWAYS_INLINE { return __builtin_fmaf(of_y[c], of_dy[c], s); });
      for (index c = 0; c < classes; ++c) to[c] = of_y[c] * (of_dy[c] - sum);
    });
    return {};
  }

 private:
  explicit softmax(const softmax_desc& d) noexcept : d_(d) {}

  /// What is read may be what is written.
  template <std::size_t Read>
  result<void> check(index rows, const detail::buffer& written, const detail::buffer (&read)[Read]) const noexcept {
    if (rows < 1 || rows > d_.rows) {
      return error(errc::invalid_argument, "rows", "rows is %ld; this plan takes 1..%ld", rows, d_.rows);
    }
    if (auto r = detail::check_buffer(written); !r) return r;
    for (const detail::buffer& b : read) {
      if (auto r = detail::check_buffer(b); !r) return r;
      if (b.at == written.at || !detail::overlap(written, b)) continue;
      return error(errc::invalid_argument, written.name, "%s at %p overlaps a part of %s at %p", written.name,
                   written.at, b.name, b.at);
    }
    return {};
  }

  /// Calls each(its first element, classes), marked BRGEMM_ALWAYS_INLINE, for each row, spread over threads.
  template <class Each>
  void for_rows(loops::executor_ref threads, index rows, const Each& each) const noexcept {
    const index at_once = std::max<index>(detail::elementwise_block / d_.classes, 1);
    loops::parallel_for(threads, {(rows + at_once - 1) / at_once}, [&](index block) {
      detail::widest_vectors([&]() BRGEMM_ALWAYS_INLINE {
        for (index r = block * at_once; r < std::min(rows, (block + 1) * at_once); ++r)
          each(r * d_.classes, d_.classes);
      });
    });
  }

  template <class Add>
  BRGEMM_ALWAYS_INLINE static float sum_of(index classes, const Add& add) noexcept {
    constexpr index lanes = 16;
    float chains[lanes] = {};
    index c = 0;
    for (; c + lanes <= classes; c += lanes) {
      for (index j = 0; j < lanes; ++j) chains[j] = add(c + j, chains[j]);
    }
    for (index j = 0; c + j < classes; ++j) chains[j] = add(c + j, chains[j]);
    for (index step = lanes / 2; step > 0; step /= 2) {
      for (index j = 0; j < step; ++j) chains[j] = chains[j] + chains[j + step];
    }
    return chains[0];
  }

  softmax_desc d_;
};

}  // namespace brgemm::inline abi_0::nn
