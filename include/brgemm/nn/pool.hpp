// Pooling over one, two or three spatial axes: the largest value or the mean of each window, and their gradients by x.
#pragma once

#include <algorithm>
#include <cstring>

#include "../core/validate.hpp"
#include "../loops/buffers.hpp"
#include "../loops/elementwise.hpp"
#include "conv_geometry.hpp"

namespace brgemm::inline abi_0::detail {

/// Up to four taps of a window, in their order, which go together over the channels of a pixel of y: it is read and
/// written once for them. The largest value stays, the first of equal ones, or the first NaN.
template <class T>
class largest_of_taps {
 public:
  explicit largest_of_taps(index channels) noexcept : channels_(channels) {}

  BRGEMM_ALWAYS_INLINE void add(const T* x, std::uint8_t tap, T* y, std::uint8_t* indices) noexcept {
    if (count_ == 4) compare(y, indices);
    x_[count_] = x, tap_[count_] = tap;
    ++count_;
  }
  BRGEMM_ALWAYS_INLINE void compare(T* y, std::uint8_t* indices) noexcept {
    // A tap that comes once more changes nothing.
    for (int i = count_; i < 4; ++i) x_[i] = x_[i - 1], tap_[i] = tap_[i - 1];
    indices != nullptr ? compare<true>(y, indices) : compare<false>(y, indices);
    count_ = 0, begins_ = false;
  }

 private:
  template <bool Kept>
  BRGEMM_ALWAYS_INLINE void compare(T* __restrict y, std::uint8_t* __restrict indices) const noexcept {
    const T* const x0 = x_[0];
    const T* const x1 = x_[1];
    const T* const x2 = x_[2];
    const T* const x3 = x_[3];
    const std::uint8_t tap0 = tap_[0], tap1 = tap_[1], tap2 = tap_[2], tap3 = tap_[3];
    const bool begins = begins_;
    BRGEMM_INDEPENDENT
    for (index c = 0; c < channels_; ++c) {
      T largest = begins ? x0[c] : y[c];
      std::uint8_t at = Kept && !begins ? indices[c] : tap0;
      take(largest, at, x0[c], tap0);
      take(largest, at, x1[c], tap1);
      take(largest, at, x2[c], tap2);
      take(largest, at, x3[c], tap3);
      y[c] = largest;
      if constexpr (Kept) indices[c] = at;
    }
  }
  static BRGEMM_ALWAYS_INLINE void take(T& largest, std::uint8_t& at, T x, std::uint8_t tap) noexcept {
    const float of_x = widened(x), of_largest = widened(largest);
    const bool goes_before = of_x > of_largest || (of_x != of_x && of_largest == of_largest);
    largest = goes_before ? x : largest;
    at = goes_before ? tap : at;
  }

  index channels_;
  const T* x_[4] = {};
  std::uint8_t tap_[4] = {};
  int count_ = 0;
  bool begins_ = true;
};

}  // namespace brgemm::inline abi_0::detail

namespace brgemm::inline abi_0::nn {

enum class pool_kind : std::uint8_t { max, average };

/// What a pooling layer computes. x is (images, depth, height, width, channels), y (images, ..., channels), channels
/// adjacent. With fewer than three axes leave the first ones as they are: axes[2] is the width.
struct pool_desc {
  index images = 1;  ///< the most images of one call
  index channels = 1;
  detail::conv_axis axes[3] = {};  ///< the windows, as a convolution has its kernels
  pool_kind kind = pool_kind::max;
  bool count_padding = false;  ///< average: divide by all taps of a window, not by those that lie in x
  type data = type::f32;       ///< of x, y and their gradients: f32 or bf16
  friend bool operator==(const pool_desc&, const pool_desc&) = default;
};

/// One window over all of (depth, height, width): the mean of each channel.
constexpr pool_desc global_average(index images, index channels, index depth, index height, index width) noexcept {
  pool_desc d;
  d.images = images, d.channels = channels;
  d.axes[0] = {depth, depth}, d.axes[1] = {height, height}, d.axes[2] = {width, width};
  d.kind = pool_kind::average;
  return d;
}

/// A checked desc: any number of threads may call it at once with different memory. It owns nothing, allocates nothing.
///
/// A window's taps pass in row-major order; those in the padding are left out. max: the largest value, the first of
/// equal ones, or the first NaN (PyTorch's rule). average: their sum from +0, divided by their number. A pixel's
/// gradient is the sum from +0 over the outputs that it went to, in row-major order. Sums are of f32; those of bf16 are
/// rounded once. Equal bits for any number of threads.
///
/// Errors of calls are invalid_argument with the argument's name, found before anything is written. Buffers that are
/// written overlap no other.
class pool {
 public:
  /// Errors: invalid_argument with the field: sizes below 1, another type, a window without a tap in x or, for max, of
  /// more than 256 taps, tensors beyond 2^62 bytes.
  static result<pool> plan(const pool_desc& d) noexcept;

  const pool_desc& description() const noexcept { return d_; }
  index x_bytes() const noexcept { return d_.images * image_in() * size_of(d_.data); }
  index y_bytes() const noexcept { return d_.images * image_out() * size_of(d_.data); }
  /// One byte an element of y: the tap that was largest. 0 for averages.
  index indices_bytes() const noexcept { return d_.kind == pool_kind::max ? d_.images * image_out() : 0; }

  /// y from the first `images` images of x. indices (indices_bytes()) may be null where backward is not called.
  result<void> forward(loops::executor_ref threads, index images, const void* x, void* y,
                       std::uint8_t* indices) const noexcept;

  /// dx from dy (as y) and what forward wrote to `indices`, null for averages. An index beyond the window is one that
  /// no pixel has.
  result<void> backward(loops::executor_ref threads, index images, const void* dy, const std::uint8_t* indices,
                        void* dx) const noexcept;

 private:
  /// The taps first..end-1 of a window lie in x, the first at input `in`.
  struct window {
    index first = 0;
    index end = 0;
    index in = 0;
  };

  explicit pool(const pool_desc& d) noexcept : d_(d) {}
  const detail::conv_axis& axis(int i) const noexcept { return d_.axes[i]; }
  index image_in() const noexcept { return axis(0).in * axis(1).in * axis(2).in * d_.channels; }
  index image_out() const noexcept { return axis(0).out() * axis(1).out() * axis(2).out() * d_.channels; }
  index taps() const noexcept { return axis(0).kernel * axis(1).kernel * axis(2).kernel; }
  float divisor(const window (&w)[3]) const noexcept {
    index seen = 1;
    for (const window& axis : w) seen *= axis.end - axis.first;
    return static_cast<float>(d_.count_padding ? taps() : seen);
  }

  static constexpr window window_at(const detail::conv_axis& a, index output) noexcept {
    const index at_zero = output * a.stride - a.pad_before;
    window w;
    w.first = at_zero < 0 ? (-at_zero + a.dilation - 1) / a.dilation : 0;
    const index reach = at_zero < a.in ? (a.in - 1 - at_zero) / a.dilation + 1 : 0;
    w.end = reach < a.kernel ? reach : a.kernel;
    w.in = at_zero + w.first * a.dilation;
    return w;
  }
  /// Calls each(output, tap) in ascending order for the outputs of an axis that see the input.
  template <class Each>
  static BRGEMM_ALWAYS_INLINE void for_outputs(const detail::conv_axis& a, index input, const Each& each) noexcept {
    const index at = input + a.pad_before;
    const index behind = at - (a.out() - 1) * a.stride;  // what the last output sees from, counted back
    const index least = behind <= 0 ? 0 : (behind + a.dilation - 1) / a.dilation;
    index tap = std::min(at / a.dilation, a.kernel - 1);
    index step = 1;
    if (a.dilation == 1) tap -= (a.stride - (at - tap) % a.stride) % a.stride, step = a.stride;
    for (; tap >= least; tap -= step) {
      const index first = at - tap * a.dilation;
      if (first % a.stride == 0) each(first / a.stride, tap);
    }
  }

  static constexpr index sums = 1024;  ///< that are kept at once, in L1

  static result<void> check(const pool_desc& d) noexcept;
  static result<void> check_windows(const pool_desc& d) noexcept;
  result<void> check_images(index images) const noexcept {
    if (images >= 1 && images <= d_.images) return {};
    return error(errc::invalid_argument, "images", "images is %ld; this plan takes 1..%ld", images, d_.images);
  }
  /// Calls each(pixel of x, tap) in row-major order for the taps of a window that lie in x.
  template <class Each>
  BRGEMM_ALWAYS_INLINE void for_taps(const window (&w)[3], const Each& each) const noexcept {
    for (index d = w[0].first; d < w[0].end; ++d) {
      for (index h = w[1].first; h < w[1].end; ++h) {
        for (index t = w[2].first; t < w[2].end; ++t) {
          const index row = (w[0].in + (d - w[0].first) * axis(0).dilation) * axis(1).in + w[1].in +
                            (h - w[1].first) * axis(1).dilation;
          each(row * axis(2).in + w[2].in + (t - w[2].first) * axis(2).dilation,
               (d * axis(1).kernel + h) * axis(2).kernel + t);
        }
      }
    }
  }
  /// One pixel of y from its window in an image x.
  template <class T>
  BRGEMM_ALWAYS_INLINE void take_largest(const T* x, const window (&w)[3], T* y, std::uint8_t* indices) const noexcept;
  template <class T>
  BRGEMM_ALWAYS_INLINE void take_mean(const T* x, const window (&w)[3], T* y) const noexcept;
  /// A part of a row (depth, height) of dx: some pixels with all channels, or one with some.
  struct row_part {
    index depth, height;
    index first, pixels;
    index channel, channels;
  };
  /// From those outputs of the image that see it.
  template <class T>
  BRGEMM_ALWAYS_INLINE void sum_gradients(const T* dy, const std::uint8_t* indices, const row_part& part,
                                          T* dx) const noexcept;
  template <class T>
  BRGEMM_ALWAYS_INLINE void add_gradients(const T* dy, const std::uint8_t* indices, std::uint8_t tap, float number,
                                          index channels, float* sum) const noexcept;

  pool_desc d_;
};

inline result<void> pool::check(const pool_desc& d) noexcept {
  const struct {
    const char* name;
    index value;
  } sizes[] = {{"images", d.images}, {"channels", d.channels}};
  for (const auto& s : sizes) {
    if (s.value >= 1 && s.value <= index{1} << 29) continue;
    return error(errc::invalid_argument, s.name, "%s is %ld; it must be in 1..2^29", s.name, s.value);
  }
  if (auto r = detail::check_enumerator("kind", static_cast<int>(d.kind), 2); !r) return r;
  if (d.data != type::f32 && d.data != type::bf16) {
    return error(errc::invalid_argument, "data", "data is %s; f32 or bf16", name_of(d.data).data());
  }
  double bytes = static_cast<double>(d.images) * static_cast<double>(d.channels) * 4;
  double taps = 1;
  for (int i = 0; i < 3; ++i) {
    const detail::conv_axis& a = d.axes[i];
    if (auto r = detail::check_axis(a, i); !r) return r;
    bytes *= static_cast<double>(std::max(a.in, a.out()));
    taps *= static_cast<double>(a.kernel);
  }
  if (bytes > 0x1p62) {
    return error(errc::invalid_argument, "images", "x or y has %g bytes or more, beyond 2^62", bytes);
  }
  if (d.kind == pool_kind::max && taps > 256) {
    return error(errc::invalid_argument, "axes", "a window of %g taps; the index of the largest, a byte, counts 256",
                 taps);
  }
  if (taps > 0x1p62) return error(errc::invalid_argument, "axes", "a window of %g taps, more than 2^62", taps);
  return check_windows(d);
}

inline result<void> pool::check_windows(const pool_desc& d) noexcept {
  for (int i = 0; i < 3; ++i) {
    const detail::conv_axis& a = d.axes[i];
    // Without gaps between taps the outer windows see the least; with gaps any may see nothing.
    for (index output = 0; output < a.out(); output += a.dilation == 1 ? std::max<index>(a.out() - 1, 1) : 1) {
      if (const window w = window_at(a, output); w.first < w.end) continue;
      return error(errc::invalid_argument, detail::name_of_axis(i),
                   "%s: no tap of output %ld's window lies in x (kernel %ld, dilation %ld, padding %ld and %ld)",
                   detail::name_of_axis(i), output, a.kernel, a.dilation, a.pad_before, a.pad_after);
    }
  }
  return {};
}

inline result<pool> pool::plan(const pool_desc& d) noexcept {
  if (auto r = check(d); !r) return r.error();
  return pool(d);
}

template <class T>
inline void pool::take_largest(const T* x, const window (&w)[3], T* y, std::uint8_t* indices) const noexcept {
  detail::largest_of_taps<T> largest(d_.channels);
  for_taps(w, [&](index pixel, index tap) BRGEMM_ALWAYS_INLINE {
    largest.add(x + pixel * d_.channels, static_cast<std::uint8_t>(tap), y, indices);
  });
  largest.compare(y, indices);
}

template <class T>
inline void pool::take_mean(const T* x, const window (&w)[3], T* y) const noexcept {
  for (index c0 = 0; c0 < d_.channels; c0 += sums) {
    const index width = std::min(sums, d_.channels - c0);
    float sum[sums];
    std::fill(sum, sum + width, 0.0f);
    index seen = 0;
    for_taps(w, [&](index pixel, index) BRGEMM_ALWAYS_INLINE {
      const T* const from = x + pixel * d_.channels + c0;
      BRGEMM_INDEPENDENT
      for (index c = 0; c < width; ++c) sum[c] += detail::widened(from[c]);
      ++seen;
    });
    const auto number = static_cast<float>(d_.count_padding ? taps() : seen);
    BRGEMM_INDEPENDENT
    for (index c = 0; c < width; ++c) y[c0 + c] = detail::rounded_to<T>(sum[c] / number);
  }
}

/// What one output gives to `channels` of a pixel that it sees.
template <class T>
inline void pool::add_gradients(const T* dy, const std::uint8_t* indices, std::uint8_t tap, float number,
                                index channels, float* sum) const noexcept {
  if (d_.kind == pool_kind::max) {
    BRGEMM_INDEPENDENT
    for (index c = 0; c < channels; ++c) sum[c] += indices[c] == tap ? detail::widened(dy[c]) : 0.0f;
  } else {
    BRGEMM_INDEPENDENT
    for (index c = 0; c < channels; ++c) sum[c] += detail::widened(dy[c]) / number;
  }
}

template <class T>
inline void pool::sum_gradients(const T* dy, const std::uint8_t* indices, const row_part& part, T* dx) const noexcept {
  float sum[sums];
  const index count = part.pixels * part.channels;
  std::fill(sum, sum + count, 0.0f);
  for_outputs(axis(0), part.depth, [&](index d, index tap_d) BRGEMM_ALWAYS_INLINE {
    for_outputs(axis(1), part.height, [&](index h, index tap_h) BRGEMM_ALWAYS_INLINE {
      for (index i = 0; i < part.pixels; ++i) {
        for_outputs(axis(2), part.first + i, [&](index w, index tap_w) BRGEMM_ALWAYS_INLINE {
          const index at = ((d * axis(1).out() + h) * axis(2).out() + w) * d_.channels + part.channel;
          const auto tap = static_cast<std::uint8_t>((tap_d * axis(1).kernel + tap_h) * axis(2).kernel + tap_w);
          const window seen[3] = {window_at(axis(0), d), window_at(axis(1), h), window_at(axis(2), w)};
          const float number = d_.kind == pool_kind::max ? 1 : divisor(seen);
          add_gradients(dy + at, indices == nullptr ? nullptr : indices + at, tap, number, part.channels,
                        sum + i * part.channels);
        });
      }
    });
  });
  BRGEMM_INDEPENDENT
  for (index i = 0; i < count; ++i) dx[i] = detail::rounded_to<T>(sum[i]);
}

inline result<void> pool::forward(loops::executor_ref threads, index images, const void* x, void* y,
                                  std::uint8_t* indices) const noexcept {
  if (auto r = check_images(images); !r) return r;
  const bool kept = indices != nullptr;
  const index size = size_of(d_.data);
  const detail::buffer written[] = {
      {"y", y, images * image_out() * size, size},
      {"indices", indices, kept && d_.kind == pool_kind::max ? images * image_out() : 0, 1}};
  const detail::buffer read[] = {{"x", x, images * image_in() * size, size}};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  detail::with_elements(d_.data, [&]<class T>(T) {
    loops::parallel_for(threads, {images, axis(0).out(), axis(1).out()}, [&](index image, index d, index h) {
      const T* const from = static_cast<const T*>(x) + image * image_in();
      index at = ((image * axis(0).out() + d) * axis(1).out() + h) * axis(2).out() * d_.channels;
      detail::widest_vectors([&]() BRGEMM_ALWAYS_INLINE {
        for (index w = 0; w < axis(2).out(); ++w, at += d_.channels) {
          const window seen[3] = {window_at(axis(0), d), window_at(axis(1), h), window_at(axis(2), w)};
          T* const to = static_cast<T*>(y) + at;
          if (d_.kind == pool_kind::max) {
            take_largest(from, seen, to, kept ? indices + at : nullptr);
          } else {
            take_mean(from, seen, to);
          }
        }
      });
    });
  });
  return {};
}

inline result<void> pool::backward(loops::executor_ref threads, index images, const void* dy,
                                   const std::uint8_t* indices, void* dx) const noexcept {
  if (auto r = check_images(images); !r) return r;
  const index size = size_of(d_.data);
  const detail::buffer written[] = {{"dx", dx, images * image_in() * size, size}};
  const detail::buffer read[] = {{"dy", dy, images * image_out() * size, size},
                                 {"indices", indices, d_.kind == pool_kind::max ? images * image_out() : 0, 1}};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  detail::with_elements(d_.data, [&]<class T>(T) {
    loops::parallel_for(threads, {images, axis(0).in, axis(1).in}, [&](index image, index d, index h) {
      const T* const from = static_cast<const T*>(dy) + image * image_out();
      const std::uint8_t* const taps = indices == nullptr ? nullptr : indices + image * image_out();
      T* const to = static_cast<T*>(dx) + ((image * axis(0).in + d) * axis(1).in + h) * axis(2).in * d_.channels;
      const index pixels = std::max<index>(sums / d_.channels, 1), channels = std::min(d_.channels, sums);
      detail::widest_vectors([&]() BRGEMM_ALWAYS_INLINE {
        for (index w = 0; w < axis(2).in; w += pixels) {
          for (index c = 0; c < d_.channels; c += channels) {
            const row_part part = {d, h, w, std::min(pixels, axis(2).in - w), c, std::min(channels, d_.channels - c)};
            sum_gradients(from, taps, part, to + w * d_.channels + c);
          }
        }
      });
    });
  });
  return {};
}

}  // namespace brgemm::inline abi_0::nn
