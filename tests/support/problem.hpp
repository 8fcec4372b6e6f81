// A problem: a desc, data for it, and the bytes that a call wrote. The data can be placed against inaccessible pages.
#pragma once

#include <brgemm/core/validate.hpp>
#include <brgemm/kernel/name.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "support/draw.hpp"
#include "support/guarded_memory.hpp"

namespace brgemm_test {

using bytes = std::vector<std::byte>;

/// What random elements look like.
enum class values {
  integers,  ///< small integers: every sum is exact
  unit,      ///< full mantissas, magnitudes around 1
  wild,      ///< any exponent: overflow, underflow, subnormals
  special,   ///< as unit, with some NaN, infinities, zeros of both signs and subnormals
};

inline float draw_f32(std::uint64_t bits, values v) {
  const auto low = static_cast<std::uint32_t>(bits);
  const auto high = static_cast<std::uint32_t>(bits >> 32);
  if (v == values::integers) return static_cast<float>(static_cast<int>(high % 17) - 8);
  if (v == values::wild) return std::bit_cast<float>(low);
  if (v == values::special && high % 64 == 0) {
    constexpr std::uint32_t pool[] = {0x7fc00000, 0x7f800000, 0xff800000, 0x80000000, 0x00000000,
                                      0x00000001, 0x80700000, 0x007fffff, 0x00800000, 0x7f7fffff,
                                      0xff7fffff, 0x33800000, 0x7f800001};
    return std::bit_cast<float>(pool[(high >> 8) % std::size(pool)]);
  }
  return std::bit_cast<float>((low & 0x807fffffu) | ((120u + high % 8) << 23));
}

template <class T>
T draw_element(std::uint64_t bits, values v);
template <>
inline float draw_element<float>(std::uint64_t bits, values v) {
  return draw_f32(bits, v);
}
template <>
inline double draw_element<double>(std::uint64_t bits, values v) {
  if (v == values::wild) return std::bit_cast<double>(bits);
  if (v != values::unit) return static_cast<double>(draw_f32(bits, v));
  return std::bit_cast<double>((bits & 0x800fffffffffffffu) | ((1019u + (bits >> 52) % 8) << 52));
}
template <>
inline brgemm::bf16 draw_element<brgemm::bf16>(std::uint64_t bits, values v) {
  return {static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(draw_f32(bits, v)) >> 16)};
}
template <>
inline brgemm::f16 draw_element<brgemm::f16>(std::uint64_t bits, values v) {
  if (v == values::wild) return {static_cast<std::uint16_t>(bits)};
  return brgemm::to_f16(draw_f32(bits, v));
}
/// Special: any bits now and then, as all the others have infinities and NaN seldom or never.
constexpr bool is_any_pattern(std::uint64_t bits, values v) {
  return v == values::wild || (v == values::special && (bits >> 32) % 64 == 0);
}
template <>
inline brgemm::e4m3 draw_element<brgemm::e4m3>(std::uint64_t bits, values v) {
  if (is_any_pattern(bits, v)) return {static_cast<std::uint8_t>(bits)};
  return brgemm::to_e4m3(draw_f32(bits, v));
}
template <>
inline brgemm::e5m2 draw_element<brgemm::e5m2>(std::uint64_t bits, values v) {
  if (is_any_pattern(bits, v)) return {static_cast<std::uint8_t>(bits)};
  return brgemm::to_e5m2(draw_f32(bits, v));
}
template <>
inline brgemm::tf32 draw_element<brgemm::tf32>(std::uint64_t bits, values v) {
  return {draw_f32(bits, v)};
}
/// Bytes: everything, small ones, or (special) the extremes, which saturate an instruction that may not be used.
template <>
inline std::uint8_t draw_element<std::uint8_t>(std::uint64_t bits, values v) {
  if (v == values::integers) return static_cast<std::uint8_t>(bits % 9);
  if (v == values::special) return static_cast<std::uint8_t>(0xff807f00u >> (bits % 4 * 8));
  return static_cast<std::uint8_t>(bits);
}
template <>
inline std::int8_t draw_element<std::int8_t>(std::uint64_t bits, values v) {
  return static_cast<std::int8_t>(draw_element<std::uint8_t>(bits, v));
}
template <>
inline std::int32_t draw_element<std::int32_t>(std::uint64_t bits, values v) {
  return v == values::integers ? static_cast<std::int32_t>(bits % 1000) : static_cast<std::int32_t>(bits);
}

/// Calls f with an element of type t, for its type.
template <class F>
auto with_type(brgemm::type t, F&& f) {
  switch (t) {
    case brgemm::type::f64: return f(double{});
    case brgemm::type::bf16: return f(brgemm::bf16{});
    case brgemm::type::f16: return f(brgemm::f16{});
    case brgemm::type::s8: return f(std::int8_t{});
    case brgemm::type::u8: return f(std::uint8_t{});
    case brgemm::type::s32: return f(std::int32_t{});
    case brgemm::type::e4m3: return f(brgemm::e4m3{});
    case brgemm::type::e5m2: return f(brgemm::e5m2{});
    case brgemm::type::tf32: return f(brgemm::tf32{});
    case brgemm::type::f32: break;
  }
  return f(float{});
}

inline void draw_elements(entropy& e, brgemm::type t, values v, std::byte* to, index count) {
  with_type(t, [&]<class T>(T) {
    for (index i = 0; i < count; ++i, to += sizeof(T)) {
      const T x = draw_element<T>(e.bits(), v);
      std::memcpy(to, &x, sizeof(T));
    }
  });
}

/// A NaN of its type? Integers are none.
inline bool is_nan(brgemm::type t, const std::byte* at) {
  return with_type(t, [&]<class T>(T x) {
    std::memcpy(&x, at, sizeof(T));
    if constexpr (std::is_floating_point_v<T>) return std::isnan(x);
    if constexpr (requires { to_f32(x); }) return std::isnan(to_f32(x));
    return false;
  });
}

/// Rows of elements, `ld` apart; gaps between rows are not part of the matrix.
struct matrix {
  brgemm::type element = brgemm::type::f32;
  brgemm::detail::storage stored;  ///< columns count lanes of `group` elements
  index ld = 0;
  index pitch() const { return ld * stored.group * size_of(element); }
  index width() const { return stored.columns * stored.group * size_of(element); }
  std::size_t size() const { return static_cast<std::size_t>(brgemm::detail::bytes_of(stored, ld, size_of(element))); }
};

/// Random rows; the gaps are left alone.
inline void draw_rows(entropy& e, const matrix& x, values v, std::byte* to) {
  if (x.size() == 0) return;
  for (index r = 0; r < x.stored.rows; ++r) {
    draw_elements(e, x.element, v, to + r * x.pitch(), x.stored.columns * x.stored.group);
  }
}

/// A or B of all entries: one block of bytes and where in it (in elements) each entry begins.
struct batch_side {
  matrix of;
  bytes block;
  std::vector<index> begins;
  index begin_bytes(std::size_t entry) const { return begins[entry] * size_of(of.element); }
};

struct operand {
  bool present = false;
  bool is_c = false;     ///< the operand is C itself
  bool written = false;  ///< a mask
  matrix of;
  bytes data;
};

/// What a call wrote: C and the masks, gaps included.
struct outputs {
  bytes c;
  bytes mask[brgemm::max_epilogue];
};

struct problem {
  desc d;
  index m = 0;
  batch_side a, b;
  matrix of_c;
  bytes c;
  operand operands[brgemm::max_epilogue];
  double alpha = 1, beta = 1;
  std::int32_t zero_a = 0, zero_b = 0;
  index prefetch = 0;
  index lda = 0, ldb = 0, ldc = 0;
};

/// Element (k,j) of B in its storage, in elements from the entry's begin.
inline index offset_in_b(const problem& p, index k, index j) {
  const index ld = p.b.of.ld, group = p.b.of.stored.group;
  if (p.d.layout_b == brgemm::layout::transposed) return j * ld + k;
  return (k / group * ld + j) * group + k % group;
}

/// The missing k of the last group are zero, as pack_b leaves them.
inline void clear_padding(problem& p) {
  if (p.d.layout_b != brgemm::layout::interleaved) return;
  const index group = p.b.of.stored.group, element = size_of(p.b.of.element);
  for (std::size_t entry = 0; entry < p.b.begins.size(); ++entry) {
    std::byte* const at = p.b.block.data() + p.b.begin_bytes(entry);
    for (index k = p.d.k; k % group != 0; ++k) {
      for (index j = 0; j < p.d.n; ++j)
        std::memset(at + offset_in_b(p, k, j) * element, 0, static_cast<std::size_t>(element));
    }
  }
}

inline void draw_side(entropy& e, const desc& d, index entries, index stride, values v, batch_side& s) {
  const auto elements = static_cast<index>(s.of.size()) / size_of(s.of.element);
  index lowest = 0, end = elements;
  for (index i = 0; i < entries; ++i) {
    const index begin = d.batch == brgemm::batch_kind::strides ? i * stride
                        : e.one_in(4)                          ? e.between(0, elements * entries)
                                                               : i * (elements + e.between(0, 3));
    s.begins.push_back(begin);
    lowest = std::min(lowest, begin);
    end = std::max(end, begin + elements);
  }
  for (index& begin : s.begins) begin -= lowest;
  s.block.assign(static_cast<std::size_t>((end - lowest) * size_of(s.of.element)), std::byte{0xff});  // NaN in the gaps
  for (std::size_t i = 0; i < s.begins.size(); ++i) draw_rows(e, s.of, v, s.block.data() + s.begin_bytes(i));
}

inline void draw_operand(entropy& e, const desc& d, index m, index ld, index ldc, const brgemm::epilogue_op& o,
                         operand& out);

inline double draw_factor(entropy& e) {
  return e.pick({0.0, -0.0, 1.0, -1.0, 0.5, 1.0 / 3, -2.75, static_cast<double>(e.between(-1000, 1000)) / 999});
}

/// Where a call may not read C, its elements are NaN.
inline void poison_unread_c(problem& p) {
  const bool unread = p.d.beta == brgemm::beta_kind::zero || (p.d.beta == brgemm::beta_kind::at_call && p.beta == 0);
  if (!unread || std::any_of(std::begin(p.operands), std::end(p.operands), [](const operand& o) { return o.is_c; }))
    return;
  for (index row = 0; row < p.of_c.stored.rows; ++row) {
    std::memset(p.c.data() + row * p.of_c.pitch(), 0xff, static_cast<std::size_t>(p.of_c.width()));
  }
}

/// Data for `entries` batch entries.
inline problem draw_problem(entropy& e, const drawn_desc& drawn, index entries, values v) {
  problem p;
  p.d = drawn.d;
  p.m = drawn.m;
  p.lda = drawn.lda, p.ldb = drawn.ldb, p.ldc = drawn.ldc;
  p.a.of = {p.d.a, brgemm::detail::storage_of_a(p.d, p.m), drawn.lda};
  p.b.of = {p.d.b, brgemm::detail::storage_of_b(p.d), drawn.ldb};
  p.of_c = {p.d.c, {p.m, p.d.n, 1}, drawn.ldc};
  draw_side(e, p.d, entries, p.d.stride_a, v, p.a);
  draw_side(e, p.d, entries, p.d.stride_b, v, p.b);
  clear_padding(p);
  const bool streaming =
      p.d.write_c == brgemm::write_kind::streaming;  // C is on lines: what is left of one belongs to p.c
  constexpr auto line = static_cast<std::size_t>(brgemm::detail::streaming_alignment);
  p.c.assign(streaming ? (p.of_c.size() + line - 1) / line * line : p.of_c.size(), std::byte{0xa5});
  draw_rows(e, p.of_c, v, p.c.data());
  for (int i = 0; i < p.d.epilogue_size; ++i) {
    draw_operand(e, p.d, p.m, drawn.operand_ld[i], drawn.ldc, p.d.epilogue[i], p.operands[i]);
  }
  p.alpha = draw_factor(e);
  p.beta = draw_factor(e);
  poison_unread_c(p);
  p.zero_a = static_cast<std::int32_t>(e.between(-128, 255));
  p.zero_b = static_cast<std::int32_t>(e.between(-128, 255));
  if (p.d.prefetch != 0) p.prefetch = e.between(-(index{1} << 40), index{1} << 40);
  return p;
}

inline void draw_operand(entropy& e, const desc& d, index m, index ld, index ldc, const brgemm::epilogue_op& o,
                         operand& out) {
  if (!brgemm::detail::has_operand(o.kind)) return;
  out.present = true;
  out.written = brgemm::detail::is_written(o.kind);
  out.of = {o.operand, brgemm::detail::storage_of_operand(d, o, m), ld};
  if (brgemm::detail::is_vector(o.kind)) out.of.ld = out.of.stored.columns;
  out.is_c = brgemm::detail::is_read_matrix(o.kind) && o.operand == d.c && ld == ldc && e.one_in(2);
  out.data.assign(out.of.size(), std::byte{0xff});
  draw_rows(e, out.of, e.pick({values::unit, values::unit, values::integers, values::special}), out.data.data());
}

inline problem draw_problem(entropy& e, const drawn_desc& drawn, index entries) {
  const values v = e.pick({values::unit, values::unit, values::unit, values::unit, values::integers, values::wild,
                           values::special, values::special});
  return draw_problem(e, drawn, entries, v);
}

/// Guarded rooms for every piece of memory that a call touches, large enough for every problem drawn.
class problem_memory {
 public:
  problem_memory(index entries, std::size_t matrix_bytes) {
    for (index i = 0; i < entries; ++i) {
      const std::size_t room = i == 0 ? matrix_bytes * static_cast<std::size_t>(2 * entries + 1) : matrix_bytes;
      a.emplace_back(room);
      b.emplace_back(room);
    }
    for (int i = 0; i < brgemm::max_epilogue; ++i) operands.emplace_back(matrix_bytes);
    c = std::make_unique<guarded_memory>(matrix_bytes);
    pairs = std::make_unique<guarded_memory>(static_cast<std::size_t>(entries) * sizeof(brgemm::offset_pair));
    sums = std::make_unique<guarded_memory>(matrix_bytes);
  }
  std::vector<guarded_memory> a, b, operands;
  std::unique_ptr<guarded_memory> c, pairs, sums;
  bytes columns;
};

inline std::byte* put(const guarded_memory& room, guard side, const std::byte* from, std::size_t size) {
  std::byte* const at = room.place(size, side);
  if (size != 0) std::memcpy(at, from, size);
  return at;
}

/// Places the first `batch` entries of one side as one block; returns where its byte 0 would be.
inline std::byte* place_block(const batch_side& s, index batch, guard side, const guarded_memory& room) {
  if (batch == 0 || s.of.size() == 0) return room.place(0, side);
  index low = s.begin_bytes(0), high = low;
  for (std::size_t i = 1; i < static_cast<std::size_t>(batch); ++i) {
    low = std::min(low, s.begin_bytes(i));
    high = std::max(high, s.begin_bytes(i));
  }
  const std::size_t size = static_cast<std::size_t>(high - low) + s.of.size();
  return put(room, side, s.block.data() + low, size) - low;
}

/// sum over entries and k of B, for every column.
inline std::vector<std::int32_t> column_sums_of(const problem& p, index batch) {
  std::vector<std::int32_t> sums(static_cast<std::size_t>(p.d.n));
  for (std::size_t entry = 0; entry < static_cast<std::size_t>(batch); ++entry) {
    const std::byte* const at = p.b.block.data() + p.b.begin_bytes(entry);
    for (index k = 0; k < p.d.k; ++k) {
      for (index j = 0; j < p.d.n; ++j) {
        const auto element = std::to_integer<std::uint8_t>(at[offset_in_b(p, k, j)]);
        sums[static_cast<std::size_t>(j)] += p.d.b == brgemm::type::s8 ? static_cast<std::int8_t>(element) : element;
      }
    }
  }
  return sums;
}

inline void place_batch(const problem& p, index batch, guard side, const problem_memory& memory, brgemm::arguments& x) {
  x.batch = batch;
  const auto count = static_cast<std::size_t>(batch);
  if (p.d.batch == brgemm::batch_kind::addresses) {
    auto* const pairs =
        reinterpret_cast<brgemm::address_pair*>(memory.pairs->place(count * sizeof(brgemm::address_pair), side));
    for (std::size_t i = 0; i < count; ++i) {
      pairs[i].a = put(memory.a[i], side, p.a.block.data() + p.a.begin_bytes(i), p.a.of.size());
      pairs[i].b = put(memory.b[i], side, p.b.block.data() + p.b.begin_bytes(i), p.b.of.size());
    }
    x.pairs = pairs;
    return;
  }
  std::byte* const a = place_block(p.a, batch, side, memory.a[0]);
  std::byte* const b = place_block(p.b, batch, side, memory.b[0]);
  if (p.d.batch == brgemm::batch_kind::strides) {
    x.a = batch == 0 ? a : a + p.a.begin_bytes(0);
    x.b = batch == 0 ? b : b + p.b.begin_bytes(0);
    return;
  }
  constexpr index shift = 5;  // the base need not be where an entry begins
  x.a = a + shift * size_of(p.d.a);
  x.b = b + shift * size_of(p.d.b);
  auto* const pairs =
      reinterpret_cast<brgemm::offset_pair*>(memory.pairs->place(count * sizeof(brgemm::offset_pair), side));
  for (std::size_t i = 0; i < count; ++i) pairs[i] = {p.a.begins[i] - shift, p.b.begins[i] - shift};
  x.pairs = pairs;
}

/// Copies the problem's first `batch` entries into guarded memory.
inline brgemm::arguments place(const problem& p, index batch, guard side, const problem_memory& memory) {
  brgemm::arguments x;
  place_batch(p, batch, side, memory, x);
  x.c = put(*memory.c, side, p.c.data(), p.c.size());
  x.m = p.m, x.lda = p.lda, x.ldb = p.ldb, x.ldc = p.ldc;
  x.alpha = p.alpha, x.beta = p.beta;
  x.zero_a = p.zero_a, x.zero_b = p.zero_b;
  x.prefetch = p.prefetch;
  if (p.d.zero_a == brgemm::zero_point::at_call) {
    const auto sums = column_sums_of(p, batch);
    x.column_sums = reinterpret_cast<const std::int32_t*>(
        put(*memory.sums, side, reinterpret_cast<const std::byte*>(sums.data()), sums.size() * 4));
  }
  for (std::size_t i = 0; i < p.d.epilogue_size; ++i) {
    const operand& o = p.operands[i];
    if (!o.present) continue;
    x.operand[i] = o.is_c ? x.c : put(memory.operands[i], side, o.data.data(), o.data.size());
    x.operand_ld[i] = o.of.ld;
  }
  return x;
}

/// Gives what a call writes its first contents back.
inline void reset_outputs(const problem& p, const brgemm::arguments& x) {
  std::memcpy(x.c, p.c.data(), p.c.size());
  for (std::size_t i = 0; i < p.d.epilogue_size; ++i) {
    if (p.operands[i].written) std::memcpy(x.operand[i], p.operands[i].data.data(), p.operands[i].data.size());
  }
}

inline outputs collect(const problem& p, const brgemm::arguments& x) {
  const auto copy = [](const void* from, std::size_t size) {
    const auto* const at = static_cast<const std::byte*>(from);
    return bytes(at, at + size);
  };
  outputs out;
  out.c = copy(x.c, p.c.size());
  for (std::size_t i = 0; i < p.d.epilogue_size; ++i) {
    if (p.operands[i].written) out.mask[i] = copy(x.operand[i], p.operands[i].data.size());
  }
  return out;
}

/// What differs, in words; empty where nothing does. NaNs compare as a class, gaps between rows bit by bit.
inline std::string difference(const matrix& x, std::span<const std::byte> expected, const void* data) {
  const auto* const actual = static_cast<const std::byte*>(data);
  if (expected.empty() || std::memcmp(expected.data(), actual, expected.size()) == 0) return {};
  const index element = size_of(x.element);
  for (index at = 0; at < static_cast<index>(expected.size()); at += element) {
    const std::byte* const e = expected.data() + at;
    if (std::memcmp(e, actual + at, static_cast<std::size_t>(element)) == 0) continue;
    const index row = at / x.pitch(), column = at % x.pitch() / element;
    const bool gap = column >= x.stored.columns;
    if (!gap && is_nan(x.element, e) && is_nan(x.element, actual + at)) continue;
    std::uint64_t wanted = 0, got = 0;
    std::memcpy(&wanted, e, static_cast<std::size_t>(element));
    std::memcpy(&got, actual + at, static_cast<std::size_t>(element));
    char text[160];
    std::snprintf(text, sizeof text, "%s[%ld,%ld] (%s) is 0x%lx, expected 0x%lx", gap ? "behind the row: " : "", row,
                  column, name_of(x.element).data(), got, wanted);
    return text;
  }
  return {};
}

inline std::string difference(const problem& p, const outputs& expected, const brgemm::arguments& x) {
  if (const auto text = difference(p.of_c, expected.c, x.c); !text.empty()) return "C" + text;
  for (std::size_t i = 0; i < p.d.epilogue_size; ++i) {
    if (!p.operands[i].written) continue;
    const auto text = difference(p.operands[i].of, expected.mask[i], x.operand[i]);
    if (!text.empty()) return "mask of step " + std::to_string(i) + text;
  }
  return {};
}

/// Whether a call left the bytes between the rows of C and of masks alone.
inline std::string touched_gap(const problem& p, const outputs& after) {
  const auto check = [](const matrix& x, const bytes& before, const bytes& now) -> std::string {
    for (index row = 0; row + 1 < x.stored.rows; ++row) {
      const auto begin = static_cast<std::size_t>(row * x.pitch() + x.width());
      const auto size = static_cast<std::size_t>(x.pitch() - x.width());
      if (std::memcmp(before.data() + begin, now.data() + begin, size) != 0)
        return "wrote behind row " + std::to_string(row);
    }
    return {};
  };
  if (auto text = check(p.of_c, p.c, after.c); !text.empty()) return text;
  for (std::size_t i = 0; i < p.d.epilogue_size; ++i) {
    if (!p.operands[i].written) continue;
    if (auto text = check(p.operands[i].of, p.operands[i].data, after.mask[i]); !text.empty()) return text;
  }
  return {};
}

/// One line for a failure's message.
inline std::string text_of(const problem& p, index batch, guard side) {
  std::string text = std::string(std::string_view(name_of(p.d)));
  text += " m=" + std::to_string(p.m) + " batch=" + std::to_string(batch);
  return text + (side == guard::before ? " page before" : " page after");
}

}  // namespace brgemm_test
