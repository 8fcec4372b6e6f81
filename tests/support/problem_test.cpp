// The checker itself: it must see a wrong bit, a byte written between rows, and must take NaNs as a class.
#include "support/problem.hpp"

#include <gtest/gtest.h>

namespace brgemm_test {
namespace {

class Checker : public testing::Test {
 protected:
  Checker() {
    drawn.d.m = drawn.m = 2;
    drawn.d.n = 3, drawn.d.k = 1;
    drawn.d.ldb = 3, drawn.d.ldc = 5;
    drawn.d.beta = brgemm::beta_kind::one;  // else C is NaN
    drawn.lda = 1, drawn.ldb = 3, drawn.ldc = 5;
    append(drawn.d, brgemm::op::relu_mask(2));
    drawn.operand_ld[0] = 2;
    p = draw_problem(e, drawn, 1);
    x = place(p, 1, guard::after, memory);
    expected = collect(p, x);
  }
  entropy e{1};
  drawn_desc drawn;
  problem p;
  problem_memory memory{1, 4096};
  brgemm::arguments x;
  outputs expected;
  float* c() { return static_cast<float*>(x.c); }
};

TEST_F(Checker, SeesNothingWhereNothingIs) {
  EXPECT_EQ(difference(p, expected, x), "");
  EXPECT_EQ(touched_gap(p, expected), "");
}

TEST_F(Checker, SeesOneBit) {
  c()[6] = std::bit_cast<float>(std::bit_cast<std::uint32_t>(c()[6]) ^ 1u);
  EXPECT_NE(difference(p, expected, x).find("C[1,1] (f32)"), std::string::npos) << difference(p, expected, x);
}

TEST_F(Checker, SeesAByteBehindTheRow) {
  c()[3] = 0;
  EXPECT_NE(difference(p, expected, x), "");
  EXPECT_NE(touched_gap(p, collect(p, x)), "");
}

TEST_F(Checker, SeesAByteOfAMask) {
  static_cast<std::uint8_t*>(x.operand[0])[0] ^= 1;
  EXPECT_NE(difference(p, expected, x).find("mask"), std::string::npos);
}

TEST_F(Checker, TakesNansAsAClass) {
  c()[0] = std::bit_cast<float>(0x7fc00000u);
  expected = collect(p, x);
  c()[0] = std::bit_cast<float>(0xffc12345u);
  EXPECT_EQ(difference(p, expected, x), "");
}

TEST_F(Checker, SignedZerosDiffer) {
  c()[0] = 0.0f;
  expected = collect(p, x);
  c()[0] = -0.0f;
  EXPECT_NE(difference(p, expected, x), "");
}

TEST(Draw, IsValidAndReachesEveryKindOfEverything) {
  int steps[brgemm::op_kind_count] = {};
  for (std::uint64_t seed = 0; seed < 4000; ++seed) {
    entropy e(seed);
    const auto& t = type_combinations[e.between(0, type_combination_count - 1)];
    const auto drawn = draw_desc(e, {e.between(1, 9), e.between(1, 9), e.between(0, 9)}, t,
                                 static_cast<brgemm::batch_kind>(e.between(0, 2)));
    const auto valid = validate(drawn.d);
    ASSERT_TRUE(valid) << valid.error().message();
    for (int i = 0; i < drawn.d.epilogue_size; ++i) ++steps[static_cast<int>(drawn.d.epilogue[i].kind)];
  }
  for (int kind = 1; kind < brgemm::op_kind_count; ++kind) EXPECT_GT(steps[kind], 0) << kind;
}

}  // namespace
}  // namespace brgemm_test
