// Packing: B into the interleaved layout that the bf16 and 8-bit instructions read, transposed A and B into plain ones,
// and the sums over k that zero points need.
#pragma once

#include <emmintrin.h>

#include <cstring>

#include "../core/validate.hpp"
#include "../core/view.hpp"

namespace brgemm::inline abi_0 {

/// An element type whose interleaved layout differs from the plain one.
template <class T>
concept grouped_element = element<T> &&(k_group_of(element_traits<T>::value) > 1);

template <class T>
concept ungrouped_element = element<T> && !grouped_element<T>;

/// T or const T.
template <class S, class T>
concept same_element_as = std::is_same_v<std::remove_const_t<S>, T>;

/// A matrix to pack, where its type is known at run time only.
struct packing {
  type element = type::f32;
  index rows = 0;                 ///< of the packed matrix: m of A, k of B
  index columns = 0;              ///< k of A, n of B
  layout stored = layout::plain;  ///< plain (rows,columns), or transposed (columns,rows)
  const void* from = nullptr;
  index ld_from = 0;
  void* to = nullptr;
  index ld_to = 0;  ///< interleaved: counts columns of groups
};

namespace detail {

inline constexpr index pack_block = 16;  // rows and columns moved together: their lines stay in the first cache

/// Bits of an element: packing moves them and looks at none.
template <int Bytes>
struct word;
template <>
struct word<1> {
  using type = std::uint8_t;
};
template <>
struct word<2> {
  using type = std::uint16_t;
};
template <>
struct word<4> {
  using type = std::uint32_t;
};
template <>
struct word<8> {
  using type = std::uint64_t;
};

/// to[c * ld_to + r] = from[r * ld_from + c], r < rows, c < columns: block by block.
template <class Word>
void transpose(const Word* from, index ld_from, Word* to, index ld_to, index rows, index columns) noexcept {
  for (index r0 = 0; r0 < rows; r0 += pack_block) {
    const index r1 = rows - r0 < pack_block ? rows : r0 + pack_block;
    for (index c0 = 0; c0 < columns; c0 += pack_block) {
      const index c1 = columns - c0 < pack_block ? columns : c0 + pack_block;
      for (index c = c0; c < c1; ++c) {
        for (index r = r0; r < r1; ++r) to[c * ld_to + r] = from[r * ld_from + c];
      }
    }
  }
}

/// A 4x4 block of 4-byte words, through registers; rows are `pitch` bytes apart and need no alignment.
inline void transpose_4x4(const std::byte* from, index pitch_from, std::byte* to, index pitch_to) noexcept {
  const auto row = [&](index r) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + r * pitch_from)); };
  const __m128i low_01 = _mm_unpacklo_epi32(row(0), row(1));
  const __m128i low_23 = _mm_unpacklo_epi32(row(2), row(3));
  const __m128i high_01 = _mm_unpackhi_epi32(row(0), row(1));
  const __m128i high_23 = _mm_unpackhi_epi32(row(2), row(3));
  const auto store = [&](index r, __m128i x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to + r * pitch_to), x); };
  store(0, _mm_unpacklo_epi64(low_01, low_23));
  store(1, _mm_unpackhi_epi64(low_01, low_23));
  store(2, _mm_unpacklo_epi64(high_01, high_23));
  store(3, _mm_unpackhi_epi64(high_01, high_23));
}

/// One block of words, of at most pack_block rows and columns. It is turned in a buffer, so that each line of the
/// source and of the target is touched once: rows a power of two apart fall on the same lines of a cache.
inline void transpose_block(const std::byte* from, index pitch_from, std::byte* to, index pitch_to, index rows,
                            index columns) noexcept {
  constexpr index pitch = pack_block * 4;
  alignas(64) std::byte turned[pack_block * pitch];
  const index whole_rows = rows / 4 * 4;
  const index whole_columns = columns / 4 * 4;
  for (index r = 0; r < whole_rows; r += 4) {
    for (index c = 0; c < whole_columns; c += 4) {
      transpose_4x4(from + r * pitch_from + c * 4, pitch_from, turned + c * pitch + r * 4, pitch);
    }
  }
  for (index r = 0; r < rows; ++r) {
    for (index c = r < whole_rows ? whole_columns : 0; c < columns; ++c) {
      std::memcpy(turned + c * pitch + r * 4, from + r * pitch_from + c * 4, 4);
    }
  }
  for (index c = 0; c < columns; ++c) {
    std::memcpy(to + c * pitch_to, turned + c * pitch, static_cast<std::size_t>(rows) * 4);
  }
}

/// 4-byte words (rows,columns) to (columns,rows), wherever they stand; pitches in bytes.
inline void transpose_unaligned(const void* from, index pitch_from, void* to, index pitch_to, index rows,
                                index columns) noexcept {
  for (index r = 0; r < rows; r += pack_block) {
    const index rows_here = rows - r < pack_block ? rows - r : pack_block;
    for (index c = 0; c < columns; c += pack_block) {
      const index columns_here = columns - c < pack_block ? columns - c : pack_block;
      transpose_block(static_cast<const std::byte*>(from) + r * pitch_from + c * 4, pitch_from,
                      static_cast<std::byte*>(to) + c * pitch_to + r * 4, pitch_to, rows_here, columns_here);
    }
  }
}

/// Plain (k,n) to interleaved (ceil(k/Group), n, Group); the missing k of the last group are zero.
template <class Word, int Group>
void interleave(const Word* from, index ld_from, Word* to, index ld_to, index k, index n) noexcept {
  for (index group = 0; group * Group < k; ++group) {
    const Word* const rows = from + group * Group * ld_from;
    Word* const lanes = to + group * ld_to * Group;
    const index present = k - group * Group < Group ? k - group * Group : Group;
    if (present == Group) {
      for (index j = 0; j < n; ++j) {
        for (index r = 0; r < Group; ++r) lanes[j * Group + r] = rows[r * ld_from + j];
      }
    } else {
      for (index j = 0; j < n; ++j) {
        for (index r = 0; r < Group; ++r) lanes[j * Group + r] = r < present ? rows[r * ld_from + j] : Word{0};
      }
    }
  }
}

/// Transposed (n,k) to interleaved: a group of either type is one word of 4 bytes, which moves as it stands.
template <class Word, int Group>
void interleave_transposed(const Word* from, index ld_from, Word* to, index ld_to, index k, index n) noexcept {
  static_assert(sizeof(Word) * Group == 4);
  const index whole = k / Group;
  transpose_unaligned(from, ld_from * index{sizeof(Word)}, to, ld_to * 4, n, whole);
  if (whole * Group == k) return;
  Word* const last = to + whole * ld_to * Group;
  for (index j = 0; j < n; ++j) {
    for (index r = 0; r < Group; ++r) {
      last[j * Group + r] = whole * Group + r < k ? from[j * ld_from + whole * Group + r] : Word{0};
    }
  }
}

template <class Word>
void copy_rows(const Word* from, index ld_from, Word* to, index ld_to, index rows, index columns) noexcept {
  for (index r = 0; r < rows; ++r) {
    std::memcpy(to + r * ld_to, from + r * ld_from, static_cast<std::size_t>(columns) * sizeof(Word));
  }
}

/// sums[c] += from[r * row + c * column] over r < rows, for c < columns; 8-bit elements, modulo 2^32. In blocks of
/// columns, so that either order of storage is read along its rows.
template <class T>
void add_sums(const T* from, index row, index column, index rows, index columns, std::int32_t* sums) noexcept {
  for (index c0 = 0; c0 < columns; c0 += 64) {
    const index c1 = columns - c0 < 64 ? columns : c0 + 64;
    std::uint32_t block[64] = {};
    for (index r = 0; column == 1 && r < rows; ++r) {
      for (index c = c0; c < c1; ++c) block[c - c0] += static_cast<std::uint32_t>(from[r * row + c]);
    }
    for (index c = c0; column != 1 && c < c1; ++c) {
      for (index r = 0; r < rows; ++r) block[c - c0] += static_cast<std::uint32_t>(from[r * row + c * column]);
    }
    for (index c = c0; c < c1; ++c) {
      sums[c] = static_cast<std::int32_t>(static_cast<std::uint32_t>(sums[c]) + block[c - c0]);
    }
  }
}

inline void add_sums(type t, const void* from, index row, index column, index rows, index columns,
                     std::int32_t* sums) noexcept {
  if (t == type::u8) add_sums(static_cast<const std::uint8_t*>(from), row, column, rows, columns, sums);
  if (t == type::s8) add_sums(static_cast<const std::int8_t*>(from), row, column, rows, columns, sums);
}

template <class Word>
void move_plain(const packing& p) noexcept {
  const Word* const from = static_cast<const Word*>(p.from);
  Word* const to = static_cast<Word*>(p.to);
  constexpr index bytes = sizeof(Word);
  if (p.stored == layout::plain) return copy_rows(from, p.ld_from, to, p.ld_to, p.rows, p.columns);
  if (bytes == 4) return transpose_unaligned(from, p.ld_from * bytes, to, p.ld_to * bytes, p.columns, p.rows);
  transpose(from, p.ld_from, to, p.ld_to, p.columns, p.rows);
}

template <class Word, int Group>
void move_interleaved(const packing& p) noexcept {
  const Word* const from = static_cast<const Word*>(p.from);
  Word* const to = static_cast<Word*>(p.to);
  if (p.stored == layout::transposed) {
    return interleave_transposed<Word, Group>(from, p.ld_from, to, p.ld_to, p.rows, p.columns);
  }
  interleave<Word, Group>(from, p.ld_from, to, p.ld_to, p.rows, p.columns);
}

inline void move_plain(const packing& p, index bytes) noexcept {
  switch (bytes) {
    case 1: return move_plain<word<1>::type>(p);
    case 2: return move_plain<word<2>::type>(p);
    case 4: return move_plain<word<4>::type>(p);
    default: return move_plain<word<8>::type>(p);
  }
}

/// The sums that a packing adds to: column_sums of B, row_sums of A; null where none are wanted.
struct packing_sums {
  const char* name;
  const std::int32_t* data;
  index count;
};

/// They are written beside the packed matrix: where that or the source is, one would destroy the other.
inline result<void> check_packing_sums(const packing_sums& s, const region& from, const region& to) noexcept {
  if (s.data == nullptr) return {};
  if (auto r = check_pointer(s.name, s.data, sizeof(std::int32_t)); !r) return r;
  const region sums = region_of(s.data, {1, s.count, 1}, s.count, sizeof(std::int32_t));
  const bool is_source = overlap(sums, from);
  if (!is_source && !overlap(sums, to)) return {};
  const region& other = is_source ? from : to;
  return error(errc::invalid_argument, s.name, "%s (%ld at %p) overlaps the %s at %#lx..%#lx", s.name, s.count,
               static_cast<const void*>(s.data), is_source ? "source" : "packed matrix",
               static_cast<unsigned long>(other.address), static_cast<unsigned long>(other.end()));
}

inline result<void> check_packing(const packing& p, index group, const packing_sums& sums) noexcept {
  if (p.stored == layout::interleaved || static_cast<int>(p.stored) > 2) {
    return error(errc::invalid_argument, "stored", "stored is %d; plain (0) or transposed (1) can be packed",
                 static_cast<int>(p.stored));
  }
  if (p.rows < 0) return error(errc::invalid_argument, "rows", "the packed matrix has %ld rows", p.rows);
  if (p.columns < 0) return error(errc::invalid_argument, "columns", "the packed matrix has %ld columns", p.columns);
  if (sums.data != nullptr && !is_8bit(p.element)) {
    return error(errc::unsupported, sums.name, "%s is of u8 and s8, not of %s", sums.name, name_of(p.element).data());
  }
  if (!is_known(p.element)) {
    return error(errc::invalid_argument, "element", "element is %d, which is no type", static_cast<int>(p.element));
  }
  const bool transposed = p.stored == layout::transposed;
  const storage from = transposed ? storage{p.columns, p.rows, 1} : storage{p.rows, p.columns, 1};
  const storage to{p.rows / group + (p.rows % group != 0), p.columns, group};
  const index bytes = size_of(p.element);
  if (auto r = check_call_storage("the source", "ld_from", from, p.ld_from, bytes); !r) return r;
  if (auto r = check_call_storage("the packed matrix", "ld_to", to, p.ld_to, bytes); !r) return r;
  if (is_empty(from)) return {};
  if (auto r = check_pointer("from", p.from, bytes); !r) return r;
  if (auto r = check_pointer("to", p.to, bytes); !r) return r;
  const region read = region_of(p.from, from, p.ld_from, bytes);
  const region packed = region_of(p.to, to, p.ld_to, bytes);
  if (overlap(read, packed)) {
    return error(errc::invalid_argument, "to", "the packed matrix at %p overlaps the source at %p", p.to, p.from);
  }
  return check_packing_sums(sums, read, packed);
}

inline result<void> check_rows_of_elements(const char* field, index stride) noexcept {
  if (stride == 1) return {};
  return error(errc::invalid_argument, field, "%s has elements %ld apart in its last dimension; they must be adjacent",
               field, stride);
}

}  // namespace detail

/// Packs B (k,n) by run-time type: interleaved (ceil(k/g), n, g) where the type has groups of k, else plain (k,n).
/// As the typed pack_b below, with rows `ld` apart.
inline result<void> pack_b(const packing& p, std::int32_t* column_sums = nullptr) noexcept {
  const index group = k_group_of(p.element);
  if (auto r = detail::check_packing(p, group, {"column_sums", column_sums, p.columns}); !r) return r;
  if (p.rows == 0 || p.columns == 0) return {};
  if (group == 1) detail::move_plain(p, size_of(p.element));
  if (group == 2) detail::move_interleaved<detail::word<2>::type, 2>(p);
  if (group == 4) detail::move_interleaved<detail::word<1>::type, 4>(p);
  if (column_sums == nullptr) return {};
  const bool transposed = p.stored == layout::transposed;
  detail::add_sums(p.element, p.from, transposed ? 1 : p.ld_from, transposed ? p.ld_from : 1, p.rows, p.columns,
                   column_sums);
  return {};
}

/// Packs A (m,k) by run-time type, into the plain layout. As the typed pack_a below, with rows `ld` apart.
inline result<void> pack_a(const packing& p, std::int32_t* row_sums = nullptr) noexcept {
  if (auto r = detail::check_packing(p, 1, {"row_sums", row_sums, p.rows}); !r) return r;
  if (p.rows == 0 || p.columns == 0) return {};
  detail::move_plain(p, size_of(p.element));
  if (row_sums == nullptr) return {};
  const bool transposed = p.stored == layout::transposed;
  detail::add_sums(p.element, p.from, transposed ? p.ld_from : 1, transposed ? 1 : p.ld_from, p.columns, p.rows,
                   row_sums);
  return {};
}

/// Bytes of one B of `d` as pack_b writes it: k padded to whole groups, rows of ldb columns where d's layout_b is
/// interleaved and its ldb fixed, else of n. 0 for k = 0; -1 where it is more than 2^63 - 1.
constexpr index packed_b_bytes(const desc& d) noexcept {
  desc packed = d;
  packed.layout_b = layout::interleaved;
  const bool fixed = d.layout_b == layout::interleaved && d.ldb != at_call;
  return detail::bytes_of(detail::storage_of_b(packed), fixed ? d.ldb : d.n, size_of(d.b));
}

/// Packs one B of bf16, u8 or s8 into the interleaved layout (layout_b = interleaved, ldb = packed's stride(0) /
/// group).
///
/// b       (k,n) where `stored` is plain, (n,k) where it is transposed; rows of adjacent elements, stride(0) apart
/// packed  (ceil(k/g), n, g), g = k_group_of(type): 2 for bf16, 4 for u8 and s8; stride(1) = g, stride(2) = 1,
///         stride(0) a multiple of g. packed(p,j,r) = B(p*g + r, j), and zero where p*g + r >= k. Only these elements
///         are written.
/// column_sums  (n) or null, u8 and s8 only: the sum of B over k is added to each, modulo 2^32. Begin with zeros, and
/// pack
///         all entries of a batch into one: then it is what arguments.column_sums asks for.
///
/// b, packed and column_sums must not overlap. Errors: invalid_argument (shapes, strides, null, alignment, overlap),
/// unsupported (sums of bf16); nothing is written before. Thread-safe for disjoint outputs.
template <grouped_element T, same_element_as<T> S>
result<void> pack_b(view<S, 2> b, layout stored, view<T, 3> packed, std::int32_t* column_sums = nullptr) noexcept {
  constexpr type t = element_traits<T>::value;
  constexpr index group = k_group_of(t);
  const bool transposed = stored == layout::transposed;
  const index k = b.extent(transposed ? 1 : 0);
  const index n = b.extent(transposed ? 0 : 1);
  if (auto r = detail::check_rows_of_elements("b", b.stride(1)); !r) return r;
  if (auto r = detail::check_rows_of_elements("packed", packed.stride(2)); !r) return r;
  const index groups = k / group + (k % group > 0);
  if (packed.extent(0) != groups || packed.extent(1) != n || packed.extent(2) != group) {
    return error(errc::invalid_argument, "packed", "packed is (%ld,%ld,%ld), but B (%ld,%ld) needs (%ld,%ld,%ld)",
                 packed.extent(0), packed.extent(1), packed.extent(2), k, n, groups, n, group);
  }
  if (packed.stride(1) != group || packed.stride(0) % group != 0) {
    return error(errc::invalid_argument, "packed",
                 "packed has strides (%ld,%ld,1); they must be (a multiple of %ld,%ld,1)", packed.stride(0),
                 packed.stride(1), group, group);
  }
  return pack_b(packing{t, k, n, stored, b.data(), b.stride(0), packed.data(), packed.stride(0) / group}, column_sums);
}

/// Packs one B of f32, f64 or f16, which have no groups of k, into the plain layout.
/// b (k,n) where `stored` is plain, (n,k) where it is transposed; packed (k,n). Otherwise as above.
template <ungrouped_element T, same_element_as<T> S>
result<void> pack_b(view<S, 2> b, layout stored, view<T, 2> packed) noexcept {
  const bool transposed = stored == layout::transposed;
  const index k = b.extent(transposed ? 1 : 0);
  const index n = b.extent(transposed ? 0 : 1);
  if (auto r = detail::check_rows_of_elements("b", b.stride(1)); !r) return r;
  if (auto r = detail::check_rows_of_elements("packed", packed.stride(1)); !r) return r;
  if (packed.extent(0) != k || packed.extent(1) != n) {
    return error(errc::invalid_argument, "packed", "packed is (%ld,%ld), but B is (%ld,%ld)", packed.extent(0),
                 packed.extent(1), k, n);
  }
  return pack_b(
      packing{element_traits<T>::value, k, n, stored, b.data(), b.stride(0), packed.data(), packed.stride(0)});
}

/// Packs one A of any type into the plain layout.
///
/// a       (m,k) where `stored` is plain, (k,m) where it is transposed; rows of adjacent elements, stride(0) apart
/// packed  (m,k), rows of adjacent elements; only these elements are written
/// row_sums  (m) or null, u8 and s8 only: the sum of A over k is added to each, modulo 2^32
///
/// Aliasing, errors and threads as for pack_b.
template <element T, same_element_as<T> S>
result<void> pack_a(view<S, 2> a, layout stored, view<T, 2> packed, std::int32_t* row_sums = nullptr) noexcept {
  const bool transposed = stored == layout::transposed;
  const index m = a.extent(transposed ? 1 : 0);
  const index k = a.extent(transposed ? 0 : 1);
  if (auto r = detail::check_rows_of_elements("a", a.stride(1)); !r) return r;
  if (auto r = detail::check_rows_of_elements("packed", packed.stride(1)); !r) return r;
  if (packed.extent(0) != m || packed.extent(1) != k) {
    return error(errc::invalid_argument, "packed", "packed is (%ld,%ld), but A is (%ld,%ld)", packed.extent(0),
                 packed.extent(1), m, k);
  }
  return pack_a(packing{element_traits<T>::value, m, k, stored, a.data(), a.stride(0), packed.data(), packed.stride(0)},
                row_sums);
}

}  // namespace brgemm::inline abi_0
