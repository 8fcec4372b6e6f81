// Batch normalisation: y = act((x - mean) / sqrt(variance + epsilon) * gamma + beta) in each channel, and its
// gradients.
#pragma once

#include <algorithm>
#include <cmath>

#include "../loops/buffers.hpp"
#include "../loops/elementwise.hpp"
#include "activation.hpp"

namespace brgemm::inline abi_0::nn {

/// What a layer computes. x and y are (pixels, channels), channels adjacent: for pictures pixels is images * height *
/// width.
struct batch_norm_desc {
  index pixels = 1;  ///< the most of one call
  index channels = 1;
  activation act = activation::none;  ///< none or relu
  float epsilon = 1e-5f;
  float momentum = 0.1f;  ///< share of a batch in the running statistics, as PyTorch counts it
  type data = type::f32;  ///< of x, y and their gradients: f32 or bf16; all else is f32
  friend bool operator==(const batch_norm_desc&, const batch_norm_desc&) = default;
};

/// A checked desc (Ioffe and Szegedy, 2015): any number of threads may call it at once with different memory. It owns
/// nothing and allocates nothing.
///
/// All calls compute y = act(fma(x, scale, shift)) with scale = gamma / sqrt(variance + epsilon) and shift = beta -
/// mean * scale, each in double, then f32: beside the rounding of statistics y is off by some 2^-23 * |mean * scale|.
/// Sums over pixels are cut into leaves of leaf_pixels() from the first pixel on, each one f32 chain in ascending order
/// from +0; the leaves are added in double, in ascending order. Statistics are of the distances from a leaf's first
/// pixel, so that a large mean cancels nothing and a constant channel has no variance. bf16 is widened to f32 and a
/// result rounded once. Equal bits for any number of threads.
///
/// Errors of calls are invalid_argument with the argument's name, found before anything is written. Buffers that are
/// written overlap no other, but dx may be dy.
class batch_norm {
 public:
  /// Errors: invalid_argument with the field: sizes below 1, tensors beyond 2^62 bytes, another type or activation,
  /// epsilon not above 0 or momentum outside 0..1.
  static result<batch_norm> plan(const batch_norm_desc& d) noexcept;

  const batch_norm_desc& description() const noexcept { return d_; }
  index leaf_pixels() const noexcept { return std::clamp<index>(8192 / d_.channels, 16, 512); }
  index x_bytes() const noexcept { return bytes_of(d_.pixels); }
  /// What forward keeps for backward: mean, 1 / sqrt(variance + epsilon), scale and shift, each (channels).
  index saved_bytes() const noexcept { return 4 * d_.channels * 4; }
  /// What forward and backward write to beside their results.
  index workspace_bytes() const noexcept { return workspace_bytes(d_.pixels); }

  /// Training: x's first `pixels` (2 or more) pixels, with their own mean and variance. running_mean and
  /// running_variance (channels), both null where they are not kept, become running + momentum * (batch - running);
  /// the batch's variance is there over pixels - 1.
  result<void> forward(loops::executor_ref threads, index pixels, const void* x, const float* gamma, const float* beta,
                       float* running_mean, float* running_variance, void* y, float* saved,
                       void* workspace) const noexcept;

  /// After forward: the gradients by x, gamma and beta from dy, that by y. The derivative of relu is 0 where fma(x,
  /// scale, shift) is 0 or less.
  result<void> backward(loops::executor_ref threads, index pixels, const void* x, const void* dy, const float* saved,
                        void* dx, float* dgamma, float* dbeta, void* workspace) const noexcept;

  /// scale and shift for given statistics, those that ran along in training, say. All (channels).
  result<void> fold(const float* gamma, const float* beta, const float* mean, const float* variance, float* scale,
                    float* shift) const noexcept;
  /// y = act(fma(x, scale, shift)).
  result<void> inference(loops::executor_ref threads, index pixels, const void* x, const float* scale,
                         const float* shift, void* y) const noexcept;

 private:
  static constexpr index panel = 16;

  /// The chains of a leaf, each (leaves, channels).
  struct leaf_sums {
    float* first;
    float* second;
  };

  explicit batch_norm(const batch_norm_desc& d) noexcept : d_(d) {}
  index alignment() const noexcept { return size_of(d_.data); }
  index bytes_of(index pixels) const noexcept { return pixels * d_.channels * size_of(d_.data); }
  index leaves(index pixels) const noexcept { return (pixels + leaf_pixels() - 1) / leaf_pixels(); }
  index pixels_of(index leaf, index pixels) const noexcept {
    return std::min(leaf_pixels(), pixels - leaf * leaf_pixels());
  }
  index workspace_bytes(index pixels) const noexcept { return (2 * leaves(pixels) + 2) * d_.channels * 4; }
  leaf_sums sums_in(void* workspace, index pixels) const noexcept {
    auto* const floats = static_cast<float*>(workspace);
    return {floats, floats + leaves(pixels) * d_.channels};
  }
  result<void> check_pixels(index pixels, index least) const noexcept {
    if (pixels >= least && pixels <= d_.pixels) return {};
    return error(errc::invalid_argument, "pixels", "pixels is %ld; this plan takes %ld..%ld", pixels, least, d_.pixels);
  }

  /// Calls each(leaf, its first element, its pixels), marked BRGEMM_ALWAYS_INLINE, for all leaves, spread over threads.
  template <class Each>
  void for_leaves(loops::executor_ref threads, index pixels, const Each& each) const noexcept {
    loops::parallel_for(threads, {leaves(pixels)}, [&](index leaf) {
      detail::widest_vectors(
          [&]() BRGEMM_ALWAYS_INLINE { each(leaf, leaf * leaf_pixels() * d_.channels, pixels_of(leaf, pixels)); });
    });
  }
  /// Calls each(first channel, channels) for panels of the channels, spread over threads.
  template <class Each>
  void for_panels(loops::executor_ref threads, const Each& each) const noexcept {
    loops::parallel_for(threads, {(d_.channels + panel - 1) / panel},
                        [&](index i) { each(i * panel, std::min(panel, d_.channels - i * panel)); });
  }
  static void fold_one(float gamma, float beta, double mean, double inverse, float& scale, float& shift) noexcept {
    scale = static_cast<float>(static_cast<double>(gamma) * inverse);
    shift = static_cast<float>(__builtin_fma(-mean, static_cast<double>(scale), static_cast<double>(beta)));
  }
  /// What y is at least; NaN, which is never compared as true, without relu.
  float least() const noexcept { return d_.act == activation::relu ? 0.0f : __builtin_nanf(""); }
  template <class T>
  void measure(loops::executor_ref threads, index pixels, const T* x, leaf_sums s) const noexcept;
  template <class T>
  void combine(loops::executor_ref threads, index pixels, const T* x, leaf_sums s, const float* gamma,
               const float* beta, float* running_mean, float* running_variance, float* saved) const noexcept;
  template <class T>
  void apply(loops::executor_ref threads, index pixels, const T* x, const float* scale, const float* shift,
             T* y) const noexcept;
  template <class T>
  void sum_gradients(loops::executor_ref threads, index pixels, const T* x, const T* dy, const float* saved,
                     leaf_sums s) const noexcept;
  void combine_gradients(loops::executor_ref threads, index pixels, const float* saved, leaf_sums s, float* dgamma,
                         float* dbeta, float* factor, float* constant) const noexcept;
  template <class T>
  void spread(loops::executor_ref threads, index pixels, const T* x, const T* dy, const float* saved,
              const float* factor, const float* constant, T* dx) const noexcept;

  batch_norm_desc d_;
};

inline result<batch_norm> batch_norm::plan(const batch_norm_desc& d) noexcept {
  const struct {
    const char* name;
    index value;
    index largest;
  } sizes[] = {{"pixels", d.pixels, index{1} << 59}, {"channels", d.channels, index{1} << 29}};
  for (const auto& s : sizes) {
    if (s.value >= 1 && s.value <= s.largest) continue;
    return error(errc::invalid_argument, s.name, "%s is %ld; it must be in 1..%ld", s.name, s.value, s.largest);
  }
  if (d.pixels > (index{1} << 59) / d.channels) {
    return error(errc::invalid_argument, "pixels", "%ld pixels of %ld channels, more than 2^59 elements", d.pixels,
                 d.channels);
  }
  if (d.data != type::f32 && d.data != type::bf16) {
    return error(errc::invalid_argument, "data", "data is %s; f32 or bf16", name_of(d.data).data());
  }
  if (d.act != activation::none && d.act != activation::relu) {
    return error(errc::invalid_argument, "act", "act is %d; none (0) or relu (1)", static_cast<int>(d.act));
  }
  if (!(d.epsilon > 0) || !std::isfinite(d.epsilon)) {
    return error(errc::invalid_argument, "epsilon", "epsilon is %g; it must be above 0 and finite",
                 static_cast<double>(d.epsilon));
  }
  if (!(d.momentum >= 0 && d.momentum <= 1)) {
    return error(errc::invalid_argument, "momentum", "momentum is %g; it must be in 0..1",
                 static_cast<double>(d.momentum));
  }
  return batch_norm(d);
}

/// Each leaf's sums of the distances from its first pixel, and of their squares.
template <class T>
void batch_norm::measure(loops::executor_ref threads, index pixels, const T* x, leaf_sums s) const noexcept {
  const index channels = d_.channels;
  for_leaves(threads, pixels, [&](index leaf, index first, index count) BRGEMM_ALWAYS_INLINE {
    float* __restrict const sum = s.first + leaf * channels;
    float* __restrict const squares = s.second + leaf * channels;
    const T* __restrict const origin = x + first;
    std::fill(sum, sum + channels, 0.0f);
    std::fill(squares, squares + channels, 0.0f);
    for (index p = 0; p < count; ++p) {
      const T* __restrict const from = x + first + p * channels;
      BRGEMM_INDEPENDENT
      for (index c = 0; c < channels; ++c) {
        const float distance = detail::widened(from[c]) - detail::widened(origin[c]);
        sum[c] += distance;
        squares[c] = __builtin_fmaf(distance, distance, squares[c]);
      }
    }
  });
}

/// The statistics of all leaves together: the squares of each are moved to its mean, then to that of all.
template <class T>
void batch_norm::combine(loops::executor_ref threads, index pixels, const T* x, leaf_sums s, const float* gamma,
                         const float* beta, float* running_mean, float* running_variance, float* saved) const noexcept {
  const index channels = d_.channels;
  const auto number = static_cast<double>(pixels);
  const auto keep = [&](float& running, double batch) {
    const auto before = static_cast<double>(running);
    running = static_cast<float>(__builtin_fma(static_cast<double>(d_.momentum), batch - before, before));
  };
  // Calls each(leaf's pixels, its first pixel, the sums of its distances and of their squares) for all leaves.
  const auto for_sums = [&](index c, const auto& each) {
    for (index leaf = 0; leaf < leaves(pixels); ++leaf) {
      each(static_cast<double>(pixels_of(leaf, pixels)),
           static_cast<double>(detail::widened(x[leaf * leaf_pixels() * channels + c])),
           static_cast<double>(s.first[leaf * channels + c]), static_cast<double>(s.second[leaf * channels + c]));
    }
  };
  for_panels(threads, [&](index c0, index width) {
    for (index c = c0; c < c0 + width; ++c) {
      double sum = 0, squares = 0;
      for_sums(c,
               [&](double n, double origin, double distances, double) { sum += __builtin_fma(n, origin, distances); });
      const double mean = sum / number;
      for_sums(c, [&](double n, double origin, double distances, double of_squares) {
        const double own = distances / n;
        const double away = (origin - mean) + own;
        squares += std::max(0.0, __builtin_fma(-own, distances, of_squares));  // f32 chains may round below 0
        squares = __builtin_fma(n * away, away, squares);
      });
      const double inverse = 1 / std::sqrt(squares / number + static_cast<double>(d_.epsilon));
      saved[c] = static_cast<float>(mean);
      saved[channels + c] = static_cast<float>(inverse);
      fold_one(gamma[c], beta[c], mean, inverse, saved[2 * channels + c], saved[3 * channels + c]);
      if (running_mean == nullptr) continue;
      keep(running_mean[c], mean);
      keep(running_variance[c], squares / (number - 1));
    }
  });
}

template <class T>
void batch_norm::apply(loops::executor_ref threads, index pixels, const T* x, const float* scale, const float* shift,
                       T* y) const noexcept {
  const index channels = d_.channels;
  const float least = this->least();
  for_leaves(threads, pixels, [&](index, index first, index count) BRGEMM_ALWAYS_INLINE {
    for (index p = 0; p < count; ++p) {
      const T* __restrict const from = x + first + p * channels;
      T* __restrict const to = y + first + p * channels;
      BRGEMM_INDEPENDENT
      for (index c = 0; c < channels; ++c) {
        const float value = __builtin_fmaf(detail::widened(from[c]), scale[c], shift[c]);
        to[c] = detail::rounded_to<T>(value < least ? least : value);
      }
    }
  });
}

/// Each leaf's sums of dz and of dz * (x - mean), dz the gradient before the activation.
template <class T>
void batch_norm::sum_gradients(loops::executor_ref threads, index pixels, const T* x, const T* dy, const float* saved,
                               leaf_sums s) const noexcept {
  const index channels = d_.channels;
  const float* const scale = saved + 2 * channels;
  const float* const shift = saved + 3 * channels;
  const float least = this->least();
  for_leaves(threads, pixels, [&](index leaf, index first, index count) BRGEMM_ALWAYS_INLINE {
    float* __restrict const sum = s.first + leaf * channels;
    float* __restrict const products = s.second + leaf * channels;
    std::fill(sum, sum + channels, 0.0f);
    std::fill(products, products + channels, 0.0f);
    for (index p = 0; p < count; ++p) {
      const T* __restrict const from = x + first + p * channels;
      const T* __restrict const gradient = dy + first + p * channels;
      BRGEMM_INDEPENDENT
      for (index c = 0; c < channels; ++c) {
        const float of_x = detail::widened(from[c]);
        const float dz = __builtin_fmaf(of_x, scale[c], shift[c]) <= least ? 0.0f : detail::widened(gradient[c]);
        sum[c] += dz;
        products[c] = __builtin_fmaf(dz, of_x - saved[c], products[c]);
      }
    }
  });
}

inline result<void> batch_norm::forward(loops::executor_ref threads, index pixels, const void* x, const float* gamma,
                                        const float* beta, float* running_mean, float* running_variance, void* y,
                                        float* saved, void* workspace) const noexcept {
  if (auto r = check_pixels(pixels, 2); !r) return r;
  const index vector = d_.channels * 4;
  const index kept = running_mean != nullptr || running_variance != nullptr ? vector : 0;
  const detail::buffer written[] = {{"y", y, bytes_of(pixels), alignment()},
                                    {"saved", saved, saved_bytes()},
                                    {"running_mean", running_mean, kept},
                                    {"running_variance", running_variance, kept},
                                    {"workspace", workspace, workspace_bytes(pixels)}};
  const detail::buffer read[] = {
      {"x", x, bytes_of(pixels), alignment()}, {"gamma", gamma, vector}, {"beta", beta, vector}};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  const leaf_sums sums = sums_in(workspace, pixels);
  detail::with_elements(d_.data, [&]<class T>(T) {
    const auto* const from = static_cast<const T*>(x);
    measure(threads, pixels, from, sums);
    combine(threads, pixels, from, sums, gamma, beta, running_mean, running_variance, saved);
    apply(threads, pixels, from, saved + 2 * d_.channels, saved + 3 * d_.channels, static_cast<T*>(y));
  });
  return {};
}

inline result<void> batch_norm::fold(const float* gamma, const float* beta, const float* mean, const float* variance,
                                     float* scale, float* shift) const noexcept {
  const index vector = d_.channels * 4;
  const detail::buffer written[] = {{"scale", scale, vector}, {"shift", shift, vector}};
  const detail::buffer read[] = {
      {"gamma", gamma, vector}, {"beta", beta, vector}, {"mean", mean, vector}, {"variance", variance, vector}};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  for (index c = 0; c < d_.channels; ++c) {
    const double inverse = 1 / std::sqrt(static_cast<double>(variance[c]) + static_cast<double>(d_.epsilon));
    fold_one(gamma[c], beta[c], static_cast<double>(mean[c]), inverse, scale[c], shift[c]);
  }
  return {};
}

inline result<void> batch_norm::inference(loops::executor_ref threads, index pixels, const void* x, const float* scale,
                                          const float* shift, void* y) const noexcept {
  if (auto r = check_pixels(pixels, 1); !r) return r;
  const index vector = d_.channels * 4;
  const detail::buffer written[] = {{"y", y, bytes_of(pixels), alignment()}};
  const detail::buffer read[] = {
      {"x", x, bytes_of(pixels), alignment()}, {"scale", scale, vector}, {"shift", shift, vector}};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  detail::with_elements(
      d_.data, [&]<class T>(T) { apply(threads, pixels, static_cast<const T*>(x), scale, shift, static_cast<T*>(y)); });
  return {};
}

/// With g = sum of dz, h = inverse^2 * sum of dz * (x - mean):  dx = scale * (dz - g / pixels - (x - mean) * h /
/// pixels) = fma(scale, dz, fma(x - mean, factor, constant)).
inline void batch_norm::combine_gradients(loops::executor_ref threads, index pixels, const float* saved, leaf_sums s,
                                          float* dgamma, float* dbeta, float* factor, float* constant) const noexcept {
  const index channels = d_.channels;
  for_panels(threads, [&](index c0, index width) {
    for (index c = c0; c < c0 + width; ++c) {
      double sum = 0, products = 0;
      for (index leaf = 0; leaf < leaves(pixels); ++leaf) {
        sum += static_cast<double>(s.first[leaf * channels + c]);
        products += static_cast<double>(s.second[leaf * channels + c]);
      }
      const auto inverse = static_cast<double>(saved[channels + c]);
      const double share = static_cast<double>(saved[2 * channels + c]) / static_cast<double>(pixels);
      dbeta[c] = static_cast<float>(sum);
      dgamma[c] = static_cast<float>(inverse * products);
      factor[c] = static_cast<float>(-share * (inverse * inverse * products));
      constant[c] = static_cast<float>(-share * sum);
    }
  });
}

inline result<void> batch_norm::backward(loops::executor_ref threads, index pixels, const void* x, const void* dy,
                                         const float* saved, void* dx, float* dgamma, float* dbeta,
                                         void* workspace) const noexcept {
  if (auto r = check_pixels(pixels, 2); !r) return r;
  const index vector = d_.channels * 4;
  const detail::buffer given{"dy", dy, bytes_of(pixels), alignment()};
  const detail::buffer written[] = {{"dx", dx, bytes_of(pixels), alignment()},
                                    {"dgamma", dgamma, vector},
                                    {"dbeta", dbeta, vector},
                                    {"workspace", workspace, workspace_bytes(pixels)}};
  const detail::buffer read[] = {{"x", x, bytes_of(pixels), alignment()},
                                 {"saved", saved, saved_bytes()},
                                 dx == dy ? detail::buffer{"dy", nullptr, 0} : given};
  if (auto r = detail::check_buffers(written, read); !r) return r;
  const leaf_sums sums = sums_in(workspace, pixels);
  // Behind the leaves: what the channels multiply x - mean by, and add.
  float* const factor = sums.first + 2 * leaves(pixels) * d_.channels;
  float* const constant = factor + d_.channels;
  detail::with_elements(d_.data, [&]<class T>(T) {
    const auto* const of_x = static_cast<const T*>(x);
    const auto* const of_dy = static_cast<const T*>(dy);
    sum_gradients(threads, pixels, of_x, of_dy, saved, sums);
    combine_gradients(threads, pixels, saved, sums, dgamma, dbeta, factor, constant);
    spread(threads, pixels, of_x, of_dy, saved, factor, constant, static_cast<T*>(dx));
  });
  return {};
}

template <class T>
void batch_norm::spread(loops::executor_ref threads, index pixels, const T* x, const T* dy, const float* saved,
                        const float* factor, const float* constant, T* dx) const noexcept {
  const index channels = d_.channels;
  const float* const scale = saved + 2 * channels;
  const float* const shift = saved + 3 * channels;
  const float least = this->least();
  for_leaves(threads, pixels, [&](index, index first, index count) BRGEMM_ALWAYS_INLINE {
    for (index p = 0; p < count; ++p) {
      const T* const from = x + first + p * channels;
      const T* const gradient = dy + first + p * channels;
      T* const to = dx + first + p * channels;
      BRGEMM_INDEPENDENT
      for (index c = 0; c < channels; ++c) {
        const float of_x = detail::widened(from[c]);
        const float dz = __builtin_fmaf(of_x, scale[c], shift[c]) <= least ? 0.0f : detail::widened(gradient[c]);
        const float rest = __builtin_fmaf(of_x - saved[c], factor[c], constant[c]);
        to[c] = detail::rounded_to<T>(__builtin_fmaf(scale[c], dz, rest));
      }
    }
  });
}

}  // namespace brgemm::inline abi_0::nn
