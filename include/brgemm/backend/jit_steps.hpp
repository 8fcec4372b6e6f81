// One entry of the batch, step by step of k: the four ways a block of a generated kernel can sum.
//
// - Plain: vectors of B are held while broadcasts of A pass, or the other way round.
// - B stored (n,k): a tile of B is turned in registers, then its steps are summed.
// - Packed rows: where the last vector of a row of C has at most 8 (or 4) columns, 2 (or 4) rows share one vector of
//   accumulators. B's vector is loaded once for each of them, A's broadcasts are blended: one product for 2 (or 4)
//   rows.
// - Depthwise: each vector of C has its own of A.
#pragma once

#include <algorithm>
#include <compare>

#include "jit_operands.hpp"

namespace brgemm::inline abi_0::backend {
inline namespace BRGEMM_WITH_XBYAK {

class jit_steps : public jit_operands {
 public:
  using jit_operands::jit_operands;

 protected:
  static constexpr std::size_t prefetch_ahead = 8192;  // bytes, beyond the end of B too: a prefetch never faults

  void entry(const block& k) {
    if (mirrored_) to_last_row();
    if (lda_in_register_ && a_rows_ && k.rows > 5) lea(r12, ptr[rax + r10]);
    if (lda_in_register_ && a_rows_ && k.rows > 10) lea(r13, ptr[rax + r9 * 2]), lea(r13, ptr[r13 + r9 * 8]);
    if (b_.tile) return chunks(k);
    if (detail::reads_by_four(d_, unit_, b_, k.rows, {1, k.columns, k.masked})) return entry_by_four(k);
    steps_of_k(k, b_.steps, b_.rest);
  }

  /// `whole` steps and then one of `rest` elements, if that is not 0.
  void steps_of_k(const block& k, index whole, int rest) {
    if (transposed_b_) return steps_of_tiles(k, whole, rest);
    if (detail::depthwise_window(d_, unit_, b_, k.rows, k.columns) > 1) return depthwise_steps(k, whole);
    const index loops = whole / b_.unroll;
    index done = 0;  // steps that the pointers do not count yet
    if (loops > 1) {
      mov(rcx, static_cast<std::uint64_t>(loops));
      const std::uint8_t* top = getCurr();
      for (int s = 0; s < b_.unroll; ++s) step(k, s, s, static_cast<int>(group_));
      advance(k, b_.unroll);
      sub(rcx, 1);
      jnz(static_cast<const void*>(top));
    } else {
      for (int s = 0; s < loops * b_.unroll; ++s) step(k, s, s, static_cast<int>(group_));
      done = loops * b_.unroll;
    }
    const index left = whole - loops * b_.unroll;
    for (index s = 0; s < left; ++s) step(k, static_cast<int>(done + s), static_cast<int>(s), static_cast<int>(group_));
    if (rest != 0) step(k, static_cast<int>(done + left), static_cast<int>(left), rest);
  }

  // ---- order::tile -------------------------------------------------------------------------------

  /// Chunks of 32 k; only the last one may leave the pointers where they are. In one of 16 pairs the loop of steps_of_k
  /// turns at least twice, because its body has at most 8 steps.
  void chunks(const block& k) {
    const index whole = b_.steps / detail::steps_of_chunk;
    if (whole > 0) {
      mov(rcx, static_cast<std::uint64_t>(whole));
      mov(word_at(chunks_left), rcx);
      const std::uint8_t* top = getCurr();
      chunk(k, detail::steps_of_chunk, 0);
      sub(word_at(chunks_left), 1);
      jnz(static_cast<const void*>(top));
    }
    const index left = b_.steps % detail::steps_of_chunk;
    if (left != 0 || b_.rest != 0) chunk(k, left, b_.rest);
  }
  void chunk(const block& k, index whole, int rest) {
    for_each_seen(k, [&](int r, int j) { clear(accumulator(k, r, j, 1)), clear(accumulator(k, r, j, 2)); });
    to_odd_sums_ = k.rows * k.columns;
    steps_of_k(k, whole, rest);
    for_each_seen(k, [&](int r, int j) {
      const int even = accumulator(k, r, j, 1);
      add_lanes(even, even, even - to_odd_sums_);
      add_lanes(accumulator(k, r, j), accumulator(k, r, j), even);
    });
  }

  /// The sums that a step adds to.
  int chain_of(int step) const { return b_.tile ? 1 : step % b_.chains; }

  /// Moves A and B by `steps`, as far as the steps did not do it themselves.
  void advance(const block& k, int steps) {
    if (depthwise_) {
      if (!lda_in_register_) add_constant(rax, steps * step_a(), r12);
    } else if (a_rows_) {
      const index bytes = steps * group_ * size_a_;
      add_constant(rax, bytes, r12);
      if (lda_in_register_ && k.rows > 5) add(r12, static_cast<std::uint32_t>(bytes));
      if (lda_in_register_ && k.rows > 10) add(r13, static_cast<std::uint32_t>(bytes));
    } else if (!lda_in_register_) {
      add(rax, static_cast<std::uint32_t>(steps * lda_));
    }
    if (transposed_b_) {
      add(rdx, static_cast<std::uint32_t>(steps * group_ * size_b_));
    } else if (!ldb_in_register_) {
      add(rdx, static_cast<std::uint32_t>(steps * step_b_));
    }
  }

  /// One step: `s` counts from the pointers, `chain_step` from the entry's first step modulo the chains; `valid`
  /// elements of the group of k exist.
  void step(const block& k, int s, int chain_step, int valid) {
    if (depthwise_) return depthwise_step(k, s);
    prefetch_beyond(k, s);
    prefetch_far_rows(k, s);
    if (pack(k) > 1) return packed_step(k, s, valid);
    const int chain = chain_of(chain_step);
    const bool whole = valid == group_;
    if (b_.hold_a) {
      const int passing = k.rows * b_.a_registers;
      for (int r = first_row(k); r < end_row(k); ++r) load_a(k, r * b_.a_registers, r, s, valid);
      for (int j = 0; j < k.columns; ++j) {
        if (b_.embed && whole && k.rows == 1) {
          prefetch_b(j, s);
          product_in_memory(accumulator(k, 0, j, chain), 0, ptr[b_at(j, s)], masked(k, j));
          continue;
        }
        prefetch_b(j, s);
        load_b(k, passing, passing + b_.b_registers, j, s, valid);
        sum_column(k, j, passing);
        for (int r = first_row(k); r < end_row(k); ++r) {
          multiply(accumulator(k, r, j, chain), r * b_.a_registers, passing, passing + b_.b_registers);
        }
      }
    } else {
      const int passing = k.columns * b_.b_registers;
      for (int j = 0; j < k.columns; ++j) {
        prefetch_b(j, s);
        load_b(k, j * b_.b_registers, passing, j, s, valid);
        sum_column(k, j, j * b_.b_registers);
      }
      for (int r = first_row(k); r < end_row(k); ++r) {
        if (b_.embed && whole && k.columns == 1) {
          product_in_memory(accumulator(k, r, 0, chain), 0, ptr_b[a_at(r, s)], false);
          continue;
        }
        load_a(k, passing, r, s, valid);
        for (int j = 0; j < k.columns; ++j) {
          multiply(accumulator(k, r, j, chain), passing, j * b_.b_registers, passing + b_.a_registers);
        }
      }
    }
    next_step();
  }

  /// The rows that the entry adds to.
  int first_row(const block&) const { return seen_.first; }
  int end_row(const block& k) const { return seen_.end == 0 ? k.rows : seen_.end; }
  template <class Each>
  void for_each_seen(const block& k, Each each) {
    for (int r = first_row(k); r < end_row(k); ++r) {
      for (int j = 0; j < k.columns; ++j) each(r, j);
    }
  }

  void prefetch_b(int j, int s) {
    if (b_.prefetch) prefetcht0(ptr[b_at(j, s) + prefetch_ahead]);
  }
  /// desc::prefetch.
  void prefetch_beyond(const block& k, int s) {
    if (!prefetches() || s % d_.prefetch != 0) return;
    for (int j = 0; j < k.columns; ++j) {
      if (j * vector_b_ % 64 != 0) continue;  // within a line
      for (int q = 0; q < rows_of_step_; ++q) prefetcht1(ptr[b_at(j, s, q) + rbx]);
    }
  }

  void prefetch_far_rows(const block& k, int s) {
    const int then = s + detail::prefetched_steps;
    if (detail::prefetches_rows_of_a(d_)) {
      for (int r = 0; r < k.rows; r += static_cast<int>(64 / lane_a_)) prefetcht0(ptr[a_at(r, then)]);
      if (k.rows * lane_a_ % 64 > 32) prefetcht0(ptr[a_at(k.rows - 1, then)]);  // likely on a further line
    }
    if (!detail::prefetches_rows_of_b(d_)) return;
    for (int j = 0; j < k.columns; ++j) {
      if (j * vector_b_ % 64 == 0) prefetcht0(ptr[b_at(j, then)]);
    }
  }

  /// Moves what a constant displacement cannot.
  void next_step() {
    if (ldb_in_register_) {
      rows_of_step_ == 1 ? add(rdx, r11) : lea(rdx, ptr[rdx + r11 * rows_of_step_]);
    }
    if (lda_in_register_ && !a_rows_) add(rax, r9);
  }

  // ---- layout::depthwise -------------------------------------------------------------------------

  /// Bytes of A from a step to the next one, where that is constant.
  index step_a() const { return mirrored_ ? -lda_ : d_.k_step * lda_; }
  /// From the first row of an entry of A to that which its first step reads.
  void to_last_row() {
    if (d_.k < 2) return;
    if (!lda_in_register_) return add_constant(rax, (d_.k - 1) * lda_, rcx);
    mov(rcx, static_cast<std::uint64_t>(d_.k - 1));
    imul(rcx, r9);
    add(rax, rcx);
  }
  void depthwise_steps(const block& k, index steps) {
    const int together = detail::depthwise_window(d_, unit_, b_, k.rows, k.columns);
    const index loops = steps / together;
    const int left = static_cast<int>(steps % together);
    if (loops > 1) mov(rcx, static_cast<std::uint64_t>(loops));
    const std::uint8_t* top = getCurr();
    steps_together(k, together);
    if (loops > 1 || left > 0) advance(k, together);
    if (loops > 1) {
      sub(rcx, 1);
      jnz(static_cast<const void*>(top));
    }
    if (left > 0) steps_together(k, left);
  }
  /// A product of a step: row r of C in step s reads this row of A, counted in the direction of the steps.
  struct depthwise_product {
    index row;
    int s, r;
    friend constexpr auto operator<=>(const depthwise_product&, const depthwise_product&) = default;
  };
  /// Of each column the steps' vectors of B from register 0, then those of A in the order in which steps need them,
  /// each for all of its products.
  void steps_together(const block& k, int steps) {
    depthwise_product products[30 * 4];  // of at most so many rows and steps
    int count = 0;
    for (int s = 0; s < steps; ++s) {
      for (int r = 0; r < k.rows; ++r) {
        const index row = mirrored_ ? s - r : brgemm::detail::row_of_a(d_, r) + s * index{d_.k_step};
        products[count++] = {row, s, r};
      }
    }
    std::sort(products, products + count);
    for (int j = 0; j < k.columns; ++j) {
      for (int s = 0; s < steps; ++s) load_widened(s, b_at(j, s), d_.b, masked(k, j));
      for (int i = 0; i < count; ++i) {
        const auto [row, s, r] = products[i];
        const index bytes = (mirrored_ ? -row : row) * lda_ + j * vector_b_;
        if (i == 0 || row != products[i - 1].row) {
          load_widened(steps, rax + static_cast<std::size_t>(bytes), d_.a, masked(k, j));
        }
        multiply(accumulator(k, r, j), steps, s, steps);
      }
    }
  }
  /// Vectors of B from register 0, then one of A that passes.
  void depthwise_step(const block& k, int s) {
    for (int j = 0; j < k.columns; ++j) load_widened(j, b_at(j, s), d_.b, masked(k, j));
    for (int r = 0; r < k.rows; ++r) {
      const RegExp row = a_at(r, 0) + static_cast<std::size_t>(lda_in_register_ ? 0 : s * step_a());
      for (int j = 0; j < k.columns; ++j) {
        const RegExp at = row + static_cast<std::size_t>(j * vector_b_);
        if (b_.embed) {
          product_in_memory(accumulator(k, r, j), j, ptr[at], masked(k, j));
        } else {
          load_widened(k.columns, at, d_.a, masked(k, j));
          multiply(accumulator(k, r, j), k.columns, j, k.columns);
        }
      }
    }
    next_step();
    if (!lda_in_register_) return;
    const auto move = [&](const Reg64& base) { mirrored_ ? sub(base, r9) : add(base, r9); };
    move(rax);
    if (k.rows > 5) move(r12);
    if (k.rows > 10) move(r13);
  }
  void load_widened(int to, const RegExp& at, type t, bool tail) {
    if (accumulator_of(t) != type::s32) return load_as_accumulator(to, at, t, tail);
    load_8bit(to, at, tail);
    if (t == type::u8) return;
    vpslld(v(to), v(to), 24);
    vpsrad(v(to), v(to), 24);
  }

  // ---- B stored (n,k) ----------------------------------------------------------------------------

  void steps_of_tiles(const block& k, index steps, int rest) {
    const int in_tile = steps_of_tile();
    const int tiles = std::max(1, b_.chains / in_tile);  // in the loop's body, so that chains keep their place
    const index loops = steps / (tiles * in_tile);
    if (loops > 0) {
      mov(rcx, static_cast<std::uint64_t>(loops));
      const std::uint8_t* top = getCurr();
      for (int t = 0; t < tiles; ++t) steps_of_a_tile(k, t * in_tile, in_tile, 0);
      sub(rcx, 1);
      jnz(static_cast<const void*>(top));
    }
    const int left = static_cast<int>(steps - loops * tiles * in_tile);
    for (int first = 0; first < left + (rest != 0); first += in_tile) {
      const int whole = std::min(left - first, in_tile);
      steps_of_a_tile(k, first, whole, whole < in_tile ? rest : 0);
    }
  }

  /// `whole` steps and then one of `rest` elements, from one tile; moves A and B.
  void steps_of_a_tile(const block& k, int chain_step, int whole, int rest) {
    static constexpr int order_of_32_bits[] = {3, 4, 1, 0};  // where turn_tile leaves the steps
    static constexpr int tight_order[] = {3, 2, 1, 0};
    static constexpr int order_of_64_bits[] = {4, 1};
    const int* const order = f64_ ? order_of_64_bits : b_.tight ? tight_order : order_of_32_bits;
    const int halves = b_.tight ? 4 : 6;
    const int a = halves + (b_.b_registers == 2 ? 2 : 0);
    load_tile(k, static_cast<int>(whole * group_ + rest));
    for (int s = 0; s < whole + (rest != 0); ++s) {
      const int valid = s < whole ? static_cast<int>(group_) : rest;
      int b = order[s];
      if (b_.b_registers == 2) {
        vmovaps(v(halves), v(b));
        split(b = halves, d_.b);
      }
      sum_column(k, 0, b);
      for (int r = first_row(k); r < end_row(k); ++r) {
        const int sum = accumulator(k, r, 0, chain_of(chain_step + s));
        if (b_.embed && valid == group_) {
          product_in_memory(sum, b, ptr_b[a_at(r, s)], false);
        } else {
          load_a(k, a, r, s, valid);
          multiply(sum, a, b, a + b_.a_registers);
        }
      }
      if (lda_in_register_ && !a_rows_) add(rax, r9);
    }
    advance(k, whole + (rest != 0));
  }

  /// Four steps at a time, so that 16 bytes of a row of A can be loaded at once.
  void entry_by_four(const block& k) {
    const index loops = b_.steps / 4;
    if (loops > 0) {
      mov(rcx, static_cast<std::uint64_t>(loops));
      const std::uint8_t* top = getCurr();
      pack(k) > 1 ? four_packed_steps(k) : four_steps(k);
      advance(k, 4);
      sub(rcx, 1);
      jnz(static_cast<const void*>(top));
    }
    const int left = static_cast<int>(b_.steps % 4);
    for (int s = 0; s < left; ++s) step(k, s, s, static_cast<int>(group_));
    if (b_.rest != 0) step(k, left, left, b_.rest);
  }

  // ---- packed rows ------------------------------------------------------------------------------

  /// One step of a block with packed rows. Registers: vectors of B from 0, then the broadcasts of the rows of a group.
  void packed_step(const block& k, int s, int valid) {
    const int whole_columns = k.columns - 1;
    const int a = k.columns;
    for (int j = 0; j < k.columns; ++j) prefetch_b(j, s);
    for (int j = 0; j < whole_columns; ++j) load_b(k, j, a, j, s, valid);
    load_packed_b(whole_columns, b_at(whole_columns, s), valid);
    for (int first = 0; first < k.rows; first += pack(k)) {
      const int rows = std::min(pack(k), k.rows - first);
      for (int i = 0; i < rows; ++i) {
        load_a(k, a + i, first + i, s, valid);
        for (int j = 0; j < whole_columns; ++j) multiply(accumulator(whole_part(k), first + i, j), a + i, j, a + i);
      }
      for (int i = 1; i < rows; ++i) vblendmps(v(a) | row_mask(i), v(a), v(a + i));
      multiply(packed(k, first / pack(k)), a, whole_columns, a);
    }
    next_step();
  }

  /// Four steps of a block of packed rows only: 16 bytes of each row of A are loaded once, and each step takes its
  /// lane.
  void four_packed_steps(const block& k) {
    const int a = 4;
    const int lane = 5;
    for (int s = 0; s < 4; ++s) {
      prefetch_beyond(k, s);
      prefetch_b(0, s);
      load_packed_b(s, b_at(0, s), static_cast<int>(group_));
      if (ldb_in_register_) add(rdx, r11);
    }
    for (int first = 0; first < k.rows; first += pack(k)) {
      const int rows = std::min(pack(k), k.rows - first);
      vbroadcastf32x4(zmm(a), ptr[a_at(first, 0)]);
      for (int i = 1; i < rows; ++i) vbroadcastf32x4(zmm(a) | row_mask(i), ptr[a_at(first + i, 0)]);
      for (int s = 0; s < 4; ++s) {
        vpermilps(v(lane), v(a), static_cast<std::uint8_t>(s * 0x55));
        multiply(packed(k, first / pack(k)), lane, s, lane);
      }
    }
  }

  /// Four steps of one vector of columns. Each row needs its own broadcast a step, which two loads a cycle cannot quite
  /// keep up with: every fourth row takes lanes of one load instead.
  void four_steps(const block& k) {
    const int a = 4;
    const int lane = 5;
    for (int s = 0; s < 4; ++s) {
      prefetch_beyond(k, s);
      load_lanes(s, b_at(0, s), masked(k, 0));
      if (ldb_in_register_) add(rdx, r11);
    }
    for (int first = 0; first < k.rows; first += 4) {
      const int last = std::min(first + 3, k.rows);
      if (last < k.rows) vbroadcastf32x4(zmm(a), ptr[a_at(last, 0)]);
      for (int s = 0; s < 4; ++s) {
        for (int r = first; r < last; ++r) product_in_memory(accumulator(k, r, 0), s, ptr_b[a_at(r, s)], false);
        if (last == k.rows) continue;
        vpermilps(v(lane), v(a), static_cast<std::uint8_t>(s * 0x55));
        multiply(accumulator(k, last, 0), lane, s, lane);
      }
    }
  }

  void load_packed_b(int to, const RegExp& at, int valid) {
    if (b_.pack == 2) {
      vbroadcastf32x8(zmm(to) | packed_mask() | T_z, ptr[at]);
    } else {
      vbroadcastf32x4(zmm(to) | packed_mask() | T_z, ptr[at]);
    }
    if (valid != group_) drop_padding(to);
  }
};

}  // namespace BRGEMM_WITH_XBYAK
}  // namespace brgemm::inline abi_0::backend
