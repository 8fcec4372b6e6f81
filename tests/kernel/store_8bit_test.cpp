// Results of 8 bits: every backend rounds and saturates as the reference does, in whole vectors and in what is left.
#include <gtest/gtest.h>

#include <brgemm/kernel/kernel.hpp>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "support/features.hpp"

namespace {

using namespace brgemm;
using brgemm::index;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();
/// Factors and addends that lead to halves, to the limits and beyond, and to no number.
constexpr float special[] = {0.5f, -0.5f, 0.25f, 1, -1, 0, 1e30f, -1e30f, nan, infinity, -infinity};
constexpr float limits[] = {0, 0.5f, 126.5f, 127.5f, -128.5f, -129, 254.5f, 255.5f, 256, -0.5f, 1e20f};

std::vector<std::byte> result_of(const kernel& k, const arguments& call, index bytes) {
  std::vector<std::byte> c(static_cast<std::size_t>(bytes), std::byte{7});
  arguments x = call;
  x.c = c.data();
  k(x);
  return c;
}

TEST(Store8Bit, RoundsAndSaturatesAsTheReference) {
  std::mt19937 random(1);
  const auto below = [&](std::uint32_t end) { return static_cast<index>(random() % end); };
  for (int i = 0; i < 400; ++i) {
    desc d;
    d.m = 1 + below(20), d.n = 1 + below(200), d.k = 4 * (1 + below(8));
    d.lda = d.k, d.ldb = d.n, d.ldc = d.n + below(3);
    d.a = type::u8, d.b = type::s8, d.c = i % 2 == 0 ? type::u8 : type::s8;
    d.layout_b = layout::interleaved;
    if (below(2) == 0) d.zero_a = zero_point::at_call;
    const index ldc = d.ldc;
    if (below(4) == 0) d.ldc = at_call;
    append(d, op::scale(axis::column));
    append(d, op::bias(axis::column));
    std::vector<std::uint8_t> a(static_cast<std::size_t>(d.m * d.k)), b(static_cast<std::size_t>(d.n * d.k));
    for (auto& v : a) v = static_cast<std::uint8_t>(below(4));
    for (auto& v : b) v = static_cast<std::uint8_t>(below(8) - 4);
    std::vector<float> scale(static_cast<std::size_t>(d.n)), bias(scale.size());
    std::vector<std::int32_t> sums(scale.size());
    for (std::size_t j = 0; j < scale.size(); ++j) {
      scale[j] = special[below(std::size(special))];
      bias[j] = limits[below(std::size(limits))];
      sums[j] = static_cast<std::int32_t>(below(2000)) - 1000;
    }
    arguments call{.a = a.data(), .b = b.data(), .batch = below(3), .ldc = ldc, .column_sums = sums.data()};
    call.zero_a = static_cast<std::int32_t>(below(3) == 0 ? 0 : below(256));
    call.operand[0] = scale.data(), call.operand[1] = bias.data();
    const auto reference = make_kernel(d, {.backend = "reference"});
    ASSERT_TRUE(reference) << reference.error().message();
    const auto right = result_of(*reference, call, d.m * ldc);
    for (const char* hidden : {"", "-vnni", "-avx512", "-avx512,-avx_vnni"}) {
      brgemm_test::hide_features(hidden);
      for (const auto& backend : backend::built_in()) {
        if (!backend.runs_here() || !backend.supports(d)) continue;
        const auto made = make_kernel(d, {.backend = backend.name});
        ASSERT_TRUE(made) << made.error().message();
        ASSERT_EQ(result_of(*made, call, d.m * ldc), right) << backend.name << hidden << ' ' << name_of(d).c_str();
      }
    }
    brgemm_test::hide_features("");
  }
}

}  // namespace
