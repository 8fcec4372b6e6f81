// Element types, their traits, and the conversions between f32 and the 16-bit formats.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>

#include "../version.hpp"

namespace brgemm::inline abi_0 {

/// Sizes, leading dimensions and offsets: counted in elements, signed so that a negative one is seen as an error.
using index = std::int64_t;

/// Element types of matrices. s32 is the accumulator of 8-bit products and a type of C.
enum class type : std::uint8_t { f32, f64, bf16, f16, s8, u8, s32 };
inline constexpr int type_count = 7;

/// The upper half of an f32: 8 bits of exponent, 7 of mantissa.
struct bf16 {
  std::uint16_t bits = 0;
  friend bool operator==(bf16, bf16) = default;
};

/// IEEE 754 binary16.
struct f16 {
  std::uint16_t bits = 0;
  friend bool operator==(f16, f16) = default;
};

/// What a kernel needs to know of an element type; one specialisation a type.
template <class T>
struct element_traits;  // deliberately undefined: a type the library does not know fails here

template <>
struct element_traits<float> {
  static constexpr type value = type::f32;
};
template <>
struct element_traits<double> {
  static constexpr type value = type::f64;
};
template <>
struct element_traits<bf16> {
  static constexpr type value = type::bf16;
};
template <>
struct element_traits<f16> {
  static constexpr type value = type::f16;
};
template <>
struct element_traits<std::int8_t> {
  static constexpr type value = type::s8;
};
template <>
struct element_traits<std::uint8_t> {
  static constexpr type value = type::u8;
};
template <>
struct element_traits<std::int32_t> {
  static constexpr type value = type::s32;
};

/// A type that can be an element of a matrix.
template <class T>
concept element = requires {
  element_traits<T>::value;
};

constexpr bool is_known(type t) noexcept { return static_cast<int>(t) < type_count; }

/// Bytes of one element; 0 for a value that is no type.
constexpr index size_of(type t) noexcept {
  switch (t) {
    case type::f32: return 4;
    case type::f64: return 8;
    case type::bf16: return 2;
    case type::f16: return 2;
    case type::s8: return 1;
    case type::u8: return 1;
    case type::s32: return 4;
  }
  return 0;
}

constexpr std::string_view name_of(type t) noexcept {
  switch (t) {
    case type::f32: return "f32";
    case type::f64: return "f64";
    case type::bf16: return "bf16";
    case type::f16: return "f16";
    case type::s8: return "s8";
    case type::u8: return "u8";
    case type::s32: return "s32";
  }
  return "?";
}

/// The type in which the products of elements of type `t` are summed.
constexpr type accumulator_of(type t) noexcept {
  switch (t) {
    case type::f64: return type::f64;
    case type::s8:
    case type::u8:
    case type::s32: return type::s32;
    default: return type::f32;
  }
}

/// How many consecutive k stand beside each other in the interleaved layout: what one lane of the instructions reads.
constexpr index k_group_of(type t) noexcept {
  switch (t) {
    case type::bf16: return 2;
    case type::s8:
    case type::u8: return 4;
    default: return 1;
  }
}

/// Widening is exact: bf16 is the upper half of an f32.
constexpr float to_f32(bf16 x) noexcept { return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16); }

/// To bf16 as `vcvtneps2bf16` rounds: nearest even, subnormal inputs become zero of their sign, NaN stays a (quiet)
/// NaN.
constexpr bf16 to_bf16(float x) noexcept {
  const auto u = std::bit_cast<std::uint32_t>(x);
  const auto sign = static_cast<std::uint16_t>((u >> 16) & 0x8000u);
  const std::uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<std::uint16_t>((u >> 16) | 0x0040u)};
  if (magnitude < 0x00800000u) return {sign};
  return {static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

/// Widening is exact, subnormals included.
constexpr float to_f32(f16 x) noexcept {
  const std::uint32_t sign = (x.bits & 0x8000u) << 16;
  std::uint32_t exponent = (x.bits >> 10) & 0x1fu;
  std::uint32_t mantissa = x.bits & 0x3ffu;
  if (exponent == 31) {  // infinity or NaN (made quiet, as vcvtph2ps does)
    return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13) | (mantissa != 0 ? 0x00400000u : 0u));
  }
  if (exponent == 0) {
    if (mantissa == 0) return std::bit_cast<float>(sign);
    const int shift = std::countl_zero(mantissa) - 21;  // brings the leading one to bit 10
    mantissa = (mantissa << shift) & 0x3ffu;
    exponent = static_cast<std::uint32_t>(1 - shift);
  }
  return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

/// To f16 as `vcvtps2ph` rounds with nearest even: subnormal results are kept, overflow gives infinity.
constexpr f16 to_f16(float x) noexcept {
  const auto u = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = (u >> 16) & 0x8000u;
  const std::uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return {static_cast<std::uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x1ffu))};
  }
  if (magnitude >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};  // rounds to 2^16 or more
  if (magnitude < 0x33000001u) return {static_cast<std::uint16_t>(sign)};             // rounds to 0 (2^-25 is a tie)
  const int exponent = static_cast<int>(magnitude >> 23) - 112;
  std::uint32_t mantissa = magnitude & 0x7fffffu;
  int drop = 13;
  std::uint32_t kept = 0;
  if (exponent <= 0) {  // a subnormal result
    mantissa |= 0x800000u;
    drop = 14 - exponent;
    kept = mantissa >> drop;
  } else {
    kept = (static_cast<std::uint32_t>(exponent) << 10) | (mantissa >> drop);
  }
  const std::uint32_t rest = mantissa & ((1u << drop) - 1u);
  const std::uint32_t half = 1u << (drop - 1);
  if (rest > half || (rest == half && (kept & 1u))) ++kept;
  return {static_cast<std::uint16_t>(sign | kept)};
}

}  // namespace brgemm::inline abi_0
