// The generator of the AMX backend: one kernel from one desc and its division into tiles.
//
//   for each area of C (tile_blocking.hpp): a tile configuration
//     for each block of columns, for each block of rows:
//       C's tiles = C, or 0                                                start()
//       for each entry of the batch, for each chunk of k: A * B            sums(), products(); interleave() a plain B
//       tiles to C; or to the stack, and on as the vector backends do      end(), jit_epilogue.hpp
//
// clang-format off
// Registers as in jit_block.hpp; leading dimensions always stand in theirs, which tile loads and stores want, and
// r10  bytes of 16 groups of rows of B; of a B that is interleaved here, of a row of its copy
// r12, r13  A of the second and the third row of tiles
// clang-format on
#pragma once

#include "jit_operands.hpp"
#include "tile_blocking.hpp"

namespace brgemm::inline abi_0::backend {
inline namespace BRGEMM_WITH_XBYAK {

class jit_tiles : public jit_operands {
 public:
  jit_tiles(std::span<std::uint8_t> buffer, const desc& d, const vector_unit& unit, const tile_blocking& t)
      : jit_operands(buffer, d, unit, vector_part(d, unit, t)), t_(t), stack_(layout_of_stack(d, t)) {
    lda_in_register_ = ldb_in_register_ = ldc_in_register_ = true;
    lda_ = ldb_ = ldc_ = step_b_ = 0;
    c_ = r14;
    most_rows_ = 17;  // r12 and r13 are saved
    one_row_ = false;
    one_column_ = t.columns[0].count + t.columns[1].count == 1;
    has_one_configuration_ = configuration_of(d, t).words[0] != 0;
    scratch_row_ = t.most_columns() * tile_bytes;
  }

  /// Writes the kernel; returns its bytes, 0 if they do not fit the buffer.
  std::size_t generate() {
    prologue();
    reserve_stack();
    if (interleaves()) {
      mov(r10d, tile_bytes);
    } else {
      mov(r10, r11);
      shl(r10, 4);
    }
    begin_rows();
    if (d_.m_extent == extent_kind::at_call) {
      rows_at_call();
    } else {
      for (const strip& rows : t_.rows) {
        if (rows.count == 0) continue;
        areas(rows, rows.count);
        if (&rows == t_.rows && t_.rows[1].count != 0) advance_rows(rows.count * rows.total());
      }
    }
    restore_configuration();
    leave();
    return write_activations() && finish() ? getSize() : 0;
  }

  /// What stands below the frame, in bytes from rsp: the next configuration, the caller's, A's tail, B's tiles, C's.
  struct stack_layout {
    std::size_t tail_of_a;
    std::size_t tiles_of_b;
    std::size_t sums;
    std::size_t bytes;  ///< all; up to 64 more are lost to alignment
  };
  static stack_layout layout_of_stack(const desc& d, const tile_blocking& t) {
    const auto row_of_tiles = static_cast<std::size_t>(t.most_rows()) * tile_bytes;
    const auto columns = static_cast<std::size_t>(t.most_columns());
    stack_layout s{};
    s.tail_of_a = 2 * configuration_bytes;
    s.tiles_of_b = s.tail_of_a + (copies_tail(d, t) ? row_of_tiles : 0);
    s.sums = s.tiles_of_b + (d.layout_b == layout::plain ? columns * whole_tile : 0);
    s.bytes = s.sums + (!t.direct || starts_on_stack(d) ? columns * row_of_tiles : 0);
    return s;
  }

 private:
  static constexpr std::size_t configuration_bytes = 64;
  static constexpr std::size_t whole_tile = tile_rows * tile_bytes;
  static constexpr std::size_t callers_ = configuration_bytes;  // from rsp: the configuration that the caller had

  // Names of words of the frame that only groups use in the other generator.
  static constexpr slot first_a = group_a;  // bytes from A_i to the first row of the area
  static constexpr slot first_c = group_b;  // C at the first row of the area
  static constexpr slot first_row = entries_left;
  static constexpr slot parts_left = entries;  // of a block, where vectors end it
  static constexpr slot end_of_copy = c_block;
  static constexpr slot part_of_sums = b_base;  // where the part's sums stand on the stack

  /// How vectors start and end a block of tiles: parts of a few rows that fit the registers.
  static blocking vector_part(const desc& d, const vector_unit& unit, const tile_blocking& t) {
    blocking b;
    b.how = product::dot_bf16;  // any that needs no registers of its own
    b.lanes = tile_rows;
    b.tail = static_cast<int>(d.n % b.lanes);
    const int free = unit.registers() - std::max(3, detail::epilogue_registers(d, unit));
    b.rows[0] = {1, std::min(t.most_rows_of_part, free / t.most_columns()), false};
    b.columns[0] = {1, t.most_columns(), false};
    return b;
  }
  static bool starts_at_zero(const desc& d) {
    return d.beta == beta_kind::zero || d.alpha == alpha_kind::at_call || brgemm::detail::becomes_f32(d);
  }
  /// Tiles cannot load the start from C as it is.
  static bool starts_on_stack(const desc& d) {
    return !starts_at_zero(d) && (d.beta == beta_kind::at_call || d.c != accumulator_of(d));
  }
  static bool copies_tail(const desc& d, const tile_blocking& t) {
    return t.depth[1].k * static_cast<int>(size_of(d.a)) % 4 != 0;
  }

  /// Touches each page on the way down, so that none is jumped over; the frame above was not written yet.
  void reserve_stack() {
    constexpr std::size_t page = 4096;
    for (std::size_t at = page - frame_bytes; at < stack_.bytes + 64; at += page) or_(dword[rsp - at], 0);
    sub(rsp, static_cast<std::uint32_t>(stack_.bytes));
    and_(rsp, 0xffffffc0u);
    sttilecfg(ptr[rsp + callers_]);
  }

  // ---- areas -------------------------------------------------------------------------------------

  void begin_rows() {
    zero_word(first_a);
    zero_word(first_row);
    mov(rax, argument(&arguments::c));
    mov(word_at(first_c), rax);
  }
  void advance_rows(index rows) {
    mov(rcx, static_cast<std::uint64_t>(rows));
    mov(rax, r9);
    imul(rax, rcx);
    add(word_at(first_a), rax);
    mov(rax, r15);
    imul(rax, rcx);
    add(word_at(first_c), rax);
    add(word_at(first_row), rcx);
  }

  /// Blocks of 16 rows while there are so many, then one of those that are left.
  void rows_at_call() {
    mov(rax, argument(&arguments::m));
    test(rax, rax);
    const std::size_t no_rows = jump_forward(condition::less_or_equal);
    if (d_.m >= tile_rows) {
      sar(rax, 4);
      const std::size_t none = jump_forward(condition::equal);
      areas({1, 1, tile_rows}, 0);
      mov(rax, argument(&arguments::m));
      and_(rax, 0xfffffff0u);
      mov(word_at(first_row), rax);
      mov(rcx, r9);
      imul(rcx, rax);
      mov(word_at(first_a), rcx);
      imul(rax, r15);
      add(word_at(first_c), rax);
      land(none);
    }
    mov(rax, argument(&arguments::m));
    and_(rax, 15);
    const std::size_t none = jump_forward(condition::equal);
    rows_are_counted_ = true;
    areas({1, 1, tile_rows}, 1);
    rows_are_counted_ = false;
    land(none);
    land(no_rows);
  }

  /// All columns of `count` blocks of rows; count 0: as many as a call has 16 rows.
  void areas(const strip& rows, index count) {
    index first = 0;
    for (const strip& columns : t_.columns) {
      if (columns.count == 0) continue;
      tiles_ = detail::assign_tiles(t_.depth, rows, columns);
      configure();
      area(rows, count, columns, first);
      first += columns.count * columns.total();
    }
  }

  /// The configuration of the next blocks, which is not loaded where the caller has it already. It is made on the
  /// stack, where a call's number of rows goes into it.
  void configure() {
    const tile_configuration c = configuration_of(tiles_);
    for (std::size_t i = 0; i < 8; ++i) {
      mov(rax, c.words[i]);
      mov(ptr[rsp + 8 * i], rax);
    }
    if (rows_are_counted_) {
      mov(rax, argument(&arguments::m));
      and_(rax, 15);
      for (int i = 0; i < tiles_.used; ++i) {
        if (has_rows_of_c(i)) mov(byte[rsp + (48 + static_cast<std::size_t>(i))], al);
      }
    }
    if (!has_one_configuration_) return ldtilecfg(ptr[rsp]);
    const std::size_t same = compare_configurations();
    ldtilecfg(ptr[rsp]);
    land(same);
  }
  /// The jump is taken where the caller's is this one.
  std::size_t compare_configurations() {
    vmovups(v(0), ptr[rsp]);
    vpcmpd(k7, v(0), ptr[rsp + callers_], 4);
    kortestw(k7, k7);
    return jump_forward(condition::equal);
  }
  /// A function that changes the configuration leaves it as it was.
  void restore_configuration() {
    const std::size_t same = has_one_configuration_ ? compare_configurations() : 0;
    cmp(byte[rsp + callers_], 0);  // the palette: none
    either(
        condition::equal, [&] { tilerelease(); }, [&] { ldtilecfg(ptr[rsp + callers_]); });
    if (same != 0) land(same);
  }
  /// Tiles of C and A, in an area of one row of tiles.
  bool has_rows_of_c(int tile) const {
    bool b = false;
    for (int kind = 0; kind < 2; ++kind) {
      if (t_.depth[kind].k == 0) continue;
      for (const std::int8_t own : tiles_.of[kind].b) b |= own == tile && own != 0;
    }
    return !b;
  }

  void area(const strip& rows, index count, const strip& columns, index first) {
    const index unit_b = vector_b_ / b_.lanes;
    mov(rax, word_at(first_c));
    add_constant(rax, first * size_c_, rcx);
    mov(word_at(c_column), rax);
    if (!one_column_) {
      set_word(b_offset, first * unit_b, rax);
      set_word(column_index, first, rax);
    }
    repeat(columns.count, blocks_left, [&] {
      mov(rax, word_at(first_a));
      mov(word_at(a_offset), rax);
      mov(rax, word_at(first_row));
      mov(word_at(row_index), rax);
      mov(c_, word_at(c_column));
      if (count == 0) {
        mov(rax, argument(&arguments::m));
        sar(rax, 4);
        mov(word_at(rows_left), rax);
        const std::uint8_t* top = getCurr();
        block_of_tiles(rows, columns);
        sub(word_at(rows_left), 1);
        jnz(static_cast<const void*>(top));
      } else {
        repeat(count, rows_left, [&] { block_of_tiles(rows, columns); });
      }
      if (one_column_) return;
      add_word(c_column, columns.total() * size_c_, rax);
      add_word(b_offset, columns.total() * unit_b, rax);
      add_word(column_index, columns.total(), rax);
    });
  }

  void set_word(slot w, index value, const Reg64& temporary) {
    mov(temporary, static_cast<std::uint64_t>(value));
    mov(word_at(w), temporary);
  }

  // ---- one block ---------------------------------------------------------------------------------

  void block_of_tiles(const strip& rows, const strip& columns) {
    start(rows, columns);
    sums(rows, columns);
    end(rows, columns);
  }

  static assembler_names::Tmm tile(int i) { return assembler_names::Tmm(i); }
  static int sum_tile(const strip& columns, int i, int j) { return i * columns.tiles + j; }

  /// Calls each(tile, address) for the tiles of C, in C or in the stack's copy; rcx holds the stride of the latter.
  template <class Each>
  void tiles_of_c(const strip& rows, const strip& columns, bool on_stack, Each each) {
    if (on_stack) mov(ecx, static_cast<std::uint32_t>(scratch_row_));
    for (int i = 0; i < rows.tiles; ++i) {
      if (!on_stack) i == 0 ? mov(rax, c_) : add(rax, rdx);
      if (!on_stack && i == 0 && rows.tiles > 1) mov(rdx, r15), shl(rdx, 4);
      for (int j = 0; j < columns.tiles; ++j) {
        const std::size_t along = static_cast<std::size_t>(j) * tile_bytes;
        const auto place =
            stack_.sums + static_cast<std::size_t>(i) * tile_rows * static_cast<std::size_t>(scratch_row_) + along;
        each(tile(sum_tile(columns, i, j)), on_stack ? ptr[rsp + rcx + place] : ptr[rax + r15 + along]);
      }
    }
  }

  void start(const strip& rows, const strip& columns) {
    if (starts_at_zero(d_)) {
      for (int i = 0; i < rows.tiles * columns.tiles; ++i) tilezero(tile(i));
      return;
    }
    const bool on_stack = starts_on_stack(d_);
    if (on_stack) {
      mov(word_at(c_block), c_);
      parts(rows, columns, [&](const block& k) { start_part(k); });
      mov(c_, word_at(c_block));
    }
    tiles_of_c(rows, columns, on_stack, [&](const auto& to, const Address& from) { tileloadd(to, from); });
  }
  /// C, or round(beta * C), to the stack.
  void start_part(const block& k) {
    std::size_t zero = 0;
    for_each(k, [&](int r, int j) { clear(accumulator(k, r, j)); });
    if (d_.beta == beta_kind::at_call) zero = broadcast_beta(0);
    rows_of_c(k, [&](int r, const RegExp& row) {
      for (int j = 0; j < k.columns; ++j) {
        const int x = accumulator(k, r, j);
        load_as_accumulator(x, row + column_of_c(j), d_.c, masked(k, j));
        if (d_.beta == beta_kind::at_call) multiply_lanes(x, x, 0);
      }
    });
    if (d_.beta == beta_kind::at_call) land(zero);
    sums_of_part(k, [&](int x, const Address& at) { vmovups(at, v(x)); });
  }

  void sums(const strip& rows, const strip& columns) {
    if (t_.chunks == 0 && t_.depth[1].k == 0) return;
    mov(rsi, argument(&arguments::batch));
    if (d_.batch == batch_kind::strides) {
      mov(r8, argument(&arguments::a));
      add(r8, word_at(a_offset));
      mov(rax, argument(&arguments::b));
      if (!one_column_) add(rax, word_at(b_offset));
      mov(word_at(b_base), rax);
    } else {
      mov(r8, argument(&arguments::pairs));
    }
    test(rsi, rsi);
    const std::size_t empty = jump_forward(condition::less_or_equal);
    const std::uint8_t* top = getCurr();
    find_entry(nullptr);
    entry(rows, columns);
    sub(rsi, 1);
    jnz(static_cast<const void*>(top));
    land(empty);
  }

  void entry(const strip& rows, const strip& columns) {
    if (rows.tiles > 1) mov(rcx, r9), shl(rcx, 4);
    if (rows.tiles > 1) lea(r12, ptr[rax + rcx]);
    if (rows.tiles > 2) lea(r13, ptr[rax + rcx * 2]);
    if (t_.chunks > 0) {
      if (t_.chunks > 1) set_word(chunks_left, t_.chunks, rcx);
      const std::uint8_t* top = getCurr();
      if (interleaves()) interleave(columns, t_.depth[0]);
      products(rows, columns, tiles_.of[0], false);
      if (t_.chunks > 1 || t_.depth[1].k != 0) {
        for (int i = 0; i < rows.tiles; ++i) add(row_of_a(i), tile_bytes);
        if (!interleaves()) add(rdx, r10);
      }
      if (t_.chunks > 1) {
        sub(word_at(chunks_left), 1);
        jnz(static_cast<const void*>(top));
      }
    }
    if (t_.depth[1].k == 0) return;
    if (interleaves()) interleave(columns, t_.depth[1]);
    const bool copies = copies_tail(d_, t_);
    if (copies) copy_tail(rows);
    products(rows, columns, tiles_.of[1], copies);
  }

  /// Groups of rows of a plain B, as far as this block's columns go, to the stack, as pack_b would write them; moves B.
  void interleave(const strip& columns, const tile_depth& depth) {
    const block k{1, columns.tiles, columns.last != tile_rows};
    const auto group = [&](int valid) {
      for (int j = 0; j < columns.tiles; ++j) {
        load_b(k, 0, 1, j, 0, valid);
        vmovups(ptr[rcx + static_cast<std::size_t>(j) * whole_tile], v(0));
      }
    };
    const int whole = depth.k / static_cast<int>(group_);
    const int left = depth.k % static_cast<int>(group_);
    lea(rcx, ptr[rsp + (stack_.tiles_of_b + static_cast<std::size_t>(whole) * tile_bytes)]);
    mov(word_at(end_of_copy), rcx);
    lea(rcx, ptr[rsp + stack_.tiles_of_b]);
    if (whole > 0) {
      const std::uint8_t* top = getCurr();
      group(static_cast<int>(group_));
      lea(rdx, ptr[rdx + r11 * rows_of_step_]);
      add(rcx, tile_bytes);
      cmp(rcx, word_at(end_of_copy));
      jnz(static_cast<const void*>(top));
    }
    if (left != 0) group(left);
  }
  const Reg64& row_of_a(int i) const { return i == 0 ? rax : i == 1 ? r12 : r13; }

  /// The last elements of A's rows, with zeros up to four bytes: what lies behind them may be no number. rcx: the
  /// stride of the copy.
  void copy_tail(const strip& rows) {
    const auto bytes = static_cast<int>(t_.depth[1].k * size_a_);
    mov(rcx, (std::uint64_t{1} << bytes) - 1);
    kmovq(k7, rcx);
    mov(r12, rax);
    lea(r13, ptr[rsp + stack_.tail_of_a]);
    rows_are_counted_ ? mov(rcx, argument(&arguments::m)) : mov(ecx, static_cast<std::uint32_t>(rows.total()));
    if (rows_are_counted_) and_(ecx, 15);
    const std::uint8_t* top = getCurr();
    vmovdqu8(v(0) | k7 | T_z, ptr[r12]);
    vmovups(ptr[r13], v(0));
    add(r12, r9);
    add(r13, tile_bytes);
    sub(ecx, 1);
    jnz(static_cast<const void*>(top));
    mov(ecx, tile_bytes);
  }

  void products(const strip& rows, const strip& columns, const tile_assignment::operands& o, bool from_copy) {
    const auto load_a = [&](int i) {
      if (!from_copy) return tileloadd(tile(o.a[i]), ptr[row_of_a(i) + r9]);
      tileloadd(tile(o.a[i]),
                ptr[rsp + rcx + (stack_.tail_of_a + static_cast<std::size_t>(i) * tile_rows * tile_bytes)]);
    };
    const auto load_b = [&](int j) {
      const auto columns_before = static_cast<std::size_t>(j);
      if (!interleaves()) return tileloadd(tile(o.b[j]), ptr[rdx + r11 + columns_before * tile_bytes]);
      tileloadd(tile(o.b[j]), ptr[rsp + r10 + (stack_.tiles_of_b + columns_before * whole_tile)]);
    };
    if (o.holds_b || !o.holds_a) {
      for (int i = 0; i < rows.tiles; ++i) {
        load_a(i);
        for (int j = 0; j < columns.tiles; ++j) {
          if (i == 0 || !o.holds_b) load_b(j);
          multiply(sum_tile(columns, i, j), o.a[i], o.b[j]);
        }
      }
    } else {
      for (int j = 0; j < columns.tiles; ++j) {
        load_b(j);
        for (int i = 0; i < rows.tiles; ++i) {
          if (j == 0) load_a(i);
          multiply(sum_tile(columns, i, j), o.a[i], o.b[j]);
        }
      }
    }
  }
  void multiply(int sum, int a, int b) {
    if (d_.a == type::bf16) return tdpbf16ps(tile(sum), tile(a), tile(b));
    if (d_.a == type::u8)
      return d_.b == type::u8 ? tdpbuud(tile(sum), tile(a), tile(b)) : tdpbusd(tile(sum), tile(a), tile(b));
    d_.b == type::u8 ? tdpbsud(tile(sum), tile(a), tile(b)) : tdpbssd(tile(sum), tile(a), tile(b));
  }

  void end(const strip& rows, const strip& columns) {
    tiles_of_c(rows, columns, !t_.direct, [&](const auto& from, const Address& to) { tilestored(to, from); });
    if (!t_.direct) {
      return parts(rows, columns, [&](const block& k) {
        sums_of_part(k, [&](int x, const Address& at) { vmovups(v(x), at); });
        jit_epilogue::end(k);
        imul(rax, r9, k.rows);
        add(word_at(a_offset), rax);
        if (counts_rows()) add_word(row_index, k.rows, rax);
      });
    }
    imul(rax, r9, rows.total());
    add(word_at(a_offset), rax);
    imul(rax, r15, rows.total());
    add(c_, rax);
  }

  // ---- parts of a block in vector registers ------------------------------------------------------

  /// Calls each(part) with c_ and part_of_sums at its first row, and moves both on.
  template <class Each>
  void parts(const strip& rows, const strip& columns, Each each) {
    const auto part = [&](int height) {
      const block k{height, columns.tiles, columns.last != tile_rows};
      each(k);
      imul(rax, r15, height);
      add(c_, rax);
      add_word(part_of_sums, height * scratch_row_, rax);
    };
    lea(rax, ptr[rsp + stack_.sums]);
    mov(word_at(part_of_sums), rax);
    if (rows_are_counted_) {
      mov(rax, argument(&arguments::m));
      and_(rax, 15);
      mov(word_at(parts_left), rax);
      const std::uint8_t* top = getCurr();
      part(1);
      sub(word_at(parts_left), 1);
      jnz(static_cast<const void*>(top));
      return;
    }
    section s[2];
    detail::divide(rows.total(), b_.rows[0].size, s[0], s[1]);
    for (const section& of : s) {
      if (of.count != 0) repeat(of.count, parts_left, [&] { part(of.size); });
    }
  }
  template <class Each>
  void sums_of_part(const block& k, Each each) {
    mov(rax, word_at(part_of_sums));
    for_each(k, [&](int r, int j) {
      each(accumulator(k, r, j), ptr[rax + static_cast<std::size_t>(r * scratch_row_ + j * tile_bytes)]);
    });
  }

  /// B is stored (k,n), and groups of its rows become tiles on the stack.
  bool interleaves() const { return rows_of_step_ > 1; }

  const tile_blocking& t_;
  stack_layout stack_;
  tile_assignment tiles_;
  int scratch_row_;  // bytes of a row of C's tiles on the stack
  bool has_one_configuration_;
  bool rows_are_counted_ = false;  // the block has m % 16 rows, m given at the call
};

}  // namespace BRGEMM_WITH_XBYAK
}  // namespace brgemm::inline abi_0::backend
