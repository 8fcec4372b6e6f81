// The activations against double, over a dense subset of the floats or all of them (BRGEMM_FULL=1: some ten minutes),
// and the scalar evaluator against AVX-512 instructions, bit for bit.
#include "brgemm/core/activation.hpp"

#include <gtest/gtest.h>

// GCC 12 warns of the deliberately uninitialized operand inside the intrinsics (its bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>

namespace {

using brgemm::op_kind;

constexpr op_kind kinds[] = {op_kind::sigmoid,
                             op_kind::tanh,
                             op_kind::gelu_erf,
                             op_kind::gelu_tanh,
                             op_kind::silu,
                             op_kind::hardswish,
                             op_kind::sigmoid_backward,
                             op_kind::tanh_backward,
                             op_kind::gelu_erf_backward,
                             op_kind::gelu_tanh_backward,
                             op_kind::silu_backward,
                             op_kind::hardswish_backward};

const char* name_of(op_kind kind) {
  switch (kind) {
    case op_kind::sigmoid: return "sigmoid";
    case op_kind::tanh: return "tanh";
    case op_kind::gelu_erf: return "gelu_erf";
    case op_kind::gelu_tanh: return "gelu_tanh";
    case op_kind::silu: return "silu";
    case op_kind::hardswish: return "hardswish";
    case op_kind::sigmoid_backward: return "sigmoid_backward";
    case op_kind::tanh_backward: return "tanh_backward";
    case op_kind::gelu_erf_backward: return "gelu_erf_backward";
    case op_kind::gelu_tanh_backward: return "gelu_tanh_backward";
    case op_kind::silu_backward: return "silu_backward";
    case op_kind::hardswish_backward: return "hardswish_backward";
    default: return "?";
  }
}

/// The exact function to a relative error below 2^-44 (the worst is gelu's exponent of 105, rounded to 2^-53 of
/// itself), so a bound checked in float's ULP is off by less than 2^-20.
double exact_derivative(op_kind kind, double x);
double exact(op_kind kind, double x) {
  if (brgemm::detail::is_backward(kind)) return exact_derivative(kind, x);
  constexpr double sqrt_half = 0.70710678118654752440, sqrt_2_over_pi = 0.79788456080286535588;
  switch (kind) {
    case op_kind::sigmoid: return 1 / (1 + std::exp(-x));
    case op_kind::tanh: return std::tanh(x);
    case op_kind::gelu_erf: return x < -40 ? -0.0 : 0.5 * x * std::erfc(-x * sqrt_half);
    case op_kind::gelu_tanh:
      return x < -15 ? -0.0 : x / (1 + std::exp(-2 * sqrt_2_over_pi * x * (1 + 0.044715 * (x * x))));
    case op_kind::silu: return x < -700 ? -0.0 : x / (1 + std::exp(-x));
    case op_kind::hardswish: return x <= -3 ? -0.0 : x >= 3 ? x : x * (x + 3) / 6;
    default: return x;
  }
}

/// E (1 + E - v) / (1 + E)^2 below 0, 1 minus that above.
double by_tail(double x, double power, double v) {
  const double tail = power * (1 + power - v) / ((1 + power) * (1 + power));
  return x < 0 ? tail : 1 - tail;
}

/// The same for derivatives; where silu's and gelu_tanh's are near 0 the error is below 2^-50 absolutely.
double exact_derivative(op_kind kind, double x) {
  constexpr double sqrt_half = 0.70710678118654752440, sqrt_2_over_pi = 0.79788456080286535588;
  constexpr double density = 0.39894228040143267794;  // 1/sqrt(2 pi)
  const double a = std::abs(x);
  const double power = std::exp(-a);
  const double far = x < 0 ? -0.0 : 1.0;
  switch (kind) {
    case op_kind::sigmoid_backward: return power / ((1 + power) * (1 + power));
    case op_kind::tanh_backward: return 4 * power * power / ((1 + power * power) * (1 + power * power));
    case op_kind::gelu_erf_backward: {
      if (a > 38) return far;
      if (a > 0.7 && a < 0.8) {  // where it passes through 0
        constexpr long double wide_density = 0.39894228040143267793994605993438L;
        const long double wide = a;
        const long double tail =
            0.5L * std::erfc(wide * std::sqrt(0.5L)) - wide * wide_density * std::exp(-wide * wide / 2);
        return static_cast<double>(x < 0 ? tail : 1 - tail);
      }
      const double tail = 0.5 * std::erfc(a * sqrt_half) - a * density * std::exp(-a * a / 2);
      return x < 0 ? tail : 1 - tail;
    }
    case op_kind::gelu_tanh_backward:
      if (a > 20) return far;
      return by_tail(x, std::exp(-2 * sqrt_2_over_pi * a * (1 + 0.044715 * (a * a))),
                     2 * sqrt_2_over_pi * a * (1 + 3 * 0.044715 * (a * a)));
    case op_kind::silu_backward: return a > 700 ? far : by_tail(x, power, a);
    case op_kind::hardswish_backward: return x <= -3 ? 0 : x >= 3 ? 1 : (2 * x + 3) / 6;
    default: return 1;
  }
}

/// Where the derivative of silu or gelu_tanh passes through 0: there its error is small absolutely only.
struct interval {
  float first, last;
  bool has(float x) const { return x >= first && x <= last; }
};
interval near_zero(op_kind kind) {
  switch (kind) {
    case op_kind::gelu_tanh_backward: return {-1.75f, -0.5f};
    case op_kind::silu_backward: return {-1.5f, -1};
    default: return {1, 0};
  }
}

/// The largest error that docs/numerics.md states, in ULP: 2, or what was measured over all floats, rounded up.
double most_ulp(op_kind kind) {
  switch (kind) {
    case op_kind::gelu_tanh_backward: return 4.3;
    case op_kind::silu_backward: return 3.7;
    default: return 2;
  }
}
double most_near_zero(op_kind kind) { return kind == op_kind::silu_backward ? 0x1.3p-26 : 0x1.4p-25; }

/// |computed - exact| in units of the last place of exact's binade, 2^-149 below the normal numbers.
double ulp_error(float computed, double exact) {
  if (static_cast<double>(computed) == exact) return 0;
  const auto field = static_cast<int>((std::bit_cast<std::uint64_t>(exact) >> 52) & 0x7ffu);
  const int exponent = std::max(field - 1023, -126) - 23;
  const double per_ulp = std::bit_cast<double>(static_cast<std::uint64_t>(1023 - exponent) << 52);
  return std::abs(static_cast<double>(computed) - exact) * per_ulp;
}

// One operation of the evaluator is one function: the programs are templates without target attributes, into which
// intrinsics cannot be inlined.
#define BRGEMM_AVX512 [[gnu::target("avx512f,avx512dq")]]

constexpr int lanes = 16;
struct alignas(64) vector {
  float lane[lanes];
};

struct avx512_evaluator {
  using reg = vector*;
  int instructions = 0;  ///< of AVX-512, without register moves

  BRGEMM_AVX512 static __m512 load(reg r) { return _mm512_load_ps(r->lane); }
  BRGEMM_AVX512 static __m512 load(float c) { return _mm512_set1_ps(c); }
  BRGEMM_AVX512 static __m512 load(std::uint32_t c) {
    return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(c)));
  }
  BRGEMM_AVX512 void store(reg d, __m512 v, int count = 1) {
    _mm512_store_ps(d->lane, v);
    instructions += count;
  }

  BRGEMM_AVX512 void constant(reg d, float c) { store(d, load(c)); }
  BRGEMM_AVX512 void constant_bits(reg d, std::uint32_t c) { store(d, load(c)); }
  BRGEMM_AVX512 void move(reg d, reg s) { store(d, load(s), 0); }
  BRGEMM_AVX512 void add(reg d, reg a, auto b) { store(d, _mm512_add_ps(load(a), load(b))); }
  BRGEMM_AVX512 void sub(reg d, reg a, auto b) { store(d, _mm512_sub_ps(load(a), load(b))); }
  BRGEMM_AVX512 void mul(reg d, reg a, auto b) { store(d, _mm512_mul_ps(load(a), load(b))); }
  BRGEMM_AVX512 void div(reg d, reg a, auto b) { store(d, _mm512_div_ps(load(a), load(b))); }
  BRGEMM_AVX512 void min(reg d, reg a, auto b) { store(d, _mm512_min_ps(load(a), load(b))); }
  BRGEMM_AVX512 void max(reg d, reg a, auto b) { store(d, _mm512_max_ps(load(a), load(b))); }
  BRGEMM_AVX512 void fma(reg d, reg a, auto b) { store(d, _mm512_fmadd_ps(load(a), load(b), load(d))); }
  BRGEMM_AVX512 void fnma(reg d, reg a, auto b) { store(d, _mm512_fnmadd_ps(load(a), load(b), load(d))); }
  BRGEMM_AVX512 void horner(reg d, reg a, auto b) { store(d, _mm512_fmadd_ps(load(d), load(a), load(b))); }
  BRGEMM_AVX512 void and_bits(reg d, reg a, auto b) { store(d, _mm512_and_ps(load(a), load(b))); }
  BRGEMM_AVX512 void or_bits(reg d, reg a, auto b) { store(d, _mm512_or_ps(load(a), load(b))); }
  BRGEMM_AVX512 void xor_bits(reg d, reg a, auto b) { store(d, _mm512_xor_ps(load(a), load(b))); }
  BRGEMM_AVX512 void shift_left(reg d, reg a, int count) {
    store(d, _mm512_castsi512_ps(_mm512_sll_epi32(_mm512_castps_si512(load(a)), _mm_cvtsi32_si128(count))));
  }
  BRGEMM_AVX512 void round(reg d, reg s) {
    store(d, _mm512_roundscale_ps(load(s), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  BRGEMM_AVX512 void scale(reg d, reg a, reg n) { store(d, _mm512_scalef_ps(load(a), load(n))); }
  BRGEMM_AVX512 void select_less(reg d, reg a, auto b, reg x, reg y) {
    const __mmask16 less = _mm512_cmp_ps_mask(load(a), load(b), _CMP_LT_OQ);
    store(d, _mm512_mask_blend_ps(less, load(y), load(x)), 2);
  }
};

bool has_avx512() { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"); }

/// Instructions spent on `x`, which becomes the activation of each lane.
int activate_avx512(op_kind kind, vector& x) {
  vector t[6];
  vector* const registers[6] = {&t[0], &t[1], &t[2], &t[3], &t[4], &t[5]};
  avx512_evaluator e;
  brgemm::emit_activation(kind, e, &x, registers);
  return e.instructions;
}

void activate_scalar(op_kind kind, vector& x) {
  for (float& lane : x.lane) lane = brgemm::activate(kind, lane);
}

bool full_range() { return std::getenv("BRGEMM_FULL") != nullptr; }

float from_bits(std::uint64_t u) { return std::bit_cast<float>(static_cast<std::uint32_t>(u)); }

/// Equal bits, or both NaN.
bool same_bits(float a, float b) {
  return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b) || (std::isnan(a) && std::isnan(b));
}

struct worst {
  double ulp = 0;
  float at = 0;
  double absolute = 0;  ///< near_zero
};

void measure(op_kind kind, const vector& x, worst& w) {
  vector y = x;
  if (has_avx512()) {
    activate_avx512(kind, y);
  } else {
    activate_scalar(kind, y);
  }
  for (int i = 0; i < lanes; ++i) {
    if (std::isnan(x.lane[i])) {
      if (!std::isnan(y.lane[i])) w = {INFINITY, x.lane[i], 0};
      continue;
    }
    const double right = exact(kind, static_cast<double>(x.lane[i]));
    if (near_zero(kind).has(x.lane[i])) {
      w.absolute = std::fmax(w.absolute, std::abs(static_cast<double>(y.lane[i]) - right));
      continue;
    }
    const double error = ulp_error(y.lane[i], right);
    if (!(error <= w.ulp)) w.ulp = error, w.at = x.lane[i];
  }
}

/// Calls `f` with vectors of every `stride`th bit pattern from `first` up to `last`.
template <class F>
void for_bit_patterns(std::uint64_t first, std::uint64_t last, std::uint64_t stride, F f) {
  for (std::uint64_t u = first; u < last; u += lanes * stride) {
    vector x;
    for (std::uint64_t i = 0; i < lanes; ++i) x.lane[i] = from_bits(u + i * stride);
    f(x);
  }
}

/// All floats (BRGEMM_FULL=1), or every 257th, and every 13th where 2^-4 <= |x| < 2^7, where the errors are.
template <class F>
void for_all_floats(F f) {
  for_bit_patterns(0, 1ull << 32, full_range() ? 1 : 257, f);
  if (full_range()) return;
  for (const std::uint64_t sign : {0ull, 1ull << 31}) for_bit_patterns(sign | 0x3d800000u, sign | 0x43000000u, 13, f);
}

/// Calls `f` with the 2^14 floats on either side of each point where a program changes its path or its range, of both
/// signs, and with the 2^14 subnormals next to zero and to the normal numbers.
template <class F>
void for_floats_at_boundaries(F f) {
  constexpr float points[] = {0,        0x1p-126f,  0x1p-63f, 0x1p-24f, 0x1p-12f, 0.25f,   0.3465736f, 0.5f,
                              0.625f,   0.7517915f, 1,        1.5f,     2,        3,       4.75f,      6,
                              8,        10,         11,       14.35f,   14.5f,    17,      60,         87.3365f,
                              88.7228f, 103.972f,   106,      108,      120,      INFINITY};
  for (const float point : points) {
    for (const std::uint64_t sign : {0ull, 1ull << 31}) {
      const std::uint64_t middle = std::bit_cast<std::uint32_t>(point);
      const std::uint64_t first = middle < (1u << 14) ? 0 : middle - (1u << 14);
      for_bit_patterns(first | sign, (middle + (1u << 14)) | sign, 1, f);
    }
  }
}

class Activation : public testing::TestWithParam<op_kind> {};

TEST_P(Activation, ErrorInUlp) {
  worst w;
  const auto one = [&w](const vector& x) { measure(GetParam(), x, w); };
  for_all_floats(one);
  for_floats_at_boundaries(one);
  std::printf("[ ulp ] %s %.4f at x=%a (%.9g), %s", name_of(GetParam()), w.ulp, static_cast<double>(w.at),
              static_cast<double>(w.at), full_range() ? "all floats" : "a dense subset");
  if (w.absolute > 0) std::printf("; where it passes through zero 2^%.2f", std::log2(w.absolute));
  std::printf("\n");
  EXPECT_LE(w.ulp, most_ulp(GetParam()));
  EXPECT_LE(w.absolute, most_near_zero(GetParam()));
}

TEST_P(Activation, ScalarHasTheBitsOfAvx512) {
  if (!has_avx512()) GTEST_SKIP() << "no AVX-512 here";
  int differences = 0;
  int instructions = 0;
  const auto one = [&](const vector& x) {
    vector scalar = x, wide = x;
    activate_scalar(GetParam(), scalar);
    instructions = activate_avx512(GetParam(), wide);
    for (int i = 0; i < lanes; ++i) {
      if (same_bits(scalar.lane[i], wide.lane[i])) continue;
      if (++differences <= 3) ADD_FAILURE() << x.lane[i] << ": " << scalar.lane[i] << " and " << wide.lane[i];
    }
  };
  for_floats_at_boundaries(one);
  for_bit_patterns(0, 1ull << 32, 2053, one);
  std::printf("[ instructions ] %s %d\n", name_of(GetParam()), instructions);
  EXPECT_EQ(differences, 0);
}

TEST_P(Activation, UsesNoMoreTemporariesThanItSays) {
  const int count = brgemm::temporaries(GetParam());
  ASSERT_LE(count, 6);
  float t[6] = {};
  float* registers[6] = {};  // one that is used in excess is null
  for (int i = 0; i < count; ++i) registers[i] = &t[i];
  float x = 1;
  brgemm::detail::float_evaluator e;
  brgemm::emit_activation(GetParam(), e, &x, registers);
  EXPECT_TRUE(same_bits(x, brgemm::activate(GetParam(), 1)));
}

TEST_P(Activation, LimitsAndSpecialValues) {
  const op_kind kind = GetParam();
  const auto f = [kind](float x) { return brgemm::activate(kind, x); };
  for (const std::uint64_t nan : {0x7fc00000ull, 0xffc00000ull, 0x7f800001ull, 0xffffffffull}) {
    EXPECT_TRUE(std::isnan(f(from_bits(nan)))) << nan;
  }
  const float largest = std::numeric_limits<float>::max();
  if (brgemm::detail::is_backward(kind)) {
    const bool even = kind == op_kind::sigmoid_backward || kind == op_kind::tanh_backward;
    const bool minus = kind != op_kind::hardswish_backward && !even;  // 0 is their limit from below
    const float middle = kind == op_kind::sigmoid_backward ? 0.25f : kind == op_kind::tanh_backward ? 1.0f : 0.5f;
    for (const float x : {INFINITY, largest}) EXPECT_TRUE(same_bits(f(x), even ? 0.0f : 1.0f)) << x << ' ' << f(x);
    for (const float x : {-INFINITY, -largest}) EXPECT_TRUE(same_bits(f(x), minus ? -0.0f : 0.0f)) << x << ' ' << f(x);
    for (const float x : {0.0f, -0.0f}) EXPECT_TRUE(same_bits(f(x), middle)) << x << ' ' << f(x);
    return;
  }
  if (kind == op_kind::sigmoid) {
    for (const float x : {INFINITY, largest}) EXPECT_TRUE(same_bits(f(x), 1)) << x;
    for (const float x : {-INFINITY, -largest}) EXPECT_TRUE(same_bits(f(x), 0)) << x;
    for (const float x : {0.0f, -0.0f}) EXPECT_TRUE(same_bits(f(x), 0.5f)) << x;
    return;
  }
  for (const float x : {0.0f, -0.0f}) EXPECT_TRUE(same_bits(f(x), x)) << x;
  for (const float x : {INFINITY, largest}) EXPECT_TRUE(same_bits(f(x), kind == op_kind::tanh ? 1 : x)) << x;
  for (const float x : {-INFINITY, -largest}) {
    EXPECT_TRUE(same_bits(f(x), kind == op_kind::tanh ? -1 : -0.0f)) << x << ' ' << f(x);
  }
}

TEST(ActivationOfOtherSteps, IsTheIdentity) {
  for (const op_kind kind : {op_kind::none, op_kind::relu, op_kind::bias}) {
    EXPECT_EQ(brgemm::temporaries(kind), 0);
    EXPECT_EQ(brgemm::activate(kind, 1.5f), 1.5f);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, Activation, testing::ValuesIn(kinds), [](const auto& p) { return name_of(p.param); });

}  // namespace
