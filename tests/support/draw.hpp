// Draws a desc: what is given stays, everything else is random. What is drawn is valid.
#pragma once

#include <algorithm>
#include <brgemm/core/validate.hpp>
#include <iterator>

#include "support/entropy.hpp"

namespace brgemm_test {

using brgemm::desc;
using brgemm::index;

struct shape {
  index m, n, k;
};

struct types {
  brgemm::type a, b, c;
};

/// Every combination that the library promises.
inline constexpr types type_combinations[] = {
    {brgemm::type::f32, brgemm::type::f32, brgemm::type::f32},
    {brgemm::type::f64, brgemm::type::f64, brgemm::type::f64},
    {brgemm::type::bf16, brgemm::type::bf16, brgemm::type::f32},
    {brgemm::type::bf16, brgemm::type::bf16, brgemm::type::bf16},
    {brgemm::type::f16, brgemm::type::f16, brgemm::type::f32},
    {brgemm::type::f16, brgemm::type::f16, brgemm::type::f16},
    {brgemm::type::u8, brgemm::type::s8, brgemm::type::s32},
    {brgemm::type::u8, brgemm::type::s8, brgemm::type::f32},
    {brgemm::type::u8, brgemm::type::s8, brgemm::type::bf16},
    {brgemm::type::u8, brgemm::type::s8, brgemm::type::u8},
    {brgemm::type::u8, brgemm::type::s8, brgemm::type::s8},
    {brgemm::type::s8, brgemm::type::s8, brgemm::type::s32},
    {brgemm::type::s8, brgemm::type::s8, brgemm::type::f32},
    {brgemm::type::s8, brgemm::type::s8, brgemm::type::bf16},
    {brgemm::type::s8, brgemm::type::s8, brgemm::type::u8},
    {brgemm::type::s8, brgemm::type::s8, brgemm::type::s8},
};
inline constexpr index type_combination_count = std::size(type_combinations);

/// The least leading dimension, often with some room after it, sometimes left to the call.
struct leading_dimension {
  index in_desc, in_call;
};
constexpr leading_dimension draw_leading_dimension(entropy& e, index least) {
  const index ld = least + (e.one_in(2) ? 0 : e.one_in(4) ? e.between(1, 20) : e.between(1, 3));
  return {e.one_in(4) ? brgemm::at_call : ld, ld};
}

constexpr brgemm::type draw_operand_type(entropy& e, const desc& d) {
  if (accumulator_of(d) == brgemm::type::f64) return brgemm::type::f64;
  return e.pick({brgemm::type::f32, brgemm::type::f32, brgemm::type::bf16, brgemm::type::f16});
}

/// `ld`: what the operand's rows are apart, in the desc and in the call.
struct drawn_step {
  brgemm::epilogue_op op;
  index ld = 0;
};

constexpr drawn_step draw_step(entropy& e, const desc& d) {
  namespace op = brgemm::op;
  using brgemm::axis;
  using brgemm::op_kind;
  const bool doubles = accumulator_of(d) == brgemm::type::f64;
  op_kind kind = static_cast<op_kind>(e.between(1, brgemm::op_kind_count - 1));
  if (doubles && brgemm::detail::is_transcendental(kind)) kind = op_kind::leaky_relu;
  const auto masked = draw_leading_dimension(e, (d.n + 7) / 8);
  const auto matrix = draw_leading_dimension(e, d.n);
  const float x = static_cast<float>(e.between(-64, 64)) / 16;
  switch (kind) {
    case op_kind::bias: return {op::bias(e.pick({axis::column, axis::row}), draw_operand_type(e, d))};
    case op_kind::add: return {op::add(matrix.in_desc, draw_operand_type(e, d)), matrix.in_call};
    case op_kind::scale: {
      const axis along = e.pick({axis::none, axis::column, axis::row});
      return {op::scale(along, doubles ? brgemm::type::f64 : brgemm::type::f32)};
    }
    case op_kind::relu_mask: return {op::relu_mask(masked.in_desc), masked.in_call};
    case op_kind::leaky_relu: return {op::leaky_relu(x)};
    case op_kind::clamp: return {op::clamp(x, x + static_cast<float>(e.between(0, 64)) / 8)};
    case op_kind::multiply: return {op::multiply(matrix.in_desc, draw_operand_type(e, d)), matrix.in_call};
    case op_kind::store: return {op::store(matrix.in_desc, draw_operand_type(e, d)), matrix.in_call};
    case op_kind::multiply_mask: return {op::multiply_mask(masked.in_desc), masked.in_call};
    default: break;
  }
  if (!brgemm::detail::is_backward(kind)) return {op::make(kind)};
  return {op::make(kind, draw_operand_type(e, d), axis::none, matrix.in_desc), matrix.in_call};
}

/// A desc and the numbers that its calls need.
struct drawn_desc {
  desc d;
  index m = 0;  ///< rows of a call
  index lda = 0, ldb = 0, ldc = 0;
  index operand_ld[brgemm::max_epilogue] = {};
};

constexpr void draw_epilogue(entropy& e, drawn_desc& out) {
  if (out.d.c == brgemm::type::s32 || e.one_in(2)) return;
  const index steps = e.one_in(2) ? 1 : e.between(2, brgemm::max_epilogue);
  for (index i = 0; i < steps; ++i) {
    const drawn_step step = draw_step(e, out.d);
    out.operand_ld[i] = step.ld;
    append(out.d, step.op);
  }
}

constexpr void draw_sums(entropy& e, desc& d) {
  using brgemm::order;
  const bool bytes = brgemm::detail::is_8bit(d.a);
  d.chains = static_cast<std::uint8_t>(e.one_in(2) ? 1 : e.pick({2, 4, 8}));
  // Never order::machine of bf16, which features that a test hides can change.
  if (d.a == brgemm::type::bf16) d.sums = e.one_in(2) && d.chains == 1 ? order::tile : order::pair;
  if (d.a != brgemm::type::bf16 && e.one_in(4)) d.sums = order::chain;
  if (bytes) {
    if (e.one_in(2)) d.zero_a = brgemm::zero_point::at_call;
    if (e.one_in(2)) d.zero_b = brgemm::zero_point::at_call;
  }
  if (d.c == brgemm::type::s32) {
    if (e.one_in(2)) d.beta = brgemm::beta_kind::one;
    return;
  }
  if (e.one_in(4)) d.alpha = brgemm::alpha_kind::at_call;
  if (brgemm::detail::is_8bit(d.c)) return;
  d.beta = e.pick({brgemm::beta_kind::zero, brgemm::beta_kind::one, brgemm::beta_kind::at_call});
}

/// The distance from one entry to the next: dense, with room, all the same, backwards or overlapping.
constexpr index draw_stride(entropy& e, const brgemm::detail::storage& s, index ld) {
  const index elements = brgemm::detail::bytes_of(s, ld, 1);
  switch (e.between(0, 5)) {
    case 0: return elements + e.between(0, 9);
    case 1: return 0;
    case 2: return -elements;
    case 3: return e.between(0, elements);
    default: return elements;
  }
}

/// Entries of some rows only; what they cannot have is taken back.
constexpr void draw_row_ranges(entropy& e, desc& d) {
  d.layout_a = brgemm::layout::plain;
  d.m_extent = brgemm::extent_kind::fixed;
  d.chains = 1;
  d.zero_a = d.zero_b = brgemm::zero_point::none;
  const index most = std::min<index>(d.m, 255);
  for (index i = 0, count = e.between(1, 4); i < count; ++i) {
    const index first = e.between(0, most - 1);
    d.rows[i] = {static_cast<std::uint8_t>(first), static_cast<std::uint8_t>(e.between(first + 1, most))};
  }
}

/// Rows of C that read lines of A's, or steps that leave some out; what they cannot have is taken back.
constexpr void draw_lines(entropy& e, drawn_desc& out) {
  desc& d = out.d;
  d.m_extent = brgemm::extent_kind::fixed;
  d.m = out.m;
  if (e.one_in(2)) d.k_step = static_cast<std::uint32_t>(e.between(1, 3));
  if (d.k_step != 1 && e.one_in(2)) return;
  d.line = static_cast<std::uint32_t>(std::min<index>(out.m, e.between(1, 4)));
  d.m = out.m = out.m / d.line * d.line;
  d.line_step = e.between(1, 9);
}

/// What a depthwise product cannot have is taken back.
constexpr void make_depthwise(desc& d, bool mirrored) {
  d.layout_a = mirrored ? brgemm::layout::depthwise_mirrored : brgemm::layout::depthwise;
  d.layout_b = brgemm::layout::plain;
  d.chains = 1;
  d.zero_b = brgemm::zero_point::none;
  if (d.sums != brgemm::order::machine) d.sums = brgemm::order::chain;
}

/// Leading dimensions for the sizes and layouts of the desc.
constexpr void draw_leading_dimensions(entropy& e, drawn_desc& out) {
  desc& d = out.d;
  const auto lda = draw_leading_dimension(e, std::max<index>(brgemm::detail::storage_of_a(d, d.m).columns, 1));
  const auto ldb = draw_leading_dimension(e, std::max<index>(brgemm::detail::storage_of_b(d).columns, 1));
  const auto ldc = draw_leading_dimension(e, d.n);
  d.lda = lda.in_desc, out.lda = lda.in_call;
  d.ldb = ldb.in_desc, out.ldb = ldb.in_call;
  d.ldc = ldc.in_desc, out.ldc = ldc.in_call;
}

constexpr void draw_strides(entropy& e, drawn_desc& out) {
  desc& d = out.d;
  if (d.batch != brgemm::batch_kind::strides) return;
  d.stride_a = draw_stride(e, brgemm::detail::storage_of_a(d, out.m), out.lda);
  d.stride_b = draw_stride(e, brgemm::detail::storage_of_b(d), out.ldb);
}

constexpr drawn_desc draw_desc(entropy& e, const shape& s, const types& t, brgemm::batch_kind batch,
                               bool depthwise = false, bool some_rows = false) {
  using brgemm::layout;
  drawn_desc out;
  desc& d = out.d;
  d.m = out.m = s.m;
  d.n = s.n;
  d.k = s.k;
  d.a = t.a;
  d.b = t.b;
  d.c = t.c;
  d.batch = batch;
  if (e.one_in(4)) {
    d.m_extent = brgemm::extent_kind::at_call;
    d.m += e.one_in(2) ? e.between(0, 9) : e.between(10, 80);
  }
  const bool grouped = brgemm::k_group_of(t.b) > 1;
  d.layout_a = e.one_in(4) ? grouped && e.one_in(2) ? layout::interleaved : layout::transposed : layout::plain;
  d.layout_b = grouped && e.one_in(2) ? layout::interleaved : e.one_in(4) ? layout::transposed : layout::plain;
  draw_sums(e, d);
  if (d.layout_a == layout::interleaved) d.zero_b = brgemm::zero_point::none;
  if (some_rows) d.m = out.m, draw_row_ranges(e, d);
  if (depthwise) make_depthwise(d, e.one_in(2));
  if (d.layout_a == layout::depthwise && out.m <= 12 && s.k < 64 && e.one_in(2)) draw_lines(e, out);
  draw_leading_dimensions(e, out);
  if (d.line != 0 || d.k_step != 1) d.lda = out.lda;
  const index line = brgemm::detail::streaming_alignment / size_of(d.c);
  if (e.one_in(8)) d.prefetch = e.pick<std::uint16_t>({1, 2, 4});
  if (e.one_in(8) && size_of(d.c) > 1) {
    d.write_c = brgemm::write_kind::streaming;
    d.ldc = out.ldc = (out.ldc + line - 1) / line * line;
  }
  draw_strides(e, out);
  draw_epilogue(e, out);
  return out;
}

}  // namespace brgemm_test
