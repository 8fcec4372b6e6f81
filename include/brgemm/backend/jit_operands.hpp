// How a step of k of a generated kernel finds and loads A and B, and multiplies them.
#pragma once

#include "jit_loops.hpp"

namespace brgemm::inline abi_0::backend {
inline namespace BRGEMM_WITH_XBYAK {

class jit_operands : public jit_loops {
 public:
  using jit_loops::jit_loops;

 protected:
  /// Where element (row r, first k of the step) of A stands.
  RegExp a_at(int r, int s) {
    if (!a_rows_) {
      return rax + static_cast<std::size_t>(r * lane_a_ + (lda_in_register_ ? 0 : s * lda_));
    }
    const auto along = static_cast<std::size_t>(s * group_ * size_a_);
    if (!lda_in_register_) return rax + (along + static_cast<std::size_t>(brgemm::detail::row_of_a(d_, r) * lda_));
    switch (r) {  // rows 0, 3 and 10 in a register, and 1, 2, 3, 4, 6, 8 or 12 rows more
      case 0: return rax + along;
      case 1: return rax + r9 + along;
      case 2: return rax + r9 * 2 + along;
      case 3: return rax + r10 + along;
      case 4: return rax + r9 * 4 + along;
      case 5: return r12 + r9 * 2 + along;
      case 6: return rax + r10 * 2 + along;
      case 7: return r12 + r9 * 4 + along;
      case 8: return rax + r9 * 8 + along;
      case 9: return r12 + r10 * 2 + along;
      case 10: return r13 + along;
      case 11: return r13 + r9 + along;
      case 12: return r13 + r9 * 2 + along;
      case 13: return r13 + r10 + along;
      case 14: return r13 + r9 * 4 + along;
      case 15: return r12 + r10 * 4 + along;
      default: return r13 + r10 * 2 + along;
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
      if (valid != group_) drop_padding(to);
    } else if (b_.permutes_pairs && !tail) {
      vmovups(half(to), ptr[b_at(j, s)]);
      if (valid == group_) vinsertf32x8(zmm(to), zmm(to), ptr[b_at(j, s, 1)], 1);
      vpermw(zmm(to), zmm(pair_order(k)), zmm(to));
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

  /// Words 0, 16, 1, 17, ...
  void set_pair_order(int to) {
    set_lanes(to, 0x0706050403020100, 0x0f0e0d0c0b0a0908);
    vpslld(v(0), v(to), 16);
    vpord(v(to), v(to), v(0));
    with_constant(16 << 16, [&](const Address& c) { vpaddd(v(to), v(to), c); });
  }

  /// Whatever pads the last pair of bf16 adds nothing; 8-bit padding meets zeros of A.
  void drop_padding(int to) {
    if (size_b_ != 2) return;
    with_constant(0x0000ffffu, [&](const Address& c) { wide() ? vpandd(v(to), v(to), c) : vpand(v(to), v(to), c); });
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
      case product::split_bf16:
        vfmadd231ps(v(sum - to_odd_sums_), v(a + 1), v(b + 1));
        return vfmadd231ps(v(sum), v(a), v(b));
      case product::dot_8bit: return d_.b == type::s8 ? dot_8bit(sum, a, b) : dot_8bit(sum, b, a);
      case product::mul_8bit: vpmulld(v(a), v(a), v(b)); return vpaddd(v(sum), v(sum), v(a));
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
    const int bytes = f64_ ? 8 : 4;
    const Xmm to = tail ? narrow(sum, bytes) | k1 : v(sum);
    const Xmm by = tail ? narrow(held, bytes) : v(held);
    switch (b_.how) {
      case product::fma_f64: return vfmadd231pd(to, by, passing);
      case product::dot_bf16: return vdpbf16ps(to, by, passing);
      case product::dot_8bit: return vpdpbusd(to, by, passing, assembler_names::EvexEncoding);
      default: return vfmadd231ps(to, by, passing);
    }
  }
  void sum_column(const block& k, int j, int b) {
    if (shifts_a_) dot_8bit(column_sum(k, j), ones(k), b);
  }

  // ---- B stored (n,k): 16 bytes of each of its rows make a tile, turned in registers --------------

  /// Registers of 128 bits hold this many steps of one row.
  int steps_of_tile() const { return f64_ ? 2 : 4; }

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
    if (d_.b == type::f16) emulates_f16() ? widen_f16(spare) : vcvtph2ps(quarter(spare), quarter(spare));
    insert_lane(to, lane, quarter(spare));
  }
  void insert_lane(int to, int lane, const Operand& from) {
    const auto place = static_cast<std::uint8_t>(lane);
    if (lane == 0) return vmovups(quarter(to), from);
    if (!wide()) return vinsertf128(Ymm(to), Ymm(to), from, place);
    vinsertf32x4(zmm(to), zmm(to), from, place);
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
    if (b_.tight) vmovaps(v(2), v(4));
  }

  int to_odd_sums_ = 0;  // order::tile: registers from the sum of a chunk's even elements to that of its odd ones
};

}  // namespace BRGEMM_WITH_XBYAK
}  // namespace brgemm::inline abi_0::backend
