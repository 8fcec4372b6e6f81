// From views to a desc, and from views to the arguments of a call: shapes, strides and types are compared here.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <type_traits>

#include "../core/arguments.hpp"
#include "../core/result.hpp"
#include "../core/validate.hpp"
#include "../core/view.hpp"

namespace brgemm::inline abi_0 {

/// beta of a desc, written 0, 1 or beta_kind::at_call. Another number is an error that make_kernel tells.
struct beta_choice {
  beta_kind kind = beta_kind::zero;
  constexpr beta_choice(beta_kind k) : kind(k) {}  // NOLINT: implicit on purpose
  constexpr beta_choice(int value)                 // NOLINT: implicit on purpose
      : kind(value == 0   ? beta_kind::zero
             : value == 1 ? beta_kind::one
                          : static_cast<beta_kind>(255)) {}
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
  epilogue_list epilogue = {};
};

/// What a call with views takes besides the views; only what the desc asks for is read.
struct call_options {
  double alpha = 1;
  double beta = 1;
  std::int32_t zero_a = 0;
  std::int32_t zero_b = 0;
  const std::int32_t* column_sums = nullptr;  ///< (n)
  const void* operands[max_epilogue] = {};  ///< one a step, nullptr where it has none; relu_mask and store write theirs
  index operand_ld[max_epilogue] = {};      ///< where an epilogue step's ld is at_call
};

namespace detail {

/// A view without its type: one code for all types.
struct any_view {
  const void* data;
  type element;
  index extent[3];
  index stride[3];
};

template <class T, int Rank>
constexpr any_view erase(const view<T, Rank>& v) {
  any_view e{v.data(), element_traits<std::remove_const_t<T>>::value, {1, 1, 1}, {0, 0, 0}};
  for (int d = 0; d < Rank; ++d) {
    e.extent[3 - Rank + d] = v.extent(d);
    e.stride[3 - Rank + d] = v.stride(d);
  }
  return e;
}

/// The leading dimension that a view has; of less than two rows, the least.
constexpr index ld_of(const any_view& v, const storage& s) noexcept {
  return s.rows > 1 && s.columns > 0 ? v.stride[1] / s.group : std::max<index>(s.columns, 1);
}

inline result<void> check_view(const char* name, const any_view& v, type element, const storage& s, index ld) noexcept {
  if (v.element != element) {
    return error(errc::invalid_argument, name, "%s holds %s, the kernel was made for %s", name,
                 name_of(v.element).data(), name_of(element).data());
  }
  if (v.extent[0] < 0 || v.extent[1] != s.rows || v.extent[2] != s.columns * s.group) {
    return error(errc::invalid_argument, name,
                 "each entry of %s is (%lld, %lld) in %lld entries, the kernel wants (%lld, %lld)", name,
                 static_cast<long long>(v.extent[1]), static_cast<long long>(v.extent[2]),
                 static_cast<long long>(v.extent[0]), static_cast<long long>(s.rows),
                 static_cast<long long>(s.columns * s.group));
  }
  if (is_empty(s) || v.extent[0] == 0) return {};
  if (v.extent[2] > 1 && v.stride[2] != 1) {
    return error(errc::invalid_argument, name, "elements of a row of %s are %lld apart, the kernel wants 1", name,
                 static_cast<long long>(v.stride[2]));
  }
  if (s.rows > 1 && (v.stride[1] % s.group != 0 || (ld != at_call && v.stride[1] / s.group != ld))) {
    return error(errc::invalid_argument, name, "rows of %s are %lld elements apart, the kernel wants %lld times %lld",
                 name, static_cast<long long>(v.stride[1]), static_cast<long long>(s.group),
                 static_cast<long long>(ld));
  }
  return {};
}

inline result<void> check_batch(const desc& d, const any_view& a, const any_view& b) noexcept {
  if (d.batch != batch_kind::strides) {
    return error(errc::invalid_argument, "batch",
                 "views have constant strides, the kernel wants pairs: call(arguments)");
  }
  if (a.extent[0] != b.extent[0]) {
    return error(errc::invalid_argument, "batch", "A has %lld entries, B %lld", static_cast<long long>(a.extent[0]),
                 static_cast<long long>(b.extent[0]));
  }
  if (a.extent[0] > 1 && a.stride[0] != d.stride_a) {
    return error(errc::invalid_argument, "stride_a", "entries of A are %lld elements apart, the kernel wants %lld",
                 static_cast<long long>(a.stride[0]), static_cast<long long>(d.stride_a));
  }
  if (b.extent[0] > 1 && b.stride[0] != d.stride_b) {
    return error(errc::invalid_argument, "stride_b", "entries of B are %lld elements apart, the kernel wants %lld",
                 static_cast<long long>(b.stride[0]), static_cast<long long>(d.stride_b));
  }
  return {};
}

/// The arguments that these views stand for, or how they do not fit the desc. Pointers are not looked at.
inline result<arguments> arguments_of(const desc& d, const any_view& a, const any_view& b, const any_view& c,
                                      const call_options& o) noexcept {
  const index m = d.m_extent == extent_kind::at_call ? c.extent[1] : d.m;
  const storage sa = storage_of_a(d, m);
  const storage sb = storage_of_b(d);
  const storage sc{m, d.n, 1};
  if (auto r = check_view("A", a, d.a, sa, d.lda); !r) return r.error();
  if (auto r = check_view("B", b, d.b, sb, d.ldb); !r) return r.error();
  if (auto r = check_view("C", c, d.c, sc, d.ldc); !r) return r.error();
  if (auto r = check_batch(d, a, b); !r) return r.error();
  arguments x;
  x.a = a.data;
  x.b = b.data;
  x.c = const_cast<void*>(c.data);
  x.batch = a.extent[0];
  x.m = m;
  x.lda = ld_of(a, sa);
  x.ldb = ld_of(b, sb);
  x.ldc = ld_of(c, sc);
  x.alpha = o.alpha;
  x.beta = o.beta;
  x.zero_a = o.zero_a;
  x.zero_b = o.zero_b;
  x.column_sums = o.column_sums;
  for (int i = 0; i < max_epilogue; ++i) {
    x.operand[i] = const_cast<void*>(o.operands[i]);
    x.operand_ld[i] = o.operand_ld[i];
  }
  return x;
}

inline desc describe(const any_view& a, const any_view& b, const any_view& c, const describe_options& o) noexcept {
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
  d.m = c.extent[1];
  d.n = c.extent[2];
  d.k = o.layout_a == layout::transposed ? a.extent[1] : a.extent[2];
  d.lda = ld_of(a, storage_of_a(d, d.m));
  d.ldb = ld_of(b, storage_of_b(d));
  d.ldc = ld_of(c, {d.m, d.n, 1});
  d.stride_a = a.stride[0];
  d.stride_b = b.stride[0];
  d.epilogue_size = o.epilogue.size;
  for (int i = 0; i < max_epilogue; ++i) d.epilogue[i] = o.epilogue.steps[i];
  return d;
}

}  // namespace detail

/// The desc of `C = epilogue(beta * C + sum_i A_i * B_i)` for views like these: A (batch,m,k), or (batch,k,m) where
/// layout_a is transposed; B (batch,k,n), transposed (batch,n,k), interleaved (batch, ceil(k/g), n*g); C (m,n). Leading
/// dimensions and the distance of entries are the views'. The data is not looked at; what is wrong, make_kernel tells.
template <class TA, class TB, class TC>
requires(element<std::remove_const_t<TA>>&& element<std::remove_const_t<TB>>&& element<std::remove_const_t<TC>>) desc
    describe(const view<TA, 3>& a, const view<TB, 3>& b, const view<TC, 2>& c, const describe_options& o = {})
noexcept { return detail::describe(detail::erase(a), detail::erase(b), detail::erase(c), o); }

}  // namespace brgemm::inline abi_0
