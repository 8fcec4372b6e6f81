// Element types and their conversions, over every 16-bit pattern and a dense subset of the 32-bit ones, against
// arithmetic in double and against the CPU's own instructions where it has them.
#include "brgemm/core/types.hpp"

#include <gtest/gtest.h>
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "brgemm/core/cpu.hpp"

namespace brgemm {
namespace {

std::uint32_t bits_of(float x) { return std::bit_cast<std::uint32_t>(x); }

/// Calls f with floats that cover every sign, exponent and upper mantissa, with lower halves around each tie, and a
/// sweep of all 2^32 patterns in steps of a prime.
template <class F>
void for_many_floats(F f) {
  constexpr std::array<std::uint32_t, 13> lower = {0x0000, 0x0001, 0x0fff, 0x1000, 0x1001, 0x1fff, 0x2000,
                                                   0x7fff, 0x8000, 0x8001, 0xefff, 0xf000, 0xffff};
  for (std::uint32_t upper = 0; upper < 0x10000; ++upper) {
    for (const std::uint32_t l : lower) f(std::bit_cast<float>(upper << 16 | l));
  }
  for (std::uint64_t u = 0; u < (std::uint64_t{1} << 32); u += 1009) {
    f(std::bit_cast<float>(static_cast<std::uint32_t>(u)));
  }
}

/// A value rounded to `fraction_bits` bits behind the leading one, no exponent below `least`: by nearbyint in double,
/// in which every step but that one is exact.
double rounded(double x, int fraction_bits, int least) {
  if (x == 0) return x;
  const int exponent = std::max(std::ilogb(x), least);
  return std::ldexp(std::nearbyint(std::ldexp(x, fraction_bits - exponent)), exponent - fraction_bits);
}

TEST(Types, SizesNamesAndTraits) {
  constexpr std::array<type, type_count> all = {type::f32, type::f64, type::bf16, type::f16,  type::s8,
                                                type::u8,  type::s32, type::e4m3, type::e5m2, type::tf32};
  constexpr std::array<index, type_count> sizes = {4, 8, 2, 2, 1, 1, 4, 1, 1, 4};
  constexpr std::array<const char*, type_count> names = {"f32", "f64", "bf16", "f16",  "s8",
                                                         "u8",  "s32", "e4m3", "e5m2", "tf32"};
  for (std::size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(static_cast<std::size_t>(all[i]), i);
    EXPECT_TRUE(is_known(all[i]));
    EXPECT_EQ(size_of(all[i]), sizes[i]);
    EXPECT_EQ(name_of(all[i]), names[i]);
  }
  constexpr auto unknown = static_cast<type>(type_count);
  EXPECT_FALSE(is_known(unknown));
  EXPECT_EQ(size_of(unknown), 0);
  static_assert(element_traits<float>::value == type::f32 && element_traits<double>::value == type::f64);
  static_assert(element_traits<bf16>::value == type::bf16 && element_traits<f16>::value == type::f16);
  static_assert(element_traits<std::int8_t>::value == type::s8 && element_traits<std::uint8_t>::value == type::u8);
  static_assert(element_traits<std::int32_t>::value == type::s32);
  static_assert(element_traits<e4m3>::value == type::e4m3 && element_traits<e5m2>::value == type::e5m2);
  static_assert(element_traits<tf32>::value == type::tf32);
  static_assert(element<float> && !element<long double> && !element<char*>);
  static_assert(accumulator_of(type::bf16) == type::f32 && accumulator_of(type::u8) == type::s32);
  static_assert(accumulator_of(type::f64) == type::f64 && accumulator_of(type::f16) == type::f32);
  static_assert(k_group_of(type::bf16) == 2 && k_group_of(type::s8) == 4 && k_group_of(type::f16) == 1);
}

TEST(Types, Bf16WidensToItsUpperHalf) {
  for (std::uint32_t u = 0; u < 0x10000; ++u) {
    ASSERT_EQ(bits_of(to_f32(bf16{static_cast<std::uint16_t>(u)})), u << 16);
  }
}

TEST(Types, F16WidensExactly) {
  for (std::uint32_t u = 0; u < 0x10000; ++u) {
    const float x = to_f32(f16{static_cast<std::uint16_t>(u)});
    const int exponent = (u >> 10) & 31;
    const double mantissa = u & 0x3ff;
    if (exponent == 31 && mantissa != 0) {
      ASSERT_TRUE(std::isnan(x)) << u;
      ASSERT_TRUE(bits_of(x) & 0x00400000u) << u;  // quiet
      continue;
    }
    double value = exponent == 31  ? HUGE_VAL
                   : exponent == 0 ? std::ldexp(mantissa, -24)
                                   : std::ldexp(mantissa + 1024, exponent - 25);
    if (u & 0x8000) value = -value;
    ASSERT_EQ(static_cast<double>(x), value) << u;
    ASSERT_EQ(std::signbit(x), (u & 0x8000) != 0) << u;
  }
}

TEST(Types, ToBf16RoundsToNearestEvenAndFlushesSubnormals) {
  for_many_floats([](float x) {
    const bf16 narrow = to_bf16(x);
    if (std::isnan(x)) {
      ASSERT_TRUE(std::isnan(to_f32(narrow)));
      ASSERT_TRUE(narrow.bits & 0x40) << bits_of(x);
      return;
    }
    double value = std::fabs(x) < 0x1p-126f ? std::copysign(0.0, static_cast<double>(x)) : static_cast<double>(x);
    if (std::isfinite(x)) value = rounded(value, 7, -126);
    if (std::fabs(value) >= 0x1p128) value = std::copysign(HUGE_VAL, value);
    ASSERT_EQ(static_cast<double>(to_f32(narrow)), value) << bits_of(x);
    ASSERT_EQ(narrow.bits >> 15, bits_of(x) >> 31) << bits_of(x);
  });
}

TEST(Types, ToF16RoundsToNearestEvenAndKeepsSubnormals) {
  for_many_floats([](float x) {
    const f16 narrow = to_f16(x);
    if (std::isnan(x)) {
      ASSERT_TRUE(std::isnan(to_f32(narrow)));
      ASSERT_TRUE(narrow.bits & 0x200) << bits_of(x);
      return;
    }
    double value = std::isfinite(x) ? rounded(static_cast<double>(x), 10, -14) : static_cast<double>(x);
    if (std::fabs(value) >= 0x1p16) value = std::copysign(HUGE_VAL, value);
    ASSERT_EQ(static_cast<double>(to_f32(narrow)), value) << bits_of(x);
    ASSERT_EQ(narrow.bits >> 15, bits_of(x) >> 31) << bits_of(x);
  });
}

TEST(Types, NarrowingAWidenedValueGivesItBack) {
  for (std::uint32_t u = 0; u < 0x10000; ++u) {
    const f16 h{static_cast<std::uint16_t>(u)};
    const bf16 b{static_cast<std::uint16_t>(u)};
    ASSERT_TRUE(std::isnan(to_f32(h)) || to_f16(to_f32(h)) == h) << u;
    ASSERT_TRUE(std::isnan(to_f32(b)) || (u & 0x7f80) == 0 || to_bf16(to_f32(b)) == b) << u;  // subnormals flush
  }
}

/// The value that OFP8 gives a pattern of so many bits of mantissa; NaN and infinities aside.
double value_of_8bit(std::uint32_t u, int mantissa_bits, int bias) {
  const int exponent = static_cast<int>(u & 0x7f) >> mantissa_bits;
  const int mantissa = static_cast<int>(u) & ((1 << mantissa_bits) - 1);
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                                         : std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
  return (u & 0x80) != 0 ? -magnitude : magnitude;
}

TEST(Types, EightBitFloatsWidenExactly) {
  for (std::uint32_t u = 0; u < 0x100; ++u) {
    const e4m3 x{static_cast<std::uint8_t>(u)};
    const e5m2 y{static_cast<std::uint8_t>(u)};
    if ((u & 0x7f) == 0x7f) {
      ASSERT_TRUE(std::isnan(to_f32(x)));
    } else {
      ASSERT_EQ(static_cast<double>(to_f32(x)), value_of_8bit(u, 3, 7)) << u;
      ASSERT_EQ(bits_of(to_f32(to_f16(x))), bits_of(to_f32(x))) << u;
    }
    if ((u & 0x7f) > 0x7c) {
      ASSERT_TRUE(std::isnan(to_f32(y)));
    } else {
      const double value = (u & 0x7f) == 0x7c ? (u & 0x80 ? -HUGE_VAL : HUGE_VAL) : value_of_8bit(u, 2, 15);
      ASSERT_EQ(static_cast<double>(to_f32(y)), value) << u;
      ASSERT_EQ(bits_of(to_f32(to_f16(y))), bits_of(to_f32(y))) << u;
    }
    ASSERT_EQ(bits_of(to_f32(x)) >> 31, u >> 7);
    ASSERT_EQ(bits_of(to_f32(y)) >> 31, u >> 7);
    ASSERT_TRUE(std::isnan(to_f32(x)) || to_e4m3(to_f32(x)) == x) << u;
    ASSERT_TRUE(!std::isfinite(to_f32(y)) || to_e5m2(to_f32(y)) == y) << u;
  }
}

TEST(Types, ToEightBitFloatsRoundsToNearestEvenAndSaturates) {
  static_assert(to_e4m3(464.0f).bits == 0x7e && to_e4m3(-1e30f).bits == 0xfe && to_e5m2(61440.0f).bits == 0x7b);
  static_assert(to_e4m3(0x1p-10f).bits == 0 && to_e4m3(0x1.8p-10f).bits == 1 && to_e5m2(0x1p-17f).bits == 0);
  for_many_floats([](float x) {
    const e4m3 a = to_e4m3(x);
    const e5m2 b = to_e5m2(x);
    if (std::isnan(x)) {
      ASSERT_TRUE(std::isnan(to_f32(a)) && std::isnan(to_f32(b)));
      return;
    }
    const auto expected = [x](int fraction_bits, int least, double most) {
      const double value =
          std::isfinite(x) ? rounded(static_cast<double>(x), fraction_bits, least) : static_cast<double>(x);
      return std::clamp(value, -most, most);
    };
    ASSERT_EQ(static_cast<double>(to_f32(a)), expected(3, -6, 448)) << bits_of(x);
    ASSERT_EQ(static_cast<double>(to_f32(b)), expected(2, -14, 57344)) << bits_of(x);
    ASSERT_EQ(a.bits >> 7, bits_of(x) >> 31) << bits_of(x);
    ASSERT_EQ(b.bits >> 7, bits_of(x) >> 31) << bits_of(x);
  });
}

TEST(Types, Tf32RoundsToNearestTiesAway) {
  for_many_floats([](float x) {
    const float narrow = to_f32(tf32{x});
    ASSERT_EQ(bits_of(narrow) & 0x1fff, 0u) << bits_of(x);
    if (!std::isfinite(x)) {
      ASSERT_EQ(std::isnan(narrow), std::isnan(x)) << bits_of(x);
      ASSERT_TRUE(std::isnan(x) || narrow == x) << bits_of(x);
      return;
    }
    const int exponent = x == 0 ? 0 : std::max(std::ilogb(x), -126);
    double value = std::ldexp(std::round(std::ldexp(static_cast<double>(x), 10 - exponent)), exponent - 10);
    if (std::fabs(value) >= 0x1p128) value = std::copysign(HUGE_VAL, value);
    ASSERT_EQ(static_cast<double>(narrow), value) << bits_of(x);
    ASSERT_EQ(bits_of(narrow) >> 31, bits_of(x) >> 31) << bits_of(x);
  });
}

[[gnu::target("f16c,avx")]] std::uint16_t instruction_to_f16(float x) {
  return static_cast<std::uint16_t>(
      _mm_extract_epi16(_mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), 0));
}
[[gnu::target("f16c,avx")]] float instruction_to_f32(std::uint16_t x) {
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(x)));
}

TEST(Types, F16AsTheInstructionsConvert) {
  if (!detail::detect_cpu().has(feature::f16c)) GTEST_SKIP() << "no F16C on this CPU";
  for_many_floats([](float x) { ASSERT_EQ(to_f16(x).bits, instruction_to_f16(x)) << bits_of(x); });
  for (std::uint32_t u = 0; u < 0x10000; ++u) {
    const auto h = static_cast<std::uint16_t>(u);
    ASSERT_EQ(bits_of(to_f32(f16{h})), bits_of(instruction_to_f32(h))) << u;
  }
}

[[gnu::target("avx512f,avx512vl,avx512bf16")]] std::uint16_t instruction_to_bf16(float x) {
  const __m128bh narrow = _mm_cvtneps_pbh(_mm_set_ss(x));
  std::uint16_t lowest = 0;
  std::memcpy(&lowest, &narrow, sizeof lowest);
  return lowest;
}

TEST(Types, Bf16AsTheInstructionsConvert) {
  if (!__builtin_cpu_supports("avx512bf16")) GTEST_SKIP() << "no AVX512_BF16 on this CPU";
  for_many_floats([](float x) { ASSERT_EQ(to_bf16(x).bits, instruction_to_bf16(x)) << bits_of(x); });
}

}  // namespace
}  // namespace brgemm
