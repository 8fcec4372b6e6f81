// The encoder of the commonest instructions writes Xbyak's bytes, for every register and form of address.
#include <gtest/gtest.h>

#include <brgemm/backend/jit_encoding.hpp>
#include <vector>

namespace {

using namespace brgemm::backend;
using assembler_names::CodeGenerator;
using assembler_names::Reg64;
using assembler_names::RegExp;
using assembler_names::Xmm;
using assembler_names::Ymm;
using assembler_names::Zmm;

/// Writes by both and compares. A form that is left to Xbyak compares it with itself.
class encoders {
 public:
  template <class Emit>
  void expect_same(Emit emit) {
    own_.reset();
    xbyak_.reset();
    emit(own_);
    emit(xbyak_);
    ++compared_;
    const std::vector<std::uint8_t> own(own_.getCode(), own_.getCode() + own_.getSize());
    const std::vector<std::uint8_t> right(xbyak_.getCode(), xbyak_.getCode() + xbyak_.getSize());
    EXPECT_EQ(own, right);
  }
  long compared() const { return compared_; }

 private:
  std::uint8_t room_[2][256];
  jit_encoding own_{sizeof room_[0], room_[0]};
  CodeGenerator xbyak_{sizeof room_[1], room_[1]};
  long compared_ = 0;
};

template <class Registers, class Each>
void for_addresses(const Registers& registers, Each each) {
  constexpr std::int64_t displacements[] = {0,    1,    4,    60,    64,    -64,     508,       512,
                                            -512, 8128, 8192, -8192, -8256, 1 << 20, -(1 << 30)};
  for (const std::int64_t displacement : displacements) {
    const auto along = static_cast<std::size_t>(displacement);
    for (const int base : registers) {
      each(Reg64(base) + along);
      for (const int index : {0, 3, 8, 12, 13, 15}) {
        for (const int scale : {1, 2, 4, 8}) each(Reg64(base) + Reg64(index) * scale + along);
      }
    }
  }
}

TEST(JitEncoding, BytesAreXbyaks) {
  encoders both;
  const std::vector<int> bases = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (const int d : {0, 7, 8, 15, 16, 31}) {
    for_addresses(bases, [&](const RegExp& at) {
      both.expect_same([&](auto& a) { a.vmovups(Zmm(d), a.ptr[at]); });
      both.expect_same([&](auto& a) { a.vmovups(a.ptr[at], Zmm(d)); });
      both.expect_same([&](auto& a) { a.vbroadcastss(Zmm(d), a.ptr[at]); });
      both.expect_same([&](auto& a) { a.vfmadd231ps(Zmm(d), Zmm(31 - d), a.ptr_b[at]); });
      both.expect_same([&](auto& a) { a.vdpbf16ps(Zmm(d), Zmm(31 - d), a.ptr[at]); });
    });
  }
  for (int d = 0; d < 32; ++d) {
    for (int x = 0; x < 32; x += 5) {
      for (int y = 0; y < 32; ++y) {
        both.expect_same([&](auto& a) { a.vfmadd231ps(Zmm(d), Zmm(x), Zmm(y)); });
        both.expect_same([&](auto& a) { a.vdpbf16ps(Zmm(d), Zmm(x), Zmm(y)); });
        both.expect_same([&](auto& a) { a.vmovups(Zmm(d), Zmm(y)); });
      }
    }
  }
  EXPECT_GT(both.compared(), 100000);
}

// Masks, other widths and addresses without a base.
TEST(JitEncoding, LeavesOtherFormsToXbyak) {
  encoders both;
  both.expect_same([](auto& a) { a.vmovups(Zmm(3) | a.k1 | a.T_z, a.ptr[a.rax]); });
  both.expect_same([](auto& a) { a.vmovups(a.ptr[a.rax] | a.k1, Zmm(3)); });
  both.expect_same([](auto& a) { a.vfmadd231ps(Zmm(3) | a.k2, Zmm(4), Zmm(5)); });
  both.expect_same([](auto& a) { a.vfmadd231ps(Ymm(3), Ymm(4), Ymm(5)); });
  both.expect_same([](auto& a) { a.vfmadd231ps(Ymm(3), Ymm(20), a.ptr[a.rdx]); });
  both.expect_same([](auto& a) { a.vmovups(Xmm(3), a.ptr[a.rdx + 16]); });
  both.expect_same([](auto& a) { a.vbroadcastss(Zmm(3), Xmm(4)); });
  both.expect_same([](auto& a) { a.vbroadcastss(Zmm(3), a.ptr[a.rip + 64]); });
  both.expect_same([](auto& a) { a.vmovups(Zmm(3), a.ptr[a.rcx * 4 + 64]); });
  both.expect_same([](auto& a) { a.vmovups(Zmm(3), a.ptr[a.rcx * 2 + 64]); });
}

}  // namespace
