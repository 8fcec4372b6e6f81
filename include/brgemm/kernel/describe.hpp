// From views to a desc, and from there to a kernel.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <iterator>

#include "kernel.hpp"

namespace brgemm::inline abi_0 {

/// beta of a desc, written 0, 1 or beta_kind::at_call. Another number is an error of `describe`.
struct beta_choice {
  beta_kind kind = beta_kind::zero;
  double number = 0;                               ///< what was written, where that was a number
  constexpr beta_choice(beta_kind k) : kind(k) {}  // NOLINT: implicit on purpose
  constexpr beta_choice(double value)              // NOLINT: implicit on purpose
      : kind(value == 1 ? beta_kind::one : beta_kind::zero), number(value) {}
};

/// The steps of an epilogue, written `{op::bias(), op::relu()}`. More than max_epilogue is an error that make_kernel
/// tells.
struct epilogue_list {
  epilogue_op steps[max_epilogue];
  std::uint8_t size = 0;
  constexpr epilogue_list() = default;
  constexpr epilogue_list(std::initializer_list<epilogue_op> list) {
    for (const epilogue_op& o : list) {
      if (size < max_epilogue) steps[size] = o;
      if (size < 255) ++size;
    }
  }
};

/// What views do not tell of a desc; each member is the desc's of the same name.
struct describe_options {
  beta_choice beta = 0;
  alpha_kind alpha = alpha_kind::one;
  layout layout_a = layout::plain;
  layout layout_b = layout::plain;
  order sums = order::machine;
  std::uint8_t chains = 1;
  extent_kind m_extent = extent_kind::fixed;
  write_kind write_c = write_kind::cached;
  zero_point zero_a = zero_point::none;
  zero_point zero_b = zero_point::none;
  std::uint16_t prefetch = 0;
  index line_step = 0;
  std::uint32_t line = 0;
  std::uint32_t k_step = 1;
  row_range rows[max_row_ranges] = {};
  epilogue_list epilogue = {};
};

namespace detail {

/// k is A's where its layout tells, else B's: of groups that both are stored in, a last one may lack some.
inline index k_of(const any_view& a, const any_view& b, const describe_options& o) noexcept {
  if (o.layout_a == layout::plain) return a.extent[2];
  if (o.layout_a == layout::transposed) return a.extent[1];
  if (o.layout_a == layout::interleaved && o.layout_b == layout::interleaved)
    return b.extent[1] * k_group_of(b.element);
  return b.extent[o.layout_b == layout::transposed ? 2 : 1];
}

/// The desc that these views have where they fit together: m and n are C's.
inline desc desc_of(const any_view& a, const any_view& b, const any_view& c, const describe_options& o) noexcept {
  desc d;
  d.a = a.element;
  d.b = b.element;
  d.c = c.element;
  d.batch = batch_kind::strides;
  d.beta = o.beta.kind;
  d.alpha = o.alpha;
  d.layout_a = o.layout_a;
  d.layout_b = o.layout_b;
  d.sums = o.sums;
  d.chains = o.chains;
  d.m_extent = o.m_extent;
  d.write_c = o.write_c;
  d.zero_a = o.zero_a;
  d.zero_b = o.zero_b;
  d.prefetch = o.prefetch;
  d.line_step = o.line_step, d.line = o.line, d.k_step = o.k_step;
  std::copy(std::begin(o.rows), std::end(o.rows), d.rows);
  d.m = c.extent[1];
  d.n = c.extent[2];
  d.k = k_of(a, b, o);
  d.lda = ld_of(a, storage_of_a(d, d.m));
  d.ldb = ld_of(b, storage_of_b(d));
  d.ldc = ld_of(c, {d.m, d.n, 1});
  d.stride_a = a.stride[0];
  d.stride_b = b.stride[0];
  d.epilogue_size = o.epilogue.size;
  for (int i = 0; i < max_epilogue; ++i) d.epilogue[i] = o.epilogue.steps[i];
  return d;
}

/// A row stride of -1 would stand for a leading dimension that is given at the call.
inline result<void> check_row_strides(const desc& d) noexcept {
  const struct {
    const char* field;
    index ld;
  } all[] = {{"lda", d.lda}, {"ldb", d.ldb}, {"ldc", d.ldc}};
  for (const auto& x : all) {
    if (x.ld != at_call) continue;
    return error(errc::invalid_argument, x.field, "rows are %ld apart; %s must be at least a row", x.ld, x.field);
  }
  return {};
}

inline result<desc> describe(const any_view& a, const any_view& b, const any_view& c,
                             const describe_options& o) noexcept {
  if (o.beta.number != 0 && o.beta.number != 1) {
    return error(errc::invalid_argument, "beta", "beta is %g; it must be 0, 1 or beta_kind::at_call", o.beta.number);
  }
  const desc d = desc_of(a, b, c, o);
  if (auto r = arguments_of(d, a, b, c, {}); !r) return r.error();
  if (auto r = check_row_strides(d); !r) return r.error();
  return d;
}

}  // namespace detail

/// The desc of `C = epilogue(beta * C + sum_i A_i * B_i)` for views like these: A (batch,m,k), (batch,k,m) where
/// layout_a is transposed, (batch, ceil(k/g), m*g) interleaved, or (batch,m+k-1,n) where it is depthwise, mirrored or
/// not ((batch,0,n) with k = 0), with lines and steps (batch, (m / line - 1) * line_step + line + (k - 1) * k_step, n);
/// B (batch,k,n), transposed (batch,n,k), interleaved (batch, ceil(k/g), n*g): k is then a multiple of g where A is
/// interleaved too; C (m,n). Leading dimensions and the distance of entries are the views'. The data is not looked at.
/// Errors: invalid_argument with the matrix ("A", "B", "C", "batch") that does not fit the others and the numbers, or
/// "beta"; what else is wrong, make_kernel tells, which takes the result as it is.
template <class TA, class TB, class TC>
requires(element<std::remove_const_t<TA>>&& element<std::remove_const_t<TB>>&& element<std::remove_const_t<TC>>)
    result<desc> describe(const view<TA, 3>& a, const view<TB, 3>& b, const view<TC, 2>& c,
                          const describe_options& o = {})
noexcept { return detail::describe(detail::erase(a), detail::erase(b), detail::erase(c), o); }

/// A kernel for what `describe` gave, or the error that it gave; else as above.
inline result<kernel> make_kernel(const result<desc>& d, const options& o = {}) noexcept {
  if (!d) return d.error();
  return make_kernel(*d, o);
}

}  // namespace brgemm::inline abi_0
