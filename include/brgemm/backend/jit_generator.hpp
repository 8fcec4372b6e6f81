// The generator of the AVX-512 and AVX2 backends: one kernel from one desc and its blocking.
//
//   where m comes with the call, for each number of few rows and for more: for_rows()
//   for each block of columns, for each block of rows:                     blocks()
//     accumulators = beta * C, or 0                                        begin()
//     for each entry of the batch, for each step of k: A * B               sums(), step()
//     chains, alpha, zero points; epilogue; store C                        end(), jit_epilogue.hpp
//
// Zen 5 and Sapphire Rapids start two 512-bit fma a cycle with a latency of 4 and two 512-bit loads a cycle. So a block
// needs at least 8 accumulators, and a broadcast of A must serve two vectors of B, or be the fma's own operand in
// memory.
#pragma once

#include "jit_steps.hpp"

namespace brgemm::inline abi_0::backend {
inline namespace BRGEMM_WITH_XBYAK {

class jit_generator : public jit_steps {
 public:
  using jit_steps::jit_steps;

  /// Writes the kernel; returns its bytes, 0 if they do not fit the buffer.
  std::size_t generate() {
    prologue();
    for_rows();
    return write_activations() && finish() ? getSize() : 0;
  }

 private:
  /// m at the call: few rows, where a block more or less counts, are what a kernel of that fixed m does.
  void for_rows() {
    const blocking divided = b_;
    const int few = static_cast<int>(divided.few);
    const bool at_call = d_.m_extent == extent_kind::at_call;
    std::size_t none = 0;
    if (at_call) {
      mov(rax, argument(&arguments::m));
      test(rax, rax);
      none = jump_forward(condition::less_or_equal);
    }
    select(1, few + (d_.m > few), [&](int rows) {
      if (rows <= few) {
        desc fixed = d_;
        fixed.m = rows;
        fixed.m_extent = extent_kind::fixed;
        divide_by(choose_blocking(fixed, unit_, divided.limit), extent_kind::fixed);
      } else {
        divide_by(divided, d_.m_extent);
      }
      load_pack_masks();
      b_.group != 0 ? groups() : blocks();
      leave();
    });
    if (at_call) land(none), leave();
  }

  /// Goes over C once for each group of entries.
  void groups() {
    const bool strides = d_.batch == batch_kind::strides;
    mov(rax, strides ? argument(&arguments::a) : argument(&arguments::pairs));
    mov(word_at(group_a), rax);
    if (strides) {
      mov(rax, argument(&arguments::b));
      mov(word_at(group_b), rax);
    }
    mov(rax, argument(&arguments::batch));
    mov(word_at(entries_left), rax);
    mov(word_at(first_group), 1);
    const std::uint8_t* top = getCurr();
    mov(rax, word_at(entries_left));
    mov(ecx, static_cast<std::uint32_t>(b_.group));
    cmp(rax, rcx);
    cmovg(rax, rcx);
    mov(word_at(entries), rax);
    sub(word_at(entries_left), rax);
    blocks();
    add_word(group_a, strides ? product_of(b_.group * size_a_, d_.stride_a) : b_.group * 16, rax);
    if (strides) add_word(group_b, product_of(b_.group * size_b_, d_.stride_b), rax);
    zero_word(first_group);
    cmp(word_at(entries_left), 0);
    jg(static_cast<const void*>(top));
  }

  // ---- blocks of C -------------------------------------------------------------------------------

  void blocks() {
    if (!one_column_) {
      mov(rax, argument(&arguments::c));
      mov(word_at(c_column), rax);
      zero_word(b_offset);
      zero_word(column_index);
    }
    for (const section& s : b_.columns) {
      if (s.count == 0) continue;
      repeat(s.count, blocks_left, [&] {
        column_of_blocks(s);
        if (one_column_) return;
        add_word(c_column, s.size * b_.lanes * size_c_, rax);
        if (!transposed_b_) {
          add_word(b_offset, s.size * vector_b_, rax);
        } else if (ldb_in_register_) {
          imul(rax, r11, s.size * b_.lanes);
          add(word_at(b_offset), rax);
        } else {
          add_word(b_offset, s.size * b_.lanes * ldb_, rax);
        }
        add_word(column_index, s.size * b_.lanes, rax);
      });
    }
  }

  void column_of_blocks(const section& columns) {
    if (!one_row_) {
      with_a_offset([&](const Operand& offset) { mov(offset, 0); });
      if (counts_rows()) zero_word(row_index);
    }
    mov(c_, one_column_ ? argument(&arguments::c) : word_at(c_column));
    if (!rows_known_) return rows_at_call(columns);
    index end = 0;  // a_offset behind the section
    for (const section& s : b_.rows) {
      if (s.count == 0) continue;
      const auto body = [&] { one_block({s.size, columns.size, columns.masked}); };
      if (!offset_counts_rows()) {
        repeat(s.count, rows_left, body);
        continue;
      }
      end += s.count * s.size * row_bytes();
      const std::uint8_t* top = getCurr();
      body();
      if (s.count > 1) {
        cmp(r11, static_cast<std::uint32_t>(end));
        jnz(static_cast<const void*>(top));
      }
    }
  }
  /// Bytes between rows of A; 0 where they are in a register.
  index row_bytes() const {
    return !a_rows_ ? lane_a_ : d_.line == 1 ? product_of(d_.line_step, lda_) : lda_;  // longer lines are in one block
  }
  bool offset_counts_rows() const {
    return !ldb_in_register_ && row_bytes() > 0 && d_.m <= std::numeric_limits<std::int32_t>::max() / row_bytes();
  }

  /// Full blocks while there are rows for two, then one or two of nearly equal height.
  void rows_at_call(const section& columns) {
    const int most = b_.rows[0].size;
    const auto sum_rows = [&](int rows) {
      one_block({rows, columns.size, columns.masked});
      mov(rax, word_at(rows_left));
      sub(rax, static_cast<std::uint32_t>(rows));
    };
    mov(rax, argument(&arguments::m));
    const std::uint8_t* again = getCurr();
    mov(word_at(rows_left), rax);
    test(rax, rax);
    const std::size_t done = jump_forward(condition::equal);
    cmp(rax, static_cast<std::uint32_t>(most));
    const std::size_t last = jump_forward(condition::less_or_equal);
    cmp(rax, static_cast<std::uint32_t>(2 * most));
    mov(ecx, static_cast<std::uint32_t>(2 * most));
    cmovg(rax, rcx);
    add(rax, 1);
    shr(rax, 1);
    land(last);
    select((most + 1) / 2, most, [&](int rows) {
      sum_rows(rows);
      jmp(static_cast<const void*>(again));
    });
    land(done);
  }

  /// Calls each(i), which does not fall through, to write what runs when rax is i, low <= i <= high: leaf after leaf of
  /// a tree of comparisons.
  template <class Each>
  void select(int low, int high, const Each& each) {
    struct {
      std::size_t jump;
      int high;
    } above[8];  // ranges whose code comes later; at most 2^8 leaves
    int depth = 0;
    int end = high;
    for (int i = low;; ++i) {
      while (i < end) {
        const int middle = (i + end) / 2;
        cmp(rax, static_cast<std::uint32_t>(middle));
        above[depth++] = {jump_forward(condition::greater), end};
        end = middle;
      }
      each(i);
      if (i == high) return;
      --depth;
      land(above[depth].jump);
      end = above[depth].high;
    }
  }

  void one_block(const block& k) {
    set_f16_temporaries(below_accumulators(k), below_accumulators(k) - 1);
    if (b_.group == 0) {
      begin(k);
      sums(k);
      end(k);
    } else {
      cmp(word_at(first_group), 0);
      either(
          condition::equal, [&] { load_c(k); }, [&] { begin(k); });
      sums(k);
      cmp(word_at(entries_left), 0);
      either(
          condition::greater, [&] { store_c(k); }, [&] { end(k); });
    }
    if (one_row_) return;
    if (prefetches()) add(rbx, static_cast<std::uint32_t>(ldb_));  // another row of each desc::prefetch
    if (lda_in_register_ && a_rows_) {
      imul(rax, r9, k.rows);
      with_a_offset([&](const Operand& offset) { add(offset, rax); });
    } else {
      with_a_offset([&](const Operand& offset) { add_constant(offset, k.rows * row_bytes(), rax); });
    }
    if (ldc_in_register_) {
      imul(rax, r15, k.rows);
      add(c_, rax);
    } else {
      add_constant(c_, k.rows * ldc_, rax);
    }
    if (counts_rows()) add_word(row_index, k.rows, rax);
  }

  // ---- start -------------------------------------------------------------------------------------

  void begin(const block& k) {
    const bool starts_later = detail::adds_c_last(d_);
    const int loaded = starts_later || d_.beta != beta_kind::one ? 0 : last_of_first_chain(k);
    for (int i = loaded; i < accumulators(k); ++i) clear(unit_.registers() - 1 - i);
    if (!starts_later) {
      if (d_.beta == beta_kind::one) load_c(k);
      if (d_.beta == beta_kind::at_call) {
        const std::size_t zero = broadcast_beta(0);
        load_c(k);
        for (int i = 0; i < last_of_first_chain(k); ++i) {
          multiply_lanes(unit_.registers() - 1 - i, unit_.registers() - 1 - i, 0);
        }
        const std::size_t loaded_c = detail::prefetches_c(d_) ? jump_always() : 0;
        land(zero);
        if (detail::prefetches_c(d_)) prefetch_c(k), land(loaded_c);
      }
    }
    if (detail::prefetches_c(d_) && (starts_later || d_.beta == beta_kind::zero)) prefetch_c(k);
    if (!shifts_a_) return;
    for (int j = 0; j < k.columns; ++j) clear(column_sum(k, j));
    set(ones(k), 0x01010101u);
    set(sign_bytes(k), 0x80808080u);
  }

  /// C of the block, where the sums have so many steps that it can come meanwhile. (prefetchw is not in every CPU that
  /// has AVX2.)
  void prefetch_c(const block& k) {
    constexpr index least_steps = 24;
    std::size_t few = 0;
    const index steps = b_.steps + (b_.rest != 0);
    if (steps < least_steps) {
      cmp(argument(&arguments::batch), static_cast<std::uint32_t>((least_steps + steps - 1) / steps));
      few = jump_forward(condition::less);
    }
    rows_of_c(k, [&](int, const RegExp& row) {
      for (int j = 0; j < k.columns; ++j) {
        if (j * b_.lanes * size_c_ % 64 == 0) prefetcht0(ptr[row + column_of_c(j)]);
      }
    });
    if (steps < least_steps) land(few);
  }

  /// Accumulators fill the registers from the last downwards, chain 0 first.
  int last_of_first_chain(const block& k) const {
    if (pack(k) == 1) return k.rows * k.columns;
    return k.rows * (k.columns - 1) + (k.rows + pack(k) - 1) / pack(k);
  }
  int accumulators(const block& k) const { return last_of_first_chain(k) * b_.sums(); }

  void load_c(const block& k) {
    const block whole = pack(k) > 1 ? whole_part(k) : k;
    rows_of_c(k, [&](int r, const RegExp& row) {
      for (int j = 0; j < whole.columns; ++j) {
        load_as_accumulator(accumulator(whole, r, j), row + column_of_c(j), d_.c, masked(k, j));
      }
      if (pack(k) > 1) load_packed_c(packed(k, r / pack(k)), r % pack(k), row + column_of_c(whole.columns));
    });
  }
  void load_packed_c(int to, int place, const RegExp& at) {
    if (place == 0) return load_as_accumulator(to, at, d_.c, true);
    const int row = 1;  // 0 may be beta
    load_as_accumulator(row, at, d_.c, true);
    const auto i = static_cast<std::uint8_t>(place);
    const auto group = zmm(to);
    b_.pack == 2 ? vinsertf32x8(group, group, Ymm(row), i) : vinsertf32x4(group, group, quarter(row), i);
  }

  // ---- sums over the batch and k -----------------------------------------------------------------

  void sums(const block& k) {
    if (b_.steps == 0 && b_.rest == 0) return;
    if (b_.permutes_pairs) set_pair_order(pair_order(k));
    if (b_.how == product::split_bf16) flush_subnormals(true);
    const bool grouped = b_.group != 0;
    mov(rsi, grouped ? word_at(entries) : argument(&arguments::batch));
    if (d_.batch == batch_kind::strides) {
      mov(r8, grouped ? word_at(group_a) : argument(&arguments::a));
      if (!one_row_) with_a_offset([&](const Operand& offset) { add(r8, offset); });
      if (!one_column_ && depthwise_) add(r8, word_at(b_offset));
      const Reg64* const own = next_b(k);
      const Reg64& b = own != nullptr ? *own : rax;
      mov(b, grouped ? word_at(group_b) : argument(&arguments::b));
      if (!one_column_) add(b, word_at(b_offset));
      if (own == nullptr) mov(word_at(b_base), b);
    } else {
      mov(r8, grouped ? word_at(group_a) : argument(&arguments::pairs));
    }
    test(rsi, rsi);
    const std::size_t empty = jump_forward(condition::less_or_equal);
    sum_entries(k);
    land(empty);
    if (b_.how == product::split_bf16) flush_subnormals(false);
  }

  /// Where B is prefetched: two loops, the second without, for a B that fits L1.
  void sum_entries(const block& k) {
    const index in_l1 = b_.prefetch ? (32 << 10) / (d_.k * d_.n * size_b_) : 0;
    std::size_t to_second = 0;
    if (in_l1 != 0) {
      cmp(rsi, static_cast<std::uint32_t>(in_l1));
      to_second = jump_forward(condition::less_or_equal);
    }
    std::size_t done = 0;
    for (int loops = in_l1 != 0 ? 2 : 1; loops > 0; --loops) {
      const std::uint8_t* top = getCurr();
      const int ranges = row_ranges(d_);
      for (int i = 0; i < std::max(ranges, 1); ++i) {
        if (ranges != 0) seen_ = d_.rows[i];
        find_entry(next_b(k));
        entry(k);
      }
      sub(rsi, static_cast<std::uint32_t>(std::max(ranges, 1)));
      jg(static_cast<const void*>(top));
      if (loops == 1) break;
      done = jump_always();
      land(to_second);
      b_.prefetch = false;
    }
    if (in_l1 == 0) return;
    land(done);
    b_.prefetch = true;
  }

  /// vdpbf16ps takes subnormals as zero whatever MXCSR says; plain fma must be told to.
  void flush_subnormals(bool on) {
    if (!on) return ldmxcsr(scratch_at(0));
    stmxcsr(scratch_at(0));
    mov(eax, scratch_at(0));
    or_(eax, 0x8040);
    mov(scratch_at(1), eax);
    ldmxcsr(scratch_at(1));
  }

  /// Strides: the register of the next entry's B; null where the rows of A take all of them.
  const Reg64* next_b(const block& k) const {
    if (!lda_in_register_ || !a_rows_) return &r10;
    return k.rows <= 10 ? &r13 : nullptr;
  }
};

}  // namespace BRGEMM_WITH_XBYAK
}  // namespace brgemm::inline abi_0::backend
