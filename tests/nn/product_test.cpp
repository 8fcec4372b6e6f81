// The gradient of weights that are larger than the caches: written past them, with the same bits as any other.
#include <gtest/gtest.h>

#include <brgemm/nn/linear.hpp>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <vector>

namespace brgemm {
namespace {

constexpr index in = 512;

float x_at(index r, index i) { return static_cast<float>((r * 31 + i * 7) % 61 - 30) / 16; }
float z_at(index r, index j) { return static_cast<float>((r * 17 + j * 11) % 53 - 26) / 32; }

/// In the contract's order: one fma a row, ascending.
float sum_at(index rows, index i, index j) {
  float sum = 0;
  for (index r = 0; r < rows; ++r) sum = std::fma(x_at(r, i), z_at(r, j), sum);
  return sum;
}

TEST(GradientProduct, LargerThanTheCaches) {
  const index out = (std::max<index>(detail::largest_cache_bytes(), 1 << 20) / (in * 4) / 64 + 2) * 64;
  if (in * out * 4 > index{1} << 28) GTEST_SKIP() << "the largest cache has " << detail::largest_cache_bytes();
  for (const index rows : {1, 8, 9, 64}) {  // one part or several, a part of 1, 8 or 64 rows
    std::vector<float> x(static_cast<std::size_t>(nn::block_rows * in));
    std::vector<float> z(static_cast<std::size_t>(nn::block_rows * out));
    for (index r = 0; r < rows; ++r) {  // blocks (features / 64, 64, 64)
      for (index i = 0; i < in; ++i) x[static_cast<std::size_t>((i / 64 * 64 + r) * 64 + i % 64)] = x_at(r, i);
      for (index j = 0; j < out; ++j) z[static_cast<std::size_t>((j / 64 * 64 + r) * 64 + j % 64)] = z_at(r, j);
    }
    ASSERT_EQ(nn::block_width(in), 64);
    ASSERT_EQ(nn::block_width(out), 64);
    const auto product =
        detail::gradient_product::make(in, out, type::f32, nn::blocked_tiling(in), nn::blocked_tiling(out), {});
    ASSERT_TRUE(product) << product.error().message();
    const auto count = static_cast<std::size_t>(in * out);
    const std::unique_ptr<float, void (*)(void*)> memory(static_cast<float*>(std::aligned_alloc(64, count * 4 + 64)),
                                                         std::free);
    for (const std::size_t shift : {0, 1}) {  // rows of whole lines, and not
      float* const dw = memory.get() + shift;
      std::fill(dw, dw + count, std::numeric_limits<float>::quiet_NaN());
      const loops::serial serial;
      (*product)(serial, rows, x.data(), z.data(), dw, nullptr);
      index wrong = 0;
      for (index j = 0; j < out; ++j) {
        for (index i = 0; i < in; ++i) {
          wrong += dw[static_cast<std::size_t>((j / 64 * in + i) * 64 + j % 64)] != sum_at(rows, i, j);
        }
      }
      EXPECT_EQ(wrong, 0) << rows << " rows, shifted by " << shift;
    }
  }
}

}  // namespace
}  // namespace brgemm
