// From views to the arguments of a call: shapes, strides and types are compared here.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../core/arguments.hpp"
#include "../core/result.hpp"
#include "../core/validate.hpp"
#include "../core/view.hpp"

namespace brgemm::inline abi_0 {

/// What a call with views takes besides the views; only what the desc asks for is read.
struct call_options {
  double alpha = 1;
  double beta = 1;
  index prefetch = 0;
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
  x.prefetch = o.prefetch;
  x.zero_a = o.zero_a;
  x.zero_b = o.zero_b;
  x.column_sums = o.column_sums;
  for (int i = 0; i < max_epilogue; ++i) {
    x.operand[i] = const_cast<void*>(o.operands[i]);
    x.operand_ld[i] = o.operand_ld[i];
  }
  return x;
}

}  // namespace detail

}  // namespace brgemm::inline abi_0
