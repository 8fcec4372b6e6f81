// What is wrong with a desc, or with the arguments of a call, on every backend: each error names the field and the
// numbers. Nothing here reads or writes an element of a matrix.
#pragma once

#include <algorithm>

#include "arguments.hpp"
#include "result.hpp"

namespace brgemm::inline abi_0 {

namespace detail {

__extension__ typedef __int128 wide;  // products of two sizes, and addresses with signed offsets, do not overflow it

/// How a matrix lies in memory: `rows` rows, `ld` apart, of `columns` lanes of `group` elements; ld counts lanes.
struct storage {
  index rows = 0;
  index columns = 0;
  index group = 1;
};

/// layout::depthwise: rows of A, of a desc that may be wrong: within 0..2^63 - 1.
constexpr index depthwise_rows(const desc& d, index m) noexcept {
  if (d.k == 0) return 0;
  const wide behind = static_cast<wide>(m) - 1;  // rows of C behind the first
  const wide last = d.line == 0 ? behind : behind / d.line * d.line_step + behind % d.line;
  const wide rows = last + (static_cast<wide>(d.k) - 1) * d.k_step + 1;
  return static_cast<index>(std::clamp<wide>(rows, 0, std::numeric_limits<index>::max()));
}

constexpr index groups_of_k(const desc& d) noexcept { return d.k / k_group_of(d) + (d.k % k_group_of(d) != 0); }

constexpr storage storage_of_a(const desc& d, index m) noexcept {
  switch (d.layout_a) {
    case layout::transposed: return {d.k, m, 1};
    case layout::interleaved: return {groups_of_k(d), m, k_group_of(d)};
    case layout::depthwise:
    case layout::depthwise_mirrored: return {depthwise_rows(d, m), d.n, 1};
    default: return {m, d.k, 1};
  }
}

constexpr storage storage_of_b(const desc& d) noexcept {
  switch (d.layout_b) {
    case layout::transposed: return {d.n, d.k, 1};
    case layout::interleaved: return {groups_of_k(d), d.n, k_group_of(d)};
    default: return {d.k, d.n, 1};
  }
}

constexpr bool is_empty(const storage& s) noexcept { return s.rows == 0 || s.columns == 0; }

/// Bytes from the first element to the end of the last one; -1 where that is more than 2^63 - 1.
constexpr index bytes_of(const storage& s, index ld, index element_bytes) noexcept {
  if (is_empty(s)) return 0;
  constexpr wide limit = std::numeric_limits<index>::max();
  const wide lanes = static_cast<wide>(s.rows - 1) * ld + s.columns;
  if (lanes > limit) return -1;
  const wide bytes = lanes * s.group * element_bytes;
  return bytes > limit ? -1 : static_cast<index>(bytes);
}

/// Integers.
constexpr bool is_8bit(type t) noexcept { return t == type::s8 || t == type::u8; }
constexpr bool is_8bit_float(type t) noexcept { return t == type::e4m3 || t == type::e5m2; }

constexpr bool is_transcendental(op_kind kind) noexcept {
  switch (kind) {
    case op_kind::sigmoid:
    case op_kind::tanh:
    case op_kind::gelu_erf:
    case op_kind::gelu_tanh:
    case op_kind::silu:
    case op_kind::hardswish: return true;
    default: return is_backward(kind);
  }
}

constexpr bool is_mask(op_kind kind) noexcept { return kind == op_kind::relu_mask || kind == op_kind::multiply_mask; }
constexpr bool is_written(op_kind kind) noexcept { return kind == op_kind::relu_mask || kind == op_kind::store; }
constexpr bool is_matrix(op_kind kind) noexcept { return is_read_matrix(kind) || kind == op_kind::store; }
/// Of C and its rows, where they are written past the caches.
inline constexpr index streaming_alignment = 64;

constexpr bool is_vector(op_kind kind) noexcept { return kind == op_kind::bias || kind == op_kind::scale; }
constexpr bool has_operand(op_kind kind) noexcept { return is_mask(kind) || is_matrix(kind) || is_vector(kind); }

/// Shape of an epilogue operand in memory; masks count bytes, vectors are one row.
constexpr storage storage_of_operand(const desc& d, const epilogue_op& o, index m) noexcept {
  if (is_mask(o.kind)) return {m, d.n / 8 + (d.n % 8 != 0), 1};
  if (is_matrix(o.kind)) return {m, d.n, 1};
  return {1, o.along == axis::column ? d.n : o.along == axis::row ? m : 1, 1};
}

inline result<void> check_enumerator(const char* field, int value, int count) noexcept {
  if (value < count) return {};
  return error(errc::invalid_argument, field, "%s is %d, which is no enumerator: 0..%d are", field, value, count - 1);
}

inline result<void> check_enumerators(const desc& d) noexcept {
  const struct {
    const char* field;
    int value;
    int count;
  } fields[] = {
      {"a", static_cast<int>(d.a), type_count},      {"b", static_cast<int>(d.b), type_count},
      {"c", static_cast<int>(d.c), type_count},      {"batch", static_cast<int>(d.batch), 3},
      {"layout_a", static_cast<int>(d.layout_a), 5}, {"layout_b", static_cast<int>(d.layout_b), 5},
      {"beta", static_cast<int>(d.beta), 3},         {"alpha", static_cast<int>(d.alpha), 2},
      {"sums", static_cast<int>(d.sums), 5},         {"m_extent", static_cast<int>(d.m_extent), 2},
      {"zero_a", static_cast<int>(d.zero_a), 2},     {"zero_b", static_cast<int>(d.zero_b), 2},
      {"where", static_cast<int>(d.where), 2},       {"write_c", static_cast<int>(d.write_c), 2},
  };
  for (const auto& f : fields) {
    if (auto r = check_enumerator(f.field, f.value, f.count); !r) return r;
  }
  if (d.where == place::gpu)
    return error(errc::unsupported, "where", "where is gpu, for which cuda::make_kernel makes kernels");
  return {};
}

/// Which C a pair of A and B can have.
inline result<void> check_types(const desc& d) noexcept {
  const auto name = [](type t) { return name_of(t).data(); };
  const bool bytes = is_8bit(d.a) && is_8bit(d.b);
  const bool short_floats = is_8bit_float(d.a) && is_8bit_float(d.b);
  if (d.a == type::s32 || (d.a != d.b && !bytes && !short_floats)) {
    return error(errc::unsupported, is_8bit(d.a) || d.a == d.b ? "a" : "b",
                 "a is %s and b is %s; the pairs are f32, tf32, f64, bf16, f16 with themselves, u8 or s8 with u8 or "
                 "s8, and e4m3 or e5m2 with e4m3 or e5m2",
                 name(d.a), name(d.b));
  }
  const type sum = accumulator_of(d);
  const bool narrow = d.c == d.a && (d.a == type::bf16 || d.a == type::f16);
  const bool requantised = bytes && (d.c == type::f32 || d.c == type::bf16 || is_8bit(d.c));
  const bool rounded = short_floats && (d.c == type::bf16 || d.c == type::f16 || is_8bit_float(d.c));
  if (d.c == sum || narrow || requantised || rounded) return {};
  return error(errc::unsupported, "c", "c is %s, but %s x %s sums in %s and %s", name(d.c), name(d.a), name(d.b),
               name(sum),
               bytes          ? "stores s32, f32, bf16, u8 or s8"
               : short_floats ? "stores f32, bf16, f16, e4m3 or e5m2"
                              : "stores that, or for bf16 and f16 the type of a and b");
}

/// Checks one leading dimension, and that the matrix ends within 2^63 - 1 bytes.
inline result<void> check_storage(const char* matrix, const char* field, const storage& s, index ld,
                                  index element_bytes) noexcept {
  if (ld != at_call && ld < s.columns) {
    return error(errc::invalid_argument, field, "%s is %ld, but %s has rows of %ld: it must be at least that", field,
                 ld, matrix, s.columns);
  }
  if (bytes_of(s, ld == at_call ? s.columns : ld, element_bytes) < 0) {
    return error(errc::invalid_argument, field,
                 "%s of %ld rows, %s %ld, groups of %ld and elements of %ld bytes is larger than 2^63 - 1 bytes",
                 matrix, s.rows, field, ld == at_call ? s.columns : ld, s.group, element_bytes);
  }
  return {};
}

/// Streaming stores write whole vectors to aligned addresses.
inline result<void> check_streaming(const desc& d) noexcept {
  if (d.write_c != write_kind::streaming) return {};
  if (size_of(d.c) == 1) {
    return error(errc::unsupported, "write_c", "write_c is streaming and c is %s; types of 16 bits or more are there",
                 name_of(d.c).data());
  }
  if (d.ldc != at_call && d.ldc % (streaming_alignment / size_of(d.c)) == 0) return {};
  return error(
      errc::invalid_argument, "ldc",
      "write_c is streaming and ldc is %ld elements of %ld bytes: it must be fixed and count a multiple of %ld "
      "bytes",
      d.ldc, size_of(d.c), streaming_alignment);
}

inline result<void> check_stride(const desc& d, const char* field, index stride, index element_bytes) noexcept {
  if (d.batch != batch_kind::strides && stride != 0) {
    return error(errc::invalid_argument, field, "%s is %ld, but the batch kind is not strides: it must be 0", field,
                 stride);
  }
  const wide bytes = static_cast<wide>(stride) * element_bytes;
  if (bytes > std::numeric_limits<index>::max() || bytes < std::numeric_limits<index>::min()) {
    return error(errc::invalid_argument, field, "%s is %ld elements of %ld bytes, more than 2^63 - 1 bytes", field,
                 stride, element_bytes);
  }
  return {};
}

inline result<void> check_lines(const desc& d) noexcept {
  if (d.line == 0 && d.line_step == 0 && d.k_step == 1) return {};
  if (d.layout_a != layout::depthwise || d.m_extent != extent_kind::fixed || d.lda == at_call) {
    const char* const field = d.layout_a != layout::depthwise ? "layout_a" : d.lda == at_call ? "lda" : "m_extent";
    return error(errc::unsupported, field, "%s: line = %u and k_step = %u need A depthwise, m and lda fixed", field,
                 d.line, d.k_step);
  }
  if (d.line != 0 ? d.m % d.line != 0 : d.line_step != 0) {
    return error(errc::invalid_argument, "line",
                 "line is %u; it must divide m = %ld, or be 0 as line_step, which is %ld", d.line, d.m, d.line_step);
  }
  if (d.line != 0 && d.line_step < 1) {
    return error(errc::invalid_argument, "line_step", "line_step is %ld; it must be at least 1", d.line_step);
  }
  if (d.k_step < 1) return error(errc::invalid_argument, "k_step", "k_step is 0; it must be at least 1");
  constexpr wide limit = std::numeric_limits<index>::max();
  const index line = d.line == 0 ? d.m : d.line;
  const wide of_lines = static_cast<wide>(d.m / line - 1) * d.line_step + line;
  if (of_lines + static_cast<wide>(d.k) * d.k_step <= limit) return {};
  return error(errc::invalid_argument, of_lines > limit ? "line_step" : "k_step",
               "line_step is %ld and k_step %u: A of %ld lines and k = %ld has more than 2^63 - 1 rows", d.line_step,
               d.k_step, d.m / line, d.k);
}

inline result<void> check_depthwise(const desc& d) noexcept {
  if (is_depthwise(d.layout_b)) {
    return error(errc::invalid_argument, "layout_b", "layout_b is depthwise, which only A can be");
  }
  if (!is_depthwise(d.layout_a)) return {};
  if (d.layout_b != layout::plain) {
    return error(errc::unsupported, "layout_b", "layout_a is depthwise and layout_b %s: it must be plain",
                 d.layout_b == layout::transposed ? "transposed" : "interleaved");
  }
  if (d.chains != 1) {
    return error(errc::unsupported, "chains", "chains is %d, but a depthwise product has 1", d.chains);
  }
  if (d.zero_b != zero_point::none) {
    return error(errc::unsupported, "zero_b", "a depthwise product has no zero point of B");
  }
  if (d.k > std::numeric_limits<index>::max() - d.m) {
    return error(errc::invalid_argument, "k", "k is %ld and m %ld: A has more than 2^63 - 1 rows", d.k, d.m);
  }
  return {};
}

inline result<void> check_row_ranges(const desc& d) noexcept {
  const int count = row_ranges(d);
  for (int i = 0; i < max_row_ranges; ++i) {
    const row_range& r = d.rows[i];
    if (i < count ? r.first < r.end && r.end <= d.m : r == row_range{}) continue;
    return error(errc::invalid_argument, "rows", "rows[%d] is %d..%d: of m = %ld, or 0..0 behind the last one", i,
                 int{r.first}, int{r.end}, d.m);
  }
  if (count == 0) return {};
  const char* const field = d.layout_a != layout::plain        ? "layout_a"
                            : d.m_extent != extent_kind::fixed ? "m_extent"
                            : d.chains != 1                    ? "chains"
                            : d.zero_a != zero_point::none     ? "zero_a"
                            : d.zero_b != zero_point::none     ? "zero_b"
                                                               : nullptr;
  if (field == nullptr) return {};
  return error(errc::unsupported, field,
               "%s: entries of some rows only need A plain, m fixed, one chain and no zero points", field);
}

inline result<void> check_shape(const desc& d) noexcept {
  const auto too_small = [](const char* field, index value, int least) {
    return error(errc::invalid_argument, field, "%s is %ld; it must be at least %d", field, value, least);
  };
  if (d.m < 1) return too_small("m", d.m, 1);
  if (d.n < 1) return too_small("n", d.n, 1);
  if (d.k < 0) return too_small("k", d.k, 0);
  if (k_group_of(d.a) == 1 && (d.layout_a == layout::interleaved || d.layout_b == layout::interleaved)) {
    const char* const field = d.layout_a == layout::interleaved ? "layout_a" : "layout_b";
    return error(errc::invalid_argument, field, "%s is interleaved, but %s has no groups of k: use %s", field,
                 name_of(d.a).data(), d.layout_a == layout::interleaved ? "transposed" : "plain");
  }
  if (d.layout_a == layout::interleaved && d.zero_b != zero_point::none) {
    return error(errc::unsupported, "zero_b",
                 "a zero point of B needs the sums of A's rows, which are not taken from layout_a interleaved");
  }
  if (auto r = check_depthwise(d); !r) return r;
  if (auto r = check_lines(d); !r) return r;
  if (auto r = check_row_ranges(d); !r) return r;
  if (d.prefetch > 4 || d.prefetch == 3) {
    return error(errc::invalid_argument, "prefetch", "prefetch is %d; it must be 0, 1, 2 or 4", int{d.prefetch});
  }
  if (auto r = check_storage("A", "lda", storage_of_a(d, d.m), d.lda, size_of(d.a)); !r) return r;
  if (auto r = check_storage("B", "ldb", storage_of_b(d), d.ldb, size_of(d.b)); !r) return r;
  if (auto r = check_storage("C", "ldc", {d.m, d.n, 1}, d.ldc, size_of(d.c)); !r) return r;
  if (auto r = check_streaming(d); !r) return r;
  if (auto r = check_stride(d, "stride_a", d.stride_a, size_of(d.a)); !r) return r;
  return check_stride(d, "stride_b", d.stride_b, size_of(d.b));
}

/// Order of sums, chains, alpha, beta and zero points.
inline result<void> check_sums(const desc& d) noexcept {
  const bool bytes = is_8bit(d.a);
  const char* const types = name_of(d.a).data();
  if (d.sums == order::foreign) {
    return error(errc::invalid_argument, "sums", "sums is foreign, which is only an answer, never asked for");
  }
  const bool pairs = d.sums == order::pair || d.sums == order::tile;
  const bool in_pairs = d.a == type::bf16 && !is_depthwise(d.layout_a);
  if (d.sums != order::machine && pairs != in_pairs) {
    return error(errc::unsupported, "sums", "sums is %s, but %s sums in the order %s",
                 d.sums == order::chain  ? "chain"
                 : d.sums == order::pair ? "pair"
                                         : "tile",
                 types, in_pairs ? "pair or tile" : "chain");
  }
  if (d.chains != 1 && d.chains != 2 && d.chains != 4 && d.chains != 8) {
    return error(errc::invalid_argument, "chains", "chains is %d; it must be 1, 2, 4 or 8", d.chains);
  }
  if (d.sums == order::tile && d.chains != 1) {
    return error(errc::unsupported, "chains", "chains is %d, but the order tile has 1", d.chains);
  }
  if (!bytes && (d.zero_a != zero_point::none || d.zero_b != zero_point::none)) {
    return error(errc::invalid_argument, d.zero_a != zero_point::none ? "zero_a" : "zero_b",
                 "%s has no zero points: they are for u8 and s8", types);
  }
  if (is_8bit(d.c) && d.beta != beta_kind::zero) {
    return error(errc::invalid_argument, "beta", "beta is not zero and c is %s: sums begin at a C of s32, f32 or bf16",
                 name_of(d.c).data());
  }
  if (d.c == type::s32 && d.alpha != alpha_kind::one) {
    return error(errc::unsupported, "alpha",
                 "alpha is at_call and c is s32, which holds the exact sum: use a C of f32");
  }
  if (d.c == type::s32 && d.beta == beta_kind::at_call) {
    return error(errc::unsupported, "beta", "beta is at_call and c is s32, which holds the exact sum: zero or one");
  }
  return {};
}

/// The step with the fields that its kind uses, everything else default: what a well-formed step is equal to.
constexpr epilogue_op canonical(const epilogue_op& o) noexcept {
  epilogue_op c = op::make(o.kind);
  if (has_operand(o.kind)) c.operand = o.operand;
  if (is_vector(o.kind)) c.along = o.along;
  if (is_mask(o.kind) || is_matrix(o.kind)) c.ld = o.ld;
  if (o.kind == op_kind::leaky_relu) c.slope = o.slope;
  if (o.kind == op_kind::clamp) c.lower = o.lower, c.upper = o.upper;
  return c;
}

inline result<void> check_operand(const desc& d, int step, const epilogue_op& o) noexcept {
  const bool doubles = accumulator_of(d) == type::f64;
  const bool vector_or_matrix = doubles ? o.operand == type::f64
                                : o.kind == op_kind::scale
                                    ? o.operand == type::f32
                                    : o.operand == type::f32 || o.operand == type::bf16 || o.operand == type::f16;
  if (is_mask(o.kind) ? o.operand != type::u8 : !vector_or_matrix) {
    return error(errc::unsupported, "epilogue", "epilogue[%d].operand is %s; it must be %s", step,
                 name_of(o.operand).data(),
                 is_mask(o.kind)            ? "u8"
                 : doubles                  ? "f64"
                 : o.kind == op_kind::scale ? "f32"
                                            : "f32, bf16 or f16");
  }
  if (o.kind == op_kind::bias && o.along == axis::none) {
    return error(errc::invalid_argument, "epilogue", "epilogue[%d].along of a bias is none; it must be column or row",
                 step);
  }
  if (is_vector(o.kind)) return {};
  const storage s = storage_of_operand(d, o, d.m);
  const index bytes = size_of(o.operand);
  if (o.ld != at_call && o.ld < s.columns) {
    return error(errc::invalid_argument, "epilogue", "epilogue[%d].ld is %ld, but a row of the operand has %ld", step,
                 o.ld, s.columns);
  }
  if (bytes_of(s, o.ld == at_call ? s.columns : o.ld, bytes) < 0) {
    return error(errc::invalid_argument, "epilogue",
                 "epilogue[%d].ld is %ld: an operand of %ld rows and elements of %ld bytes is larger than 2^63 - 1 "
                 "bytes",
                 step, o.ld, s.rows, bytes);
  }
  return {};
}

inline result<void> check_step(const desc& d, int step) noexcept {
  const epilogue_op& o = d.epilogue[step];
  if (static_cast<int>(o.kind) >= op_kind_count || o.kind == op_kind::none) {
    return error(errc::invalid_argument, "epilogue", "epilogue[%d].kind is %d; 1..%d are steps", step,
                 static_cast<int>(o.kind), op_kind_count - 1);
  }
  if (!is_known(o.operand)) {
    return error(errc::invalid_argument, "epilogue", "epilogue[%d].operand is %d, which is no type", step,
                 static_cast<int>(o.operand));
  }
  if (static_cast<int>(o.along) > 2) {
    return error(errc::invalid_argument, "epilogue", "epilogue[%d].along is %d; 0..2 are axes", step,
                 static_cast<int>(o.along));
  }
  if (o != canonical(o)) {
    return error(errc::invalid_argument, "epilogue",
                 "epilogue[%d] of kind %d sets a field that this kind does not use (operand, along, slope, lower, "
                 "upper or ld): make steps with the functions in op",
                 step, static_cast<int>(o.kind));
  }
  if (o.kind == op_kind::clamp && !(o.lower <= o.upper)) {
    return error(errc::invalid_argument, "epilogue", "epilogue[%d] clamps to [%g, %g], which holds no number", step,
                 static_cast<double>(o.lower), static_cast<double>(o.upper));
  }
  if (accumulator_of(d) == type::f64 && is_transcendental(o.kind)) {
    return error(errc::unsupported, "epilogue", "epilogue[%d] of kind %d is an activation in f32; f64 has none", step,
                 static_cast<int>(o.kind));
  }
  return has_operand(o.kind) ? check_operand(d, step, o) : result<void>{};
}

inline result<void> check_epilogue(const desc& d) noexcept {
  if (d.epilogue_size > max_epilogue) {
    return error(errc::invalid_argument, "epilogue_size", "epilogue_size is %d; at most %d steps fit", d.epilogue_size,
                 max_epilogue);
  }
  if (d.c == type::s32 && d.epilogue_size != 0) {
    return error(errc::unsupported, "epilogue", "epilogue_size is %d and c is s32, which is stored as summed",
                 d.epilogue_size);
  }
  for (int step = 0; step < d.epilogue_size; ++step) {
    if (auto r = check_step(d, step); !r) return r;
  }
  for (int step = d.epilogue_size; step < max_epilogue; ++step) {
    if (d.epilogue[step] != epilogue_op{}) {
      return error(errc::invalid_argument, "epilogue", "epilogue[%d] is set, but epilogue_size is %d", step,
                   d.epilogue_size);
    }
  }
  return {};
}

// ---- Arguments ----

constexpr index chosen(index in_desc, index in_arguments) noexcept {
  return in_desc == at_call ? in_arguments : in_desc;
}
constexpr index rows_of(const desc& d, const arguments& x) noexcept {
  return d.m_extent == extent_kind::at_call ? x.m : d.m;
}

/// The bytes of a matrix in memory: `rows` runs of `width` bytes, `pitch` apart, from `address`.
struct region {
  wide address = 0;
  wide pitch = 0;
  wide width = 0;
  wide rows = 0;
  constexpr wide end() const noexcept {
    return rows == 0 || width == 0 ? address : address + (rows - 1) * pitch + width;
  }
};

inline region region_of(const void* data, const storage& s, index ld, index element_bytes) noexcept {
  const wide lane = static_cast<wide>(s.group) * element_bytes;
  return {static_cast<wide>(reinterpret_cast<std::uintptr_t>(data)), ld * lane, s.columns * lane, s.rows};
}

/// Whether two regions share a byte. Regions of one pitch may lie between each other's rows (columns of one matrix),
/// and a single row between those of any region; for different pitches the whole ranges are compared.
constexpr bool overlap(const region& x, const region& y) noexcept {
  if (x.end() <= y.address || y.end() <= x.address || x.end() == x.address || y.end() == y.address) return false;
  const wide pitch = x.rows == 1 ? y.pitch : x.pitch;
  if (pitch == 0 || (x.rows == 1 && y.rows == 1) || (y.rows != 1 && y.pitch != pitch)) return true;
  wide ahead = (x.address - y.address) % pitch;
  if (ahead < 0) ahead += pitch;
  return ahead < y.width || ahead + x.width > pitch;
}

inline result<void> check_pointer(const char* field, const void* data, index alignment) noexcept {
  if (data == nullptr) return error(errc::invalid_argument, field, "%s is null, but its matrix is not empty", field);
  if (reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(alignment) != 0) {
    return error(errc::invalid_argument, field, "%s is %p, which must be a multiple of %ld bytes", field, data,
                 alignment);
  }
  return {};
}

/// A leading dimension given at the call.
inline result<void> check_call_storage(const char* matrix, const char* field, const storage& s, index ld,
                                       index element_bytes) noexcept {
  if (ld == at_call) {
    return error(errc::invalid_argument, field, "%s is %ld in the arguments, where a number is wanted", field, ld);
  }
  return check_storage(matrix, field, s, ld, element_bytes);
}

inline result<void> check_extents(const desc& d, const arguments& x) noexcept {
  if (x.batch < 0) return error(errc::invalid_argument, "batch", "batch is %ld; it must be at least 0", x.batch);
  if (const int ranges = row_ranges(d); ranges > 1 && x.batch % ranges != 0) {
    return error(errc::invalid_argument, "batch", "batch is %ld; it must count a multiple of the %d ranges of rows",
                 x.batch, ranges);
  }
  if (d.m_extent == extent_kind::at_call && (x.m < 1 || x.m > d.m)) {
    return error(errc::invalid_argument, "m", "m is %ld; the kernel was made for 1..%ld", x.m, d.m);
  }
  const index m = rows_of(d, x);
  const index lda = chosen(d.lda, x.lda);
  const index ldb = chosen(d.ldb, x.ldb);
  const index ldc = chosen(d.ldc, x.ldc);
  if (auto r = check_call_storage("A", "lda", storage_of_a(d, m), lda, size_of(d.a)); !r) return r;
  if (auto r = check_call_storage("B", "ldb", storage_of_b(d), ldb, size_of(d.b)); !r) return r;
  if (auto r = check_call_storage("C", "ldc", {m, d.n, 1}, ldc, size_of(d.c)); !r) return r;
  for (int step = 0; step < d.epilogue_size; ++step) {
    const epilogue_op& o = d.epilogue[step];
    if (o.ld != at_call) continue;
    const storage s = storage_of_operand(d, o, m);
    const index ld = x.operand_ld[step];
    if (ld < s.columns || bytes_of(s, ld, size_of(o.operand)) < 0) {
      return error(errc::invalid_argument, "operand_ld",
                   "operand_ld[%d] is %ld; the operand has %ld rows of %ld and must end within 2^63 - 1 bytes", step,
                   ld, s.rows, s.columns);
    }
  }
  return {};
}

/// What a call writes: C, and the operands of relu_mask and store steps.
struct written {
  region of[1 + max_epilogue];
  const char* name[1 + max_epilogue] = {};
  int count = 0;
};

inline result<void> check_overlap(const written& w, const region& r, const char* field, const char* what,
                                  index entry) noexcept {
  for (int i = 0; i < w.count; ++i) {
    if (!overlap(w.of[i], r)) continue;
    return error(errc::invalid_argument, field, "%s %ld at %#lx..%#lx overlaps %s at %#lx..%#lx, which is written",
                 what, entry, static_cast<unsigned long>(r.address), static_cast<unsigned long>(r.end()), w.name[i],
                 static_cast<unsigned long>(w.of[i].address), static_cast<unsigned long>(w.of[i].end()));
  }
  return {};
}

/// A region that the address space holds, and that shares no byte with what is written.
inline result<void> check_region(const written& w, const region& r, const char* field, const char* what,
                                 index entry) noexcept {
  if (r.address >= 0 && r.end() <= static_cast<wide>(std::numeric_limits<std::uintptr_t>::max())) {
    return check_overlap(w, r, field, what, entry);
  }
  return error(errc::invalid_argument, field, "%s %ld, %.0f bytes from address %.0f, leaves the address space", what,
               entry, static_cast<double>(r.end() - r.address), static_cast<double>(r.address));
}

inline result<void> add_written(written& w, const region& r, const char* field, const char* name,
                                index entry) noexcept {
  if (auto checked = check_region(w, r, field, name, entry); !checked) return checked;
  w.of[w.count] = r;
  w.name[w.count] = name;
  ++w.count;
  return {};
}

inline region region_of_operand(const desc& d, const arguments& x, int step) noexcept {
  const epilogue_op& o = d.epilogue[step];
  const index ld = chosen(o.ld, x.operand_ld[step]);
  return region_of(x.operand[step], storage_of_operand(d, o, rows_of(d, x)), ld, size_of(o.operand));
}

/// Operands that are there; those among them that are written join `w`.
inline result<void> check_operands(const desc& d, const arguments& x, written& w) noexcept {
  for (int step = 0; step < d.epilogue_size; ++step) {
    const epilogue_op& o = d.epilogue[step];
    if (!has_operand(o.kind)) continue;
    if (auto r = check_pointer("operand", x.operand[step], size_of(o.operand)); !r) {
      return error(errc::invalid_argument, "operand", "operand[%d]: %s", step, r.error().message().data());
    }
    if (!is_written(o.kind)) continue;
    const char* const what = is_mask(o.kind) ? "mask" : "stored matrix";
    if (auto r = add_written(w, region_of_operand(d, x, step), "operand", what, step); !r) return r;
  }
  for (int step = 0; step < d.epilogue_size; ++step) {
    const epilogue_op& o = d.epilogue[step];
    if (!has_operand(o.kind) || is_written(o.kind)) continue;
    const region r = region_of_operand(d, x, step);
    // A step may read the element of C that it replaces.
    const bool is_c =
        is_read_matrix(o.kind) && o.operand == d.c && r.address == w.of[0].address && r.pitch == w.of[0].pitch;
    if (is_c) continue;
    if (auto checked = check_region(w, r, "operand", "operand", step); !checked) return checked;
  }
  return {};
}

/// A or B, over all entries.
struct side {
  bool of_a;
  const char* field;
  const void* base;
  storage stored;
  index ld;
  index element_bytes;
  index stride;
};

/// Bytes from `base` to entry i, without wrapping; 0 for addresses.
inline wide entry_offset(const desc& d, const arguments& x, const side& s, index i) noexcept {
  if (d.batch == batch_kind::strides) return static_cast<wide>(s.stride) * s.element_bytes * i;
  if (d.batch == batch_kind::addresses) return 0;
  const auto& pair = static_cast<const offset_pair*>(x.pairs)[i];
  return static_cast<wide>(s.of_a ? pair.a : pair.b) * s.element_bytes;
}

inline result<void> check_entry(const desc& d, const arguments& x, const side& s, index i, const written& w) noexcept {
  const void* base = s.base;
  if (d.batch == batch_kind::addresses) {
    const auto& pair = static_cast<const address_pair*>(x.pairs)[i];
    base = s.of_a ? pair.a : pair.b;
    if (auto r = check_pointer("pairs", base, s.element_bytes); !r) {
      return error(errc::invalid_argument, "pairs", "pairs[%ld].%s: %s", i, s.field, r.error().message().data());
    }
  }
  region r = region_of(base, s.stored, s.ld, s.element_bytes);
  r.address += entry_offset(d, x, s, i);
  if (const int ranges = s.of_a ? row_ranges(d) : 0; ranges > 0) {  // the others are not read
    const row_range& rows = d.rows[i % ranges];
    r.address += rows.first * r.pitch;
    r.rows = rows.end - rows.first;
  }
  return check_region(w, r, s.field, s.of_a ? "A of entry" : "B of entry", i);
}

/// Entries of constant stride: the first and the last of each range of rows (so all lie in the address space), and
/// those near enough to something written to overlap it.
inline result<void> check_strided_entries(const desc& d, const arguments& x, const side& s, const written& w) noexcept {
  for (index i = 0; i < std::max(row_ranges(d), 1); ++i) {
    if (auto r = check_entry(d, x, s, i, w); !r) return r;
    if (auto r = check_entry(d, x, s, x.batch - 1 - i, w); !r) return r;
  }
  const wide stride = entry_offset(d, x, s, 1);
  if (stride == 0) return {};
  const region first = region_of(s.base, s.stored, s.ld, s.element_bytes);
  for (int j = 0; j < w.count; ++j) {
    // Distances from entry 0 at which an entry ends behind the begin, and begins before the end, of what is written.
    const wide near = (stride > 0 ? w.of[j].address - first.end() : w.of[j].end() - first.address) / stride - 1;
    const wide far = (stride > 0 ? w.of[j].end() - first.address : w.of[j].address - first.end()) / stride + 1;
    if (far < 0) continue;
    const index last = far < x.batch ? static_cast<index>(far) : x.batch - 1;
    for (index i = near > 0 ? static_cast<index>(near < x.batch ? near : x.batch) : 0; i <= last; ++i) {
      if (auto r = check_entry(d, x, s, i, w); !r) return r;
    }
  }
  return {};
}

inline result<void> check_side(const desc& d, const arguments& x, const side& s, const written& w) noexcept {
  if (x.batch == 0 || is_empty(s.stored)) return {};
  if (d.batch != batch_kind::addresses) {
    if (auto r = check_pointer(s.field, s.base, s.element_bytes); !r) return r;
  }
  if (d.batch == batch_kind::strides) return check_strided_entries(d, x, s, w);
  for (index i = 0; i < x.batch; ++i) {
    if (auto r = check_entry(d, x, s, i, w); !r) return r;
  }
  return {};
}

inline result<void> check_zero_points(const desc& d, const arguments& x, const written& w) noexcept {
  if (d.zero_a == zero_point::none) return {};
  if (auto r = check_pointer("column_sums", x.column_sums, 4); !r) return r;
  return check_region(w, region_of(x.column_sums, {1, d.n, 1}, d.n, 4), "column_sums", "column_sums", 0);
}

inline result<void> check_pairs(const desc& d, const arguments& x, const written& w) noexcept {
  static_assert(sizeof(address_pair) == sizeof(offset_pair));  // NOLINT(misc-redundant-expression): what is to be shown
  static_assert(alignof(address_pair) == alignof(offset_pair));  // NOLINT(misc-redundant-expression)
  if (d.batch == batch_kind::strides || x.batch == 0) return {};
  if (auto r = check_pointer("pairs", x.pairs, alignof(offset_pair)); !r) return r;
  return check_region(w, region_of(x.pairs, {1, x.batch, 1}, x.batch, sizeof(offset_pair)), "pairs", "pairs", 0);
}

}  // namespace detail

/// What is wrong with a desc on every backend. No error here does not mean that some backend can do it.
/// Errors: `invalid_argument` for a field that can never be right, `unsupported` for a combination that no backend has.
inline result<void> validate(const desc& d) noexcept {
  for (const auto check : {detail::check_enumerators, detail::check_types, detail::check_shape, detail::check_sums,
                           detail::check_epilogue}) {
    if (auto r = check(d); !r) return r;
  }
  return {};
}

/// What is wrong with the arguments of a call of a kernel made for `d`, which must be valid itself: null or misaligned
/// pointers, run-time sizes, overlaps of what is written with what is read. Reads `pairs`, and no element of a matrix.
/// Time grows with the number of pairs. Fields that the desc does not ask for are not looked at.
inline result<void> validate(const desc& d, const arguments& x) noexcept {
  if (auto r = detail::check_extents(d, x); !r) return r;
  const index m = detail::rows_of(d, x);
  const bool streaming = d.write_c == write_kind::streaming;
  if (auto r = detail::check_pointer("c", x.c, streaming ? detail::streaming_alignment : size_of(d.c)); !r) return r;
  detail::written w;
  const detail::region c = detail::region_of(x.c, {m, d.n, 1}, detail::chosen(d.ldc, x.ldc), size_of(d.c));
  if (auto r = detail::add_written(w, c, "c", "C", 0); !r) return r;
  if (auto r = detail::check_operands(d, x, w); !r) return r;
  if (auto r = detail::check_zero_points(d, x, w); !r) return r;
  if (auto r = detail::check_pairs(d, x, w); !r) return r;
  const detail::side a{true,         "a",       x.a, detail::storage_of_a(d, m), detail::chosen(d.lda, x.lda),
                       size_of(d.a), d.stride_a};
  const detail::side b{false,        "b",       x.b, detail::storage_of_b(d), detail::chosen(d.ldb, x.ldb),
                       size_of(d.b), d.stride_b};
  if (auto r = detail::check_side(d, x, a, w); !r) return r;
  return detail::check_side(d, x, b, w);
}

}  // namespace brgemm::inline abi_0
