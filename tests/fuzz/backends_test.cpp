// The fuzz target's body on a fixed set of random inputs, without libFuzzer and without a corpus.
#include "fuzz/backends.hpp"

#include <gtest/gtest.h>

namespace brgemm_test {
namespace {

TEST(Fuzz, RandomInputs) {
  backend_fuzzer fuzzer;
  constexpr int inputs = 20000;
  for (int seed = 0; seed < inputs; ++seed) {
    const std::string text = fuzzer.run(entropy(static_cast<std::uint64_t>(seed)));
    ASSERT_EQ(text, "") << "seed " << seed;
  }
  EXPECT_GT(fuzzer.compared(), inputs / 2);
  std::printf("fuzz: %d inputs, %ld results\n", inputs, fuzzer.compared());
}

TEST(Fuzz, ShortInputs) {
  backend_fuzzer fuzzer;
  std::uint8_t data[4] = {};
  for (std::size_t size = 0; size <= sizeof data; ++size) EXPECT_EQ(fuzzer.run(entropy(data, size)), "") << size;
}

}  // namespace
}  // namespace brgemm_test
