// First values of weights: He and Glorot, from a generator that gives the same numbers on every machine.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <utility>

#include "../core/types.hpp"

namespace brgemm::inline abi_0::train {

/// Random numbers that depend on the seed alone: std::mt19937_64, whose sequence the C++ standard fixes, with the
/// library's own way to intervals (the standard's distributions differ from one library to the next).
class generator {
  __extension__ using unsigned128 = unsigned __int128;

 public:
  explicit generator(std::uint64_t seed) noexcept : bits_(seed) {}
  /// Uniform on [0, 1), a multiple of 2^-24.
  float uniform() noexcept { return static_cast<float>(bits_() >> 40) * 0x1p-24f; }
  /// Uniform on 0..count-1, count >= 1 (the upper half of a product; its bias is below count / 2^64).
  index below(index count) noexcept {
    return static_cast<index>((static_cast<unsigned128>(bits_()) * static_cast<std::uint64_t>(count)) >> 64);
  }

 private:
  std::mt19937_64 bits_;
};

/// Uniform on [-bound, bound).
inline void uniform(generator& random, float bound, std::span<float> values) noexcept {
  for (float& v : values) v = bound * (2 * (random.uniform() - 0.5f));
}

/// For layers with relu (He et al., 2015): variance 2 / in, uniform on +-sqrt(6 / in).
inline void he(generator& random, index in, std::span<float> weights) noexcept {
  uniform(random, __builtin_sqrtf(6.0f / static_cast<float>(in)), weights);
}

/// For layers with tanh or sigmoid (Glorot and Bengio, 2010): variance 2 / (in + out), uniform on +-sqrt(6 / (in+out)).
inline void glorot(generator& random, index in, index out, std::span<float> weights) noexcept {
  uniform(random, __builtin_sqrtf(6.0f / static_cast<float>(in + out)), weights);
}

/// A random order of 0..count-1 (Fisher and Yates), for the pictures of an epoch.
inline void shuffle(generator& random, std::span<std::uint32_t> order) noexcept {
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::uint32_t>(i);
  for (std::size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[static_cast<std::size_t>(random.below(static_cast<index>(i)))]);
  }
}

}  // namespace brgemm::inline abi_0::train
