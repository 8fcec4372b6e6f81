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

// What the fuzz target has found, each as a desc of its own.
std::vector<std::uint16_t> stored(const brgemm::desc& d, const brgemm::backend::entry& backend) {
  code_runner runner;
  std::vector<float> a(5 * 30, 0.125f), b(30 * 16, 0.25f), c(5 * 31);
  std::vector<std::uint16_t> operand(5 * 18, 0x1234);
  brgemm::arguments x{.a = a.data(), .b = b.data(), .c = c.data(), .batch = 1};
  x.operand[0] = operand.data();
  const auto made = runner.make(backend, d);
  if (!made) return {};
  (*made)(x);
  return operand;
}

// AVX2 without F16C converts with registers that lay among those of the other chains.
TEST(Fuzz, StoreOfF16AfterFourChains) {
  brgemm::desc d;
  d.m = 5, d.n = 15, d.k = 30, d.lda = 30, d.ldb = 16, d.ldc = 31, d.chains = 4;
  append(d, brgemm::op::store(18, brgemm::type::f16));
  const auto expected = stored(d, brgemm::backend::reference);
  ASSERT_FALSE(expected.empty());
  for (const char* hidden : {"", "-avx512", "-avx512,-f16c"}) {
    hide_features(hidden);
    for (const auto& backend : brgemm::backend::built_in()) {
      if (!backend.runs_here() || !backend.supports(d)) continue;
      EXPECT_EQ(stored(d, backend), expected) << hidden << " " << backend.name;
    }
  }
  hide_features("");
}

// A k near 2^56 (with batch 0 no memory is read): 128 k, wanted modulo 2^32, left 63 bits. Seen under ubsan only.
TEST(Fuzz, SumsOfLongRowsOfBytes) {
  brgemm::desc d;
  d.a = d.b = brgemm::type::s8, d.c = brgemm::type::s32;
  d.m = d.n = d.ldb = d.ldc = 1, d.k = d.lda = (index{1} << 56) + 4;
  d.zero_b = brgemm::zero_point::at_call;
  code_runner runner;
  for (const auto& backend : brgemm::backend::built_in()) {
    if (!backend.runs_here() || !backend.supports(d)) continue;
    std::int32_t c = 7;
    const brgemm::arguments x{.c = &c, .batch = 0};
    const auto made = runner.make(backend, d);
    ASSERT_TRUE(made) << backend.name;
    (*made)(x);
    EXPECT_EQ(c, 0) << backend.name;
  }
}

TEST(Fuzz, ShortInputs) {
  backend_fuzzer fuzzer;
  std::uint8_t data[4] = {};
  for (std::size_t size = 0; size <= sizeof data; ++size) EXPECT_EQ(fuzzer.run(entropy(data, size)), "") << size;
}

}  // namespace
}  // namespace brgemm_test
