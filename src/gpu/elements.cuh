// Elements as they are read and written, and the exactly rounded operations on what they are summed in.
#pragma once

#include "brgemm/core/activation.hpp"

namespace brgemm::inline abi_0::cuda {

template <type T>
struct element_of;
template <>
struct element_of<type::f32> {
  using stored = float;
};
template <>
struct element_of<type::f64> {
  using stored = double;
};
template <>
struct element_of<type::bf16> {
  using stored = bf16;
};
template <>
struct element_of<type::f16> {
  using stored = f16;
};
template <>
struct element_of<type::s8> {
  using stored = std::int8_t;
};
template <>
struct element_of<type::u8> {
  using stored = std::uint8_t;
};
template <>
struct element_of<type::s32> {
  using stored = std::int32_t;
};
template <>
struct element_of<type::e4m3> {
  using stored = e4m3;
};
template <>
struct element_of<type::e5m2> {
  using stored = e5m2;
};
template <>
struct element_of<type::tf32> {
  using stored = tf32;
};
template <type T>
using stored = typename element_of<T>::stored;

/// What sums of an accumulator's type are formed in: those of integers modulo 2^32.
template <type T>
struct sum_of : element_of<T> {};
template <>
struct sum_of<type::s32> {
  using stored = std::uint32_t;
};
template <type T>
using sum_type = typename sum_of<T>::stored;

/// Widened exactly; tf32 is rounded. 8-bit integers are summed modulo 2^32.
template <type T, class To>
__device__ __forceinline__ To load(const void* data, index at) {
  const stored<T> x = static_cast<const stored<T>*>(data)[at];
  if constexpr (requires { to_f32(x); }) {
    return static_cast<To>(to_f32(x));
  } else {
    return static_cast<To>(x);
  }
}

/// What tensor cores are given: bf16, tf32, or f16, which has every 8-bit float.
template <type T>
inline constexpr type multiplied_as = T == type::bf16 || T == type::tf32 ? T : type::f16;

/// The bits of an element as tensor cores are given it.
template <type T>
__device__ __forceinline__ auto load_bits(const void* data, index at) {
  const stored<T> x = static_cast<const stored<T>*>(data)[at];
  if constexpr (T == type::tf32) {
    return __float_as_uint(to_f32(x));
  } else if constexpr (T == type::e4m3 || T == type::e5m2) {
    return to_f16(x).bits;
  } else {
    return x.bits;
  }
}

__device__ __forceinline__ float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return __fma_rn(a, b, c); }
__device__ __forceinline__ std::uint32_t multiply_add(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  return a * b + c;
}
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double add(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ std::uint32_t add(std::uint32_t a, std::uint32_t b) { return a + b; }
__device__ __forceinline__ float multiply(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double multiply(double a, double b) { return __dmul_rn(a, b); }

/// To an 8-bit integer: NaN becomes the lowest value, the others are clamped, then rounded to nearest even.
__device__ __forceinline__ std::int32_t saturate(float x, float lowest, float highest) {
  const float raised = x > lowest ? x : lowest;
  const float clamped = raised < highest ? raised : highest;
  return __float2int_rn(clamped);
}

template <type T, class Real>
__device__ __forceinline__ void store(void* data, index at, Real x) {
  stored<T>& to = static_cast<stored<T>*>(data)[at];
  if constexpr (T == type::bf16) {
    to = to_bf16(static_cast<float>(x));
  } else if constexpr (T == type::f16) {
    to = to_f16(static_cast<float>(x));
  } else if constexpr (T == type::e4m3) {
    to = to_e4m3(static_cast<float>(x));
  } else if constexpr (T == type::e5m2) {
    to = to_e5m2(static_cast<float>(x));
  } else if constexpr (T == type::s8) {
    to = static_cast<std::int8_t>(saturate(static_cast<float>(x), -128, 127));
  } else if constexpr (T == type::u8) {
    to = static_cast<std::uint8_t>(saturate(static_cast<float>(x), 0, 255));
  } else {
    to = static_cast<stored<T>>(x);
  }
}

/// Evaluates the activations of core/activation.hpp on one float; the bits of the CPU.
struct device_evaluator {
  using reg = float*;
  static __device__ float value(reg r) { return *r; }
  static __device__ float value(float c) { return c; }
  static __device__ std::uint32_t bits(reg r) { return __float_as_uint(*r); }
  static __device__ std::uint32_t bits(std::uint32_t c) { return c; }
  static __device__ float of(std::uint32_t u) { return __uint_as_float(u); }

  __device__ void constant(reg d, float c) { *d = c; }
  __device__ void constant_bits(reg d, std::uint32_t c) { *d = of(c); }
  __device__ void move(reg d, reg s) { *d = *s; }
  __device__ void add(reg d, reg a, auto b) { *d = __fadd_rn(*a, value(b)); }
  __device__ void sub(reg d, reg a, auto b) { *d = __fsub_rn(*a, value(b)); }
  __device__ void mul(reg d, reg a, auto b) { *d = __fmul_rn(*a, value(b)); }
  __device__ void div(reg d, reg a, auto b) { *d = __fdiv_rn(*a, value(b)); }
  __device__ void min(reg d, reg a, auto b) { *d = *a < value(b) ? *a : value(b); }
  __device__ void max(reg d, reg a, auto b) { *d = *a > value(b) ? *a : value(b); }
  __device__ void fma(reg d, reg a, auto b) { *d = __fmaf_rn(*a, value(b), *d); }
  __device__ void fnma(reg d, reg a, auto b) { *d = __fmaf_rn(-*a, value(b), *d); }
  __device__ void horner(reg d, reg a, auto b) { *d = __fmaf_rn(*d, *a, value(b)); }
  __device__ void and_bits(reg d, reg a, auto b) { *d = of(bits(a) & bits(b)); }
  __device__ void or_bits(reg d, reg a, auto b) { *d = of(bits(a) | bits(b)); }
  __device__ void xor_bits(reg d, reg a, auto b) { *d = of(bits(a) ^ bits(b)); }
  __device__ void shift_left(reg d, reg a, int count) { *d = of(bits(a) << count); }
  __device__ void round(reg d, reg s) { *d = rintf(*s); }
  __device__ void scale(reg d, reg a, reg n) {                 // exact in double, then rounded once
    const int exponent = *n == *n ? static_cast<int>(*n) : 0;  // n is NaN only where a is
    const double factor = __longlong_as_double(static_cast<long long>(1023 + exponent) << 52);
    *d = __double2float_rn(__dmul_rn(static_cast<double>(*a), factor));
  }
  __device__ void select_less(reg d, reg a, auto b, reg x, reg y) { *d = *a < value(b) ? *x : *y; }
};

/// Not inlined: a copy for each element that a thread has would take the compiler seconds.
template <op_kind Kind>
__device__ __noinline__ float activate_on_device(float x) {
  float t[6] = {};
  float* const registers[6] = {&t[0], &t[1], &t[2], &t[3], &t[4], &t[5]};
  device_evaluator e;
  emit_activation(Kind, e, &x, registers);
  return x;
}

}  // namespace brgemm::inline abi_0::cuda
