// What every generated kernel is written with: vectors of either width, loads and stores of each element type with
// tails that touch no byte outside, constants behind the code, and jumps without Xbyak's labels (they allocate).
#pragma once

#include "backend.hpp"
#include "jit_blocking.hpp"
#include "jit_encoding.hpp"

namespace brgemm::inline abi_0::backend {
inline namespace BRGEMM_WITH_XBYAK {

/// Every vector register in 128, 256 and 512 bits: there is less to compile where they are not made at each use.
struct vector_registers {
  assembler_names::Xmm of_width[3][32];
  constexpr vector_registers() {
    for (int i = 0; i < 32; ++i) {
      of_width[0][i] = assembler_names::Xmm(i);
      of_width[1][i] = assembler_names::Ymm(i);
      of_width[2][i] = assembler_names::Zmm(i);
    }
  }
};
inline constexpr vector_registers registers;

/// An assembler that writes into a buffer of the caller.
class jit_assembler : public jit_encoding {
 public:
  using Address = assembler_names::Address;
  using RegExp = assembler_names::RegExp;
  using Reg32 = assembler_names::Reg32;
  using Reg64 = assembler_names::Reg64;
  using Xmm = assembler_names::Xmm;
  using Ymm = assembler_names::Ymm;
  using Operand = assembler_names::Operand;

  jit_assembler(std::span<std::uint8_t> buffer, const vector_unit& unit)
      : jit_encoding(buffer.size(), buffer.data()), unit_(unit) {}

  bool wide() const { return unit_.wide; }
  bool has(feature f) const { return unit_.features.has(f); }

  // Vector registers by number, in the widths in use.
  const Xmm& v(int i) const { return registers.of_width[wide() ? 2 : 1][i]; }
  Ymm ymm_or_wider(int i) const { return wide() ? Ymm(assembler_names::Zmm(i)) : Ymm(i); }
  static assembler_names::Zmm zmm(int i) { return assembler_names::Zmm(i); }
  const Xmm& half(int i) const { return registers.of_width[wide() ? 1 : 0][i]; }
  const Xmm& quarter(int i) const { return registers.of_width[0][i]; }

  /// Columns that the last vector of a row holds; 0: all. Loads and stores with `tail` true touch only these.
  void set_tail(int lanes) { tail_ = lanes; }
  int tail() const { return tail_; }
  /// AVX-512: the mask of the tail, in k1.
  void load_tail_mask() {
    if (!wide() || tail_ == 0) return;
    mov(eax, (1u << tail_) - 1);
    kmovw(k1, eax);
  }

  /// Register i at the least width that holds the tail of lanes of `bytes` bytes. AVX-512: a wider one would cross into
  /// the next line of cache more often, which costs a second access though its lanes there are masked.
  Xmm narrow(int i, int bytes) const {
    const int size = tail_ * bytes;
    return size <= 16 ? quarter(i) : size <= 32 ? Xmm(Ymm(i)) : v(i);
  }
  /// Whether the tail fills such a register or a scalar, so that no mask is needed.
  bool is_whole(int bytes) const { return std::has_single_bit(static_cast<unsigned>(tail_ * bytes)); }

  // ---- loads of one vector, by element type -------------------------------------------------------------------------

  /// 32- or 64-bit lanes as they are.
  void load_lanes(int d, const RegExp& at, bool masked, bool f64 = false) {
    if (!masked) {
      f64 ? vmovupd(v(d), ptr[at]) : vmovups(v(d), ptr[at]);
    } else if (wide()) {
      load_tail(d, at, f64);
    } else {
      lane_mask(d, f64);
      f64 ? vmaskmovpd(v(d), v(d), ptr[at]) : vmaskmovps(v(d), v(d), ptr[at]);
    }
  }
  void load_tail(int d, const RegExp& at, bool f64) {
    const int bytes = f64 ? 8 : 4;
    const Xmm to = narrow(d, bytes);
    if (tail_ * bytes == 4) return vmovss(to, ptr[at]);
    if (tail_ * bytes == 8) return vmovsd(to, ptr[at]);
    if (is_whole(bytes)) return vmovups(to, ptr[at]);
    f64 ? vmovupd(to | k1 | T_z, ptr[at]) : vmovups(to | k1 | T_z, ptr[at]);
  }
  /// 16-bit elements, zero-extended to 32-bit lanes.
  void load_words(int d, const RegExp& at, bool masked) {
    if (!masked) {
      vpmovzxwd(v(d), ptr[at]);
    } else if (wide()) {
      vpmovzxwd(narrow(d, 4) | k1 | T_z, ptr[at]);
    } else {
      load_bytes(d, at, 2 * tail_);
      vpmovzxwd(v(d), quarter(d));
    }
  }
  /// 8-bit elements, zero-extended to 32-bit lanes.
  void load_8bit(int d, const RegExp& at, bool masked) {
    if (!masked) {
      vpmovzxbd(v(d), ptr[at]);
    } else if (wide()) {
      vpmovzxbd(narrow(d, 4) | k1 | T_z, ptr[at]);
    } else {
      load_bytes(d, at, tail_);
      vpmovzxbd(v(d), quarter(d));
    }
  }
  void load_f16(int d, const RegExp& at, bool masked) {
    if (emulates_f16()) {
      load_words(d, at, masked);
      widen_words(d);
    } else if (!masked) {
      vcvtph2ps(v(d), ptr[at]);
    } else if (wide()) {
      vcvtph2ps(narrow(d, 4) | k1 | T_z, ptr[at]);
    } else {
      load_bytes(d, at, 2 * tail_);
      vcvtph2ps(v(d), quarter(d));
    }
  }
  /// Any element type, widened to the accumulator's.
  void load_as_accumulator(int d, const RegExp& at, type t, bool masked) {
    switch (t) {
      case type::f64: return load_lanes(d, at, masked, true);
      case type::bf16: load_words(d, at, masked); return vpslld(v(d), v(d), 16);
      case type::f16: return load_f16(d, at, masked);
      default: return load_lanes(d, at, masked);
    }
  }
  /// One element, widened and in every lane.
  void broadcast_as_accumulator(int d, const RegExp& at, type t) {
    switch (t) {
      case type::f64: return vbroadcastsd(ymm_or_wider(d), ptr[at]);
      case type::bf16: vpbroadcastw(v(d), ptr[at]); return vpslld(v(d), v(d), 16);
      case type::f16: vpbroadcastw(half(d), ptr[at]); return widen_f16(d);
      default: return vbroadcastss(v(d), ptr[at]);
    }
  }

  /// AVX2 without F16C does the same by integers, in two registers that the block keeps for it.
  bool emulates_f16() const { return !wide() && !has(feature::f16c); }
  void set_f16_temporaries(int first, int second) { f16_temporary_[0] = first, f16_temporary_[1] = second; }

  /// The f16 in the low half of d, to f32.
  void widen_f16(int d) {
    if (!emulates_f16()) return vcvtph2ps(v(d), half(d));
    vpmovzxwd(v(d), quarter(d));
    widen_words(d);
  }
  /// f16 in 32-bit lanes to f32, exactly: as the bits of an f32 they are too small by 2^112, subnormals included.
  void widen_words(int d) {
    const int sign = f16_temporary_[0];
    const int infinite = f16_temporary_[1];
    with_constant(0x8000u, [&](const Address& c) { vpand(v(sign), v(d), c); });
    vpslld(v(sign), v(sign), 16);
    with_constant(0x7fffu, [&](const Address& c) { vpand(v(d), v(d), c); });
    vpslld(v(d), v(d), 13);
    with_constant(0x0f7fffffu, [&](const Address& c) { vpcmpgtd(v(infinite), v(d), c); });
    with_constant(0x7f800000u, [&](const Address& c) { vpand(v(infinite), v(infinite), c); });
    with_constant(0x77800000u, [&](const Address& c) { vmulps(v(d), v(d), c); });
    vpor(v(d), v(d), v(infinite));
    vpor(v(d), v(d), v(sign));
  }
  /// f32 to f16 in the low half of s, to nearest even: subnormal results by adding 0.5, others by rounding the bits.
  void narrow_to_f16(int s, const int* t) {
    const int limit = f16_temporary_[0];
    const int small = f16_temporary_[1];
    const int magnitude = t[0];
    const int result = t[1];
    with_constant(0x7fffffffu, [&](const Address& c) { vpand(v(magnitude), v(s), c); });
    with_constant(0x3f000000u, [&](const Address& c) { vaddps(v(small), v(magnitude), c); });
    with_constant(0x3f000000u, [&](const Address& c) { vpsubd(v(small), v(small), c); });
    vpsrld(v(result), v(magnitude), 13);
    with_constant(1, [&](const Address& c) { vpand(v(result), v(result), c); });
    vpaddd(v(result), v(result), v(magnitude));
    with_constant(0xc8000fffu, [&](const Address& c) { vpaddd(v(result), v(result), c); });
    vpsrld(v(result), v(result), 13);
    set(limit, 0x38800000u);  // 2^-14
    vpcmpgtd(v(limit), v(limit), v(magnitude));
    vblendvps(v(result), v(result), v(small), v(limit));
    with_constant(0x477fffffu, [&](const Address& c) { vpcmpgtd(v(small), v(magnitude), c); });
    set(limit, 0x7c00u);
    vblendvps(v(result), v(result), v(limit), v(small));
    vcmpps(v(small), v(s), v(s), 3);
    set(limit, 0x7e00u);
    vblendvps(v(result), v(result), v(limit), v(small));
    vpsrld(v(s), v(s), 16);
    with_constant(0x8000u, [&](const Address& c) { vpand(v(s), v(s), c); });
    vpor(v(s), v(s), v(result));
    vextracti128(quarter(result), Ymm(s), 1);
    vpackusdw(quarter(s), quarter(s), quarter(result));
  }

  // ---- stores of one vector of accumulators ------------------------------------------------------

  /// `s` may be changed on the way; t[0..2] are free. past_caches: whole vectors of 16 bits or more an element.
  void store(const RegExp& at, int s, type t, bool masked, const int* temporary, bool past_caches = false) {
    switch (t) {
      case type::bf16: {
        narrow_to_bf16(s, temporary);
        return store_words(at, s, masked, past_caches);
      }
      case type::f16: {
        emulates_f16() ? narrow_to_f16(s, temporary) : vcvtps2ph(half(s), v(s), 0);
        return store_words(at, s, masked, past_caches);
      }
      case type::u8:
      case type::s8: return store_8bit(at, s, t, masked, temporary);
      default:
        if (past_caches && !masked) return vmovntps(ptr[at], v(s));
        return store_lanes(at, s, masked, t == type::f64, temporary[0]);
    }
  }
  void store_lanes(const RegExp& at, int s, bool masked, bool f64, int temporary) {
    if (!masked) {
      f64 ? vmovupd(ptr[at], v(s)) : vmovups(ptr[at], v(s));
    } else if (wide()) {
      store_tail(at, s, f64);
    } else {
      lane_mask(temporary, f64);
      f64 ? vmaskmovpd(ptr[at], v(temporary), v(s)) : vmaskmovps(ptr[at], v(temporary), v(s));
    }
  }

  void store_tail(const RegExp& at, int s, bool f64) {
    const int bytes = f64 ? 8 : 4;
    const Xmm from = narrow(s, bytes);
    if (tail_ * bytes == 4) return vmovss(ptr[at], from);
    if (tail_ * bytes == 8) return vmovsd(ptr[at], from);
    if (is_whole(bytes)) return vmovups(ptr[at], from);
    f64 ? vmovupd(ptr[at] | k1, from) : vmovups(ptr[at] | k1, from);
  }

  // ---- constants behind the code -----------------------------------------------------------------------------------

  /// `emit(operand)` writes one instruction whose memory operand is the constant in every 32-bit lane;
  /// `immediate_bytes` of the instruction follow the operand.
  template <class Emit>
  void with_constant(std::uint32_t bits, Emit emit, int immediate_bytes = 0) {
    emit(wide() ? ptr_b[rip] : ptr[rip]);
    note_constant(bits, bits, immediate_bytes);
  }
  /// 16 bytes, the low one first, in the 32-bit lanes of d. Changes rax.
  void set_lanes(int d, std::uint64_t low, std::uint64_t high) {
    mov(rax, low);
    vmovq(quarter(d), rax);
    mov(rax, high);
    vpinsrq(quarter(d), quarter(d), rax, 1);
    vpmovzxbd(v(d), quarter(d));
  }
  /// Makes the memory operand of the instruction just written the 64-bit constant.
  void refer_to_constant64(std::uint64_t bits) {
    note_constant(static_cast<std::uint32_t>(bits), static_cast<std::uint32_t>(bits >> 32), 0);
  }
  /// The constant in every 32-bit lane of d.
  void set(int d, std::uint32_t bits) {
    vbroadcastss(v(d), ptr[rip]);
    note_constant(bits, bits, 0);
  }

  // ---- jumps -------------------------------------------------------------------------------------

  enum class condition : std::uint8_t { equal = 4, not_equal = 5, less = 12, less_or_equal = 14, greater = 15 };
  /// A jump forward whose target is set by `land`.
  std::size_t jump_forward(condition c) {
    db(0x0f);
    db(0x80 + static_cast<int>(c));
    dd(0);
    return getSize();
  }
  std::size_t jump_always() {
    db(0xe9);
    dd(0);
    return getSize();
  }
  /// `one` where the condition holds, else `other`.
  template <class One, class Other>
  void either(condition c, One one, Other other) {
    const std::size_t to_one = jump_forward(c);
    other();
    const std::size_t done = jump_always();
    land(to_one);
    one();
    land(done);
  }
  void land(std::size_t jump) { rewrite(jump - 4, getSize() - jump, 4); }

  /// Adds a constant of any size.
  void add_constant(const Operand& r, index value, const Reg64& temporary) {
    if (value == 0) return;
    if (value == static_cast<std::int32_t>(value)) {
      add(r, static_cast<std::uint32_t>(value));
    } else {
      mov(temporary, static_cast<std::uint64_t>(value));
      add(r, temporary);
    }
  }

  /// Writes the constants behind the code and sets what refers to them; false if the code or its constants do not fit.
  bool finish() {
    if (overflow_) return false;
    const std::size_t copies = wide() ? 2 : 8;  // 32-bit words of one entry
    if (getSize() + 64 + constant_count_ * copies * 4 + sizeof lane_mask_words > max_code_bytes) return false;
    while (getSize() % 32 != 0) db(0);
    const std::size_t start = getSize();
    for (std::size_t i = 0; i < constant_count_; ++i) {
      for (std::size_t word = 0; word < copies; ++word) dd(constants_[i][word % 2]);
    }
    const std::size_t masks = getSize();
    if (uses_lane_mask_) {
      for (const std::uint32_t word : lane_mask_words) dd(word);
    }
    for (std::size_t i = 0; i < reference_count_; ++i) {
      const reference& r = references_[i];
      const std::size_t target = r.constant == lane_mask_reference
                                     ? masks + r.lane_mask_offset
                                     : start + static_cast<std::size_t>(r.constant) * copies * 4;
      rewrite(r.field, target - (r.field + 4u + r.immediate_bytes), 4);
    }
    return true;
  }

 protected:
  vector_unit unit_;

  /// 32-bit lanes of f32 to bf16 in the low half of s: nearest even, subnormals to zero, NaN quiet.
  void narrow_to_bf16(int s, const int* t) {
    if (wide() && has(feature::avx512_bf16)) return vcvtneps2bf16(half(s), v(s));
    // (x + 0x7fff + bit 16 of x) >> 16, then the two exceptions
    vpsrld(v(t[0]), v(s), 16);
    with_constant(1, [&](const Address& c) { wide() ? vpandd(v(t[0]), v(t[0]), c) : vpand(v(t[0]), v(t[0]), c); });
    with_constant(0x7fff, [&](const Address& c) { vpaddd(v(t[0]), v(t[0]), c); });
    vpaddd(v(t[0]), v(t[0]), v(s));
    with_constant(0x7fffffffu, [&](const Address& c) { wide() ? vpandd(v(t[1]), v(s), c) : vpand(v(t[1]), v(s), c); });
    if (wide()) {
      with_constant(
          0x00800000u, [&](const Address& c) { vpcmpud(k7, v(t[1]), c, 1); }, 1);
      with_constant(0x80000000u, [&](const Address& c) { vpandd(v(t[0]) | k7, v(s), c); });
      vcmpps(k7, v(s), v(s), 3);
      with_constant(0x7fc00000u, [&](const Address& c) { vpord(v(t[0]) | k7, v(t[0]), c); });
    } else {
      set(t[2], 0x00800000u);
      vpcmpgtd(v(t[2]), v(t[2]), v(t[1]));  // subnormal or zero
      with_constant(0x80000000u, [&](const Address& c) { vpand(v(t[1]), v(s), c); });
      vblendvps(v(t[0]), v(t[0]), v(t[1]), v(t[2]));
      vcmpps(v(t[1]), v(s), v(s), 3);
      set(t[2], 0x7fc00000u);
      vblendvps(v(t[0]), v(t[0]), v(t[2]), v(t[1]));
    }
    vpsrld(v(s), v(t[0]), 16);
    if (wide()) {
      vpmovdw(half(s), v(s));
    } else {
      vextracti128(quarter(t[0]), Ymm(s), 1);
      vpackusdw(quarter(s), quarter(s), quarter(t[0]));
    }
  }

  /// NaN becomes the lowest value; then clamped and rounded to nearest even.
  void store_8bit(const RegExp& at, int s, type t, bool masked, const int* temporary) {
    const float low = t == type::u8 ? 0.0f : -128.0f;
    const float high = t == type::u8 ? 255.0f : 127.0f;
    const bool saturates = wide() && t == type::u8;  // what is no integer becomes 2^31, then 255
    with_constant(std::bit_cast<std::uint32_t>(low), [&](const Address& c) { vmaxps(v(s), v(s), c); });
    if (!saturates) with_constant(std::bit_cast<std::uint32_t>(high), [&](const Address& c) { vminps(v(s), v(s), c); });
    vcvtps2dq(v(s), v(s));
    if (wide()) {
      saturates ? vpmovusdb(quarter(s), v(s)) : vpmovdb(quarter(s), v(s));
      masked ? vmovdqu8(ptr[at] | k1, quarter(s)) : vmovdqu8(ptr[at], quarter(s));
    } else {
      vextracti128(quarter(temporary[0]), Ymm(s), 1);
      vpackssdw(quarter(s), quarter(s), quarter(temporary[0]));
      t == type::u8 ? vpackuswb(quarter(s), quarter(s), quarter(s)) : vpacksswb(quarter(s), quarter(s), quarter(s));
      store_bytes(at, s, masked ? tail_ : 8);
    }
  }
  /// The same of four whole vectors of 16, with registers that prepare_fours has filled.
  struct fours {
    int order, high;
  };
  void prepare_fours(const fours& f, type t) {
    set_lanes(f.order, 0x0d0905010c080400, 0x0f0b07030e0a0602);
    set(f.high, std::bit_cast<std::uint32_t>(t == type::u8 ? 255.0f : 127.0f));
  }
  void store_8bit(const RegExp& at, const int (&s)[4], type t, const fours& f) {
    for (const int x : s) {
      vminps(v(x), v(f.high), v(x));  // x where it is NaN
      vcvtps2dq(v(x), v(x));          // what is too low, or NaN, becomes -2^31, and then the lowest value
    }
    vpackssdw(v(s[0]), v(s[0]), v(s[1]));
    vpackssdw(v(s[2]), v(s[2]), v(s[3]));
    t == type::u8 ? vpackuswb(v(s[0]), v(s[0]), v(s[2])) : vpacksswb(v(s[0]), v(s[0]), v(s[2]));
    vpermd(zmm(s[0]), zmm(f.order), zmm(s[0]));  // they were interleaved by 4
    vmovups(ptr[at], v(s[0]));
  }
  void store_words(const RegExp& at, int s, bool masked, bool past_caches) {
    if (past_caches && !masked) {
      wide() ? vmovntps(ptr[at], half(s)) : vmovntps(ptr[at], quarter(s));
    } else if (wide()) {
      masked ? vmovdqu16(ptr[at] | k1, narrow(s, 2)) : vmovdqu16(ptr[at], half(s));
    } else {
      store_bytes(at, s, masked ? 2 * tail_ : 16);
    }
  }

  /// The first `count` <= 16 bytes at `at` into the low bytes of d, zeros above; no other byte is read.
  void load_bytes(int d, const RegExp& at, int count) {
    const Xmm x = quarter(d);
    if (count >= 16) return vmovdqu(x, ptr[at]);
    int done = 0;
    if (count >= 8) {
      vmovq(x, ptr[at]), done = 8;
    } else if (count >= 4) {
      vmovd(x, ptr[at]), done = 4;
    } else {
      vpxor(x, x, x);
    }
    if (count - done >= 4)
      vpinsrd(x, x, ptr[at + static_cast<std::size_t>(done)], static_cast<std::uint8_t>(done / 4)), done += 4;
    if (count - done >= 2)
      vpinsrw(x, x, ptr[at + static_cast<std::size_t>(done)], static_cast<std::uint8_t>(done / 2)), done += 2;
    if (count - done >= 1)
      vpinsrb(x, x, ptr[at + static_cast<std::size_t>(done)], static_cast<std::uint8_t>(done)), done += 1;
  }
  void store_bytes(const RegExp& at, int s, int count) {
    const Xmm x = quarter(s);
    if (count >= 16) return vmovdqu(ptr[at], x);
    int done = 0;
    if (count >= 8) vmovq(ptr[at], x), done = 8;
    if (count - done >= 4)
      vpextrd(ptr[at + static_cast<std::size_t>(done)], x, static_cast<std::uint8_t>(done / 4)), done += 4;
    if (count - done >= 2)
      vpextrw(ptr[at + static_cast<std::size_t>(done)], x, static_cast<std::uint8_t>(done / 2)), done += 2;
    if (count - done >= 1)
      vpextrb(ptr[at + static_cast<std::size_t>(done)], x, static_cast<std::uint8_t>(done)), done += 1;
  }

 private:
  static constexpr std::int16_t lane_mask_reference = -1;
  static constexpr std::uint32_t lane_mask_words[16] = {~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u};
  struct reference {
    std::uint32_t field;            // where the 32-bit displacement stands
    std::int16_t constant;          // its number, or lane_mask_reference
    std::uint8_t immediate_bytes;   // between the displacement and the end of the instruction
    std::uint8_t lane_mask_offset;  // bytes into the mask words
  };

  /// AVX2: all ones in the lanes of the tail.
  void lane_mask(int d, bool f64) {
    uses_lane_mask_ = true;
    vmovups(v(d), ptr[rip]);
    const int lane_bytes = f64 ? 8 : 4;
    note_reference({static_cast<std::uint32_t>(getSize() - 4), lane_mask_reference, 0,
                    static_cast<std::uint8_t>(32 - tail_ * lane_bytes)});
  }
  void note_constant(std::uint32_t low, std::uint32_t high, int immediate_bytes) {
    std::size_t i = 0;
    while (i < constant_count_ && !(constants_[i][0] == low && constants_[i][1] == high)) ++i;
    if (i == constant_count_) {
      if (constant_count_ == std::size(constants_)) {
        overflow_ = true;
        return;
      }
      constants_[i][0] = low;
      constants_[i][1] = high;
      ++constant_count_;
    }
    note_reference({static_cast<std::uint32_t>(getSize() - 4) - static_cast<std::uint32_t>(immediate_bytes),
                    static_cast<std::int16_t>(i), static_cast<std::uint8_t>(immediate_bytes), 0});
  }
  void note_reference(const reference& r) {
    if (reference_count_ == std::size(references_)) {
      overflow_ = true;
    } else {
      references_[reference_count_++] = r;
    }
  }

  int tail_ = 0;
  int f16_temporary_[2] = {};
  bool uses_lane_mask_ = false;
  bool overflow_ = false;
  std::size_t constant_count_ = 0;
  std::size_t reference_count_ = 0;
  std::uint32_t constants_[160][2];
  reference references_[4096];
};

}  // namespace BRGEMM_WITH_XBYAK
}  // namespace brgemm::inline abi_0::backend
