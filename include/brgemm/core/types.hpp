// Element types, their traits, and the conversions between f32 and the shorter formats.
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

/// Element types of matrices. s32 is the accumulator of products of s8 and u8, and a type of C.
enum class type : std::uint8_t { f32, f64, bf16, f16, s8, u8, s32, e4m3, e5m2, tf32 };
inline constexpr int type_count = 10;

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

/// 8-bit floats of the Open Compute Project (OFP8, 2023): a sign, 4 bits of exponent (bias 7), 3 of mantissa; to 448,
/// no infinity, NaN is 0x7f and 0xff.
struct e4m3 {
  std::uint8_t bits = 0;
  friend bool operator==(e4m3, e4m3) = default;
};

/// The upper half of an f16: 5 bits of exponent, 2 of mantissa; to 57344, with infinities.
struct e5m2 {
  std::uint8_t bits = 0;
  friend bool operator==(e5m2, e5m2) = default;
};

/// An f32 of which products read 10 bits of mantissa (to_f32 rounds it): A and B alone. NVIDIA's tensor cores
/// have such products.
struct tf32 {
  float value = 0;
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

template <>
struct element_traits<e4m3> {
  static constexpr type value = type::e4m3;
};
template <>
struct element_traits<e5m2> {
  static constexpr type value = type::e5m2;
};
template <>
struct element_traits<tf32> {
  static constexpr type value = type::tf32;
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
    case type::e4m3: return 1;
    case type::e5m2: return 1;
    case type::tf32: return 4;
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
    case type::e4m3: return "e4m3";
    case type::e5m2: return "e5m2";
    case type::tf32: return "tf32";
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

namespace detail {
/// Sign and exponent aside, a positive finite f32 of these bits rounded to nearest even, subnormals kept, to a format
/// with so many bits of mantissa and such a bias of the exponent, which here is unbounded.
constexpr std::uint32_t round_to(std::uint32_t magnitude, int mantissa_bits, int bias) noexcept {
  const int exponent = static_cast<int>(magnitude >> 23) - 127 + bias;
  std::uint32_t mantissa = magnitude & 0x7fffffu;
  int drop = 23 - mantissa_bits;
  std::uint32_t kept = 0;
  if (exponent <= 0) {  // a subnormal result
    mantissa |= 0x800000u;
    drop += 1 - exponent;
    if (drop > 24) return 0;  // less than half of the least
    kept = mantissa >> drop;
  } else {
    kept = (static_cast<std::uint32_t>(exponent) << mantissa_bits) | (mantissa >> drop);
  }
  const std::uint32_t rest = mantissa & ((1u << drop) - 1u);
  const std::uint32_t half = 1u << (drop - 1);
  return rest > half || (rest == half && (kept & 1u)) ? kept + 1 : kept;
}

/// The bits of an 8-bit float: `most` for what is larger, infinity included, as NVIDIA's conversions "satfinite" do.
constexpr std::uint8_t round_to_8bit(float x, int mantissa_bits, int bias, std::uint32_t most) noexcept {
  const auto u = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = (u >> 24) & 0x80u;
  const std::uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint8_t>(sign | 0x7fu);
  const std::uint32_t kept = round_to(magnitude, mantissa_bits, bias);
  return static_cast<std::uint8_t>(sign | (kept < most ? kept : most));
}
}  // namespace detail

/// To f16 as `vcvtps2ph` rounds with nearest even: subnormal results are kept, overflow gives infinity.
constexpr f16 to_f16(float x) noexcept {
  const auto u = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = (u >> 16) & 0x8000u;
  const std::uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return {static_cast<std::uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x1ffu))};
  }
  const std::uint32_t kept = detail::round_to(magnitude, 10, 15);
  return {static_cast<std::uint16_t>(sign | (kept < 0x7c00u ? kept : 0x7c00u))};
}

/// Every e5m2 is an f16.
constexpr f16 to_f16(e5m2 x) noexcept { return {static_cast<std::uint16_t>(x.bits << 8)}; }
constexpr float to_f32(e5m2 x) noexcept { return to_f32(to_f16(x)); }

/// Widening is exact.
constexpr float to_f32(e4m3 x) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x80u) << 24;
  const std::uint32_t magnitude = x.bits & 0x7fu;
  if (magnitude == 0x7f) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (magnitude >= 8) return std::bit_cast<float>(sign | ((magnitude << 20) + (120u << 23)));
  const float subnormal = static_cast<float>(magnitude) * 0x1p-9f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(subnormal));
}
/// Every e4m3 is an f16.
constexpr f16 to_f16(e4m3 x) noexcept { return to_f16(to_f32(x)); }

/// Nearest even; what is beyond 448 becomes 448 of its sign.
constexpr e4m3 to_e4m3(float x) noexcept { return {detail::round_to_8bit(x, 3, 7, 0x7eu)}; }
/// Nearest even; what is beyond 57344 becomes 57344 of its sign.
constexpr e5m2 to_e5m2(float x) noexcept { return {detail::round_to_8bit(x, 2, 15, 0x7bu)}; }

/// To 10 bits of mantissa, to nearest, ties away from zero, as `cvt.rna.tf32.f32` of PTX rounds. A NaN becomes a quiet
/// one: its payload may lie in the bits that are dropped.
constexpr float to_f32(tf32 x) noexcept {
  const auto u = std::bit_cast<std::uint32_t>(x.value);
  const std::uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return std::bit_cast<float>((u | 0x00400000u) & 0xffffe000u);
  if (magnitude == 0x7f800000u) return x.value;
  return std::bit_cast<float>((u + 0x1000u) & 0xffffe000u);
}

}  // namespace brgemm::inline abi_0
