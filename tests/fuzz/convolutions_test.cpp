// The fuzz target's body on a fixed set of random inputs, without libFuzzer and without a corpus.
#include "fuzz/convolutions.hpp"

#include <gtest/gtest.h>

namespace brgemm_test {
namespace {

TEST(FuzzConvolutions, RandomInputs) {
  conv_fuzzer fuzzer;
  constexpr int inputs = 2000;
  for (int seed = 0; seed < inputs; ++seed) {
    ASSERT_EQ(fuzzer.run(entropy(static_cast<std::uint64_t>(seed))), "") << "seed " << seed;
  }
  EXPECT_GT(fuzzer.compared(), inputs / 4);
  std::printf("fuzz: %d inputs, %ld results\n", inputs, fuzzer.compared());
}

}  // namespace
}  // namespace brgemm_test
