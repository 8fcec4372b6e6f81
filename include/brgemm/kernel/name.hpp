// A readable name for a desc: what debuggers, profilers and messages show.
#pragma once

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <iterator>
#include <string_view>

#include "../core/desc.hpp"

namespace brgemm::inline abi_0 {

/// Text that holds itself; zero-terminated.
class kernel_name {
 public:
  operator std::string_view() const noexcept { return {text_, size_}; }  // NOLINT: implicit on purpose
  const char* c_str() const noexcept { return text_; }

  [[gnu::format(printf, 2, 3)]] void append(const char* format, ...) noexcept {
    std::va_list arguments;
    va_start(arguments, format);
    const int length = std::vsnprintf(text_ + size_, sizeof text_ - size_, format, arguments);
    va_end(arguments);
    if (length > 0) size_ = std::min(size_ + static_cast<std::size_t>(length), sizeof text_ - 1);
  }

 private:
  std::size_t size_ = 0;
  char text_[512] = {};
};

namespace detail {

constexpr const char* word_of(op_kind kind) noexcept {
  constexpr const char* words[op_kind_count] = {"none",
                                                "bias",
                                                "add",
                                                "scale",
                                                "relu",
                                                "relumask",
                                                "leakyrelu",
                                                "clamp",
                                                "sigmoid",
                                                "tanh",
                                                "geluerf",
                                                "gelutanh",
                                                "silu",
                                                "hardswish",
                                                "multiply",
                                                "multiplymask",
                                                "store",
                                                "sigmoidbackward",
                                                "tanhbackward",
                                                "geluerfbackward",
                                                "gelutanhbackward",
                                                "silubackward",
                                                "hardswishbackward"};
  const auto i = static_cast<std::size_t>(kind);
  return i < std::size(words) ? words[i] : "unknown";
}

/// Appends `_ld<letter><value>` unless the leading dimension is the least one.
inline void append_ld(kernel_name& name, char letter, index ld, index least) noexcept {
  if (ld == at_call) {
    name.append("_ld%cx", letter);
  } else if (ld != least) {
    name.append("_ld%c%lld", letter, static_cast<long long>(ld));
  }
}

inline void append_types(kernel_name& name, const desc& d) noexcept {
  name.append("%s", name_of(d.a).data());
  if (d.b != d.a || d.c != d.a) name.append("%s", name_of(d.b).data());
  if (d.c != d.a || d.b != d.a) name.append("%s", name_of(d.c).data());
}

inline index columns_of_a(const desc& d) noexcept {
  return d.layout_a == layout::plain ? d.k : is_depthwise(d.layout_a) ? d.n : d.m;
}

inline void append_storage(kernel_name& name, const desc& d) noexcept {
  constexpr const char* suffix[] = {"", "t", "i", "d", "m"};
  const auto a = static_cast<std::size_t>(d.layout_a);
  const auto b = static_cast<std::size_t>(d.layout_b);
  if (a - 1 < 4) name.append("_a%s", suffix[a]);
  if (b - 1 < 4) name.append("_b%s", suffix[b]);
  if (d.line != 0) name.append("_lines%uby%lld", d.line, static_cast<long long>(d.line_step));
  if (d.k_step != 1) name.append("_kstep%u", d.k_step);
  append_ld(name, 'a', d.lda, columns_of_a(d));
  append_ld(name, 'b', d.ldb, d.layout_b == layout::transposed ? d.k : d.n);
  append_ld(name, 'c', d.ldc, d.n);
}

/// Appends the distance of batch entries unless they follow each other without a gap.
inline void append_strides(kernel_name& name, const desc& d) noexcept {
  if (d.batch != batch_kind::strides) return;
  const index group = std::max<index>(k_group_of(d), 1);
  const index group_a = d.layout_a == layout::interleaved ? group : 1;
  const index group_b = d.layout_b == layout::interleaved ? group : 1;
  const bool k_first = d.layout_a == layout::transposed || d.layout_a == layout::interleaved;
  const index taps = is_depthwise(d.layout_a) ? std::max<index>(d.k, 1) - 1 : 0;
  const auto rows_of_k = [&d](index g) { return d.k / g + (d.k % g != 0); };
  const index rows_a = k_first ? rows_of_k(group_a) : d.m + taps;
  const index rows_b = d.layout_b == layout::transposed ? d.n : rows_of_k(group_b);
  index tight_a = 0;
  index tight_b = 0;
  const bool fits =
      !__builtin_mul_overflow(rows_a, d.lda, &tight_a) && !__builtin_mul_overflow(tight_a, group_a, &tight_a) &&
      !__builtin_mul_overflow(rows_b, d.ldb, &tight_b) && !__builtin_mul_overflow(tight_b, group_b, &tight_b);
  if (fits && d.line == 0 && d.k_step == 1 && d.lda != at_call && d.ldb != at_call && d.stride_a == tight_a &&
      d.stride_b == tight_b)
    return;
  name.append("_by%lldand%lld", static_cast<long long>(d.stride_a), static_cast<long long>(d.stride_b));
}

inline void append_step(kernel_name& name, const epilogue_op& o) noexcept {
  name.append("_%s", word_of(o.kind));
  if (o.along == axis::column) name.append("col");
  if (o.along == axis::row) name.append("row");
  const bool mask = o.kind == op_kind::relu_mask || o.kind == op_kind::multiply_mask;
  if (o.operand != type::f32 && !mask) name.append("%s", name_of(o.operand).data());
  if (o.ld == at_call) name.append("ldx");
  if (o.ld > 0) name.append("ld%lld", static_cast<long long>(o.ld));
  if (o.kind == op_kind::leaky_relu) name.append("%g", static_cast<double>(static_cast<float>(o.slope)));
  if (o.kind == op_kind::clamp) {
    name.append("%gto%g", static_cast<double>(static_cast<float>(o.lower)),
                static_cast<double>(static_cast<float>(o.upper)));
  }
}

}  // namespace detail

/// `brgemm_f32_64x48x64_strd_b1_relu`: types (one where A, B and C agree, else all three), m x n x k (`upto` before an
/// m that is given at the call), batch kind (addr, offs, strd), beta (b0, b1, bx for one at the call), then what is not
/// usual: alpha, layouts, leading dimensions, strides, order of sums, chains, zero points, streaming, prefetches,
/// lines and steps of rows, ranges of rows, and the epilogue's steps.
inline kernel_name name_of(const desc& d) noexcept {
  constexpr const char* batches[] = {"addr", "offs", "strd"};
  constexpr const char* orders[] = {"machine", "chain", "pair", "tile", "foreign"};
  const auto pick = [](const char* const* words, std::size_t count, auto value) {
    return static_cast<std::size_t>(value) < count ? words[static_cast<std::size_t>(value)] : "unknown";
  };
  constexpr const char* betas[] = {"b0", "b1", "bx"};
  kernel_name name;
  name.append("brgemm_");
  detail::append_types(name, d);
  name.append("_%s%lldx%lldx%lld_%s_%s", d.m_extent == extent_kind::at_call ? "upto" : "", static_cast<long long>(d.m),
              static_cast<long long>(d.n), static_cast<long long>(d.k), pick(batches, 3, d.batch),
              pick(betas, 3, d.beta));
  if (d.alpha == alpha_kind::at_call) name.append("_alpha");
  detail::append_storage(name, d);
  detail::append_strides(name, d);
  if (d.sums != order::machine) name.append("_%s", pick(orders, 5, d.sums));
  if (d.chains != 1) name.append("_chains%d", d.chains);
  if (d.zero_a == zero_point::at_call) name.append("_za");
  if (d.zero_b == zero_point::at_call) name.append("_zb");
  if (d.where == place::gpu) name.append("_gpu");
  if (d.write_c == write_kind::streaming) name.append("_streaming");
  if (d.prefetch != 0) name.append("_prefetch%d", int{d.prefetch});
  for (int i = 0; i < row_ranges(d); ++i) {
    name.append("%s%dto%d", i == 0 ? "_rows" : "_", int{d.rows[i].first}, int{d.rows[i].end});
  }
  for (int i = 0; i < d.epilogue_size && i < max_epilogue; ++i) detail::append_step(name, d.epilogue[i]);
  return name;
}

}  // namespace brgemm::inline abi_0
