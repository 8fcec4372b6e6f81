// What the parts of a generated kernel share: the desc in bytes, the frame, and which register holds what of a block of
// C.
//
// clang-format off
// rdi  arguments                         r8   next pair, or A of the next entry    r12  A + 3 rows
// rsi  entries left                      r9   lda, or C of the block (see c_)      r13  A + 10 rows, or as r10
// rax  A of the step                     r10  3 lda, or B of the next entry        r14  C of the block
// rdx  B of the step                     r11  ldb, or a_offset                     r15  ldc
// rcx  loops of steps left               rbx  3 ldb, or from B to what is prefetched
// clang-format on
// Leading dimensions are in bytes, and stand in a register only where they are no constants. Between the sums of two
// blocks rax, rcx, rdx, rsi, r8, r12 and r13 are free. Accumulators fill the vector registers from the last downwards;
// the rest, from 0 upwards, are temporaries.
#pragma once

#include "../core/validate.hpp"
#include "jit_assembler.hpp"

namespace brgemm::inline abi_0::backend {
inline namespace BRGEMM_WITH_XBYAK {

class jit_block : public jit_assembler {
 public:
  /// Return addresses of the kernel and of an activation, rbp, the frame.
  static constexpr std::size_t stack_bytes() { return 24 + frame_bytes; }

  jit_block(std::span<std::uint8_t> buffer, const desc& d, const vector_unit& unit, const blocking& b)
      : jit_assembler(buffer, unit), d_(d), b_(b) {
    f64_ = accumulator_of(d) == type::f64;
    size_a_ = size_of(d.a);
    size_b_ = size_of(d.b);
    size_c_ = size_of(d.c);
    group_ = k_group_of(d);
    const bool interleaved = d.layout_b == layout::interleaved;
    const index unit_b = detail::lane_of_b(d);
    transposed_b_ = d.layout_b == layout::transposed;
    vector_b_ = b.lanes * unit_b;
    depthwise_ = is_depthwise(d.layout_a);
    mirrored_ = d.layout_a == layout::depthwise_mirrored;
    a_rows_ = detail::rows_of_c_are_rows_of_a(d);
    lane_a_ = detail::lane_of_a(d);
    lda_in_register_ = detail::lda_needs_register(d);
    ldb_in_register_ = detail::ldb_needs_register(d);
    ldc_in_register_ = detail::needs_register(d.ldc, size_c_, 32);
    lda_ = lda_in_register_ ? 0 : d.lda * lane_a_;
    ldb_ = ldb_in_register_ ? 0 : d.ldb * unit_b;
    ldc_ = ldc_in_register_ ? 0 : d.ldc * size_c_;
    step_b_ = ldb_ * (interleaved ? 1 : group_);
    rows_of_step_ = interleaved || transposed_b_ ? 1 : static_cast<int>(group_);
    shifts_a_ = detail::shifts_a(d, b.how);
    most_rows_ = std::max(b.rows[0].size, static_cast<int>(b.few));
    divide_by(b, d.m_extent);
    if (!lda_in_register_) c_ = r9;
    set_tail(b.tail);
  }

 protected:
  /// What follows divides C so. One vector's lanes, and so the tail, are the same in all divisions of a desc.
  void divide_by(const blocking& b, extent_kind m_extent) {
    b_ = b;
    rows_known_ = m_extent == extent_kind::fixed;
    one_row_ = rows_known_ && b.rows[0].count == 1 && b.rows[1].count == 0;
    one_column_ = b.columns[0].count == 1 && b.columns[1].count == 0;
  }

  /// A block of C that rests in registers: rows x vectors, the last vector with a tail if `masked`.
  struct block {
    int rows;
    int columns;
    bool masked;
  };

  // ---- frame: words below the five saved registers -----------------------------------------------

  enum slot : std::size_t {
    a_offset,  // bytes from A_i to the block's first row; r11 where that is free
    b_offset,  // bytes from B_i to the block's first column
    b_base,    // strides: B of the next entry, in this block, where no register is free for it
    rows_left,
    blocks_left,
    c_column,  // C at row 0 of this column of blocks
    row_index,
    column_index,
    entries,  // groups: entries of this one, its first A or pair, its first B; entries after it; is it the first?
    group_a,
    group_b,
    entries_left,
    first_group,
    c_block,                 // B stored (n,k): r14 while it walks B's rows
    scratch,                 // two 32-bit words
    row_term,                // one 32-bit word for each of at most 30 rows
    chunks_left = row_term,  // order::tile: bf16 has no row terms
    word_count = row_term + 16
  };
  static constexpr std::size_t saved_bytes = 40;  // the places below rbp of at most five registers
  static constexpr std::size_t frame_bytes = saved_bytes + 8 * word_count;

  Address word_at(slot w) { return qword[rbp - (saved_bytes + 8 + 8 * w)]; }
  Address scratch_at(std::size_t i) { return dword[rbp - (saved_bytes + 8 + 8 * scratch - 4 * i)]; }
  RegExp row_terms() { return rbp - frame_bytes; }

  void prologue() {
    endbr64();
    push(rbp);
    mov(rbp, rsp);
    std::uint32_t below = 0;
    for_saved([&](const Reg64& r) { push(r), below += 8; });
    sub(rsp, static_cast<std::uint32_t>(frame_bytes) - below);
    load_tail_mask();
    if (lda_in_register_) leading_dimension(r9, d_.lda, argument(&arguments::lda), lane_a_);
    if (lda_in_register_ && a_rows_) lea(r10, ptr[r9 + r9 * 2]);
    if (ldb_in_register_) leading_dimension(r11, d_.ldb, argument(&arguments::ldb), vector_b_ / b_.lanes);
    if (ldb_in_register_ && rows_of_step_ == 4) lea(rbx, ptr[r11 + r11 * 2]);
    if (prefetches()) mov(rbx, argument(&arguments::prefetch));
    if (ldc_in_register_) leading_dimension(r15, d_.ldc, argument(&arguments::ldc), size_c_);
  }
  void leave() {
    if (d_.write_c == write_kind::streaming) sfence();  // other stores of this thread come after C, as everywhere else
    vzeroupper();
    std::size_t below = 0;
    for_saved([&](const Reg64& r) { mov(r, ptr[rbp - (below += 8)]); });
    CodeGenerator::leave();
    ret();
  }
  /// The callee-saved registers that this kernel changes, in the order of their places below rbp.
  template <class Each>
  void for_saved(Each each) {
    const bool row_sums = d_.zero_b != zero_point::none;
    const bool far_rows = lda_in_register_ && a_rows_;
    if (prefetches() || (ldb_in_register_ && rows_of_step_ == 4)) each(rbx);
    if (row_sums || (far_rows && most_rows_ > 5)) each(r12);
    if (row_sums || (far_rows && (most_rows_ > 10 || d_.batch == batch_kind::strides))) each(r13);
    if (lda_in_register_ || (transposed_b_ && ldb_in_register_)) each(r14);
    if (ldc_in_register_) each(r15);
  }
  /// Tiles have ldb in a register always.
  bool prefetches() const { return detail::prefetches(d_) && !ldb_in_register_; }
  void leading_dimension(const Reg64& r, index ld, const Address& at_the_call, index bytes) {
    if (ld != at_call) return mov(r, static_cast<std::uint64_t>(ld) * static_cast<std::uint64_t>(bytes));
    mov(r, at_the_call);
    times(r, bytes);
  }
  void times(const Reg64& r, index power_of_two) {
    if (power_of_two > 1) shl(r, std::countr_zero(static_cast<std::uint64_t>(power_of_two)));
  }

  /// A field of the arguments of the call.
  template <class Member>
  Address argument(Member arguments::*member) {
    return qword[rdi + offset_of(member)];
  }
  template <class Member>
  static std::size_t offset_of(Member arguments::*member) {
    static constexpr arguments none{};
    return static_cast<std::size_t>(reinterpret_cast<const char*>(&(none.*member)) -
                                    reinterpret_cast<const char*>(&none));
  }

  /// Where blocks have few products, they wait for stores, and each word of the frame that changes is one more: so rows
  /// are counted in a register where one is free, and their numbers are kept only where the epilogue asks.
  template <class Use>
  void with_a_offset(Use use) {
    ldb_in_register_ ? use(word_at(a_offset)) : use(r11);
  }
  bool counts_rows() const {
    for (int i = 0; i < d_.epilogue_size; ++i) {
      const epilogue_op& o = d_.epilogue[i];
      if (brgemm::detail::has_operand(o.kind) && !(brgemm::detail::is_vector(o.kind) && o.along != axis::row))
        return true;
    }
    return false;
  }

  void zero_word(slot w) { mov(word_at(w), 0); }
  void add_word(slot w, index value, const Reg64& temporary) {
    if (value == 0) return;
    if (value == static_cast<std::int32_t>(value)) return add(word_at(w), static_cast<std::uint32_t>(value));
    mov(temporary, static_cast<std::uint64_t>(value));
    add(word_at(w), temporary);
  }

  // ---- registers of a block ----------------------------------------------------------------------

  int accumulator(const block& k, int r, int j, int chain = 0) const {
    return unit_.registers() - 1 - ((chain * k.rows + r) * k.columns + j);
  }
  int below_accumulators(const block& k) const { return unit_.registers() - 1 - k.rows * k.columns * b_.sums(); }
  // s8 x s8: sums of the columns of B, ones, and the bytes 0x80
  int column_sum(const block& k, int j) const { return below_accumulators(k) - j; }
  int ones(const block& k) const { return below_accumulators(k) - k.columns; }
  int sign_bytes(const block& k) const { return ones(k) - 1; }
  // bf16, B stored (k,n): from words of two rows to pairs
  int pair_order(const block& k) const { return below_accumulators(k); }

  // ---- packed rows: the rows of a group share one vector for the last, narrow column ---------------

  int pack(const block& k) const { return k.masked && k.rows > 1 ? b_.pack : 1; }
  block whole_part(const block& k) const { return {k.rows, k.columns - 1, false}; }
  block narrow_part(const block& k) const { return {k.rows, 1, true}; }
  int packed(const block& k, int group) const { return unit_.registers() - 1 - k.rows * (k.columns - 1) - group; }
  /// The lanes of row i of a group; the lanes of the tail, in each row of a group.
  assembler_names::Opmask row_mask(int i) const { return assembler_names::Opmask(2 + i); }
  assembler_names::Opmask packed_mask() const { return k6; }
  void load_pack_masks() {
    if (b_.pack == 1) return;
    const unsigned lanes = static_cast<unsigned>(b_.lanes / b_.pack);
    const unsigned columns = (1u << tail()) - 1;
    unsigned all = 0;
    for (unsigned i = 0; i < static_cast<unsigned>(b_.pack); ++i) {
      all |= columns << (i * lanes);
      if (i == 0) continue;
      mov(eax, ((1u << lanes) - 1) << (i * lanes));
      kmovw(row_mask(static_cast<int>(i)), eax);
    }
    mov(eax, all);
    kmovw(packed_mask(), eax);
  }

  bool masked(const block& k, int j) const { return k.masked && j == k.columns - 1; }

  template <class Each>
  void for_each(const block& k, Each each) {
    for (int r = 0; r < k.rows; ++r) {
      for (int j = 0; j < k.columns; ++j) each(r, j);
    }
  }
  void clear(int i) { i < 16 ? vxorps(quarter(i), quarter(i), quarter(i)) : vpxord(v(i), v(i), v(i)); }

  // ---- C -----------------------------------------------------------------------------------------

  /// Calls each(row, address of the row's first element of C in this block).
  template <class Each>
  void rows_of_c(const block& k, Each each) {
    if (ldc_in_register_) mov(rcx, c_);
    for (int r = 0; r < k.rows; ++r) {
      each(r, ldc_in_register_ ? RegExp(rcx) : c_ + static_cast<std::size_t>(r * ldc_));
      if (ldc_in_register_ && r + 1 < k.rows) add(rcx, r15);
    }
  }
  /// Bytes from the block's first column to vector j, of elements of this size.
  std::size_t column_bytes(int j, index size) const {
    return static_cast<std::size_t>((first_column_ + j) * b_.lanes * size);
  }
  std::size_t column_of_c(int j) const { return column_bytes(j, size_c_); }

  /// The scalar in every lane of `to`, rounded to the accumulator's type.
  void broadcast_scalar(int to, double arguments::*member) {
    if (f64_) return vbroadcastsd(ymm_or_wider(to), argument(member));
    vxorps(quarter(to), quarter(to), quarter(to));
    vcvtsd2ss(quarter(to), quarter(to), argument(member));
    vbroadcastss(v(to), quarter(to));
  }
  /// beta in every lane of `to`; the returned jump is taken if it is zero.
  std::size_t broadcast_beta(int to) {
    broadcast_scalar(to, &arguments::beta);
    f64_ ? vmovq(rcx, quarter(to)) : vmovd(ecx, quarter(to));
    f64_ ? add(rcx, rcx) : add(ecx, ecx);  // loses the sign
    return jump_forward(condition::equal);
  }

  // ---- operations in the accumulator's type ------------------------------------------------------

  void multiply_lanes(int d, int x, int y) { f64_ ? vmulpd(v(d), v(x), v(y)) : vmulps(v(d), v(x), v(y)); }
  void add_lanes(int d, int x, int y) {
    if (accumulator_of(d_) == type::s32 && in_integers_) return vpaddd(v(d), v(x), v(y));
    f64_ ? vaddpd(v(d), v(x), v(y)) : vaddps(v(d), v(x), v(y));
  }
  void xor_lanes(int d, int x, int y) { wide() ? vpxord(v(d), v(x), v(y)) : vpxor(v(d), v(x), v(y)); }
  void or_lanes(int d, int x, int y) { wide() ? vpord(v(d), v(x), v(y)) : vpor(v(d), v(x), v(y)); }

  const desc& d_;
  blocking b_;
  row_range seen_;  // by the entry whose code is written; empty: all rows
  bool f64_;
  int first_column_ = 0;     // vectors of the block before the part that is being ended
  bool in_integers_ = true;  // s32 sums have not become f32 yet
  index size_a_, size_b_, size_c_;
  index group_;        // k of one lane
  index lane_a_;       // bytes of what lda counts
  index vector_b_;     // bytes of one vector of B's row
  bool transposed_b_;  // B is stored (n,k)
  bool depthwise_;     // rows of A have a column for each of C
  bool mirrored_;      // and its rows descend with k
  bool a_rows_;        // rows of C are rows of A
  bool lda_in_register_, ldb_in_register_, ldc_in_register_;
  index lda_, ldb_, ldc_;  // bytes, where constant
  index step_b_;           // bytes of B's rows of one step
  int rows_of_step_;       // rows of B that one step reads
  bool shifts_a_;
  int most_rows_;              // of a block, at most
  bool rows_known_;            // while the code is written
  bool one_row_, one_column_;  // of blocks: what their places would be added to stays as it is
  Reg64 c_ = r14;              // C of the block; r9 where that is free
};

}  // namespace BRGEMM_WITH_XBYAK
}  // namespace brgemm::inline abi_0::backend
