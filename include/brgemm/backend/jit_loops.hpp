// The loops of a generated kernel: repeated blocks, and the entries of a batch, whichever way they are given.
#pragma once

#include "jit_epilogue.hpp"

namespace brgemm::inline abi_0::backend {
inline namespace BRGEMM_WITH_XBYAK {

class jit_loops : public jit_epilogue {
 public:
  using jit_epilogue::jit_epilogue;

 protected:
  /// Modulo 2^64: the last addition of a stride is of no use, and must do no harm.
  static index product_of(index x, index y) {
    return static_cast<index>(static_cast<std::uint64_t>(x) * static_cast<std::uint64_t>(y));
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

  /// rax, rdx: A and B of this entry, in this block. r8: the next pair or, of strides, A; `next_b`: B of the next
  /// entry, b_base where that is null. Changes rcx.
  void find_entry(const Reg64* next_b) {
    switch (d_.batch) {
      case batch_kind::strides:
        mov(rax, r8);
        add_constant(r8, product_of(d_.stride_a, size_a_), rcx);
        if (next_b != nullptr) {
          mov(rdx, *next_b);
          add_constant(*next_b, product_of(d_.stride_b, size_b_), rcx);
        } else {
          mov(rdx, word_at(b_base));
          add_word(b_base, product_of(d_.stride_b, size_b_), rcx);
        }
        break;
      case batch_kind::addresses:
        mov(rax, ptr[r8]);
        mov(rdx, ptr[r8 + 8]);
        add(r8, 16);
        add_places();
        break;
      case batch_kind::offsets:
        mov(rax, ptr[r8]);
        mov(rdx, ptr[r8 + 8]);
        add(r8, 16);
        if (size_a_ > 1) shl(rax, std::countr_zero(static_cast<std::uint64_t>(size_a_)));
        if (size_b_ > 1) shl(rdx, std::countr_zero(static_cast<std::uint64_t>(size_b_)));
        add(rax, argument(&arguments::a));
        add(rdx, argument(&arguments::b));
        add_places();
        break;
    }
  }
  void add_places() {
    if (!one_row_) with_a_offset([&](const Operand& offset) { add(rax, offset); });
    if (!one_column_) add(rdx, word_at(b_offset));
    if (!one_column_ && depthwise_) add(rax, word_at(b_offset));
  }
};

}  // namespace BRGEMM_WITH_XBYAK
}  // namespace brgemm::inline abi_0::backend
