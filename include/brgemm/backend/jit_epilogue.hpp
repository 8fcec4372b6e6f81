// The end of a block of a generated kernel: chains, zero points, alpha, the epilogue's steps, conversion and store.
#pragma once

#include "jit_activation.hpp"
#include "jit_block.hpp"

namespace brgemm::inline abi_0::backend {
inline namespace BRGEMM_WITH_XBYAK {

class jit_epilogue : public jit_block {
 public:
  using jit_block::jit_block;

 protected:
  /// Writes the functions of the activations that were called, each once; false if there were too many calls.
  bool write_activations() {
    static constexpr int free_registers[] = {1, 2, 3, 4, 5, 6};
    for (std::size_t i = 0; i < calls_.count; ++i) {
      const op_kind kind = calls_.all[i].kind;
      if (kind == op_kind::none) continue;
      const std::size_t function = getSize();
      jit_evaluator evaluator(*this, 1 + temporaries(kind), 2 + temporaries(kind));
      emit_activation(kind, evaluator, 0, free_registers);
      ret();
      for (std::size_t j = i; j < calls_.count; ++j) {
        if (calls_.all[j].kind != kind) continue;
        rewrite(calls_.all[j].next - 4, function - calls_.all[j].next, 4);
        calls_.all[j].kind = op_kind::none;
      }
    }
    return calls_.count < std::size(calls_.all);
  }

  void end(const block& k) {
    if (pack(k) == 1) return end_part(k);
    parts(k, [&](const block& part) { end_part(part); });
  }
  void store_c(const block& k) {
    if (pack(k) == 1) return store_part(k);
    parts(k, [&](const block& part) { store_part(part); });
  }

  /// Ends the whole vectors of a block, then gives each packed row a vector of its own and ends those.
  template <class End>
  void parts(const block& k, End end_of_part) {
    if (k.columns > 1) end_of_part(whole_part(k));
    const block narrow = narrow_part(k);
    for (int group = (k.rows - 1) / pack(k); group >= 0; --group) {
      const int from = packed(k, group);
      const int first = group * pack(k);
      for (int i = std::min(pack(k), k.rows - first) - 1; i > 0; --i) {
        const int to = accumulator(narrow, first + i, 0);
        b_.pack == 2 ? vextractf32x8(Ymm(to), zmm(from), 1)
                     : vextractf32x4(quarter(to), zmm(from), static_cast<std::uint8_t>(i));
      }
      if (accumulator(narrow, first, 0) != from) vmovaps(v(accumulator(narrow, first, 0)), v(from));
    }
    first_column_ = k.columns - 1;
    end_of_part(narrow);
    first_column_ = 0;
  }

 private:
  void end_part(const block& k) {
    in_integers_ = accumulator_of(d_) == type::s32;
    join_chains(k);
    const int free = accumulator(k, k.rows, 0);  // the other chains' registers hold nothing any more
    set_f16_temporaries(free, free - 1);
    if (shifts_a_) subtract_shift(k);
    if (d_.zero_a != zero_point::none) subtract_column_sums(k);
    if (d_.zero_b != zero_point::none) add_row_terms(k);
    if (brgemm::detail::becomes_f32(d_)) {
      for_each(k, [&](int r, int j) { vcvtdq2ps(v(accumulator(k, r, j)), v(accumulator(k, r, j))); });
      in_integers_ = false;
      if (d_.alpha == alpha_kind::one) add_start(k);
    }
    if (d_.alpha == alpha_kind::at_call) apply_alpha(k);
    for (int i = 0; i < d_.epilogue_size; ++i) apply(k, i);
    store_part(k);
  }

  void store_part(const block& k) {
    // Four whole vectors become one of bytes.
    const int in_fours = wide() && brgemm::detail::is_8bit(d_.c) ? (k.columns - k.masked) / 4 * 4 : 0;
    constexpr fours packed_by = {0, 1};
    if (in_fours > 0) prepare_fours(packed_by, d_.c);
    rows_of_c(k, [&](int r, const RegExp& row) {
      static constexpr int temporaries_of_store[] = {0, 1, 2};
      for (int j = 0; j < in_fours; j += 4) {
        const int sums[] = {accumulator(k, r, j), accumulator(k, r, j + 1), accumulator(k, r, j + 2),
                            accumulator(k, r, j + 3)};
        store_8bit(row + column_of_c(j), sums, d_.c, packed_by);
      }
      for (int j = in_fours; j < k.columns; ++j) {
        store(row + column_of_c(j), accumulator(k, r, j), d_.c, masked(k, j), temporaries_of_store,
              d_.write_c == write_kind::streaming);
      }
    });
  }

  /// ((0+1)+(2+3))+((4+5)+(6+7))
  void join_chains(const block& k) {
    for (int apart = 1; apart < b_.chains; apart *= 2) {
      for (int chain = 0; chain < b_.chains; chain += 2 * apart) {
        for_each(k, [&](int r, int j) {
          const int sum = accumulator(k, r, j, chain);
          add_lanes(sum, sum, accumulator(k, r, j, chain + apart));
        });
      }
    }
  }

  // ---- 8-bit -------------------------------------------------------------------------------------

  /// The products were (a + 128) * b.
  void subtract_shift(const block& k) {
    for (int j = 0; j < k.columns; ++j) {
      vpslld(v(column_sum(k, j)), v(column_sum(k, j)), 7);
      for (int r = 0; r < k.rows; ++r) vpsubd(v(accumulator(k, r, j)), v(accumulator(k, r, j)), v(column_sum(k, j)));
    }
  }
  /// - zero_a * column_sums[j]
  void subtract_column_sums(const block& k) {
    cmp(dword[rdi + offset_of(&arguments::zero_a)], 0);
    const std::size_t none = jump_forward(condition::equal);
    mov(rax, argument(&arguments::column_sums));
    if (!one_column_) {
      mov(rcx, word_at(column_index));
      lea(rax, ptr[rax + rcx * 4]);
    }
    vpbroadcastd(v(0), dword[rdi + offset_of(&arguments::zero_a)]);
    for (int j = 0; j < k.columns; ++j) {
      load_lanes(1, rax + column_bytes(j, 4), masked(k, j));
      vpmulld(v(1), v(1), v(0));
      for (int r = 0; r < k.rows; ++r) vpsubd(v(accumulator(k, r, j)), v(accumulator(k, r, j)), v(1));
    }
    land(none);
  }
  /// + zero_b * (entries * k * zero_a - sum of A's row), one 32-bit word a row through the frame.
  void add_row_terms(const block& k) {
    row_sums(k);
    const RegExp terms = row_terms();
    for (int r = 0; r < k.rows; ++r) {
      vpbroadcastd(v(0), ptr[terms + static_cast<std::size_t>(4 * r)]);
      for (int j = 0; j < k.columns; ++j) vpaddd(v(accumulator(k, r, j)), v(accumulator(k, r, j)), v(0));
    }
  }
  /// Sums bytes by vpsadbw against zero (s8 after adding 128), so every vector unit has it.
  void row_sums(const block& k) {
    const int sum = 0, data = 1, zero = 2;
    clear(zero);
    one_row_ ? mov(r12d, 0) : with_a_offset([&](const Operand& offset) { mov(r12, offset); });
    xor_(r13d, r13d);
    const std::uint8_t* row = getCurr();
    clear(sum);
    add_entries(sum, data, zero);
    reduce_quadwords(sum, data);
    vmovd(eax, quarter(sum));
    to_row_term();
    mov(dword[row_terms() + r13 * 4], eax);
    lda_in_register_ ? add(r12, r9) : add(r12, static_cast<std::uint32_t>(lda_));
    add(r13, 1);
    cmp(r13, static_cast<std::uint32_t>(k.rows));
    jl(static_cast<const void*>(row));
  }
  /// Adds the bytes of one row, r12 from A, of every entry.
  void add_entries(int sum, int data, int zero) {
    const bool is_signed = d_.a == type::s8;
    mov(rsi, argument(&arguments::batch));
    mov(r8, d_.batch == batch_kind::strides ? argument(&arguments::a) : argument(&arguments::pairs));
    test(rsi, rsi);
    const std::size_t empty = jump_forward(condition::less_or_equal);
    const std::uint8_t* top = getCurr();
    mov(rax, r8);
    if (d_.batch != batch_kind::strides) mov(rax, ptr[r8]);
    if (d_.batch == batch_kind::offsets) add(rax, argument(&arguments::a));
    add(rax, r12);
    add_constant(r8, d_.batch == batch_kind::strides ? d_.stride_a : 16, rdx);
    const index chunk = unit_.bytes();
    if (d_.k / chunk > 0) {
      mov(rdx, static_cast<std::uint64_t>(d_.k / chunk));
      const std::uint8_t* chunks = getCurr();
      wide() ? vmovdqu8(v(data), ptr[rax]) : vmovdqu(v(data), ptr[rax]);
      add_bytes(sum, data, zero, is_signed);
      add(rax, static_cast<std::uint32_t>(chunk));
      sub(rdx, 1);
      jnz(static_cast<const void*>(chunks));
    }
    for (index left = d_.k % chunk, at = 0; left > 0; left -= 16, at += 16) {
      load_bytes(data, rax + static_cast<std::size_t>(at), static_cast<int>(std::min<index>(left, 16)));
      add_bytes(sum, data, zero, is_signed);  // the bytes beyond k count 128 too: subtracted below
    }
    sub(rsi, 1);
    jnz(static_cast<const void*>(top));
    land(empty);
  }
  /// eax: from the sum of a row's bytes to its term.
  void to_row_term() {
    const index chunk = unit_.bytes();
    mov(rdx, argument(&arguments::batch));
    if (d_.a == type::s8) {  // every vector that was added counts 128 a byte
      const index tails = (d_.k % chunk + 15) / 16;
      imul(ecx, edx, static_cast<int>(static_cast<std::uint32_t>(d_.k / chunk * chunk + tails * chunk) * 128));
      sub(eax, ecx);
    }
    neg(eax);
    if (d_.zero_a != zero_point::none) {
      imul(edx, edx, static_cast<int>(static_cast<std::uint32_t>(d_.k)));
      imul(edx, dword[rdi + offset_of(&arguments::zero_a)]);
      add(eax, edx);
    }
    imul(eax, dword[rdi + offset_of(&arguments::zero_b)]);
  }
  void add_bytes(int sum, int data, int zero, bool is_signed) {
    if (is_signed) {
      with_constant(0x80808080u,
                    [&](const Address& c) { wide() ? vpxord(v(data), v(data), c) : vpxor(v(data), v(data), c); });
    }
    vpsadbw(v(data), v(data), v(zero));
    vpaddq(v(sum), v(sum), v(data));
  }
  void reduce_quadwords(int sum, int other) {
    if (wide()) {
      vextracti64x4(half(other), zmm(sum), 1);
      vpaddq(half(sum), half(sum), half(other));
    }
    vextracti128(quarter(other), Ymm(sum), 1);
    vpaddq(quarter(sum), quarter(sum), quarter(other));
    vpshufd(quarter(other), quarter(sum), 0xee);
    vpaddq(quarter(sum), quarter(sum), quarter(other));
  }

  // ---- alpha, and the start of sums that were integers -------------------------------------------

  /// Calls each(sum) for every sum, with C or round(beta * C) in register `start`. The returned jump is taken where a
  /// beta given at the call is zero.
  template <class Each>
  std::size_t with_start(const block& k, int start, int beta, Each each) {
    const std::size_t zero = d_.beta == beta_kind::at_call ? broadcast_beta(beta) : 0;
    rows_of_c(k, [&](int r, const RegExp& row) {
      for (int j = 0; j < k.columns; ++j) {
        load_as_accumulator(start, row + column_of_c(j), d_.c, masked(k, j));
        if (d_.beta == beta_kind::at_call) multiply_lanes(start, start, beta);
        each(accumulator(k, r, j));
      }
    });
    return zero;
  }

  /// start + sum, in f32.
  void add_start(const block& k) {
    if (d_.beta == beta_kind::zero) return;
    const int start = 1, beta = 2;
    const std::size_t zero = with_start(k, start, beta, [&](int sum) { add_lanes(sum, sum, start); });
    if (d_.beta == beta_kind::at_call) land(zero);
  }

  /// fma(alpha, sum, start), the start being 0, C or round(beta * C).
  void apply_alpha(const block& k) {
    const int alpha = 0, start = 1, beta = 2;
    broadcast_scalar(alpha, &arguments::alpha);
    if (d_.beta == beta_kind::zero) return scale_sums(k, alpha, start);
    const std::size_t zero = with_start(k, start, beta, [&](int sum) { scaled_sum(sum, alpha, start); });
    if (d_.beta != beta_kind::at_call) return;
    const std::size_t done = jump_always();
    land(zero);
    scale_sums(k, alpha, start);
    land(done);
  }
  void scale_sums(const block& k, int alpha, int start) {
    clear(start);
    for_each(k, [&](int r, int j) { scaled_sum(accumulator(k, r, j), alpha, start); });
  }
  void scaled_sum(int sum, int alpha, int start) {
    f64_ ? vfmadd213pd(v(sum), v(alpha), v(start)) : vfmadd213ps(v(sum), v(alpha), v(start));
  }

  // ---- the steps ---------------------------------------------------------------------------------

  void apply(const block& k, int i) {
    const epilogue_op& o = d_.epilogue[i];
    switch (o.kind) {
      case op_kind::none: return;
      case op_kind::bias:
      case op_kind::scale: return with_vector(k, i);
      case op_kind::add:
      case op_kind::multiply: return with_matrix(k, i);
      case op_kind::relu:
        if (d_.c == type::u8 && i + 1 == d_.epilogue_size) return;  // the conversion does it
        clear(0);
        return for_each(k, [&](int r, int j) { maximum(accumulator(k, r, j), 0, accumulator(k, r, j)); });
      case op_kind::clamp: return clamp(k, o);
      case op_kind::leaky_relu: return leaky_relu(k, o);
      case op_kind::relu_mask: return relu_mask(k, i);
      case op_kind::multiply_mask: return multiply_mask(k, i);
      case op_kind::store: return store_matrix(k, i);
      default: return brgemm::detail::is_backward(o.kind) ? with_matrix(k, i) : activate(k, o.kind);
    }
  }

  /// max(y, x) with x86's meaning: x where they are equal or one is NaN.
  void maximum(int d, int y, int x) { f64_ ? vmaxpd(v(d), v(y), v(x)) : vmaxps(v(d), v(y), v(x)); }
  void minimum(int d, int y, int x) { f64_ ? vminpd(v(d), v(y), v(x)) : vminps(v(d), v(y), v(x)); }
  void set_number(int d, float x) {
    if (!f64_) return set(d, std::bit_cast<std::uint32_t>(x));
    vbroadcastsd(ymm_or_wider(d), ptr[rip]);
    refer_to_constant64(std::bit_cast<std::uint64_t>(static_cast<double>(x)));
  }

  void clamp(const block& k, const epilogue_op& o) {
    set_number(0, o.lower);
    set_number(1, o.upper);
    for_each(k, [&](int r, int j) {
      const int x = accumulator(k, r, j);
      maximum(x, 0, x);
      minimum(x, 1, x);
    });
  }
  void leaky_relu(const block& k, const epilogue_op& o) {
    const int zero = 0, slope = 1, scaled = 2;
    clear(zero);
    set_number(slope, o.slope);
    for_each(k, [&](int r, int j) {
      const int x = accumulator(k, r, j);
      if (wide()) {
        compare(k7, x, zero, 1);
        f64_ ? vmulpd(v(x) | k7, v(x), v(slope)) : vmulps(v(x) | k7, v(x), v(slope));
      } else {
        // a register for the comparison: zero is cleared again
        multiply_lanes(scaled, x, slope);
        f64_ ? vcmppd(v(zero), v(x), v(zero), 1) : vcmpps(v(zero), v(x), v(zero), 1);
        f64_ ? vblendvpd(v(x), v(x), v(scaled), v(zero)) : vblendvps(v(x), v(x), v(scaled), v(zero));
        clear(zero);
      }
    });
  }
  void compare(const assembler_names::Opmask& to, int x, int y, std::uint8_t predicate) {
    f64_ ? vcmppd(to, v(x), v(y), predicate) : vcmpps(to, v(x), v(y), predicate);
  }

  /// An activation is a function behind the kernel, of register 0; calls overlap, and the code stays short.
  void activate(const block& k, op_kind kind) {
    for_each(k, [&](int r, int j) {
      vmovaps(v(0), v(accumulator(k, r, j)));
      call_activation(kind);
      vmovaps(v(accumulator(k, r, j)), v(0));
    });
  }
  void call_activation(op_kind kind) {
    db(0xe8);
    dd(0);
    calls_.push({static_cast<std::uint32_t>(getSize()), kind});
  }

  // ---- operands ----------------------------------------------------------------------------------

  Address operand(int i) { return qword[rdi + offset_of(&arguments::operand) + 8 * static_cast<std::size_t>(i)]; }

  /// x and the operand's element in register 0. A backward step's function gives the derivative at that element.
  void combine(op_kind kind, int x) {
    if (kind == op_kind::bias || kind == op_kind::add) return add_lanes(x, x, 0);
    if (brgemm::detail::is_backward(kind)) call_activation(kind);
    multiply_lanes(x, x, 0);
  }

  void with_vector(const block& k, int i) {
    const epilogue_op& o = d_.epilogue[i];
    const index size = size_of(o.operand);
    mov(rax, operand(i));
    if (o.along != axis::none && !(o.along == axis::column ? one_column_ : one_row_)) {
      mov(rcx, word_at(o.along == axis::column ? column_index : row_index));
      lea(rax, ptr[rax + rcx * static_cast<int>(size)]);
    }
    if (o.along == axis::column) {
      for (int j = 0; j < k.columns; ++j) {
        load_as_accumulator(0, rax + column_bytes(j, size), o.operand, masked(k, j));
        for (int r = 0; r < k.rows; ++r) combine(o.kind, accumulator(k, r, j));
      }
      return;
    }
    for (int r = 0; r < k.rows; ++r) {
      if (r == 0 || o.along == axis::row) {
        const index at = o.along == axis::row ? r * size : 0;
        broadcast_as_accumulator(0, rax + static_cast<std::size_t>(at), o.operand);
      }
      for (int j = 0; j < k.columns; ++j) combine(o.kind, accumulator(k, r, j));
    }
  }

  /// rax: the operand's element at the block's first row and column (bit matrices: its byte); rdx: its rows' bytes.
  void find_matrix(int i, index size, int columns_a_unit) {
    const epilogue_op& o = d_.epilogue[i];
    if (o.ld == at_call) {
      mov(rdx, qword[rdi + offset_of(&arguments::operand_ld) + 8 * static_cast<std::size_t>(i)]);
      times(rdx, size);
    } else {
      mov(rdx, static_cast<std::uint64_t>(o.ld) * static_cast<std::uint64_t>(size));
    }
    mov(rax, operand(i));
    if (!one_row_) {
      mov(rcx, word_at(row_index));
      imul(rcx, rdx);
      add(rax, rcx);
    }
    if (one_column_) return;
    mov(rcx, word_at(column_index));
    if (columns_a_unit > 1) shr(rcx, std::countr_zero(static_cast<unsigned>(columns_a_unit)));
    lea(rax, ptr[rax + rcx * static_cast<int>(size)]);
  }

  void with_matrix(const block& k, int i) {
    const epilogue_op& o = d_.epilogue[i];
    const index size = size_of(o.operand);
    find_matrix(i, size, 1);
    for (int r = 0; r < k.rows; ++r) {
      for (int j = 0; j < k.columns; ++j) {
        load_as_accumulator(0, rax + column_bytes(j, size), o.operand, masked(k, j));
        combine(o.kind, accumulator(k, r, j));
      }
      if (r + 1 < k.rows) add(rax, rdx);
    }
  }

  /// Conversions destroy what they convert: a copy.
  void store_matrix(const block& k, int i) {
    static constexpr int temporaries_of_store[] = {1, 2, 3};
    const epilogue_op& o = d_.epilogue[i];
    const index size = size_of(o.operand);
    const bool converts = o.operand != type::f32 && o.operand != type::f64;
    find_matrix(i, size, 1);
    for (int r = 0; r < k.rows; ++r) {
      for (int j = 0; j < k.columns; ++j) {
        const int x = accumulator(k, r, j);
        if (converts) vmovaps(v(0), v(x));
        store(rax + column_bytes(j, size), converts ? 0 : x, o.operand, masked(k, j), temporaries_of_store);
      }
      if (r + 1 < k.rows) add(rax, rdx);
    }
  }

  /// Bytes of the mask that belong to vector j: a last one of few columns has one byte only.
  int mask_bytes(const block& k, int j) const {
    const int columns = masked(k, j) ? tail() : b_.lanes;
    return (columns + 7) / 8;
  }

  void relu_mask(const block& k, int i) {
    const int zero = 0, greater = 1;
    find_matrix(i, 1, 8);
    if (half_bytes()) {
      find_half_byte();
      mov(r8d, 1);
      shl(r8d, cl);
      sub(r8d, 1);  // the bits of the byte's first columns stay
    }
    clear(zero);
    for (int r = 0; r < k.rows; ++r) {
      for (int j = 0; j < k.columns; ++j) {
        const int x = accumulator(k, r, j);
        const RegExp at = rax + column_bytes(j, 1) / 8;
        if (wide()) {
          compare(masked(k, j) ? k7 | k1 : k7, x, zero, 30);
          mask_bytes(k, j) == 2 ? kmovw(ptr[at], k7) : kmovb(ptr[at], k7);
        } else {
          f64_ ? vcmppd(v(greater), v(x), v(zero), 30) : vcmpps(v(greater), v(x), v(zero), 30);
          const Reg32& bits = second_of_byte(j) || half_bytes() ? esi : ecx;
          f64_ ? vmovmskpd(bits, v(greater)) : vmovmskps(bits, v(greater));
          if (masked(k, j)) and_(bits, (1u << tail()) - 1);
          if (second_of_byte(j)) {
            shl(esi, 4);
            or_(ecx, esi);
          }
          if (half_bytes()) {
            shl(esi, cl);
            and_(byte[at], r8b);
            or_(byte[at], sil);
          } else if (!f64_ || second_of_byte(j) || j + 1 == k.columns) {
            mov(byte[at], cl);
          }
        }
        maximum(x, zero, x);
      }
      if (r + 1 < k.rows) add(rax, rdx);
    }
  }

  /// AVX2 has 4 columns of f64 in a vector, so two vectors share a byte of a mask. Blocks of two begin at whole bytes,
  /// those of one at half a byte every other time.
  bool second_of_byte(int j) const { return !wide() && f64_ && j % 2 == 1; }
  bool half_bytes() const { return !wide() && f64_ && b_.columns[0].size == 1 && !one_column_; }
  /// cl: the block's first bit in its byte, 0 or 4.
  void find_half_byte() {
    mov(rcx, word_at(column_index));
    and_(ecx, 4);
  }

  void multiply_mask(const block& k, int i) {
    find_matrix(i, 1, 8);
    if (!wide()) mov(r8, 0x0101010101010101u);
    if (half_bytes()) find_half_byte();
    for (int r = 0; r < k.rows; ++r) {
      for (int j = 0; j < k.columns; ++j) {
        const int x = accumulator(k, r, j);
        const RegExp at = rax + column_bytes(j, 1) / 8;
        if (wide()) {
          mask_bytes(k, j) == 2 ? kmovw(k7, ptr[at]) : kmovb(k7, ptr[at]);
          f64_ ? vmovapd(v(x) | k7 | T_z, v(x)) : vmovaps(v(x) | k7 | T_z, v(x));
        } else {  // a bit a byte, then a lane, then all ones or none
          const Reg64& bits = half_bytes() ? rsi : rcx;
          movzx(bits.cvt32(), byte[at]);
          if (half_bytes()) shr(esi, cl);
          if (second_of_byte(j)) shr(ecx, 4);
          pdep(bits, bits, r8);
          vmovq(quarter(0), bits);
          f64_ ? vpmovzxbq(v(0), quarter(0)) : vpmovzxbd(v(0), quarter(0));
          clear(1);
          f64_ ? vpsubq(v(0), v(1), v(0)) : vpsubd(v(0), v(1), v(0));
          vandps(v(x), v(x), v(0));
        }
      }
      if (r + 1 < k.rows) add(rax, rdx);
    }
  }

  struct call {
    std::uint32_t next;  // the instruction after it
    op_kind kind;        // none: its target is set
  };
  struct {
    std::size_t count = 0;
    call all[4096];
    void push(const call& c) {
      if (count < std::size(all)) all[count++] = c;
    }
  } calls_;
};

}  // namespace BRGEMM_WITH_XBYAK
}  // namespace brgemm::inline abi_0::backend
