// The fields of a desc, of an epilogue step and of the arguments, each wrong in every of its ways, and the error that
// tells: for the tests of all that take them.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "brgemm/core/validate.hpp"
#include "support/expect_error.hpp"
#include "support/names.hpp"

namespace brgemm_test {

using namespace brgemm;  // cases are written as a caller writes them
using brgemm::index;     // not the one of <strings.h>

inline constexpr index huge = index{1} << 62;
inline constexpr float nan = std::numeric_limits<float>::quiet_NaN();

template <class Enum>
Enum unknown(int value) {
  return static_cast<Enum>(value);
}
inline std::vector<std::string> fields_of(const desc& d) {
  return NAMES_OF(d, m, n, k, lda, ldb, ldc, stride_a, stride_b, line_step, line, k_step, a, b, c, batch, layout_a,
                  layout_b, beta, alpha, sums, chains, m_extent, zero_a, zero_b, where, write_c, epilogue_size,
                  prefetch, rows, epilogue);
}

inline std::vector<std::string> fields_of(const epilogue_op& o) {
  return NAMES_OF(o, kind, operand, along, slope, lower, upper, ld);
}

inline std::vector<std::string> fields_of(const arguments& x) {
  return NAMES_OF(x, a, b, c, pairs, batch, m, lda, ldb, ldc, alpha, beta, prefetch, zero_a, zero_b, column_sums,
                  operand, operand_ld);
}

// ---- desc ----

inline desc valid_f32() {
  desc d;
  d.m = 4, d.n = 6, d.k = 5;
  d.lda = 5, d.ldb = 6, d.ldc = 6;
  d.stride_a = 20, d.stride_b = 30;
  return d;
}

/// Two taps of each of two lines.
inline desc valid_lines() {
  desc d = valid_f32();
  d.layout_a = layout::depthwise, d.lda = 6;
  d.line = 2, d.line_step = 9;
  return d;
}

inline desc valid_u8() {
  desc d = valid_f32();
  d.a = type::u8, d.b = type::s8, d.c = type::s32;
  return d;
}

inline desc valid_bf16() {
  desc d = valid_f32();
  d.a = d.b = type::bf16;
  return d;
}

inline desc valid_f64() {
  desc d = valid_f32();
  d.a = d.b = d.c = type::f64;
  return d;
}

struct desc_case {
  std::string field;
  errc code;
  desc (*base)();
  std::function<void(desc&)> change;
  std::vector<std::string> words;
};

inline constexpr errc invalid = errc::invalid_argument;
inline constexpr errc unsupported = errc::unsupported;

inline const std::vector<desc_case>& desc_cases() {
  static const std::vector<desc_case> cases = {
      {"m", invalid, valid_f32, [](desc& d) { d.m = 0; }, {"m is 0"}},
      {"m", invalid, valid_f32, [](desc& d) { d.m = -7; }, {"-7"}},
      {"n", invalid, valid_f32, [](desc& d) { d.n = 0; }, {"n is 0"}},
      {"n", invalid, valid_f32, [](desc& d) { d.n = -3; }, {"-3"}},
      {"k", invalid, valid_f32, [](desc& d) { d.k = -1; }, {"k is -1"}},
      {"lda", invalid, valid_f32, [](desc& d) { d.lda = 4; }, {"lda is 4", "5"}},
      {"lda", invalid, valid_f32, [](desc& d) { d.lda = -2; }, {"-2"}},
      {"lda", invalid, valid_f32, [](desc& d) { d.layout_a = layout::transposed, d.lda = 3; }, {"lda is 3", "4"}},
      {"lda", invalid, valid_f32, [](desc& d) { d.m = huge, d.k = d.lda = 4; }, {"2^63 - 1", "4611686018427387904"}},
      {"lda", invalid, valid_f32, [](desc& d) { d.m = huge, d.k = 4, d.lda = at_call; }, {"2^63 - 1"}},
      {"lda", invalid, valid_f32, [](desc& d) { d.lda = huge; }, {"2^63 - 1"}},
      {"lda", invalid, valid_f64, [](desc& d) { d.m = 2 * (huge - 1), d.lda = huge; }, {"2^63 - 1"}},  // 2^128 bytes
      {"ldb", invalid, valid_f32, [](desc& d) { d.ldb = 5; }, {"ldb is 5", "6"}},
      {"ldb", invalid, valid_f32, [](desc& d) { d.layout_b = layout::transposed, d.ldb = 4; }, {"ldb is 4", "5"}},
      {"ldb", invalid, valid_bf16, [](desc& d) { d.layout_b = layout::interleaved, d.ldb = 5; }, {"ldb is 5", "6"}},
      {"ldb", invalid, valid_f32, [](desc& d) { d.n = d.ldc = d.ldb = huge; }, {"2^63 - 1"}},
      {"ldb", invalid, valid_bf16, [](desc& d) { d.layout_b = layout::interleaved, d.ldb = huge / 4; }, {"2^63 - 1"}},
      {"ldc", invalid, valid_f32, [](desc& d) { d.ldc = 5; }, {"ldc is 5", "6"}},
      {"ldc", invalid, valid_f32, [](desc& d) { d.ldc = huge; }, {"2^63 - 1"}},
      {"stride_a", invalid, valid_f32, [](desc& d) { d.stride_a = huge; }, {"4611686018427387904", "4 bytes"}},
      {"stride_a", invalid, valid_f32, [](desc& d) { d.stride_a = -huge; }, {"-4611686018427387904"}},
      {"stride_a", invalid, valid_f32, [](desc& d) { d.batch = batch_kind::addresses; }, {"20", "must be 0"}},
      {"stride_b", invalid, valid_f32, [](desc& d) { d.stride_b = huge; }, {"4611686018427387904"}},
      {"stride_b", invalid, valid_f32, [](desc& d) { d.batch = batch_kind::offsets, d.stride_a = 0; }, {"30"}},
      {"line", invalid, valid_lines, [](desc& d) { d.line = 3; }, {"line is 3", "m = 4"}},
      {"line", invalid, valid_lines, [](desc& d) { d.line = ~0u; }, {"line is 4294967295"}},
      {"line", invalid, valid_lines, [](desc& d) { d.line = 0; }, {"line is 0", "which is 9"}},
      {"line_step", invalid, valid_lines, [](desc& d) { d.line_step = 0; }, {"line_step is 0", "at least 1"}},
      {"line_step", invalid, valid_lines, [](desc& d) { d.m = 8, d.line_step = huge; }, {"4 lines", "2^63 - 1"}},
      {"k_step", invalid, valid_lines, [](desc& d) { d.k_step = 0; }, {"k_step is 0"}},
      {"k_step", invalid, valid_lines, [](desc& d) { d.k = huge, d.k_step = 2; }, {"k_step 2", "2^63 - 1"}},
      {"layout_a", unsupported, valid_f32, [](desc& d) { d.k_step = 2; }, {"k_step = 2", "A depthwise"}},
      {"lda", invalid, valid_lines, [](desc& d) { d.line_step = huge; }, {"2^63 - 1"}},
      {"lda", unsupported, valid_lines, [](desc& d) { d.lda = at_call; }, {"line = 2", "lda fixed"}},
      {"m_extent", unsupported, valid_lines, [](desc& d) { d.m_extent = extent_kind::at_call; }, {"m and lda fixed"}},
      {"layout_a",
       unsupported,
       valid_lines,
       [](desc& d) { d.layout_a = layout::depthwise_mirrored; },
       {"line = 2", "A depthwise"}},
      {"a", invalid, valid_f32, [](desc& d) { d.a = unknown<type>(10); }, {"a is 10"}},
      {"a", unsupported, valid_f32, [](desc& d) { d.a = d.b = d.c = type::s32; }, {"s32"}},
      {"a", unsupported, valid_f32, [](desc& d) { d.a = type::u8; }, {"u8", "f32"}},
      {"b", invalid, valid_f32, [](desc& d) { d.b = unknown<type>(99); }, {"b is 99"}},
      {"b", unsupported, valid_f32, [](desc& d) { d.b = type::bf16; }, {"f32", "bf16"}},
      {"c", invalid, valid_f32, [](desc& d) { d.c = unknown<type>(255); }, {"c is 255"}},
      {"c", unsupported, valid_f32, [](desc& d) { d.c = type::bf16; }, {"bf16", "f32"}},
      {"c", unsupported, valid_bf16, [](desc& d) { d.c = type::f16; }, {"f16", "bf16"}},
      {"c", unsupported, valid_f64, [](desc& d) { d.c = type::f32; }, {"f32", "f64"}},
      {"c", unsupported, valid_u8, [](desc& d) { d.c = type::f16; }, {"f16"}},
      {"b", unsupported, valid_f32, [](desc& d) { d.b = type::tf32; }, {"f32", "tf32"}},
      {"c", unsupported, valid_f32, [](desc& d) { d.a = d.b = d.c = type::tf32; }, {"c is tf32"}},
      {"b", unsupported, valid_f32, [](desc& d) { d.a = type::e4m3; }, {"a is e4m3", "b is f32"}},
      {"c", unsupported, valid_f32, [](desc& d) { d.a = d.b = type::e5m2, d.c = type::u8; }, {"c is u8", "e5m2"}},
      {"c", unsupported, valid_f32, [](desc& d) { d.c = type::e4m3; }, {"c is e4m3"}},
      {"batch", invalid, valid_f32, [](desc& d) { d.batch = unknown<batch_kind>(3); }, {"batch is 3"}},
      {"layout_a", invalid, valid_f32, [](desc& d) { d.layout_a = unknown<layout>(5); }, {"layout_a is 5", "0..4"}},
      {"layout_a", invalid, valid_f32, [](desc& d) { d.layout_a = layout::interleaved; }, {"f32", "transposed"}},
      {"lda", invalid, valid_bf16, [](desc& d) { d.layout_a = layout::interleaved, d.lda = 3; }, {"lda is 3", "4"}},
      {"zero_b",
       unsupported,
       valid_u8,
       [](desc& d) { d.layout_a = layout::interleaved, d.zero_b = brgemm::zero_point::at_call; },
       {"layout_a interleaved"}},
      {"layout_b", invalid, valid_f32, [](desc& d) { d.layout_b = unknown<layout>(200); }, {"layout_b is 200"}},
      {"layout_b", invalid, valid_f32, [](desc& d) { d.layout_b = layout::interleaved; }, {"f32", "plain"}},
      {"beta", invalid, valid_f32, [](desc& d) { d.beta = unknown<beta_kind>(3); }, {"beta is 3"}},
      {"beta", invalid, valid_u8, [](desc& d) { d.c = type::u8, d.beta = beta_kind::one; }, {"u8"}},
      {"beta", invalid, valid_u8, [](desc& d) { d.c = type::s8, d.beta = beta_kind::at_call; }, {"s8"}},
      {"beta", unsupported, valid_u8, [](desc& d) { d.beta = beta_kind::at_call; }, {"s32"}},
      {"alpha", invalid, valid_f32, [](desc& d) { d.alpha = unknown<alpha_kind>(2); }, {"alpha is 2"}},
      {"alpha", unsupported, valid_u8, [](desc& d) { d.alpha = alpha_kind::at_call; }, {"s32", "f32"}},
      {"sums", invalid, valid_f32, [](desc& d) { d.sums = unknown<order>(5); }, {"sums is 5"}},
      {"sums", invalid, valid_f32, [](desc& d) { d.sums = order::foreign; }, {"foreign"}},
      {"sums", unsupported, valid_f32, [](desc& d) { d.sums = order::pair; }, {"pair", "chain"}},
      {"sums", unsupported, valid_u8, [](desc& d) { d.sums = order::tile; }, {"tile", "chain"}},
      {"sums", unsupported, valid_bf16, [](desc& d) { d.sums = order::chain; }, {"chain", "pair or tile"}},
      {"chains", invalid, valid_f32, [](desc& d) { d.chains = 0; }, {"chains is 0"}},
      {"chains", invalid, valid_f32, [](desc& d) { d.chains = 3; }, {"chains is 3"}},
      {"chains", invalid, valid_f32, [](desc& d) { d.chains = 16; }, {"chains is 16"}},
      {"chains", unsupported, valid_bf16, [](desc& d) { d.sums = order::tile, d.chains = 2; }, {"chains is 2", "tile"}},
      {"m_extent", invalid, valid_f32, [](desc& d) { d.m_extent = unknown<extent_kind>(2); }, {"m_extent is 2"}},
      {"zero_a", invalid, valid_u8, [](desc& d) { d.zero_a = unknown<zero_point>(2); }, {"zero_a is 2"}},
      {"zero_a", invalid, valid_f32, [](desc& d) { d.zero_a = zero_point::at_call; }, {"f32"}},
      {"zero_b", invalid, valid_u8, [](desc& d) { d.zero_b = unknown<zero_point>(9); }, {"zero_b is 9"}},
      {"zero_b", invalid, valid_bf16, [](desc& d) { d.zero_b = zero_point::at_call; }, {"bf16"}},
      {"rows",
       invalid,
       valid_f32,
       [](desc& d) {
         d.rows[0] = {0, 200};
       },
       {"rows[0] is 0..200"}},
      {"rows",
       invalid,
       valid_f32,
       [](desc& d) {
         d.rows[6] = {0, 1};
       },
       {"rows[6] is 0..1"}},
      {"prefetch", invalid, valid_f32, [](desc& d) { d.prefetch = 3; }, {"prefetch is 3"}},
      {"prefetch", invalid, valid_f32, [](desc& d) { d.prefetch = 8; }, {"prefetch is 8"}},
      {"where", invalid, valid_f32, [](desc& d) { d.where = unknown<place>(2); }, {"where is 2"}},
      {"where", unsupported, valid_f32, [](desc& d) { d.where = place::gpu; }, {"gpu"}},
      {"write_c", invalid, valid_f32, [](desc& d) { d.write_c = unknown<write_kind>(2); }, {"write_c is 2"}},
      {"write_c",
       unsupported,
       valid_bf16,
       [](desc& d) { d.a = type::u8, d.b = d.c = type::s8, d.write_c = write_kind::streaming, d.ldc = 64; },
       {"streaming", "s8"}},
      {"ldc",
       invalid,
       valid_f32,
       [](desc& d) { d.write_c = write_kind::streaming, d.ldc = d.n / 16 * 16 + 20; },
       {"ldc is", "multiple of 64"}},
      {"ldc",
       invalid,
       valid_f32,
       [](desc& d) { d.write_c = write_kind::streaming, d.m = 1, d.ldc = (index{1} << 62) + 1; },
       {"ldc is 4611686018427387905"}},
      {"ldc",
       invalid,
       valid_f32,
       [](desc& d) { d.write_c = write_kind::streaming, d.ldc = at_call; },
       {"ldc is -1", "fixed"}},
      {"epilogue_size",
       invalid,
       valid_f32,
       [](desc& d) {
         for (int i = 0; i < 9; ++i) append(d, op::relu());
       },
       {"epilogue_size is 9", "8"}},
      {"epilogue", unsupported, valid_u8, [](desc& d) { append(d, op::relu()); }, {"s32"}},
      {"epilogue", invalid, valid_f32, [](desc& d) { d.epilogue[3] = op::relu(); }, {"epilogue[3]", "0"}},
  };
  return cases;
}

// ---- epilogue ----

struct step_case {
  std::string field;
  errc code;
  desc (*base)();
  epilogue_op step;
  std::vector<std::string> words;
};

template <class F>
epilogue_op changed(epilogue_op o, F change) {
  change(o);
  return o;
}

inline const std::vector<step_case>& step_cases() {
  const auto along = [](op_kind kind) { return op::make(kind, type::f32, axis::none, 0); };
  static const std::vector<step_case> cases = {
      {"kind", invalid, valid_f32, op::make(op_kind::none), {"kind is 0"}},
      {"kind", invalid, valid_f32, op::make(unknown<op_kind>(op_kind_count)), {"kind is 23"}},
      {"kind", unsupported, valid_f64, op::sigmoid(), {"f64"}},
      {"kind", unsupported, valid_f64, op::hardswish(), {"f64"}},
      {"kind", unsupported, valid_f64, op::sigmoid_backward(6, type::f64), {"f64"}},
      {"kind", unsupported, valid_f64, op::hardswish_backward(6, type::f64), {"f64"}},
      {"operand", invalid, valid_f32, op::bias(axis::column, unknown<type>(11)), {"operand is 11"}},
      {"operand", unsupported, valid_f32, op::bias(axis::column, type::f64), {"f64", "f32, bf16 or f16"}},
      {"operand", unsupported, valid_f64, op::bias(axis::column, type::f32), {"f32", "f64"}},
      {"operand", unsupported, valid_f32, op::scale(axis::none, type::bf16), {"bf16", "f32"}},
      {"operand", unsupported, valid_f32, op::add(6, type::s32), {"s32"}},
      {"operand", unsupported, valid_f32, op::store(6, type::u8), {"u8"}},
      {"operand", unsupported, valid_f64, op::store(6), {"f32", "f64"}},
      {"operand", unsupported, valid_f32, op::silu_backward(6, type::s8), {"s8"}},
      {"operand", unsupported, valid_f32, changed(op::relu_mask(1), [](auto& o) { o.operand = type::s8; }), {"u8"}},
      {"operand", invalid, valid_f32, changed(op::relu(), [](auto& o) { o.operand = type::f64; }), {"does not use"}},
      {"along", invalid, valid_f32, along(op_kind::bias), {"along", "none", "column or row"}},
      {"along", invalid, valid_f32, changed(op::bias(), [](auto& o) { o.along = unknown<axis>(3); }), {"along is 3"}},
      {"along", invalid, valid_f32, changed(op::add(6), [](auto& o) { o.along = axis::row; }), {"does not use"}},
      {"slope", invalid, valid_f32, changed(op::relu(), [](auto& o) { o.slope = 1.0f; }), {"does not use"}},
      {"lower", invalid, valid_f32, op::clamp(2, 1), {"[2, 1]"}},
      {"lower", invalid, valid_f32, op::clamp(nan, 1), {"nan"}},
      {"lower", invalid, valid_f32, changed(op::tanh(), [](auto& o) { o.lower = 1.0f; }), {"does not use"}},
      {"upper", invalid, valid_f32, op::clamp(0, nan), {"nan"}},
      {"upper", invalid, valid_f32, changed(op::silu(), [](auto& o) { o.upper = 1.0f; }), {"does not use"}},
      {"ld", invalid, valid_f32, op::add(5), {"ld is 5", "6"}},
      {"ld", invalid, valid_f32, op::multiply(-3), {"ld is -3"}},
      {"ld", invalid, valid_f32, op::store(5), {"ld is 5", "6"}},
      {"ld", invalid, valid_f32, op::gelu_erf_backward(5), {"ld is 5", "6"}},
      {"ld", invalid, valid_f32, op::relu_mask(0), {"ld is 0", "1"}},
      {"ld", invalid, valid_f32, op::multiply_mask(0), {"ld is 0", "1"}},
      {"ld", invalid, valid_f32, op::add(huge), {"2^63 - 1"}},
      {"ld", invalid, valid_f32, changed(op::bias(), [](auto& o) { o.ld = 6; }), {"does not use"}},
  };
  return cases;
}

/// The case's step behind a bias.
inline desc with_step(const step_case& c) {
  desc d = c.base();
  append(d, d.a == type::f64 ? op::bias(axis::column, type::f64) : op::bias());
  return append(d, c.step);
}

// ---- arguments ----

/// Memory for a call of each batch kind; `right` puts everything there, a case changes one thing.
struct call {
  desc d = valid_f32();
  arguments x;
  std::array<double, 256> a{}, b{}, c{};
  std::array<double, 64> operand{}, mask{};
  std::array<std::int32_t, 6> sums{};
  std::array<address_pair, 3> addresses{};
  std::array<offset_pair, 3> offsets{{{0, 0}, {20, 30}, {40, 60}}};

  explicit call(desc base, batch_kind kind = batch_kind::strides) : d(base) {
    d.batch = kind;
    if (kind != batch_kind::strides) d.stride_a = d.stride_b = 0;
    x.a = a.data(), x.b = b.data(), x.c = c.data();
    for (std::size_t i = 0; i < 3; ++i) addresses[i] = {a.data() + 20 * i, b.data() + 30 * i};
    if (kind == batch_kind::addresses) x.pairs = addresses.data(), x.a = x.b = nullptr;
    if (kind == batch_kind::offsets) x.pairs = offsets.data();
    x.batch = 3;
  }
};

inline desc run_time() {
  desc d = valid_f32();
  d.m_extent = extent_kind::at_call;
  d.lda = d.ldb = d.ldc = at_call;
  d.alpha = alpha_kind::at_call;
  d.beta = beta_kind::at_call;
  return d;
}

inline desc with_zero_points() {
  desc d = valid_u8();
  d.zero_a = d.zero_b = zero_point::at_call;
  return d;
}

inline desc with_operands() {
  desc d = valid_f32();
  append(d, op::add(at_call));
  append(d, op::relu_mask(at_call));
  append(d, op::multiply_mask(1));
  return d;
}

struct argument_case {
  std::string field;
  desc (*base)();
  batch_kind kind;
  std::function<void(call&)> change;
  std::vector<std::string> words;
  bool right = false;  ///< every value is right, or is not read
};

inline float* floats(std::array<double, 256>& memory) { return reinterpret_cast<float*>(memory.data()); }

inline const std::vector<argument_case>& argument_cases() {
  constexpr auto S = batch_kind::strides;
  constexpr auto O = batch_kind::offsets;
  constexpr auto P = batch_kind::addresses;
  static const std::vector<argument_case> cases = {
      {"a", valid_f32, S, [](call& t) { t.x.a = nullptr; }, {"a is null"}},
      {"a", valid_f32, O, [](call& t) { t.x.a = nullptr; }, {"a is null"}},
      {"a", valid_f32, P, [](call& t) { t.x.a = nullptr; }, {}, true},
      {"a", valid_f32, S, [](call& t) { t.x.a = nullptr, t.d.k = 0; }, {}, true},
      {"a", valid_f32, S, [](call& t) { t.x.a = nullptr, t.x.b = nullptr, t.x.batch = 0; }, {}, true},
      {"a", valid_f32, S, [](call& t) { t.x.a = reinterpret_cast<char*>(t.a.data()) + 1; }, {"4 bytes"}},
      {"a", valid_f32, S, [](call& t) { t.x.a = floats(t.c) + 23; }, {"entry 0", "overlaps C"}},
      {"a", valid_f32, S, [](call& t) { t.x.a = floats(t.c) + 24; }, {}, true},
      {"a", valid_f32, S, [](call& t) { t.x.a = floats(t.c) - 59; }, {"entry 2", "overlaps C"}},
      {"a", valid_f32, S, [](call& t) { t.x.a = floats(t.c) + 60, t.d.stride_a = -20; }, {"entry 2", "overlaps C"}},
      {"a", valid_f32, O, [](call& t) { t.x.a = floats(t.c) + 60, t.offsets[1].a = -50; }, {"entry 1", "overlaps C"}},
      {"a", valid_f32, P, [](call& t) { t.addresses[2].a = floats(t.c) + 8; }, {"entry 2", "overlaps C"}},
      {"a",
       valid_f32,
       S,
       [](call& t) { t.d.lda = t.d.ldc = 12, t.d.stride_a = 24, t.x.a = floats(t.c) + 6; },
       {},
       true},  // side by side
      {"a",
       valid_f32,
       S,
       [](call& t) { t.d.lda = t.d.ldc = 10, t.d.stride_a = 20, t.x.a = floats(t.c) + 6; },
       {"overlaps C"}},
      {"a", valid_f32, S, [](call& t) { t.d.stride_a = huge / 4, t.x.batch = 1 << 20; }, {"address space"}},
      {"a", valid_f32, O, [](call& t) { t.offsets[2].a = -huge; }, {"entry 2", "address space"}},
      {"b", valid_f32, S, [](call& t) { t.x.b = nullptr; }, {"b is null"}},
      {"b", valid_f32, O, [](call& t) { t.x.b = nullptr; }, {"b is null"}},
      {"b", valid_f32, S, [](call& t) { t.x.b = reinterpret_cast<char*>(t.b.data()) + 2; }, {"4 bytes"}},
      {"b", valid_f32, S, [](call& t) { t.x.b = t.c.data(); }, {"entry", "overlaps C"}},
      {"b", valid_f32, P, [](call& t) { t.addresses[1].b = floats(t.c) - 29; }, {"entry 1", "overlaps C"}},
      {"b", valid_f32, P, [](call& t) { t.addresses[1].b = floats(t.c) - 30; }, {}, true},
      {"c", valid_f32, S, [](call& t) { t.x.c = nullptr; }, {"c is null"}},
      {"c", valid_f32, S, [](call& t) { t.x.c = nullptr, t.x.batch = 0; }, {"c is null"}},
      {"c", valid_f32, S, [](call& t) { t.x.c = reinterpret_cast<char*>(t.c.data()) + 3; }, {"4 bytes"}},
      {"c",
       valid_f32,
       S,
       [](call& t) {
         t.d.write_c = write_kind::streaming, t.d.ldc = 16;
         t.x.c = reinterpret_cast<char*>((reinterpret_cast<std::uintptr_t>(t.c.data()) + 127) / 128 * 128 + 32);
       },
       {"c is 0x", "64 bytes"}},
      {"pairs", valid_f32, P, [](call& t) { t.x.pairs = nullptr; }, {"pairs is null"}},
      {"pairs", valid_f32, O, [](call& t) { t.x.pairs = nullptr; }, {"pairs is null"}},
      {"pairs", valid_f32, O, [](call& t) { t.x.pairs = nullptr, t.x.batch = 0; }, {}, true},
      {"pairs", valid_f32, P, [](call& t) { t.addresses[1].a = nullptr; }, {"pairs[1].a", "null"}},
      {"pairs", valid_f32, P, [](call& t) { t.addresses[2].b = nullptr; }, {"pairs[2].b", "null"}},
      {"pairs", valid_f32, O, [](call& t) { t.x.pairs = t.c.data(); }, {"overlaps C"}},
      {"batch", valid_f32, S, [](call& t) { t.x.batch = -1; }, {"batch is -1"}},
      {"m", run_time, S, [](call& t) { t.x.m = 0; }, {"m is 0", "1..4"}},
      {"m", run_time, S, [](call& t) { t.x.m = 5; }, {"m is 5", "1..4"}},
      {"m", valid_f32, S, [](call& t) { t.x.m = 99; }, {}, true},
      {"lda", run_time, S, [](call& t) { t.x.lda = 4; }, {"lda is 4", "5"}},
      {"lda", run_time, S, [](call& t) { t.x.lda = -1; }, {"lda is -1"}},
      {"lda", run_time, S, [](call& t) { t.x.lda = huge; }, {"2^63 - 1"}},
      {"lda", valid_f32, S, [](call& t) { t.x.lda = -5; }, {}, true},
      {"ldb", run_time, S, [](call& t) { t.x.ldb = 0; }, {"ldb is 0", "6"}},
      {"ldc", run_time, S, [](call& t) { t.x.ldc = 5; }, {"ldc is 5", "6"}},
      {"alpha", run_time, S, [](call& t) { t.x.alpha = static_cast<double>(nan); }, {}, true},
      {"beta", run_time, S, [](call& t) { t.x.beta = -1e300; }, {}, true},
      {"prefetch", valid_f32, S, [](call& t) { t.x.prefetch = huge; }, {}, true},
      {"zero_a", with_zero_points, S, [](call& t) { t.x.zero_a = std::numeric_limits<int>::min(); }, {}, true},
      {"zero_b", with_zero_points, S, [](call& t) { t.x.zero_b = std::numeric_limits<int>::max(); }, {}, true},
      {"column_sums", with_zero_points, S, [](call& t) { t.x.column_sums = nullptr; }, {"null"}},
      {"column_sums", valid_u8, S, [](call& t) { t.x.column_sums = nullptr; }, {}, true},
      {"column_sums",
       with_zero_points,
       S,
       [](call& t) { t.x.column_sums = reinterpret_cast<std::int32_t*>(t.c.data()) + 23; },
       {"overlaps C"}},
      {"operand", with_operands, S, [](call& t) { t.x.operand[0] = nullptr; }, {"operand[0]", "null"}},
      {"operand", with_operands, S, [](call& t) { t.x.operand[1] = nullptr; }, {"operand[1]", "null"}},
      {"operand",
       with_operands,
       S,
       [](call& t) { t.x.operand[0] = reinterpret_cast<char*>(t.operand.data()) + 1; },
       {"operand[0]", "4 bytes"}},
      {"operand", with_operands, S, [](call& t) { t.x.operand[0] = floats(t.c) + 1; }, {"operand 0", "overlaps C"}},
      {"operand", with_operands, S, [](call& t) { t.x.operand[0] = t.c.data(), t.x.operand_ld[0] = 6; }, {}, true},
      {"operand", with_operands, S, [](call& t) { t.x.operand[0] = t.c.data(); }, {"overlaps C"}},  // another ld
      {"operand", with_operands, S, [](call& t) { t.x.operand[1] = t.c.data() + 3; }, {"overlaps C"}},
      {"operand", with_operands, S, [](call& t) { t.x.operand[2] = t.mask.data(); }, {"operand 2", "overlaps mask"}},
      {"a", with_operands, S, [](call& t) { t.x.operand[1] = t.a.data(); }, {"overlaps mask"}},
      {"operand_ld", with_operands, S, [](call& t) { t.x.operand_ld[0] = 5; }, {"operand_ld[0] is 5", "6"}},
      {"operand_ld", with_operands, S, [](call& t) { t.x.operand_ld[1] = 0; }, {"operand_ld[1] is 0", "1"}},
      {"operand_ld", with_operands, S, [](call& t) { t.x.operand_ld[0] = huge; }, {"2^63 - 1"}},
      {"operand_ld", with_operands, S, [](call& t) { t.x.operand_ld[2] = -9; }, {}, true},
  };
  return cases;
}

/// Everything that an argument_case wants there before its change.
inline void put_everything(call& t) {
  t.x.m = 3, t.x.lda = 7, t.x.ldb = 8, t.x.ldc = 9;
  t.x.column_sums = t.sums.data();
  t.x.operand[0] = t.operand.data();
  t.x.operand[1] = t.mask.data();
  t.x.operand[2] = t.mask.data() + 32;
  t.x.operand_ld[0] = 7, t.x.operand_ld[1] = 2;
}

}  // namespace brgemm_test
