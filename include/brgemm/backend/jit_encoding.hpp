// Xbyak, with an encoder of its own for the few instructions that kernels consist of, on 512-bit vectors without a
// mask. The bytes are Xbyak's, which takes longer because it decides anew what form an instruction has.
#pragma once

#include <cstring>

#include "backend.hpp"
#include "xbyak.hpp"

namespace brgemm::inline abi_0::backend {
inline namespace BRGEMM_WITH_XBYAK {

namespace assembler_names = brgemm_assembler;

class jit_encoding : public assembler_names::CodeGenerator {
 public:
  using Address = assembler_names::Address;
  using Operand = assembler_names::Operand;
  using RegExp = assembler_names::RegExp;
  using Xmm = assembler_names::Xmm;
  using CodeGenerator::CodeGenerator;

  void vfmadd231ps(const Xmm& d, const Xmm& x, const Operand& y) {
    if (!encode({2, 1, 0xb8}, d, x.getIdx(), y)) CodeGenerator::vfmadd231ps(d, x, y);
  }
  void vdpbf16ps(const Xmm& d, const Xmm& x, const Operand& y) {
    if (!encode({2, 2, 0x52}, d, x.getIdx(), y)) CodeGenerator::vdpbf16ps(d, x, y);
  }
  void vmovups(const Xmm& d, const Operand& y) {
    if (!encode({1, 0, 0x10}, d, 0, y)) CodeGenerator::vmovups(d, y);
  }
  void vmovups(const Address& to, const Xmm& x) {
    if (!encode({1, 0, 0x11}, x, 0, to)) CodeGenerator::vmovups(to, x);
  }
  void vbroadcastss(const Xmm& d, const Operand& y) {
    if (!y.isMEM() || !encode({2, 1, 0x18, true}, d, 0, y)) CodeGenerator::vbroadcastss(d, y);
  }

 private:
  /// An instruction of 32-bit lanes in EVEX encoding (Intel's manual, volume 2, section 2.7).
  struct instruction {
    int map;     ///< 1: 0F, 2: 0F38
    int prefix;  ///< 0: none, 1: 66, 2: F3
    int opcode;
    bool one_lane = false;  ///< in memory
  };
  static constexpr std::size_t longest = 11;

  /// d, second, y as in Intel's order of operands (stores: y, d). False, and nothing written, for any other
  /// form.
  bool encode(const instruction& i, const Xmm& d, int second, const Operand& y) {
    if (!d.isZMM() || d.getOpmaskIdx() != 0 || y.getOpmaskIdx() != 0 || size_ + longest > maxSize_) return false;
    if (y.isMEM()) return encode_memory(i, d.getIdx(), second, y.getAddress());
    if (!y.isZMM()) return false;
    std::uint8_t* const to = put_prefix(i, d.getIdx(), second, y.getIdx() >> 3 & 1, y.getIdx() >> 4 & 1, false);
    to[0] = static_cast<std::uint8_t>(0xc0 | (d.getIdx() & 7) << 3 | (y.getIdx() & 7));
    size_ += 6;
    return true;
  }

  bool encode_memory(const instruction& i, int reg, int second, const Address& y) {
    const RegExp at = y.getRegExp();
    const auto displacement = static_cast<std::int64_t>(at.getDisp());
    const int scale = at.getScale();
    const bool has_index = at.getIndex().getBit() == 64;
    if (y.getMode() != Address::M_ModRM || at.getBase().getBit() != 64 || at.getIndex().getBit() > 64 ||
        displacement != static_cast<std::int32_t>(displacement)) {
      return false;
    }
    const int base = at.getBase().getIdx();
    const int index = has_index ? at.getIndex().getIdx() : 4;
    const int unit = y.isBroadcast() || i.one_lane ? 4 : 64;
    std::uint8_t* to = put_prefix(i, reg, second, base >> 3, has_index ? index >> 3 : 0, y.isBroadcast());
    const bool is_short = displacement % unit == 0 && displacement / unit >= -128 && displacement / unit < 128;
    const int mode = displacement == 0 && (base & 7) != 5 ? 0 : is_short ? 1 : 2;
    const bool has_index_byte = has_index || (base & 7) == 4;
    *to++ = static_cast<std::uint8_t>(mode << 6 | (reg & 7) << 3 | (has_index_byte ? 4 : base & 7));
    if (has_index_byte) {
      const int shift = scale == 8 ? 3 : scale == 4 ? 2 : scale == 2 ? 1 : 0;
      *to++ = static_cast<std::uint8_t>((has_index ? shift : 0) << 6 | (index & 7) << 3 | (base & 7));
    }
    if (mode == 1) *to++ = static_cast<std::uint8_t>(displacement / unit);
    if (mode == 2) {
      const auto four_bytes = static_cast<std::int32_t>(displacement);
      std::memcpy(to, &four_bytes, 4);
      to += 4;
    }
    size_ = static_cast<std::size_t>(to - top_);
    return true;
  }

  /// Writes prefix and opcode, and returns what is behind them. b and x: the high bits of base and index, or of y.
  std::uint8_t* put_prefix(const instruction& i, int reg, int second, int b, int x, bool broadcast) {
    std::uint8_t* const to = top_ + size_;
    to[0] = 0x62;
    to[1] =
        static_cast<std::uint8_t>((~reg >> 3 & 1) << 7 | (x ^ 1) << 6 | (b ^ 1) << 5 | (~reg >> 4 & 1) << 4 | i.map);
    to[2] = static_cast<std::uint8_t>((~second & 15) << 3 | 4 | i.prefix);
    to[3] = static_cast<std::uint8_t>(0x40 | (broadcast ? 0x10 : 0) | (~second >> 4 & 1) << 3);
    to[4] = static_cast<std::uint8_t>(i.opcode);
    return to + 5;
  }
};

}  // namespace BRGEMM_WITH_XBYAK
}  // namespace brgemm::inline abi_0::backend
