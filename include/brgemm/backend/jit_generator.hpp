// The generator of the AVX-512 and AVX2 backends: one kernel from one desc and its blocking.
//
//   for each block of columns, for each block of rows:                     blocks()
//     accumulators = beta * C, or 0                                        begin()
//     for each entry of the batch, for each step of k: A * B               sums(), step()
//     chains, alpha, zero points; epilogue; store C                        end(), jit_epilogue.hpp
//
// Zen 5 and Sapphire Rapids start two 512-bit fma a cycle with a latency of 4 and two 512-bit loads a cycle. So a block
// needs at least 8 accumulators, and a broadcast of A must serve two vectors of B, or be the fma's own operand in
// memory.
#pragma once

#include "jit_epilogue.hpp"

namespace brgemm::inline abi_0::backend {
inline namespace BRGEMM_WITH_XBYAK {

class jit_generator : public jit_epilogue {
 public:
  using jit_epilogue::jit_epilogue;

  /// Writes the kernel; returns its bytes, 0 if they do not fit the buffer.
  std::size_t generate() {
    prologue();
    b_.group != 0 ? groups() : blocks();
    leave();
    return write_activations() && finish() ? getSize() : 0;
  }

 private:
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
    add_word(group_a, b_.group * (strides ? d_.stride_a * size_a_ : 16), rax);
    if (strides) add_word(group_b, b_.group * d_.stride_b * size_b_, rax);
    zero_word(first_group);
    cmp(word_at(entries_left), 0);
    jg(static_cast<const void*>(top));
  }

  // ---- blocks of C
  // ----------------------------------------------------------------------------------------------------

  void blocks() {
    mov(rax, argument(&arguments::c));
    mov(word_at(c_column), rax);
    zero_word(b_offset);
    zero_word(column_index);
    for (const section& s : b_.columns) {
      if (s.count == 0) continue;
      repeat(s.count, blocks_left, [&] {
        column_of_blocks(s);
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
    zero_word(a_offset);
    zero_word(row_index);
    mov(r14, word_at(c_column));
    if (d_.m_extent == extent_kind::at_call) return rows_at_call(columns);
    for (const section& s : b_.rows) {
      if (s.count == 0) continue;
      repeat(s.count, rows_left, [&] { one_block({s.size, columns.size, columns.masked}); });
    }
  }

  /// Full blocks while there are as many rows, then 8, 4, 2 and 1 as the bits of what is left say.
  void rows_at_call(const section& columns) {
    mov(rax, argument(&arguments::m));
    mov(word_at(rows_left), rax);
    const auto full = static_cast<std::uint32_t>(b_.rows[0].size);
    cmp(word_at(rows_left), full);
    const std::size_t none = jump_forward(condition::less);
    const std::uint8_t* top = getCurr();
    one_block({b_.rows[0].size, columns.size, columns.masked});
    sub(word_at(rows_left), full);
    cmp(word_at(rows_left), full);
    jge(static_cast<const void*>(top));
    land(none);
    for (std::uint32_t rows = std::bit_floor(full); rows >= 1; rows /= 2) {
      if (rows == full) continue;
      cmp(word_at(rows_left), rows);
      const std::size_t fewer = jump_forward(condition::less);
      one_block({static_cast<int>(rows), columns.size, columns.masked});
      if (rows > 1) sub(word_at(rows_left), rows);
      land(fewer);
    }
  }

  void one_block(const block& k) {
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
    if (d_.m <= k.rows) return;  // the only block of its column
    if (lda_in_register_ && a_rows_) {
      imul(rax, r9, k.rows);
      add(word_at(a_offset), rax);
    } else {
      add_word(a_offset, k.rows * (a_rows_ ? lda_ : size_a_), rax);
    }
    if (ldc_in_register_) {
      imul(rax, r15, k.rows);
      add(r14, rax);
    } else {
      add_constant(r14, k.rows * ldc_, rax);
    }
    add_word(row_index, k.rows, rax);
  }

  template <class Body>
  void repeat(index count, slot counter, Body body) {
    if (count > 1) {
      mov(rax, static_cast<std::uint64_t>(count));
      mov(word_at(counter), rax);
    }
    const std::uint8_t* top = getCurr();
    body();
    if (count > 1) {
      sub(word_at(counter), 1);
      jnz(static_cast<const void*>(top));
    }
  }
  // ---- start
  // ----------------------------------------------------------------------------------------------------------

  void begin(const block& k) {
    const bool starts_later = d_.alpha == alpha_kind::at_call;
    for (int chain = 0; chain < b_.chains; ++chain) {
      for_each(k, [&](int r, int j) {
        if (chain > 0 || starts_later || d_.beta != beta_kind::one) clear(accumulator(k, r, j, chain));
      });
    }
    if (!starts_later) {
      if (d_.beta == beta_kind::one) load_c(k);
      if (d_.beta == beta_kind::at_call) {
        const std::size_t zero = broadcast_beta(0);
        load_c(k);
        for_each(k, [&](int r, int j) { multiply_lanes(accumulator(k, r, j), accumulator(k, r, j), 0); });
        land(zero);
      }
    }
    if (!shifts_a_) return;
    for (int j = 0; j < k.columns; ++j) clear(column_sum(k, j));
    set(ones(k), 0x01010101u);
    set(sign_bytes(k), 0x80808080u);
  }

  void load_c(const block& k) {
    rows_of_c(k, [&](int r, const RegExp& row) {
      for (int j = 0; j < k.columns; ++j) {
        load_as_accumulator(accumulator(k, r, j), row + column_of_c(j), d_.c, masked(k, j));
      }
    });
  }

  // ---- sums over the batch and k
  // --------------------------------------------------------------------------------------

  void sums(const block& k) {
    if (b_.steps == 0 && b_.rest == 0) return;
    if (b_.how == product::split_bf16) flush_subnormals(true);
    const bool grouped = b_.group != 0;
    mov(rsi, grouped ? word_at(entries) : argument(&arguments::batch));
    if (d_.batch == batch_kind::strides) {
      mov(r8, grouped ? word_at(group_a) : argument(&arguments::a));
      add(r8, word_at(a_offset));
      mov(rax, grouped ? word_at(group_b) : argument(&arguments::b));
      add(rax, word_at(b_offset));
      mov(word_at(b_base), rax);
    } else {
      mov(r8, grouped ? word_at(group_a) : argument(&arguments::pairs));
    }
    test(rsi, rsi);
    const std::size_t empty = jump_forward(condition::less_or_equal);
    const std::uint8_t* top = getCurr();
    find_entry();
    entry(k);
    sub(rsi, 1);
    jnz(static_cast<const void*>(top));
    land(empty);
    if (b_.how == product::split_bf16) flush_subnormals(false);
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

  /// rax, rdx: A and B of this entry, in this block.
  void find_entry() {
    switch (d_.batch) {
      case batch_kind::strides:
        mov(rax, r8);
        mov(rdx, word_at(b_base));
        add_constant(r8, d_.stride_a * size_a_, rcx);
        add_word(b_base, d_.stride_b * size_b_, rcx);
        break;
      case batch_kind::addresses:
        mov(rax, ptr[r8]);
        mov(rdx, ptr[r8 + 8]);
        add(r8, 16);
        add(rax, word_at(a_offset));
        add(rdx, word_at(b_offset));
        break;
      case batch_kind::offsets:
        mov(rax, ptr[r8]);
        mov(rdx, ptr[r8 + 8]);
        add(r8, 16);
        if (size_a_ > 1) shl(rax, std::countr_zero(static_cast<std::uint64_t>(size_a_)));
        if (size_b_ > 1) shl(rdx, std::countr_zero(static_cast<std::uint64_t>(size_b_)));
        add(rax, argument(&arguments::a));
        add(rdx, argument(&arguments::b));
        add(rax, word_at(a_offset));
        add(rdx, word_at(b_offset));
        break;
    }
  }
  void entry(const block& k) {
    if (lda_in_register_ && a_rows_ && k.rows > 5) lea(r12, ptr[rax + r9 * 4]), add(r12, r9);
    if (lda_in_register_ && a_rows_ && k.rows > 10) lea(r13, ptr[r12 + r9 * 4]), add(r13, r9);
    if (transposed_b_) return entry_of_tiles(k);
    const index loops = b_.steps / b_.unroll;
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
    const index left = b_.steps - loops * b_.unroll;
    for (index s = 0; s < left; ++s) step(k, static_cast<int>(done + s), static_cast<int>(s), static_cast<int>(group_));
    if (b_.rest != 0) step(k, static_cast<int>(done + left), static_cast<int>(left), b_.rest);
  }

  /// Moves A and B by `steps`, as far as the steps did not do it themselves.
  void advance(const block& k, int steps) {
    if (a_rows_) {
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

  // ---- B stored (n,k): some k of each of its rows make a tile, turned in registers ----------------------------------

  /// Registers of 128 bits hold this many steps of one row.
  int steps_of_tile() const { return f64_ ? 2 : 4; }

  void entry_of_tiles(const block& k) {
    const int in_tile = steps_of_tile();
    const int tiles = std::max(1, b_.chains / in_tile);  // in the loop's body, so that chains keep their place
    const index loops = b_.steps / (tiles * in_tile);
    if (loops > 0) {
      mov(rcx, static_cast<std::uint64_t>(loops));
      const std::uint8_t* top = getCurr();
      for (int t = 0; t < tiles; ++t) steps_of_a_tile(k, t * in_tile, in_tile, 0);
      sub(rcx, 1);
      jnz(static_cast<const void*>(top));
    }
    const int left = static_cast<int>(b_.steps - loops * tiles * in_tile);
    for (int first = 0; first < left + (b_.rest != 0); first += in_tile) {
      const int whole = std::min(left - first, in_tile);
      steps_of_a_tile(k, first, whole, whole < in_tile ? b_.rest : 0);
    }
  }

  /// `whole` steps and then one of `rest` elements, from one tile; moves A and B.
  void steps_of_a_tile(const block& k, int chain_step, int whole, int rest) {
    static constexpr int order_of_32_bits[] = {3, 4, 1, 0};  // where turn_tile leaves the steps
    static constexpr int order_of_64_bits[] = {4, 1};
    const int halves = 6;
    const int a = halves + (b_.b_registers == 2 ? 2 : 0);
    load_tile(k, static_cast<int>(whole * group_ + rest));
    for (int s = 0; s < whole + (rest != 0); ++s) {
      const int valid = s < whole ? static_cast<int>(group_) : rest;
      int b = (f64_ ? order_of_64_bits : order_of_32_bits)[s];
      if (b_.b_registers == 2) {
        vmovaps(v(halves), v(b));
        split(b = halves, d_.b);
      }
      sum_column(k, 0, b);
      for (int r = 0; r < k.rows; ++r) {
        const int sum = accumulator(k, r, 0, (chain_step + s) % b_.chains);
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

  /// Registers 0 to 3: lane i of register q has row 4i + q of the tile (f64: 0 and 1, row 2i + q), zeros behind its k.
  void load_tile(const block& k, int elements) {
    const int in_tile = steps_of_tile();
    const int rows = k.masked ? tail() : b_.lanes;
    if (ldb_in_register_) {
      mov(word_at(c_block), r14);
      mov(r14, rdx);
    }
    for (int q = 0; q < in_tile; ++q) clear(q);
    for (int row = 0; row < rows; ++row) {
      const RegExp at = ldb_in_register_ ? RegExp(r14) : rdx + static_cast<std::size_t>(row * ldb_);
      load_row_of_tile(row % in_tile, row / in_tile, at, static_cast<int>(elements * size_b_));
      if (ldb_in_register_ && row + 1 < rows) add(r14, r11);
    }
    if (ldb_in_register_) mov(r14, word_at(c_block));
    turn_tile();
  }
  void load_row_of_tile(int to, int lane, const RegExp& at, int bytes) {
    const int spare = 5;
    if (bytes == 16) return insert_lane(to, lane, ptr[at]);
    load_bytes(spare, at, bytes);
    if (d_.b == type::f16) vcvtph2ps(quarter(spare), quarter(spare));
    insert_lane(to, lane, quarter(spare));
  }
  void insert_lane(int to, int lane, const Operand& from) {
    const auto place = static_cast<std::uint8_t>(lane);
    if (lane == 0) return vmovups(quarter(to), from);
    if (!wide()) return vinsertf128(Ymm(to), Ymm(to), from, place);
    vinsertf32x4(assembler_names::Zmm(to), assembler_names::Zmm(to), from, place);
  }
  /// Rows become steps within each 128 bits.
  void turn_tile() {
    if (f64_) {
      vunpcklpd(v(4), v(0), v(1));
      return vunpckhpd(v(1), v(0), v(1));
    }
    vunpcklps(v(4), v(0), v(1));
    vunpckhps(v(0), v(0), v(1));
    vunpcklps(v(1), v(2), v(3));
    vunpckhps(v(2), v(2), v(3));
    vunpcklpd(v(3), v(4), v(1));
    vunpckhpd(v(4), v(4), v(1));
    vunpcklpd(v(1), v(0), v(2));
    vunpckhpd(v(0), v(0), v(2));
  }

  // ---- one step of k
  // --------------------------------------------------------------------------------------------------

  /// Where element (row r, first k of the step) of A stands.
  RegExp a_at(int r, int s) {
    if (!a_rows_) {
      return rax + static_cast<std::size_t>(r * size_a_ + (lda_in_register_ ? 0 : s * lda_));
    }
    const auto along = static_cast<std::size_t>(s * group_ * size_a_);
    if (!lda_in_register_) return rax + (along + static_cast<std::size_t>(r * lda_));
    const Reg64& base = r < 5 ? rax : r < 10 ? r12 : r13;
    switch (r % 5) {
      case 0: return base + along;
      case 1: return base + r9 + along;
      case 2: return base + r9 * 2 + along;
      case 3: return base + r10 + along;
      default: return base + r9 * 4 + along;
    }
  }
  /// Where vector j of row q of the step's rows of B stands.
  RegExp b_at(int j, int s, int q = 0) {
    const auto along = static_cast<std::size_t>(j * vector_b_);
    if (!ldb_in_register_) return rdx + (along + static_cast<std::size_t>(s * step_b_ + q * ldb_));
    switch (q) {
      case 0: return rdx + along;
      case 1: return rdx + r11 + along;
      case 2: return rdx + r11 * 2 + along;
      default: return rdx + rbx + along;
    }
  }

  /// One step: `s` counts from the pointers, `chain_step` from the entry's first step modulo the chains; `valid`
  /// elements of the group of k exist.
  void step(const block& k, int s, int chain_step, int valid) {
    const int chain = chain_step % b_.chains;
    const bool whole = valid == group_;
    if (b_.hold_a) {
      const int passing = k.rows * b_.a_registers;
      for (int r = 0; r < k.rows; ++r) load_a(k, r * b_.a_registers, r, s, valid);
      for (int j = 0; j < k.columns; ++j) {
        if (b_.embed && whole && k.rows == 1) {
          product_in_memory(accumulator(k, 0, j, chain), 0, ptr[b_at(j, s)], masked(k, j));
          continue;
        }
        load_b(k, passing, passing + b_.b_registers, j, s, valid);
        sum_column(k, j, passing);
        for (int r = 0; r < k.rows; ++r) {
          multiply(accumulator(k, r, j, chain), r * b_.a_registers, passing, passing + b_.b_registers);
        }
      }
    } else {
      const int passing = k.columns * b_.b_registers;
      for (int j = 0; j < k.columns; ++j) {
        load_b(k, j * b_.b_registers, passing, j, s, valid);
        sum_column(k, j, j * b_.b_registers);
      }
      for (int r = 0; r < k.rows; ++r) {
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
    if (ldb_in_register_) {
      rows_of_step_ == 1 ? add(rdx, r11) : lea(rdx, ptr[rdx + r11 * rows_of_step_]);
    }
    if (lda_in_register_ && !a_rows_) add(rax, r9);
  }

  void load_a(const block& k, int to, int r, int s, int valid) {
    const RegExp at = a_at(r, s);
    if (group_ == 1) return broadcast_as_accumulator(to, at, d_.a);
    if (valid == group_) {
      vbroadcastss(v(to), ptr[at]);
    } else {
      load_part_of_group(at, valid);
      if (wide()) {
        vpbroadcastd(v(to), ecx);
      } else {
        vmovd(quarter(to), ecx);
        vpbroadcastd(v(to), quarter(to));
      }
    }
    if (shifts_a_) xor_lanes(to, to, sign_bytes(k));
    if (b_.a_registers == 2) split(to, d_.a);
  }
  /// ecx: the valid elements of a group, zeros above. The loop's counter is free by then.
  void load_part_of_group(const RegExp& at, int valid) {
    const index bytes = valid * size_a_;
    if (bytes == 1) return movzx(ecx, byte[at]);
    movzx(ecx, word[at]);
    if (bytes == 2) return;
    mov(word_at(scratch), rax);  // three bytes need a second register
    movzx(eax, byte[at + 2]);
    shl(eax, 16);
    or_(ecx, eax);
    mov(rax, word_at(scratch));
  }

  void load_b(const block& k, int to, int spare, int j, int s, int valid) {
    const bool tail = masked(k, j);
    if (group_ == 1) {
      d_.b == type::f16 ? load_f16(to, b_at(j, s), tail) : load_lanes(to, b_at(j, s), tail, f64_);
      return;
    }
    if (rows_of_step_ == 1) {
      load_lanes(to, b_at(j, s), tail);
      if (valid != group_ && size_b_ == 2) {  // whatever pads the last pair adds nothing
        with_constant(0x0000ffffu,
                      [&](const Address& c) { wide() ? vpandd(v(to), v(to), c) : vpand(v(to), v(to), c); });
      }
    } else {
      for (int q = 0; q < valid; ++q) {
        const int part = q == 0 ? to : spare;
        size_b_ == 2 ? load_words(part, b_at(j, s, q), tail) : load_8bit(part, b_at(j, s, q), tail);
        if (q == 0) continue;
        vpslld(v(spare), v(spare), static_cast<std::uint8_t>(q * 8 * size_b_));
        or_lanes(to, to, spare);
      }
    }
    if (b_.b_registers == 2) split(to, d_.b);
  }

  /// Groups in `low` to even elements in `low`, odd ones in `low` + 1: f32 for bf16, 16-bit integers for 8-bit types.
  void split(int low, type t) {
    const int high = low + 1;
    if (t == type::bf16) {
      with_constant(0xffff0000u,
                    [&](const Address& c) { wide() ? vpandd(v(high), v(low), c) : vpand(v(high), v(low), c); });
      return vpslld(v(low), v(low), 16);
    }
    if (t == type::u8) {
      vpsrlw(v(high), v(low), 8);
      return with_constant(0x00ff00ffu,
                           [&](const Address& c) { wide() ? vpandd(v(low), v(low), c) : vpand(v(low), v(low), c); });
    }
    vpsraw(v(high), v(low), 8);
    vpsllw(v(low), v(low), 8);
    vpsraw(v(low), v(low), 8);
  }

  void multiply(int sum, int a, int b, int spare) {
    switch (b_.how) {
      case product::fma_f32: return vfmadd231ps(v(sum), v(a), v(b));
      case product::fma_f64: return vfmadd231pd(v(sum), v(a), v(b));
      case product::dot_bf16: return vdpbf16ps(v(sum), v(a), v(b));
      case product::split_bf16: vfmadd231ps(v(sum), v(a + 1), v(b + 1)); return vfmadd231ps(v(sum), v(a), v(b));
      case product::dot_8bit: return d_.b == type::s8 ? dot_8bit(sum, a, b) : dot_8bit(sum, b, a);
      case product::madd_8bit:
        for (int half = 0; half < 2; ++half) {
          vpmaddwd(v(spare), v(a + half), v(b + half));
          vpaddd(v(sum), v(sum), v(spare));
        }
    }
  }
  void dot_8bit(int sum, int u8, int s8) {
    vpdpbusd(v(sum), v(u8), v(s8), wide() ? assembler_names::EvexEncoding : assembler_names::VexEncoding);
  }
  /// The passing operand stays in memory; masked lanes of the sum keep their value and are never stored.
  void product_in_memory(int sum, int held, const Address& passing, bool tail) {
    const Xmm to = tail ? v(sum) | k1 : v(sum);
    switch (b_.how) {
      case product::fma_f64: return vfmadd231pd(to, v(held), passing);
      case product::dot_bf16: return vdpbf16ps(to, v(held), passing);
      case product::dot_8bit: return vpdpbusd(to, v(held), passing, assembler_names::EvexEncoding);
      default: return vfmadd231ps(to, v(held), passing);
    }
  }
  void sum_column(const block& k, int j, int b) {
    if (shifts_a_) dot_8bit(column_sum(k, j), ones(k), b);
  }
};

}  // namespace BRGEMM_WITH_XBYAK
}  // namespace brgemm::inline abi_0::backend
