// Where drawn numbers come from: a seed, or the bytes of a fuzzer and after them a generator seeded by those.
#pragma once

#include <brgemm/core/types.hpp>
#include <initializer_list>

namespace brgemm_test {

/// One step of SplitMix64.
constexpr std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

class entropy {
 public:
  constexpr explicit entropy(std::uint64_t seed) : state_(mix(seed)) {}
  entropy(const std::uint8_t* bytes, std::size_t size) : bytes_(bytes), left_(size), state_(size) {
    for (std::size_t i = 0; i < size; ++i) state_ = mix(state_ ^ bytes[i]);
  }

  /// 64 random bits, never from the fuzzer's bytes: for the bulk of data.
  constexpr std::uint64_t bits() { return state_ = mix(state_); }

  /// A number in [low, high], from the fuzzer's bytes while there are any.
  constexpr brgemm::index between(brgemm::index low, brgemm::index high) {
    const auto range = static_cast<std::uint64_t>(high - low) + 1;
    return low + static_cast<brgemm::index>(draw(range) % range);
  }
  constexpr bool one_in(brgemm::index n) { return between(0, n - 1) == 0; }
  template <class T>
  constexpr T pick(std::initializer_list<T> choices) {
    return choices.begin()[between(0, static_cast<brgemm::index>(choices.size()) - 1)];
  }

 private:
  constexpr std::uint64_t draw(std::uint64_t range) {
    if (left_ == 0) return bits() >> 11;
    std::uint64_t value = 0;
    for (std::uint64_t covered = 1; covered < range && left_ > 0; covered <<= 8, --left_)
      value = value << 8 | *bytes_++;
    return value;
  }
  const std::uint8_t* bytes_ = nullptr;
  std::size_t left_ = 0;
  std::uint64_t state_;
};

}  // namespace brgemm_test
