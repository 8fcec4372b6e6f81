// Memory for the operands of a case: aligned to a page, filled with random values of the element type.
#pragma once

#include <brgemm/core/types.hpp>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <random>

namespace bench {

/// Page-aligned memory. Not copied.
class buffer {
 public:
  explicit buffer(std::int64_t bytes)
      : bytes_((static_cast<std::size_t>(bytes) + 4095) / 4096 * 4096),
        data_(static_cast<char*>(std::aligned_alloc(4096, bytes_ == 0 ? 4096 : bytes_)), std::free) {
    if (data_ == nullptr) throw std::bad_alloc();
    std::memset(data_.get(), 0, bytes_);
  }
  void* data() const { return data_.get(); }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }

 private:
  std::size_t bytes_;
  std::unique_ptr<char, void (*)(void*)> data_;
};

/// `count` values of type t: floats in [-1, 1), integers over their whole range.
inline void fill(const buffer& b, brgemm::type t, std::int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> real(-1, 1);
  for (std::int64_t i = 0; i < count; ++i) {
    switch (t) {
      case brgemm::type::f32: b.as<float>()[i] = real(generator); break;
      case brgemm::type::f64: b.as<double>()[i] = static_cast<double>(real(generator)); break;
      case brgemm::type::bf16: b.as<brgemm::bf16>()[i] = brgemm::to_bf16(real(generator)); break;
      case brgemm::type::f16: b.as<brgemm::f16>()[i] = brgemm::to_f16(real(generator)); break;
      case brgemm::type::s8: b.as<std::int8_t>()[i] = static_cast<std::int8_t>(generator()); break;
      case brgemm::type::u8: b.as<std::uint8_t>()[i] = static_cast<std::uint8_t>(generator()); break;
      case brgemm::type::s32: b.as<std::int32_t>()[i] = static_cast<std::int32_t>(generator()); break;
      case brgemm::type::e4m3: b.as<brgemm::e4m3>()[i] = brgemm::to_e4m3(real(generator)); break;
      case brgemm::type::e5m2: b.as<brgemm::e5m2>()[i] = brgemm::to_e5m2(real(generator)); break;
      case brgemm::type::tf32: b.as<brgemm::tf32>()[i] = {real(generator)}; break;
    }
  }
}

/// Element i as a double.
inline double value_of(const buffer& b, brgemm::type t, std::int64_t i) {
  switch (t) {
    case brgemm::type::f32: return static_cast<double>(b.as<float>()[i]);
    case brgemm::type::f64: return b.as<double>()[i];
    case brgemm::type::bf16: return static_cast<double>(brgemm::to_f32(b.as<brgemm::bf16>()[i]));
    case brgemm::type::f16: return static_cast<double>(brgemm::to_f32(b.as<brgemm::f16>()[i]));
    case brgemm::type::s8: return b.as<std::int8_t>()[i];
    case brgemm::type::u8: return b.as<std::uint8_t>()[i];
    case brgemm::type::s32: return b.as<std::int32_t>()[i];
    case brgemm::type::e4m3: return static_cast<double>(brgemm::to_f32(b.as<brgemm::e4m3>()[i]));
    case brgemm::type::e5m2: return static_cast<double>(brgemm::to_f32(b.as<brgemm::e5m2>()[i]));
    case brgemm::type::tf32: return static_cast<double>(brgemm::to_f32(b.as<brgemm::tf32>()[i]));
  }
  return 0;
}

/// Whether a peer computed the same as ours: within `tolerance` of the largest magnitude.
inline bool agrees(const buffer& ours, const buffer& theirs, brgemm::type t, std::int64_t count, double tolerance) {
  double largest = 0;
  double error = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const double x = value_of(ours, t, i);
    largest = std::max(largest, std::abs(x));
    const double difference = std::abs(x - value_of(theirs, t, i));
    if (std::isnan(difference)) return false;
    error = std::max(error, difference);
  }
  return error <= tolerance * largest;
}

}  // namespace bench
