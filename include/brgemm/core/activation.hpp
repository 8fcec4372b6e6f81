// The activations with a transcendental or a division in them: sigmoid, tanh, gelu (both forms), silu, hardswish, and
// their derivatives, in f32. Each is one straight-line program over a few vector operations, written once for every
// evaluator: plain floats (`activate`, below), and the code generators, which emit an instruction or two for each
// operation. All operations are exactly specified, so all evaluators give the same bits. Errors and how they are kept
// small: docs/numerics.md.
#pragma once

#include "desc.hpp"

namespace brgemm::inline abi_0 {

namespace detail {

// An evaluator E has a type E::reg, cheap to copy, that names a vector register, and the operations below. The
// destination d comes first and may be any of the sources. Where a source may be a constant it is the last one, so that
// an instruction can take it from memory.
//
//   constant(d, float)          constant_bits(d, uint32)          move(d, s)
//   add sub mul div (d, a, b)   b register or float
//   min(d, a, b)                a < b ? a : b, b register or float: b if one is NaN or both are zero, as x86
//   max(d, a, b)                a > b ? a : b, the same
//   fma(d, a, b)                d = a*b + d, b register or float; one rounding
//   fnma(d, a, b)               d = d - a*b
//   horner(d, a, b)             d = d*a + b
//   and_bits or_bits xor_bits (d, a, b)   b register or uint32
//   shift_left(d, a, int)       of the bits, as uint32
//   round(d, s)                 to an integer, ties to even
//   scale(d, a, n)              a * 2^n rounded once, also to a subnormal; n an integer, |n| <= 252. Either
//                               a * 2^floor(n/2) is exact, or n is 0 or -1. Infinity and NaN stay what they are
//   select_less(d, a, b, x, y)  a < b ? x : y, b register or float: y if one is NaN

/// d = 2^n for a register of integers in [-126, 127].
template <class E>
constexpr void emit_power_of_two(E& e, typename E::reg d, typename E::reg n) {
  e.add(d, n, 12583039.0f);  // 1.5 * 2^23 + 127: the biased exponent stands in the lowest bits
  e.shift_left(d, d, 23);
}

/// (2^-r - 1) / r for |r| <= 0.5 by Horner's rule: degree 5, r times it off by at most 2^-27.8 before rounding
/// (minimax, by fpminimax).
inline constexpr float exp2_series[] = {0x1.442512p-13f, -0x1.5ef5dp-10f, 0x1.3b2a48p-7f,
                                        -0x1.c6af9cp-5f, 0x1.ebfbep-3f,   -0x1.62e43p-1f};
template <class E>
constexpr void emit_exp2_series(E& e, typename E::reg d, typename E::reg r) {
  e.constant(d, exp2_series[0]);
  e.horner(d, r, exp2_series[1]);
  e.horner(d, r, exp2_series[2]);
  e.horner(d, r, exp2_series[3]);
  e.horner(d, r, exp2_series[4]);
  e.horner(d, r, exp2_series[5]);
}

/// x = x / (1 + 2^(n-r)), n an integer in [-126, 200], |r| <= 0.5. n, r and t[0..2] are clobbered.
///
/// The quotient is formed as x / (2^-n + 2^-r) where n > 0 and scaled last, so that a subnormal result is rounded once.
template <class E>
constexpr void emit_logistic(E& e, typename E::reg x, typename E::reg n, typename E::reg r, const typename E::reg* t) {
  e.or_bits(t[1], n, 0x80000000u);
  e.max(t[1], t[1], -126.0f);
  emit_power_of_two(e, t[1], t[1]);  // 2^-|n|
  e.add(t[2], t[1], 1.0f);
  e.sub(t[0], t[2], 1.0f);
  e.sub(t[0], t[1], t[0]);
  e.fnma(r, t[0], 0x1.715476p0f);  // what 1 + 2^-|n| lost is nearly enough put right in the exponent
  emit_exp2_series(e, t[0], r);
  e.mul(t[1], t[1], r);
  e.select_less(t[1], n, 0.0f, t[1], r);
  e.fma(t[2], t[1], t[0]);
  e.div(x, x, t[2]);
  e.max(n, n, 0.0f);
  e.xor_bits(n, n, 0x80000000u);
  e.scale(x, x, n);
}

/// n - r = -x * log2(e), n an integer, |r| <= 0.5; log2(e) in two parts.
template <class E>
constexpr void emit_negative_exponent(E& e, typename E::reg n, typename E::reg r, typename E::reg x) {
  e.mul(n, x, -0x1.715476p0f);
  e.round(n, n);
  e.move(r, n);
  e.fma(r, x, 0x1.715476p0f);
  e.fma(r, x, 0x1.4ae0cp-26f);
}

template <class E>
constexpr void emit_sigmoid(E& e, typename E::reg x, const typename E::reg* t) {
  e.constant(t[0], -106.0f);
  e.max(x, t[0], x);  // this order keeps NaN
  e.constant(t[0], 60.0f);
  e.min(x, t[0], x);
  emit_negative_exponent(e, t[0], t[1], x);
  e.constant(x, 1.0f);
  emit_logistic(e, x, t[0], t[1], t + 2);
}

template <class E>
constexpr void emit_silu(E& e, typename E::reg x, const typename E::reg* t) {
  e.constant(t[0], -120.0f);
  e.max(x, t[0], x);  // this order keeps NaN
  e.min(t[2], x, 60.0f);
  emit_negative_exponent(e, t[0], t[1], t[2]);
  emit_logistic(e, x, t[0], t[1], t + 2);
}

/// n - r = -2u log2(e) = -x (a + b x^2), u = sqrt(2/pi) (x + 0.044715 x^3), 0.044715 the decimal number; n an integer,
/// |r| <= 0.5. a + b x^2 is formed in two parts because an error in it is relative in the power. t[0..1] are clobbered.
template <class E>
constexpr void emit_gelu_tanh_exponent(E& e, typename E::reg n, typename E::reg r, typename E::reg x,
                                       const typename E::reg* t) {
  constexpr float a_high = -0x1.26aecp+1f;  // -2 sqrt(2/pi) log2(e); few bits, so that t1 below is exact
  constexpr float a_low = -0x1.0de73ap-22f;
  constexpr float b_high = -0x1.a5a7dp-4f;  // 0.044715 times that
  constexpr float b_low = 0x1.151aaep-29f;
  e.mul(n, x, x);
  e.move(r, n);
  e.fnma(r, x, x);  // x^2 = n - r
  e.constant(t[0], a_high);
  e.fma(t[0], n, b_high);
  e.sub(t[1], t[0], a_high);
  e.fnma(t[1], n, b_high);
  e.fnma(t[1], n, b_low);
  e.fma(t[1], r, b_high);
  e.sub(t[1], t[1], a_low);  // a + b x^2 = t0 - t1
  e.mul(n, x, t[0]);
  e.round(n, n);
  e.move(r, n);
  e.fnma(r, x, t[0]);
  e.fma(r, x, t[1]);
}

/// x / (1 + exp(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3).
template <class E>
constexpr void emit_gelu_tanh(E& e, typename E::reg x, const typename E::reg* t) {
  e.constant(t[0], -11.0f);
  e.max(x, t[0], x);  // this order keeps NaN
  e.min(t[0], x, 8.0f);
  emit_gelu_tanh_exponent(e, t[1], t[2], t[0], t + 3);
  const typename E::reg rest[] = {t[0], t[3], t[4]};
  emit_logistic(e, x, t[1], t[2], rest);
}

/// x + x^3 p(x^2) up to 0.625, p of degree 4 with relative error 2^-27.8 (minimax); 1 - 2 / (1 + 2^n 2^-r) above.
template <class E>
constexpr void emit_tanh(E& e, typename E::reg x, const typename E::reg* t) {
  e.and_bits(t[0], x, 0x7fffffffu);
  e.constant(t[1], 10.0f);
  e.min(t[1], t[1], t[0]);  // this order keeps NaN
  e.mul(t[2], t[1], 0x1.715476p+1f);
  e.round(t[2], t[2]);
  e.move(t[3], t[2]);
  e.fnma(t[3], t[1], 0x1.715476p+1f);
  e.fnma(t[3], t[1], 0x1.4ae0cp-25f);
  emit_exp2_series(e, t[1], t[3]);
  emit_power_of_two(e, t[2], t[2]);
  e.mul(t[3], t[3], t[2]);
  e.add(t[2], t[2], 1.0f);
  e.fma(t[2], t[1], t[3]);
  e.constant(t[1], -2.0f);
  e.div(t[1], t[1], t[2]);
  e.add(t[1], t[1], 1.0f);
  e.mul(t[2], t[0], t[0]);
  e.constant(t[3], -0x1.75e1cep-8f);
  e.horner(t[3], t[2], 0x1.52269cp-6f);
  e.horner(t[3], t[2], -0x1.b83c5ap-5f);
  e.horner(t[3], t[2], 0x1.110726p-3f);
  e.horner(t[3], t[2], -0x1.555532p-2f);
  e.mul(t[3], t[3], t[2]);
  e.horner(t[3], t[0], t[0]);
  e.select_less(t[1], t[0], 0.625f, t[3], t[1]);
  e.and_bits(x, x, 0x80000000u);
  e.or_bits(x, x, t[1]);
}

/// max(x, 0) - a Phi(-a), a = |x|, where a Phi(-a) = q (1 + w(q)) 2^(-c q - a^2 log2(e) / 2), q = h a / (a + k).
///
/// The power of two takes most of how erfc(a / sqrt(2)) exp(a^2 / 2) (a + k) varies; what is left is w, a polynomial of
/// degree 8 without constant term on 0 <= q <= 1.79 (a <= 14.4; the result is below 2^-150 from there), 1 + w with
/// relative error 2^-26.7 (weighted least squares by Lawson's iteration). -0.07 < w < 0.25, and w(0) = 0: small |x|
/// lose nothing.
template <class E>
constexpr void emit_gelu_erf(E& e, typename E::reg x, const typename E::reg* t) {
  constexpr float half_log2e = 0x1.715476p-1f;
  constexpr float half_log2e_low = 0x1.4ae0cp-27f;
  constexpr float k = 0x1.3p+2f, h = 0x1.3p+1f, c = 0x1.63d198p+0f;
  e.and_bits(t[0], x, 0x7fffffffu);
  e.min(t[0], t[0], 14.5f);
  // -a^2 log2(e) / 2 = t3 - t4
  e.mul(t[1], t[0], t[0]);
  e.move(t[2], t[1]);
  e.fnma(t[2], t[0], t[0]);
  e.mul(t[3], t[1], -half_log2e);
  e.move(t[4], t[3]);
  e.fma(t[4], t[1], half_log2e);
  e.fma(t[4], t[1], half_log2e_low);
  e.fnma(t[4], t[2], half_log2e);
  // y = h / (a + k) = t5, and -h times its relative error, t1
  e.add(t[1], t[0], k);
  e.sub(t[2], t[1], k);
  e.sub(t[2], t[0], t[2]);
  e.constant(t[5], h);
  e.div(t[5], t[5], t[1]);
  e.horner(t[1], t[5], -h);
  e.fma(t[1], t[2], t[5]);
  // q = a y = t2 - t1; what both roundings change in the result is put right in the exponent, to first order
  e.mul(t[2], t[0], t[5]);
  e.fma(t[4], t[1], 0.5271f);
  e.mul(t[1], t[1], t[2]);
  e.fma(t[4], t[1], -0.3272f);
  e.move(t[1], t[2]);
  e.fnma(t[1], t[0], t[5]);
  e.fnma(t[4], t[1], 0.9399f);
  // the whole exponent, n - r = t0 - t3
  e.move(t[0], t[3]);
  e.fnma(t[0], t[2], c);
  e.round(t[0], t[0]);
  e.sub(t[3], t[0], t[3]);
  e.fma(t[3], t[2], c);
  e.add(t[3], t[3], t[4]);
  // -w q
  e.constant(t[4], -0x1.e5c426p-14f);
  e.horner(t[4], t[2], 0x1.033062p-10f);
  e.horner(t[4], t[2], -0x1.785654p-9f);
  e.horner(t[4], t[2], -0x1.ae0766p-11f);
  e.horner(t[4], t[2], 0x1.e4309cp-7f);
  e.horner(t[4], t[2], -0x1.005f0ep-5f);
  e.horner(t[4], t[2], -0x1.53a326p-3f);
  e.horner(t[4], t[2], 0x1.b0be24p-3f);
  e.mul(t[4], t[4], t[2]);
  // q (1 + w) = t5 + t2
  e.horner(t[4], t[2], t[1]);
  e.sub(t[5], t[2], t[4]);
  e.sub(t[2], t[2], t[5]);
  e.sub(t[2], t[2], t[4]);
  // v = 2^-r - 1
  emit_exp2_series(e, t[4], t[3]);
  e.mul(t[3], t[3], t[4]);
  // q (1 + w) (1 + v)
  e.horner(t[2], t[3], t[2]);
  e.fma(t[2], t[3], t[5]);
  e.add(t[2], t[2], t[5]);
  e.scale(t[2], t[2], t[0]);
  e.constant_bits(t[0], 0x80000000u);
  e.max(x, t[0], x);  // this order keeps NaN, and the sign of a zero
  e.sub(x, x, t[2]);
}

/// x h, h = min(max(x + 3, 0), 6) / 6 rounded once.
template <class E>
constexpr void emit_hardswish(E& e, typename E::reg x, const typename E::reg* t) {
  constexpr float sixth = 0x1.555556p-3f;
  constexpr float sixth_low = -0x1.555556p-28f;
  e.constant(t[0], -3.0f);
  e.max(x, t[0], x);  // this order keeps NaN
  e.min(t[0], x, 3.0f);
  e.add(t[1], t[0], 3.0f);
  e.sub(t[2], t[1], 3.0f);
  e.sub(t[0], t[0], t[2]);  // x + 3 = t1 + t0
  e.mul(t[0], t[0], sixth);
  e.fma(t[0], t[1], sixth_low);
  e.fma(t[0], t[1], sixth);
  e.mul(x, x, t[0]);
}

// ---- derivatives ----
//
// All but hardswish's come from the tail, the derivative at -a, a = |x|: that of sigmoid and tanh is even, and the
// others are 1 - f'(-a) at a. With E = exp(-a) (tanh: exp(-2a); gelu_tanh: exp(-2u)) it is E N / (1 + E)^2, where N is
// 1, 4 or 1 + E - v, v = a for silu and a times the derivative of 2u for gelu_tanh; gelu_erf has a formula of its own.
// The power of two comes last, so that a subnormal result is rounded once.

/// v = 2^-r - 1 and r = 2^n (1 + v), n an integer in [-252, 0], |r| <= 0.5; powers below 2^-126 count as 2^-126.
template <class E>
constexpr void emit_power(E& e, typename E::reg v, typename E::reg r, typename E::reg n) {
  emit_exp2_series(e, v, r);
  e.mul(v, v, r);
  e.max(r, n, -126.0f);
  emit_power_of_two(e, r, r);
  e.fma(r, r, v);
}

/// a = |x|, at most `most`; NaN stays NaN.
template <class E>
constexpr void emit_magnitude(E& e, typename E::reg a, typename E::reg x, float most, typename E::reg t) {
  e.and_bits(t, x, 0x7fffffffu);
  e.constant(a, most);
  e.min(a, a, t);
}

/// d = d 2^n / (1 + power)^2; t is clobbered.
template <class E>
constexpr void emit_quotient(E& e, typename E::reg d, typename E::reg n, typename E::reg power, typename E::reg t) {
  e.add(t, power, 2.0f);
  e.horner(t, power, 1.0f);
  e.div(d, d, t);
  e.scale(d, d, n);
}

/// x = x < 0 ? tail : 1 - tail; t is clobbered.
template <class E>
constexpr void emit_side(E& e, typename E::reg x, typename E::reg tail, typename E::reg t) {
  e.constant(t, 1.0f);
  e.sub(t, t, tail);
  e.select_less(x, x, 0.0f, tail, t);
}

/// x = c E / (1 + E)^2, E = 2^(n-r), as q (1 + v) 2^n, q = c / (1 + P)^2, P and q rounded: what these roundings and
/// that of the square change, to first order, goes into v = 2^-r - 1. n = t0, r = t1; t[0..4] are clobbered.
template <class E>
constexpr void emit_logistic_derivative(E& e, typename E::reg x, float c, const typename E::reg* t) {
  emit_exp2_series(e, x, t[1]);
  e.mul(x, x, t[1]);
  e.max(t[2], t[0], -126.0f);
  emit_power_of_two(e, t[2], t[2]);
  e.move(t[1], t[2]);
  e.fma(t[1], t[2], x);  // P
  e.sub(t[3], t[2], t[1]);
  e.fma(t[3], t[2], x);   // E - P
  e.fma(x, t[3], -1.2f);  // nearly -2 (1 + v) / (1 + P) where P is not small
  e.add(t[2], t[1], 2.0f);
  e.move(t[3], t[2]);
  e.horner(t[3], t[1], 1.0f);  // (1 + P)^2 = t3 - t4
  e.sub(t[4], t[3], 1.0f);
  e.fnma(t[4], t[1], t[2]);
  e.constant(t[1], c);
  e.div(t[1], t[1], t[3]);
  e.horner(t[3], t[1], -c);
  e.fnma(t[3], t[1], t[4]);
  e.fma(x, t[3], -1 / c);
  e.horner(x, t[1], t[1]);
  e.scale(x, x, t[0]);
}

template <class E>
constexpr void emit_sigmoid_derivative(E& e, typename E::reg x, const typename E::reg* t) {
  emit_magnitude(e, x, x, 106.0f, t[0]);
  emit_negative_exponent(e, t[0], t[1], x);
  emit_logistic_derivative(e, x, 1.0f, t);
}

template <class E>
constexpr void emit_tanh_derivative(E& e, typename E::reg x, const typename E::reg* t) {
  emit_magnitude(e, x, x, 54.0f, t[0]);
  e.add(x, x, x);
  emit_negative_exponent(e, t[0], t[1], x);
  emit_logistic_derivative(e, x, 4.0f, t);
}

template <class E>
constexpr void emit_silu_derivative(E& e, typename E::reg x, const typename E::reg* t) {
  emit_magnitude(e, t[0], x, 120.0f, t[1]);
  emit_negative_exponent(e, t[1], t[2], t[0]);
  emit_power(e, t[3], t[2], t[1]);
  e.constant(t[4], 1.0f);
  e.sub(t[0], t[4], t[0]);
  e.add(t[0], t[0], t[2]);  // N
  e.fma(t[0], t[0], t[3]);
  emit_quotient(e, t[0], t[1], t[2], t[3]);
  emit_side(e, x, t[0], t[1]);
}

template <class E>
constexpr void emit_gelu_tanh_derivative(E& e, typename E::reg x, const typename E::reg* t) {
  emit_magnitude(e, t[0], x, 11.0f, t[1]);
  emit_gelu_tanh_exponent(e, t[1], t[2], t[0], t + 3);
  emit_power(e, t[3], t[2], t[1]);
  // N = 1 - a (c + b a^2) + E, c = 2 sqrt(2/pi) in two parts, b = 3 * 0.044715 c
  e.mul(t[4], t[0], t[0]);
  e.constant(t[5], -0x1.857936p-25f);
  e.fma(t[5], t[4], 0x1.b6676cp-3f);
  e.constant(t[4], 1.0f);
  e.fnma(t[4], t[0], 0x1.988454p+0f);
  e.add(t[4], t[4], t[2]);
  e.fnma(t[4], t[0], t[5]);
  e.fma(t[4], t[4], t[3]);
  emit_quotient(e, t[4], t[1], t[2], t[3]);
  emit_side(e, x, t[4], t[1]);
}

/// The tail Phi(-a) - a phi(a) is 2^(-a^2 log2(e) / 2) (a0 - a) s(w), a0 its root and w = (a - a0) / (a + k): so it
/// keeps its relative error near a0. s, between 0.66 and 0.4, is a polynomial of degree 8, off by at most 2^-27.4 of
/// itself (Lawson's iteration, coefficients rounded one after the other); as the difference a0 - a it has two parts.
template <class E>
constexpr void emit_gelu_erf_derivative(E& e, typename E::reg x, const typename E::reg* t) {
  constexpr float half_log2e = 0x1.715476p-1f;
  constexpr float half_log2e_low = 0x1.4ae0cp-27f;
  constexpr float k = 3.625f;
  constexpr float root = 0x1.80ead2p-1f, root_low = -0x1.a03fd4p-27f;
  emit_magnitude(e, t[0], x, 14.75f, t[1]);
  // n - r = -a^2 log2(e) / 2, n = t3, r = t2
  e.mul(t[1], t[0], t[0]);
  e.move(t[2], t[1]);
  e.fnma(t[2], t[0], t[0]);  // a^2 = t1 - t2
  e.mul(t[3], t[1], -half_log2e);
  e.round(t[3], t[3]);
  e.mul(t[2], t[2], -half_log2e);
  e.fma(t[2], t[1], half_log2e_low);
  e.move(t[4], t[3]);
  e.fma(t[4], t[1], half_log2e);
  e.add(t[2], t[2], t[4]);
  emit_exp2_series(e, t[1], t[2]);
  e.mul(t[1], t[1], t[2]);  // v = 2^-r - 1
  e.sub(t[5], t[0], root);
  e.add(t[2], t[0], k);
  e.div(t[2], t[5], t[2]);  // w
  e.constant(t[4], 0x1.2a0e5ep-9f);
  e.horner(t[4], t[2], -0x1.35ed74p-8f);
  e.horner(t[4], t[2], -0x1.81ba28p-8f);
  e.horner(t[4], t[2], 0x1.3f483p-6f);
  e.horner(t[4], t[2], 0x1.ab4cdcp-6f);
  e.horner(t[4], t[2], -0x1.5b3322p-3f);
  e.horner(t[4], t[2], 0x1.51b916p-2f);
  e.horner(t[4], t[2], -0x1.7bdd2ep-2f);
  e.horner(t[4], t[2], 0x1.28936p-4f);
  e.add(t[5], t[4], 0.5f);
  e.sub(t[2], t[5], 0.5f);
  e.sub(t[4], t[4], t[2]);  // s = t5 + t4
  // a - a0 = t2 + t0
  e.sub(t[2], t[0], root);
  e.sub(t[0], t[0], t[2]);
  e.sub(t[0], t[0], root);
  e.sub(t[0], t[0], root_low);
  // (a0 - a) s = t0 - t4
  e.mul(t[4], t[4], t[2]);
  e.fma(t[4], t[5], t[0]);
  e.mul(t[0], t[2], t[5]);
  e.xor_bits(t[0], t[0], 0x80000000u);
  e.horner(t[5], t[2], t[0]);
  e.add(t[4], t[4], t[5]);
  // times 2^(n-r)
  e.horner(t[4], t[1], t[4]);
  e.fnma(t[4], t[0], t[1]);
  e.sub(t[4], t[0], t[4]);
  e.scale(t[4], t[4], t[3]);
  emit_side(e, x, t[4], t[1]);
}

/// (x + 3/2) / 3, 0 up to -3 and 1 from 3.
template <class E>
constexpr void emit_hardswish_derivative(E& e, typename E::reg x, const typename E::reg* t) {
  constexpr float before_3 = 0x1.7ffffep+1f;
  e.add(t[0], x, 1.5f);
  e.mul(t[0], t[0], 0x1.555556p-2f);
  e.constant(t[1], 0.0f);
  e.select_less(t[0], x, -before_3, t[1], t[0]);
  e.constant(t[1], before_3);
  e.constant(t[2], 1.0f);
  e.select_less(x, t[1], x, t[2], t[0]);  // this order keeps NaN
}

#if !defined(__CUDACC_RTC__)  // code for GPUs has an evaluator of its own

/// Evaluates on one float. The empty asm after a product or a sum keeps the compiler from contracting the two.
struct float_evaluator {
  using reg = float*;
  static float rounded(float x) {
    __asm__("" : "+x"(x));
    return x;
  }
  static float value(reg r) { return *r; }
  static float value(float c) { return c; }
  static std::uint32_t bits(reg r) { return std::bit_cast<std::uint32_t>(*r); }
  static std::uint32_t bits(std::uint32_t c) { return c; }
  static float from_bits(std::uint32_t u) { return std::bit_cast<float>(u); }

  void constant(reg d, float c) { *d = c; }
  void constant_bits(reg d, std::uint32_t c) { *d = from_bits(c); }
  void move(reg d, reg s) { *d = *s; }
  void add(reg d, reg a, auto b) { *d = rounded(*a + value(b)); }
  void sub(reg d, reg a, auto b) { *d = rounded(*a - value(b)); }
  void mul(reg d, reg a, auto b) { *d = rounded(*a * value(b)); }
  void div(reg d, reg a, auto b) { *d = rounded(*a / value(b)); }
  void min(reg d, reg a, auto b) { *d = *a < value(b) ? *a : value(b); }
  void max(reg d, reg a, auto b) { *d = *a > value(b) ? *a : value(b); }
  void fma(reg d, reg a, auto b) { *d = __builtin_fmaf(*a, value(b), *d); }
  void fnma(reg d, reg a, auto b) { *d = __builtin_fmaf(-*a, value(b), *d); }
  void horner(reg d, reg a, auto b) { *d = __builtin_fmaf(*d, *a, value(b)); }
  void and_bits(reg d, reg a, auto b) { *d = from_bits(bits(a) & bits(b)); }
  void or_bits(reg d, reg a, auto b) { *d = from_bits(bits(a) | bits(b)); }
  void xor_bits(reg d, reg a, auto b) { *d = from_bits(bits(a) ^ bits(b)); }
  void shift_left(reg d, reg a, int count) { *d = from_bits(bits(a) << count); }
  void round(reg d, reg s) { *d = __builtin_rintf(*s); }
  void scale(reg d, reg a, reg n) {                            // exact in double, then rounded once
    const int exponent = *n == *n ? static_cast<int>(*n) : 0;  // n is NaN only where a is
    const double factor = std::bit_cast<double>(static_cast<std::uint64_t>(1023 + exponent) << 52);
    *d = static_cast<float>(static_cast<double>(*a) * factor);
  }
  void select_less(reg d, reg a, auto b, reg x, reg y) { *d = *a < value(b) ? *x : *y; }
};

#endif

}  // namespace detail

/// Registers that emit_activation needs beside x; 0 for a step that has no function here.
constexpr int temporaries(op_kind kind) noexcept {
  switch (kind) {
    case op_kind::sigmoid: return 5;
    case op_kind::tanh: return 4;
    case op_kind::gelu_erf: return 6;
    case op_kind::gelu_tanh: return 5;
    case op_kind::silu: return 5;
    case op_kind::hardswish: return 3;
    case op_kind::sigmoid_backward: return 5;
    case op_kind::tanh_backward: return 5;
    case op_kind::gelu_erf_backward: return 6;
    case op_kind::gelu_tanh_backward: return 6;
    case op_kind::silu_backward: return 5;
    case op_kind::hardswish_backward: return 3;
    default: return 0;
  }
}

/// Emits, or evaluates, on register x in place the function of the step: an activation; of a `_backward` step, the
/// derivative of its activation. t[0..temporaries(kind)-1] are clobbered. Does nothing for another step.
template <class E>
constexpr void emit_activation(op_kind kind, E& e, typename E::reg x, const typename E::reg* t) {
  switch (kind) {
    case op_kind::sigmoid: return detail::emit_sigmoid(e, x, t);
    case op_kind::tanh: return detail::emit_tanh(e, x, t);
    case op_kind::gelu_erf: return detail::emit_gelu_erf(e, x, t);
    case op_kind::gelu_tanh: return detail::emit_gelu_tanh(e, x, t);
    case op_kind::silu: return detail::emit_silu(e, x, t);
    case op_kind::hardswish: return detail::emit_hardswish(e, x, t);
    case op_kind::sigmoid_backward: return detail::emit_sigmoid_derivative(e, x, t);
    case op_kind::tanh_backward: return detail::emit_tanh_derivative(e, x, t);
    case op_kind::gelu_erf_backward: return detail::emit_gelu_erf_derivative(e, x, t);
    case op_kind::gelu_tanh_backward: return detail::emit_gelu_tanh_derivative(e, x, t);
    case op_kind::silu_backward: return detail::emit_silu_derivative(e, x, t);
    case op_kind::hardswish_backward: return detail::emit_hardswish_derivative(e, x, t);
    default: return;
  }
}

#if !defined(__CUDACC_RTC__)

/// That function of one float: the same bits as generated code gives. x itself for another step.
inline float activate(op_kind kind, float x) noexcept {
  float t[6] = {};
  float* const registers[6] = {&t[0], &t[1], &t[2], &t[3], &t[4], &t[5]};
  detail::float_evaluator e;
  emit_activation(kind, e, &x, registers);
  return x;
}

#endif

}  // namespace brgemm::inline abi_0
