// The reference: plain loops in the contract's order of sums, the definition of right, and what runs where code
// generation is forbidden. No instruction set is assumed; where the CPU has FMA, the same text runs compiled for it.
#pragma once

#include <new>

#include "../core/activation.hpp"
#include "../core/validate.hpp"
#include "backend.hpp"

namespace brgemm::inline abi_0::backend {

namespace reference_loops {

// The functions that multiply are part of loops that are compiled twice, with and without FMA instructions:
// __builtin_fma without them is a (correct, slow) call of the C library. What converts or only adds stands once: every
// file that makes kernels compiles it.
#define BRGEMM_DETAIL_INLINE [[gnu::always_inline]] inline
#define BRGEMM_DETAIL_ONCE [[gnu::noinline]] inline

/// Columns of C that are summed together: whole bytes of a mask, and few enough to stay in the first cache.
inline constexpr index row_block = 64;

/// A product rounded by itself: the compiler may not join it with a later addition.
template <class Real>
BRGEMM_DETAIL_INLINE Real rounded(Real x) noexcept {
  __asm__("" : "+x"(x));
  return x;
}

BRGEMM_DETAIL_INLINE float multiply_add(float a, float b, float c) noexcept { return __builtin_fmaf(a, b, c); }
BRGEMM_DETAIL_INLINE double multiply_add(double a, double b, double c) noexcept { return __builtin_fma(a, b, c); }
BRGEMM_DETAIL_INLINE std::uint32_t multiply_add(std::uint32_t a, std::uint32_t b, std::uint32_t c) noexcept {
  return a * b + c;
}

/// A subnormal becomes zero of its sign, as the bf16 instructions do to what they read and write.
BRGEMM_DETAIL_INLINE float flush(float x) noexcept {
  return __builtin_fabsf(x) < std::numeric_limits<float>::min() ? __builtin_copysignf(0.0f, x) : x;
}

/// Whether a * b + c, which rounds to the smallest normal number, is flushed all the same: x86 finds a result tiny when
/// it is below that number after rounding to 24 bits with no bound on the exponent. a, b are bf16 values: a * b is
/// exact.
BRGEMM_DETAIL_INLINE bool rounds_to_tiny(float a, float b, float c) noexcept {
  const double product = static_cast<double>(a) * static_cast<double>(b);
  const double addend = static_cast<double>(c);
  const double sum = product + addend;
  const double back = sum - product;
  const double rest = (product - (sum - back)) + (addend - back);  // sum + rest is exact
  const double limit = 0x1p-126 - 0x1p-151;                        // rounds up to the smallest normal number
  return __builtin_fabs(sum) - limit + (sum < 0 ? -rest : rest) < 0;
}

/// fma as the bf16 instructions do it, for flushed a and b that are bf16 values.
BRGEMM_DETAIL_INLINE float multiply_add_flushed(float a, float b, float c) noexcept {
  const float addend = flush(c);
  const float sum = __builtin_fmaf(a, b, addend);
  constexpr float smallest = std::numeric_limits<float>::min();
  if (__builtin_expect(__builtin_fabsf(sum) == smallest, 0)) {
    return rounds_to_tiny(a, b, addend) ? __builtin_copysignf(0.0f, sum) : sum;
  }
  return flush(sum);
}

BRGEMM_DETAIL_INLINE float add_flushed(float x, float y) noexcept { return flush(flush(x) + flush(y)); }

template <class To, class From>
BRGEMM_DETAIL_INLINE To convert(From x) noexcept {
  return static_cast<To>(x);
}
template <class To, class From>
requires requires(From x) { to_f32(x); }
BRGEMM_DETAIL_INLINE To convert(From x) noexcept { return static_cast<To>(to_f32(x)); }

/// out[j] = data[offset + j * step] for j < count, widened exactly; tf32 is rounded.
template <class From, class To>
BRGEMM_DETAIL_INLINE void load_as(const void* data, index offset, index step, index count, To* out) noexcept {
  const From* const from = static_cast<const From*>(data) + offset;
  for (index j = 0; j < count; ++j) out[j] = convert<To>(from[j * step]);
}

template <class To>
BRGEMM_DETAIL_ONCE void load(type t, const void* data, index offset, index step, index count, To* out) noexcept {
  switch (t) {
    case type::f32: return load_as<float>(data, offset, step, count, out);
    case type::f64: return load_as<double>(data, offset, step, count, out);
    case type::bf16: return load_as<bf16>(data, offset, step, count, out);
    case type::f16: return load_as<f16>(data, offset, step, count, out);
    case type::s8: return load_as<std::int8_t>(data, offset, step, count, out);
    case type::u8: return load_as<std::uint8_t>(data, offset, step, count, out);
    case type::s32: return load_as<std::int32_t>(data, offset, step, count, out);
    case type::e4m3: return load_as<e4m3>(data, offset, step, count, out);
    case type::e5m2: return load_as<e5m2>(data, offset, step, count, out);
    case type::tf32: return load_as<tf32>(data, offset, step, count, out);
  }
}

/// Where the elements of the matrices lie: the desc with what the call adds.
struct problem {
  const desc& d;
  const arguments& x;
  index m, lda, ldb, ldc;
  order sums;
};

BRGEMM_DETAIL_INLINE index offset_a(const problem& p, index i, index k) noexcept {
  switch (p.d.layout_a) {
    case layout::transposed: return k * p.lda + i;
    case layout::interleaved: return (k / k_group_of(p.d) * p.lda + i) * k_group_of(p.d) + k % k_group_of(p.d);
    default: return i * p.lda + k;
  }
}

BRGEMM_DETAIL_INLINE index offset_b(const problem& p, index k, index j) noexcept {
  if (p.d.layout_b == layout::transposed) return j * p.ldb + k;
  const index group = p.d.layout_b == layout::interleaved ? k_group_of(p.d) : 1;
  return ((k / group) * p.ldb + j) * group + k % group;
}

BRGEMM_DETAIL_INLINE index step_b(const problem& p) noexcept {
  if (p.d.layout_b == layout::transposed) return p.ldb;
  return p.d.layout_b == layout::interleaved ? k_group_of(p.d) : 1;
}

struct batch_entry {
  const void* a;
  const void* b;
};

BRGEMM_DETAIL_INLINE batch_entry entry_of(const problem& p, index i) noexcept {
  const auto move = [](const void* base, index elements, type t) -> const void* {
    return static_cast<const char*>(base) + elements * size_of(t);
  };
  switch (p.d.batch) {
    case batch_kind::addresses: {
      const auto& pair = static_cast<const address_pair*>(p.x.pairs)[i];
      return {pair.a, pair.b};
    }
    case batch_kind::offsets: {
      const auto& pair = static_cast<const offset_pair*>(p.x.pairs)[i];
      return {move(p.x.a, pair.a, p.d.a), move(p.x.b, pair.b, p.d.b)};
    }
    case batch_kind::strides: break;
  }
  return {move(p.x.a, i * p.d.stride_a, p.d.a), move(p.x.b, i * p.d.stride_b, p.d.b)};
}

template <class Acc>
BRGEMM_DETAIL_INLINE Acc load_a(const problem& p, const batch_entry& e, index i, index k) noexcept {
  Acc a{};
  load(p.d.a, e.a, offset_a(p, i, k), 1, 1, &a);
  return a;
}

template <class Acc>
BRGEMM_DETAIL_INLINE void load_b(const problem& p, const batch_entry& e, index k, index j0, index count,
                                 Acc* b) noexcept {
  load(p.d.b, e.b, offset_b(p, k, j0), step_b(p), count, b);
}

/// Depthwise: row i + k of A, or mirrored, has a factor for each column.
template <class Acc>
BRGEMM_DETAIL_INLINE void sum_columns(const problem& p, const batch_entry& e, index i, index j0, index count,
                                      Acc* sum) noexcept {
  Acc a[row_block];
  Acc b[row_block];
  for (index k = 0; k < p.d.k; ++k) {
    const index step = p.d.layout_a == layout::depthwise ? k * p.d.k_step : p.d.k - 1 - k;
    const index row = brgemm::detail::row_of_a(p.d, i) + step;
    load(p.d.a, e.a, row * p.lda + j0, 1, count, a);
    load_b(p, e, k, j0, count, b);
    for (index j = 0; j < count; ++j) sum[j] = multiply_add(a[j], b[j], sum[j]);
  }
}

/// One entry's terms of one row, ascending k, one multiply_add a term; term k goes to chain k mod chains.
template <class Acc>
BRGEMM_DETAIL_INLINE void sum_chain(const problem& p, const batch_entry& e, index i, index j0, index count,
                                    Acc (*sums)[row_block]) noexcept {
  if (is_depthwise(p.d.layout_a)) return sum_columns(p, e, i, j0, count, sums[0]);
  Acc b[row_block];
  for (index k = 0; k < p.d.k; ++k) {
    const Acc a = load_a<Acc>(p, e, i, k);
    load_b(p, e, k, j0, count, b);
    Acc* const sum = sums[k % p.d.chains];
    for (index j = 0; j < count; ++j) sum[j] = multiply_add(a, b[j], sum[j]);
  }
}

/// Two consecutive k of bf16, flushed; the second is zero on both sides where k is odd.
struct k_pair {
  float a0, a1;
  float b0[row_block], b1[row_block];
};

BRGEMM_DETAIL_ONCE void load_pair(const problem& p, const batch_entry& e, index i, index k, index j0, index count,
                                  k_pair& x) noexcept {
  x.a0 = flush(load_a<float>(p, e, i, k));
  load_b(p, e, k, j0, count, x.b0);
  x.a1 = 0;
  for (index j = 0; j < count; ++j) x.b1[j] = 0;
  if (k + 1 < p.d.k) {
    x.a1 = flush(load_a<float>(p, e, i, k + 1));
    load_b(p, e, k + 1, j0, count, x.b1);
  }
  for (index j = 0; j < count; ++j) x.b0[j] = flush(x.b0[j]), x.b1[j] = flush(x.b1[j]);
}

/// bf16 in the order of vdpbf16ps: a pair at a time, its second product first; pair number q goes to chain q mod
/// chains.
BRGEMM_DETAIL_INLINE void sum_pairs(const problem& p, const batch_entry& e, index i, index j0, index count,
                                    float (*sums)[row_block]) noexcept {
  k_pair x;
  for (index k = 0; k < p.d.k; k += 2) {
    load_pair(p, e, i, k, j0, count, x);
    float* const sum = sums[(k / 2) % p.d.chains];
    for (index j = 0; j < count; ++j) {
      sum[j] = multiply_add_flushed(x.a0, x.b0[j], multiply_add_flushed(x.a1, x.b1[j], sum[j]));
    }
  }
}

/// bf16 in the order of AMX tiles: chunks of 32 k, in each one chain of the even and one of the odd k from +0.
BRGEMM_DETAIL_INLINE void sum_tiles(const problem& p, const batch_entry& e, index i, index j0, index count,
                                    float (*sums)[row_block]) noexcept {
  k_pair x;
  for (index chunk = 0; chunk < p.d.k; chunk += 32) {
    float even[row_block] = {};
    float odd[row_block] = {};
    for (index k = chunk; k < chunk + 32 && k < p.d.k; k += 2) {
      load_pair(p, e, i, k, j0, count, x);
      for (index j = 0; j < count; ++j) {
        even[j] = multiply_add_flushed(x.a0, x.b0[j], even[j]);
        odd[j] = multiply_add_flushed(x.a1, x.b1[j], odd[j]);
      }
    }
    for (index j = 0; j < count; ++j) sums[0][j] = add_flushed(sums[0][j], add_flushed(even[j], odd[j]));
  }
}

template <class Acc>
BRGEMM_DETAIL_INLINE void sum_entry(const problem& p, const batch_entry& e, index i, index j0, index count,
                                    Acc (*sums)[row_block]) noexcept {
  if constexpr (std::is_same_v<Acc, float>) {
    if (p.sums == order::pair) return sum_pairs(p, e, i, j0, count, sums);
    if (p.sums == order::tile) return sum_tiles(p, e, i, j0, count, sums);
  }
  sum_chain(p, e, i, j0, count, sums);
}

/// Chains are added as the tree ((0+1)+(2+3))+((4+5)+(6+7)); the sum ends in sums[0].
template <class Acc>
BRGEMM_DETAIL_INLINE void add_chains(int chains, index count, Acc (*sums)[row_block]) noexcept {
  for (int step = 1; step < chains; step *= 2) {
    for (int chain = 0; chain < chains; chain += 2 * step) {
      for (index j = 0; j < count; ++j) sums[chain][j] = sums[chain][j] + sums[chain + step][j];
    }
  }
}

/// The start of a sum: +0 with C unread, C, or round(beta * C).
template <class Acc>
BRGEMM_DETAIL_ONCE void load_start(const problem& p, index i, index j0, index count, Acc* start) noexcept {
  for (index j = 0; j < count; ++j) start[j] = Acc{0};
  const Acc beta = p.d.beta == beta_kind::at_call ? static_cast<Acc>(p.x.beta) : Acc{1};
  if (p.d.beta == beta_kind::zero || beta == Acc{0}) return;
  load(p.d.c, p.x.c, i * p.ldc + j0, 1, count, start);
  if (p.d.beta == beta_kind::one) return;
  if constexpr (std::is_floating_point_v<Acc>) {
    for (index j = 0; j < count; ++j) start[j] = rounded(beta * start[j]);
  }
}

/// Terms of all entries, from the start or, with alpha, from +0 and then fma(alpha, sum, start). Ends in sums[0].
template <class Acc>
BRGEMM_DETAIL_INLINE void sum_row(const problem& p, index i, index j0, index count, Acc (*sums)[row_block]) noexcept {
  Acc start[row_block] = {};
  if (!brgemm::detail::becomes_f32(p.d)) load_start(p, i, j0, count, start);
  const bool scaled = p.d.alpha == alpha_kind::at_call && !brgemm::detail::becomes_f32(p.d);
  for (int chain = 0; chain < p.d.chains; ++chain) {
    for (index j = 0; j < count; ++j) sums[chain][j] = chain == 0 && !scaled ? start[j] : Acc{0};
  }
  const int ranges = row_ranges(p.d);
  for (index entry = 0; p.d.k > 0 && entry < p.x.batch; ++entry) {
    const row_range* const seen = ranges == 0 ? nullptr : &p.d.rows[entry % ranges];
    if (seen != nullptr && (i < seen->first || i >= seen->end)) continue;
    sum_entry(p, entry_of(p, entry), i, j0, count, sums);
  }
  add_chains(p.d.chains, count, sums);
  if (!scaled) return;
  const Acc alpha = static_cast<Acc>(p.x.alpha);
  for (index j = 0; j < count; ++j) sums[0][j] = multiply_add(alpha, sums[0][j], start[j]);
}

/// sum (a - za)(b - zb) = sum ab - za * column sum of B - zb * row sum of A + terms * za * zb, modulo 2^32.
BRGEMM_DETAIL_ONCE void subtract_zero_points(const problem& p, index i, index j0, index count,
                                             std::uint32_t* sum) noexcept {
  const std::uint32_t za = p.d.zero_a == zero_point::at_call ? static_cast<std::uint32_t>(p.x.zero_a) : 0;
  const std::uint32_t zb = p.d.zero_b == zero_point::at_call ? static_cast<std::uint32_t>(p.x.zero_b) : 0;
  std::uint32_t row = 0;
  if (zb != 0) {
    for (index entry = 0; p.d.k > 0 && entry < p.x.batch; ++entry) {
      const batch_entry e = entry_of(p, entry);
      for (index k = 0; k < p.d.k; ++k) row += load_a<std::uint32_t>(p, e, i, k);
    }
  }
  const std::uint32_t terms = static_cast<std::uint32_t>(p.x.batch) * static_cast<std::uint32_t>(p.d.k);
  const std::uint32_t same = terms * za * zb - zb * row;
  for (index j = 0; j < count; ++j) {
    const std::uint32_t column = za == 0 ? 0 : static_cast<std::uint32_t>(p.x.column_sums[j0 + j]);
    sum[j] += same - za * column;
  }
}

// ---- Epilogue ----

/// The operand's values for count columns of row i from j0.
template <class Real>
BRGEMM_DETAIL_INLINE void load_operand(const problem& p, int step, index i, index j0, index count, Real* v) noexcept {
  const epilogue_op& o = p.d.epilogue[step];
  const index ld = brgemm::detail::chosen(o.ld, p.x.operand_ld[step]);
  const bool vector = brgemm::detail::is_vector(o.kind);
  const bool same = vector && o.along != axis::column;
  const index first = !vector ? i * ld + j0 : o.along == axis::row ? i : o.along == axis::column ? j0 : 0;
  load(o.operand, p.x.operand[step], first, same ? 0 : 1, count, v);
}

/// To an 8-bit integer: NaN becomes the lowest value, the others are clamped, then rounded to nearest even.
BRGEMM_DETAIL_INLINE std::int32_t saturate(float x, float lowest, float highest) noexcept {
  const float raised = x > lowest ? x : lowest;
  const float clamped = raised < highest ? raised : highest;
  const float shifted = rounded(clamped + 0x1.8p23f);  // the sum's last place is 1, so it is rounded to nearest even
  return static_cast<std::int32_t>(shifted - 0x1.8p23f);
}

/// Converts count values to elements of type t at p[first].
template <class Real>
BRGEMM_DETAIL_ONCE void store_values(type t, void* p, index first, index count, const Real* x) noexcept {
  for (index j = 0; j < count; ++j) {
    const float narrow = static_cast<float>(x[j]);
    switch (t) {
      case type::f32: static_cast<float*>(p)[first + j] = narrow; break;
      case type::f64: static_cast<double*>(p)[first + j] = static_cast<double>(x[j]); break;
      case type::bf16: static_cast<bf16*>(p)[first + j] = to_bf16(narrow); break;
      case type::f16: static_cast<f16*>(p)[first + j] = to_f16(narrow); break;
      case type::s8:
        static_cast<std::int8_t*>(p)[first + j] = static_cast<std::int8_t>(saturate(narrow, -128, 127));
        break;
      case type::u8:
        static_cast<std::uint8_t*>(p)[first + j] = static_cast<std::uint8_t>(saturate(narrow, 0, 255));
        break;
      case type::e4m3: static_cast<e4m3*>(p)[first + j] = to_e4m3(narrow); break;
      case type::e5m2: static_cast<e5m2*>(p)[first + j] = to_e5m2(narrow); break;
      case type::s32:
      case type::tf32: break;  // s32 is stored as summed, no C is of tf32
    }
  }
}

/// relu that also writes count bits of the mask, from a whole byte; unused bits of the last byte are 0.
template <class Real>
BRGEMM_DETAIL_INLINE void relu_with_mask(std::uint8_t* mask, index count, Real* x) noexcept {
  for (index j = 0; j < count; j += 8) {
    unsigned bits = 0;
    for (index bit = 0; bit < 8 && j + bit < count; ++bit) bits |= (x[j + bit] > 0 ? 1u : 0u) << bit;
    mask[j / 8] = static_cast<std::uint8_t>(bits);
  }
  for (index j = 0; j < count; ++j) x[j] = x[j] < 0 ? Real{0} : x[j];
}

template <class Real>
BRGEMM_DETAIL_INLINE void apply_mask(const problem& p, int step, index i, index j0, index count, Real* x) noexcept {
  const epilogue_op& o = p.d.epilogue[step];
  const index ld = brgemm::detail::chosen(o.ld, p.x.operand_ld[step]);
  std::uint8_t* const mask = static_cast<std::uint8_t*>(p.x.operand[step]) + i * ld + j0 / 8;
  if (o.kind == op_kind::relu_mask) return relu_with_mask(mask, count, x);
  for (index j = 0; j < count; ++j) x[j] = ((mask[j / 8] >> (j % 8)) & 1) != 0 ? x[j] : Real{0};
}

/// One step without an operand, for one element.
template <class Real>
BRGEMM_DETAIL_INLINE Real apply_function(const epilogue_op& o, Real x) noexcept {
  switch (o.kind) {
    case op_kind::relu: return x < 0 ? Real{0} : x;
    case op_kind::leaky_relu: return x < 0 ? rounded(static_cast<Real>(static_cast<float>(o.slope)) * x) : x;
    case op_kind::clamp: {
      const Real lower = static_cast<Real>(static_cast<float>(o.lower));
      const Real upper = static_cast<Real>(static_cast<float>(o.upper));
      const Real raised = x < lower ? lower : x;
      return raised > upper ? upper : raised;
    }
    default: break;
  }
  if constexpr (std::is_same_v<Real, float>) return activate(o.kind, x);
  return x;
}

template <class Real>
BRGEMM_DETAIL_ONCE void apply_step(const problem& p, int step, index i, index j0, index count, Real* x) noexcept {
  const epilogue_op& o = p.d.epilogue[step];
  if (brgemm::detail::is_mask(o.kind)) return apply_mask(p, step, i, j0, count, x);
  if (!brgemm::detail::has_operand(o.kind)) {
    for (index j = 0; j < count; ++j) x[j] = apply_function(o, x[j]);
    return;
  }
  if (o.kind == op_kind::store) {
    const index ld = brgemm::detail::chosen(o.ld, p.x.operand_ld[step]);
    return store_values(o.operand, p.x.operand[step], i * ld + j0, count, x);
  }
  Real v[row_block];
  load_operand(p, step, i, j0, count, v);
  if constexpr (std::is_same_v<Real, float>) {
    if (brgemm::detail::is_backward(o.kind)) {
      for (index j = 0; j < count; ++j) v[j] = activate(o.kind, v[j]);
    }
  }
  const bool adds = o.kind == op_kind::bias || o.kind == op_kind::add;
  for (index j = 0; j < count; ++j) x[j] = rounded(adds ? x[j] + v[j] : x[j] * v[j]);
}

template <class Real>
BRGEMM_DETAIL_INLINE void finish_row(const problem& p, index i, index j0, index count, Real* x) noexcept {
  for (int step = 0; step < p.d.epilogue_size; ++step) apply_step(p, step, i, j0, count, x);
  store_values(p.d.c, p.x.c, i * p.ldc + j0, count, x);
}

/// An exact sum: stored as it is, or converted to f32 (nearest even): x. Then start + x, or fma(alpha, x, start), and
/// the epilogue.
BRGEMM_DETAIL_INLINE void finish_row(const problem& p, index i, index j0, index count, std::uint32_t* sum) noexcept {
  subtract_zero_points(p, i, j0, count, sum);
  float x[row_block];
  for (index j = 0; j < count; ++j) {
    const auto exact = static_cast<std::int32_t>(sum[j]);
    if (p.d.c == type::s32) static_cast<std::int32_t*>(p.x.c)[i * p.ldc + j0 + j] = exact;
    x[j] = static_cast<float>(exact);
  }
  if (p.d.c == type::s32) return;
  float start[row_block];
  load_start(p, i, j0, count, start);
  const bool scaled = p.d.alpha == alpha_kind::at_call;
  const float alpha = scaled ? static_cast<float>(p.x.alpha) : 1;
  for (index j = 0; j < count; ++j) x[j] = scaled ? multiply_add(alpha, x[j], start[j]) : start[j] + x[j];
  finish_row(p, i, j0, count, x);
}

/// The whole kernel.
template <class Acc>
BRGEMM_DETAIL_INLINE void run(const arguments& x, const desc& d) noexcept {
  using brgemm::detail::chosen;
  const problem p{d,
                  x,
                  brgemm::detail::rows_of(d, x),
                  chosen(d.lda, x.lda),
                  chosen(d.ldb, x.ldb),
                  chosen(d.ldc, x.ldc),
                  machine_order(d)};
  Acc sums[8][row_block];
  for (index i = 0; i < p.m; ++i) {
    for (index j0 = 0; j0 < d.n; j0 += row_block) {
      const index count = d.n - j0 < row_block ? d.n - j0 : row_block;
      sum_row(p, i, j0, count, sums);
      finish_row(p, i, j0, count, sums[0]);
    }
  }
}

#undef BRGEMM_DETAIL_INLINE
#undef BRGEMM_DETAIL_ONCE

template <class Acc>
void run_portable(const arguments* x, const void* context) {
  run<Acc>(*x, *static_cast<const desc*>(context));
}

template <class Acc>
[[gnu::target("fma")]] void run_with_fma(const arguments* x, const void* context) {
  run<Acc>(*x, *static_cast<const desc*>(context));
}

inline entry_point choose(const desc& d) noexcept {
  const bool fma = cpu().has(feature::avx2);
  switch (accumulator_of(d)) {
    case type::f64: return fma ? run_with_fma<double> : run_portable<double>;
    case type::s32: return run_portable<std::uint32_t>;
    default: return fma ? run_with_fma<float> : run_portable<float>;
  }
}

inline bool runs_here() noexcept { return true; }

inline result<void> supports(const desc& d) noexcept { return validate(d); }

inline void release(void* context) noexcept { delete static_cast<desc*>(context); }

inline result<program> make(const desc& d, std::span<std::uint8_t>) noexcept {
  if (auto r = validate(d); !r) return r.error();
  desc* const kept = new (std::nothrow) desc(d);
  if (kept == nullptr) {
    return error(errc::out_of_memory, "desc", "no memory for the %zu bytes of a reference kernel", sizeof(desc));
  }
  return program{.entry = choose(d), .context = kept, .release = release, .sums = machine_order(d)};
}

inline std::size_t explain(const desc&, char* text, std::size_t size) noexcept {
  constexpr std::string_view words =
      "reference: plain loops in the contract's order of sums, one row of C at a time; no code is generated, nothing "
      "is "
      "blocked for registers, and no cycles are predicted.";
  const std::size_t length = words.size() < size ? words.size() : size;
  for (std::size_t i = 0; i < length; ++i) text[i] = words[i];
  return length;
}

}  // namespace reference_loops

/// The definition of right: every desc that `validate` accepts, on every machine.
inline constexpr entry reference{"reference", reference_loops::runs_here, reference_loops::supports,
                                 reference_loops::make, reference_loops::explain};

}  // namespace brgemm::inline abi_0::backend
