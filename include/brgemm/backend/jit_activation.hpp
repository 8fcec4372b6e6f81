// The evaluator that turns the programs of core/activation.hpp into instructions. A register is its number.
#pragma once

#include "jit_assembler.hpp"

namespace brgemm::inline abi_0::backend {
inline namespace BRGEMM_WITH_XBYAK {

/// Emits each operation on a vector of f32. AVX2 needs two registers of its own for selections and scalings.
class jit_evaluator {
 public:
  using reg = int;
  using Address = jit_assembler::Address;
  jit_evaluator(jit_assembler& assembler, int own0, int own1) : a_(assembler), own_{own0, own1} {}

  void constant(reg d, float c) { a_.set(d, bits(c)); }
  void constant_bits(reg d, std::uint32_t c) { a_.set(d, c); }
  void move(reg d, reg s) {
    if (d != s) a_.vmovaps(v(d), v(s));
  }
  void add(reg d, reg x, reg y) { a_.vaddps(v(d), v(x), v(y)); }
  void sub(reg d, reg x, reg y) { a_.vsubps(v(d), v(x), v(y)); }
  void mul(reg d, reg x, reg y) { a_.vmulps(v(d), v(x), v(y)); }
  void div(reg d, reg x, reg y) { a_.vdivps(v(d), v(x), v(y)); }
  void min(reg d, reg x, reg y) { a_.vminps(v(d), v(x), v(y)); }
  void max(reg d, reg x, reg y) { a_.vmaxps(v(d), v(x), v(y)); }
  void fma(reg d, reg x, reg y) { a_.vfmadd231ps(v(d), v(x), v(y)); }
  void fnma(reg d, reg x, reg y) { a_.vfnmadd231ps(v(d), v(x), v(y)); }
  void horner(reg d, reg x, reg y) { a_.vfmadd213ps(v(d), v(x), v(y)); }
  void add(reg d, reg x, float c) {
    with(c, [&](const Address& m) { a_.vaddps(v(d), v(x), m); });
  }
  void sub(reg d, reg x, float c) {
    with(c, [&](const Address& m) { a_.vsubps(v(d), v(x), m); });
  }
  void mul(reg d, reg x, float c) {
    with(c, [&](const Address& m) { a_.vmulps(v(d), v(x), m); });
  }
  void div(reg d, reg x, float c) {
    with(c, [&](const Address& m) { a_.vdivps(v(d), v(x), m); });
  }
  void min(reg d, reg x, float c) {
    with(c, [&](const Address& m) { a_.vminps(v(d), v(x), m); });
  }
  void max(reg d, reg x, float c) {
    with(c, [&](const Address& m) { a_.vmaxps(v(d), v(x), m); });
  }
  void fma(reg d, reg x, float c) {
    with(c, [&](const Address& m) { a_.vfmadd231ps(v(d), v(x), m); });
  }
  void fnma(reg d, reg x, float c) {
    with(c, [&](const Address& m) { a_.vfnmadd231ps(v(d), v(x), m); });
  }
  void horner(reg d, reg x, float c) {
    with(c, [&](const Address& m) { a_.vfmadd213ps(v(d), v(x), m); });
  }

  void and_bits(reg d, reg x, reg y) { a_.wide() ? a_.vpandd(v(d), v(x), v(y)) : a_.vpand(v(d), v(x), v(y)); }
  void or_bits(reg d, reg x, reg y) { a_.wide() ? a_.vpord(v(d), v(x), v(y)) : a_.vpor(v(d), v(x), v(y)); }
  void xor_bits(reg d, reg x, reg y) { a_.wide() ? a_.vpxord(v(d), v(x), v(y)) : a_.vpxor(v(d), v(x), v(y)); }
  void and_bits(reg d, reg x, std::uint32_t c) {
    a_.with_constant(c, [&](const Address& m) { a_.wide() ? a_.vpandd(v(d), v(x), m) : a_.vpand(v(d), v(x), m); });
  }
  void or_bits(reg d, reg x, std::uint32_t c) {
    a_.with_constant(c, [&](const Address& m) { a_.wide() ? a_.vpord(v(d), v(x), m) : a_.vpor(v(d), v(x), m); });
  }
  void xor_bits(reg d, reg x, std::uint32_t c) {
    a_.with_constant(c, [&](const Address& m) { a_.wide() ? a_.vpxord(v(d), v(x), m) : a_.vpxor(v(d), v(x), m); });
  }

  void shift_left(reg d, reg x, int count) { a_.vpslld(v(d), v(x), static_cast<std::uint8_t>(count)); }
  void round(reg d, reg s) { a_.wide() ? a_.vrndscaleps(v(d), v(s), 8) : a_.vroundps(v(d), v(s), 8); }

  /// x * 2^n, rounded once. AVX2: two factors 2^(n>>1) and 2^(n - (n>>1)); the first product is exact.
  void scale(reg d, reg x, reg n) {
    if (a_.wide()) return a_.vscalefps(v(d), v(x), v(n));
    const int first = own_[0];
    const int second = own_[1];
    a_.vcvtps2dq(v(second), v(n));
    a_.vpsrad(v(first), v(second), 1);
    a_.vpsubd(v(second), v(second), v(first));
    a_.vpslld(v(first), v(first), 23);
    a_.vpslld(v(second), v(second), 23);
    a_.with_constant(0x3f800000u, [&](const Address& m) { a_.vpaddd(v(first), v(first), m); });
    a_.with_constant(0x3f800000u, [&](const Address& m) { a_.vpaddd(v(second), v(second), m); });
    a_.vmulps(v(d), v(x), v(first));
    a_.vmulps(v(d), v(d), v(second));
  }

  void select_less(reg d, reg x, reg y, reg yes, reg no) {
    if (a_.wide()) {
      a_.vcmpps(a_.k7, v(x), v(y), 1);
      a_.vblendmps(v(d) | a_.k7, v(no), v(yes));
    } else {
      a_.vcmpps(v(own_[0]), v(x), v(y), 1);
      a_.vblendvps(v(d), v(no), v(yes), v(own_[0]));
    }
  }
  void select_less(reg d, reg x, float c, reg yes, reg no) {
    if (a_.wide()) {
      a_.with_constant(
          bits(c), [&](const Address& m) { a_.vcmpps(a_.k7, v(x), m, 1); }, 1);
      a_.vblendmps(v(d) | a_.k7, v(no), v(yes));
    } else {
      a_.with_constant(
          bits(c), [&](const Address& m) { a_.vcmpps(v(own_[0]), v(x), m, 1); }, 1);
      a_.vblendvps(v(d), v(no), v(yes), v(own_[0]));
    }
  }

 private:
  static std::uint32_t bits(float c) { return std::bit_cast<std::uint32_t>(c); }
  const jit_assembler::Xmm& v(reg r) const { return a_.v(r); }
  template <class Emit>
  void with(float c, Emit emit) {
    a_.with_constant(bits(c), emit);
  }
  jit_assembler& a_;
  int own_[2];
};

}  // namespace BRGEMM_WITH_XBYAK
}  // namespace brgemm::inline abi_0::backend
