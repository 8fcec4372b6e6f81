// What a kernel computes, as a plain value: shapes, types, layouts, order of sums, epilogue. Public facts only, never
// data.
//
//     C = epilogue( beta * C + alpha * sum_i A_i * B_i )      A_i (m,k)   B_i (k,n)   C (m,n), row-major
#pragma once

#include <type_traits>

#include "types.hpp"

namespace brgemm::inline abi_0 {

/// A leading dimension with this value is given at the call, in `arguments`.
inline constexpr index at_call = -1;

/// How the batch entries A_i, B_i are found.
enum class batch_kind : std::uint8_t {
  addresses,  ///< arguments.pairs is an array of address_pair
  offsets,    ///< arguments.pairs is an array of offset_pair, counted in elements from arguments.a and arguments.b
  strides,    ///< A_i = a + i * stride_a, B_i = b + i * stride_b, counted in elements
};

/// How one matrix is stored. A group is what one lane of an instruction reads: 2 k of bf16, 4 k of u8 and s8.
enum class layout : std::uint8_t {
  plain,        ///< row-major: A (m,k), B (k,n)
  transposed,   ///< A stored (k,m), B stored (n,k)
  interleaved,  ///< groups of k beside each other: B (ceil(k/g), n, g), A (ceil(k/g), m, g); ldb and lda count
                ///< columns of g elements. The k missing from B's last group are zero (kernels may multiply them), as
                ///< pack_b writes them, from A stored (k,m) too; those of A's are not read.
  depthwise,    ///< A stored (m + k - 1, n), or as `line` and k_step of the desc say, B plain: C[i,j] += sum over k of
                ///< A[i + k, j] * B[k, j], each column of C from its own of A and B. k = 1: a tap of a depthwise
                ///< convolution, rows of A pixels, B its weights; else its weight gradient, or the taps of a row. One
                ///< fma a term in ascending k, in bf16 too.
  depthwise_mirrored,  ///< the same with A[i + k' , j], k' = (the desc's k) - 1 - k: rows of A descend. The taps of a
                       ///< row backward by data, in ascending order.
};

constexpr bool is_depthwise(layout l) noexcept { return l == layout::depthwise || l == layout::depthwise_mirrored; }

/// Not zero: C is read. C of u8 and s8: zero only; C of s32: zero or one, modulo 2^32.
enum class beta_kind : std::uint8_t { zero, one, at_call };
/// At the call: not for a C of s32.
enum class alpha_kind : std::uint8_t { one, at_call };
/// m, rows of A and C.
enum class extent_kind : std::uint8_t { fixed, at_call };
enum class zero_point : std::uint8_t { none, at_call };

/// How C is written. The bits are the same.
enum class write_kind : std::uint8_t {
  cached,     ///< as usual: C stays in the caches
  streaming,  ///< past the caches, for a C (not of 8 bits) that nobody reads soon: its lines are not read before they
              ///< are written. C begins at a multiple of 64 bytes, and ldc, fixed, counts a multiple of 64 bytes.
};
enum class place : std::uint8_t { cpu, gpu };

/// The order of sums. On CPUs that of all but bf16 is always `chain` (on GPUs: see cuda::kernel::order); sums of u8 and
/// s8 are exact, so any order is `chain`.
enum class order : std::uint8_t {
  machine,  ///< bf16: tile in one chain on CPUs with AMX, else pair; kernel.order() tells
  chain,    ///< one fma a term in ascending k; of bf16 only that of depthwise layouts
  pair,     ///< bf16: what vdpbf16ps does, pairs of k
  tile,     ///< bf16: what AMX tiles do, chunks of 32 k
  foreign,  ///< never asked for: the answer of a backend that has another library's order, or a GPU's tensor cores'
};

/// One step of the epilogue, applied to every element of C while it is in registers, in the accumulator's type
/// (f32 for products of u8 and s8: the exact s32 sum is converted first).
enum class op_kind : std::uint16_t {
  none,           ///< unused entry
  bias,           ///< x + v[column] or v[row]                            operand: vector, f32/bf16/f16 (f64 for f64)
  add,            ///< x + R[row,column]                                  operand: matrix with ld
  scale,          ///< x * v[0], v[column] or v[row]                      operand: f32 (f64 for f64)
  relu,           ///< x < 0 ? 0 : x (NaN stays NaN)
  relu_mask,      ///< relu, and bit (x > 0) of the mask is written       operand: bit matrix, ld in bytes
  leaky_relu,     ///< x < 0 ? slope * x : x
  clamp,          ///< min(max(x, lower), upper), NaN stays NaN
  sigmoid,        ///< 1 / (1 + exp(-x))
  tanh,           ///< hyperbolic tangent
  gelu_erf,       ///< x * (1 + erf(x / sqrt(2))) / 2
  gelu_tanh,      ///< x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))) / 2
  silu,           ///< x / (1 + exp(-x))
  hardswish,      ///< x * min(max(x + 3, 0), 6) / 6
  multiply,       ///< x * R[row,column]                                  operand: matrix with ld
  multiply_mask,  ///< bit ? x : +0                                       operand: bit matrix, ld in bytes
  store,          ///< x, which is also written to R[row,column]          operand: matrix with ld
  // x * f'(R[row,column]), f the activation of that name: the gradient's way back where R is what f was given.
  sigmoid_backward,    ///< operand: matrix with ld, as the others below
  tanh_backward,       ///<
  gelu_erf_backward,   ///<
  gelu_tanh_backward,  ///<
  silu_backward,       ///<
  hardswish_backward,  ///< f' is 0 up to -3 and 1 from 3
};
inline constexpr int op_kind_count = 23;

namespace detail {
/// Multiplies by a derivative.
constexpr bool is_backward(op_kind kind) noexcept {
  return kind >= op_kind::sigmoid_backward && kind <= op_kind::hardswish_backward;
}
/// The operand is a matrix (m,n) that is read; it may be C itself.
constexpr bool is_read_matrix(op_kind kind) noexcept {
  return kind == op_kind::add || kind == op_kind::multiply || is_backward(kind);
}
}  // namespace detail

/// Which index of C selects the element of a vector operand.
enum class axis : std::uint8_t { none, column, row };

/// A float that compares and hashes by its bits, so that a desc can be compared and hashed as a whole.
struct f32_bits {
  std::uint32_t bits = 0;
  constexpr f32_bits() = default;
  constexpr f32_bits(float x) : bits(std::bit_cast<std::uint32_t>(x)) {}  // NOLINT: implicit on purpose
  constexpr operator float() const { return std::bit_cast<float>(bits); }
  friend constexpr bool operator==(f32_bits x, f32_bits y) { return x.bits == y.bits; }
};

/// One step of an epilogue. Make one with the functions in namespace `op`.
///
/// Bit matrices: bit j%8 (least significant first) of byte j/8 of row r belongs to C[r,j]; ld is the row's length in
/// bytes, at least ceil(n/8). A written mask sets the unused bits of a row's last byte to 0 and touches no other byte.
struct epilogue_op {
  op_kind kind = op_kind::none;
  type operand = type::f32;  ///< element type of the operand, where there is one
  brgemm::axis along = axis::none;
  f32_bits slope;  ///< leaky_relu
  f32_bits lower;  ///< clamp
  f32_bits upper;  ///< clamp
  index ld = 0;    ///< operand's leading dimension; `at_call`: in arguments.operand_ld
  friend constexpr bool operator==(const epilogue_op&, const epilogue_op&) = default;
};

inline constexpr int max_epilogue = 8;

/// Rows first..end - 1 of C.
struct row_range {
  std::uint8_t first = 0;
  std::uint8_t end = 0;
  friend constexpr bool operator==(const row_range&, const row_range&) = default;
};
inline constexpr int max_row_ranges = 7;

/// Everything that a kernel is made from. Compare with ==. Leave unused entries of `epilogue` default.
struct desc {
  index m = 1;         ///< rows of A and C, >= 1; the maximum where m_extent is at_call
  index n = 1;         ///< columns of B and C, >= 1
  index k = 1;         ///< columns of A, rows of B, >= 0
  index lda = 1;       ///< plain: >= k; transposed, interleaved: >= m; depthwise: >= n; or at_call
  index ldb = 1;       ///< plain: >= n; transposed: >= k; interleaved: >= n; or at_call
  index ldc = 1;       ///< >= n, or at_call; see write_kind::streaming
  index stride_a = 0;  ///< batch_kind::strides only, else 0. Elements; any sign, 0 allowed
  index stride_b = 0;
  /// layout::depthwise: C[i,j] += sum over k of A[i / line * line_step + i % line + k * k_step, j] * B[k,j], so that
  /// the taps of several rows of an image, and pixels of any stride, are one product. line divides m, 0 stands for m
  /// (and line_step is 0 then); with lines or steps m and lda are fixed. The rows of A in between count as read.
  /// Generated code needs registers for all of m where 1 < line < m, and what 32 rows of C read in 32 steps within 2^31
  /// bytes.
  index line_step = 0;
  std::uint32_t line = 0;
  std::uint32_t k_step = 1;
  type a = type::f32;
  type b = type::f32;
  type c = type::f32;
  batch_kind batch = batch_kind::strides;
  layout layout_a = layout::plain;
  layout layout_b = layout::plain;
  beta_kind beta = beta_kind::zero;
  alpha_kind alpha = alpha_kind::one;
  order sums = order::machine;
  std::uint8_t chains =
      1;  ///< 1, 2, 4 or 8: chain j sums the k (bf16 in pair order: the pairs) with index mod chains = j
  extent_kind m_extent = extent_kind::fixed;
  zero_point zero_a = zero_point::none;  ///< u8, s8 only: A stands for A - arguments.zero_a
  zero_point zero_b = zero_point::none;  ///< u8, s8 only: B stands for B - arguments.zero_b
  place where = place::cpu;
  write_kind write_c = write_kind::cached;
  std::uint8_t epilogue_size = 0;  ///< entries of `epilogue` in use
  /// 1, 2 or 4: with one of so many steps of k what lies arguments.prefetch bytes beyond its rows of B is prefetched,
  /// into L2, and a row further with each further block of rows of C; 0: nothing is. A hint, without a bit that depends
  /// on it: no memory need be there, and a backend may leave it out; generated code does where ldb is given at the call
  /// or reaches beyond 2^31 bytes, where B is transposed or A depthwise, and with tiles.
  std::uint16_t prefetch = 0;
  /// Rows of C that entries add to, and of A that are read: entry i those of rows[i % the number of them], which end
  /// before the first that is empty. None: all rows. The batch of a call counts a multiple of their number. A plain, m
  /// fixed, one chain, no zero points.
  row_range rows[max_row_ranges] = {};
  epilogue_op epilogue[max_epilogue] = {};

  friend constexpr bool operator==(const desc&, const desc&) = default;
};

// No padding: equality is equality of bytes, and a hash of the words covers every field by construction.
static_assert(std::has_unique_object_representations_v<desc>);

constexpr type accumulator_of(const desc& d) noexcept { return accumulator_of(d.a); }

/// How many of desc::rows are in use.
constexpr int row_ranges(const desc& d) noexcept {
  int count = 0;
  while (count < max_row_ranges && d.rows[count].end != 0) ++count;
  return count;
}

namespace detail {
/// layout::depthwise: the row of A that row i of C reads first.
constexpr index row_of_a(const desc& d, index i) noexcept {
  return d.line == 0 ? i : i / d.line * d.line_step + i % d.line;
}

/// Products of u8 and s8 with another C than s32: the exact sum becomes f32, and only then alpha, beta and C come to
/// it.
constexpr bool becomes_f32(const desc& d) noexcept { return accumulator_of(d) == type::s32 && d.c != type::s32; }
}  // namespace detail

/// How many consecutive k one lane of B holds.
constexpr index k_group_of(const desc& d) noexcept { return is_depthwise(d.layout_a) ? 1 : k_group_of(d.a); }

/// The steps an epilogue can have. A chain is written `{op::bias(axis::column), op::relu()}`.
namespace op {
constexpr epilogue_op make(op_kind kind) {
  epilogue_op o;
  o.kind = kind;
  return o;
}
constexpr epilogue_op make(op_kind kind, type operand, axis along, index ld) {
  epilogue_op o = make(kind);
  o.operand = operand;
  o.along = along;
  o.ld = ld;
  return o;
}
constexpr epilogue_op bias(axis along = axis::column, type operand = type::f32) {
  return make(op_kind::bias, operand, along, 0);
}
constexpr epilogue_op add(index ld, type operand = type::f32) { return make(op_kind::add, operand, axis::none, ld); }
/// One factor for all of C (axis::none), or one a column or row.
constexpr epilogue_op scale(axis along = axis::none, type operand = type::f32) {
  return make(op_kind::scale, operand, along, 0);
}
constexpr epilogue_op relu() { return make(op_kind::relu); }
constexpr epilogue_op relu_mask(index ld_bytes) { return make(op_kind::relu_mask, type::u8, axis::none, ld_bytes); }
constexpr epilogue_op leaky_relu(float slope) {
  epilogue_op o = make(op_kind::leaky_relu);
  o.slope = slope;
  return o;
}
constexpr epilogue_op clamp(float lower, float upper) {
  epilogue_op o = make(op_kind::clamp);
  o.lower = lower;
  o.upper = upper;
  return o;
}
constexpr epilogue_op sigmoid() { return make(op_kind::sigmoid); }
constexpr epilogue_op tanh() { return make(op_kind::tanh); }
constexpr epilogue_op gelu_erf() { return make(op_kind::gelu_erf); }
constexpr epilogue_op gelu_tanh() { return make(op_kind::gelu_tanh); }
constexpr epilogue_op silu() { return make(op_kind::silu); }
constexpr epilogue_op hardswish() { return make(op_kind::hardswish); }
constexpr epilogue_op multiply(index ld, type operand = type::f32) {
  return make(op_kind::multiply, operand, axis::none, ld);
}
constexpr epilogue_op multiply_mask(index ld_bytes) {
  return make(op_kind::multiply_mask, type::u8, axis::none, ld_bytes);
}
/// x, which is also written to R (m,n), converted to the type of R; R may overlap nothing else of the call.
constexpr epilogue_op store(index ld, type operand = type::f32) {
  return make(op_kind::store, operand, axis::none, ld);
}
constexpr epilogue_op sigmoid_backward(index ld, type operand = type::f32) {
  return make(op_kind::sigmoid_backward, operand, axis::none, ld);
}
constexpr epilogue_op tanh_backward(index ld, type operand = type::f32) {
  return make(op_kind::tanh_backward, operand, axis::none, ld);
}
constexpr epilogue_op gelu_erf_backward(index ld, type operand = type::f32) {
  return make(op_kind::gelu_erf_backward, operand, axis::none, ld);
}
constexpr epilogue_op gelu_tanh_backward(index ld, type operand = type::f32) {
  return make(op_kind::gelu_tanh_backward, operand, axis::none, ld);
}
constexpr epilogue_op silu_backward(index ld, type operand = type::f32) {
  return make(op_kind::silu_backward, operand, axis::none, ld);
}
constexpr epilogue_op hardswish_backward(index ld, type operand = type::f32) {
  return make(op_kind::hardswish_backward, operand, axis::none, ld);
}
}  // namespace op

/// Appends a step; a desc whose epilogue is full keeps counting (to 255), and make_kernel then refuses it with the
/// count.
constexpr desc& append(desc& d, const epilogue_op& o) {
  if (d.epilogue_size < max_epilogue) d.epilogue[d.epilogue_size] = o;
  if (d.epilogue_size < 255) ++d.epilogue_size;
  return d;
}

}  // namespace brgemm::inline abi_0
