// Optimizers: how a gradient changes the parameters. Elementwise, so the parameters' layout does not matter.
#pragma once

#include <xmmintrin.h>

#include <cmath>
#include <concepts>
#include <span>

#include "../core/result.hpp"
#include "../loops/elementwise.hpp"

namespace brgemm::inline abi_0::train {

/// Stochastic gradient descent with momentum and weight decay, as PyTorch's torch.optim.SGD defines them (dampening 0):
///     g <- g + weight_decay * w      v <- momentum * v + g      w <- w - learning_rate * v
struct sgd {
  float learning_rate = 0.01f;
  float momentum = 0;
  float weight_decay = 0;

  static constexpr int states = 1;  ///< floats of state a parameter: v, 0 at the start

  /// The update number `t` (from 1) of the parameters begin..end-1 of `count`.
  BRGEMM_ALWAYS_INLINE void update(index, float* __restrict w, const float* __restrict gradient,
                                   float* __restrict state, index, index begin, index end) const noexcept {
    BRGEMM_INDEPENDENT
    for (index i = begin; i < end; ++i) {
      const float g = __builtin_fmaf(weight_decay, w[i], gradient[i]);
      state[i] = __builtin_fmaf(momentum, state[i], g);
      w[i] = __builtin_fmaf(-learning_rate, state[i], w[i]);
    }
  }
};

/// Adam (Kingma and Ba, 2015, algorithm 1), weight decay as in AdamW (Loshchilov and Hutter, 2019), epsilon beside the
/// corrected square root as in the paper:
///     m <- b1 m + (1-b1) g      v <- b2 v + (1-b2) g^2
///     w <- w - learning_rate * (weight_decay * w + m / (1-b1^t) / (sqrt(v / (1-b2^t)) + epsilon))
struct adam {
  float learning_rate = 0.001f;
  float beta1 = 0.9f;
  float beta2 = 0.999f;
  float epsilon = 1e-8f;
  float weight_decay = 0;

  static constexpr int states = 2;  ///< m, then v; both 0 at the start

  BRGEMM_ALWAYS_INLINE void update(index t, float* __restrict w, const float* __restrict gradient,
                                   float* __restrict state, index count, index begin, index end) const noexcept {
    float* __restrict m = state;
    float* __restrict v = state + count;
    const auto step = static_cast<double>(t);
    const auto correct1 = static_cast<float>(1 / (1 - std::pow(static_cast<double>(beta1), step)));
    const auto correct2 = static_cast<float>(1 / (1 - std::pow(static_cast<double>(beta2), step)));
    const float keep = __builtin_fmaf(-learning_rate, weight_decay, 1.0f);
    constexpr index chunk = 64;
    for (index first = begin; first < end; first += chunk) {
      const index last = end - first < chunk ? end : first + chunk;
      alignas(16) float root[chunk] = {};
      BRGEMM_INDEPENDENT
      for (index i = first; i < last; ++i) {
        const float g = gradient[i];
        m[i] = __builtin_fmaf(beta1, m[i], (1 - beta1) * g);
        v[i] = __builtin_fmaf(beta2, v[i], (1 - beta2) * (g * g));
        root[i - first] = v[i] * correct2;
      }
      // By intrinsics, because sqrtf may set errno and so keeps a loop from becoming vectors.
      for (index i = 0; i < chunk; i += 4) _mm_store_ps(root + i, _mm_sqrt_ps(_mm_load_ps(root + i)));
      BRGEMM_INDEPENDENT
      for (index i = first; i < last; ++i) {
        w[i] = __builtin_fmaf(-learning_rate, (m[i] * correct1) / (root[i - first] + epsilon), keep * w[i]);
      }
    }
  }
};

/// What `step` and nn::mlp take: `states` floats of state a parameter, and the update of a range of parameters.
template <class O>
concept optimizer = requires(const O& o, index i, float* w, const float* g) {
  { O::states } -> std::convertible_to<int>;
  o.update(i, w, g, w, i, i, i);
};

/// Update number t (1, 2, ...) of all parameters. `state` has O::states floats a parameter, 0 before the first step.
/// Equal bits for any number of threads. Errors: invalid_argument "gradient", "state" or "t", before anything is
/// written.
template <optimizer O>
result<void> step(loops::executor_ref threads, const O& how, index t, std::span<float> parameters,
                  std::span<const float> gradient, std::span<float> state) noexcept {
  if (gradient.size() != parameters.size()) {
    return error(errc::invalid_argument, "gradient", "%zu parameters but %zu elements of gradient", parameters.size(),
                 gradient.size());
  }
  if (state.size() != parameters.size() * static_cast<std::size_t>(O::states)) {
    return error(errc::invalid_argument, "state", "%zu parameters need %zu floats of state, not %zu", parameters.size(),
                 parameters.size() * static_cast<std::size_t>(O::states), state.size());
  }
  if (t < 1)
    return error(errc::invalid_argument, "t", "updates count from 1, not from %lld", static_cast<long long>(t));
  const auto count = static_cast<index>(parameters.size());
  detail::for_each_block(threads, count, [&](index begin, index end) BRGEMM_ALWAYS_INLINE {
    how.update(t, parameters.data(), gradient.data(), state.data(), count, begin, end);
  });
  return {};
}

}  // namespace brgemm::inline abi_0::train
