// The gradient of weights that are larger than the caches: written past them, with the same bits as any other.
#include <gtest/gtest.h>

#include <brgemm/nn/linear.hpp>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <vector>

namespace brgemm {
namespace {

float x_at(index r, index i) { return static_cast<float>((r * 31 + i * 7) % 61 - 30) / 16; }
float z_at(index r, index j) { return static_cast<float>((r * 17 + j * 11) % 53 - 26) / 32; }

/// In the contract's order: one fma a row, ascending.
float sum_at(index rows, index i, index j) {
  float sum = 0;
  for (index r = 0; r < rows; ++r) sum = std::fma(x_at(r, i), z_at(r, j), sum);
  return sum;
}

/// At most 64 rows in blocked storage.
std::vector<float> blocked(index rows, index features, float (*value)(index, index)) {
  const nn::tiling t = nn::blocked_tiling(features);
  std::vector<float> all(static_cast<std::size_t>(t.row_step));
  for (index r = 0; r < rows; ++r) {
    for (index i = 0; i < features; ++i) {
      all[static_cast<std::size_t>(t.offset(0, i / t.ld) + r * t.ld + i % t.ld)] = value(r, i);
    }
  }
  return all;
}

/// dW and db where dW begins `shift` floats behind a line: how many elements are wrong.
index wrong_elements(index in, index out, index rows, int threads, index shift) {
  const auto x = blocked(rows, in, x_at);
  const auto z = blocked(rows, out, z_at);
  const auto made =
      detail::gradient_product::make(in, out, type::f32, nn::blocked_tiling(in), nn::blocked_tiling(out), {});
  const auto pool = loops::thread_pool::make(threads);
  if (!made || !pool) return -1;
  const index width = nn::block_width(out);
  const auto count = static_cast<std::size_t>(nn::panels(out) * in * width);
  const std::unique_ptr<float, void (*)(void*)> memory(static_cast<float*>(std::aligned_alloc(64, count * 4 + 64)),
                                                       std::free);
  float* const dw = memory.get() + shift;
  std::fill(dw, dw + count, std::numeric_limits<float>::quiet_NaN());
  std::vector<float> db(static_cast<std::size_t>(out));
  (*made)(*pool, rows, x.data(), z.data(), dw, db.data());
  index wrong = 0;
  for (index j = 0; j < out; ++j) {
    float sum = 0;
    for (index r = 0; r < rows; ++r) sum += z_at(r, j);
    wrong += db[static_cast<std::size_t>(j)] != sum;
    const float* const column = dw + j / width * in * width + j % width;
    for (index i = 0; i < in; ++i) wrong += column[i * width] != sum_at(rows, i, j);
  }
  return wrong;
}

TEST(GradientProduct, LargerThanTheCaches) {
  constexpr index few = 512;
  const index many = (std::max<index>(detail::largest_cache_bytes(), 1 << 20) / (few * 4) / 64 + 2) * 64 + 4;
  if (few * many * 4 > index{1} << 28) GTEST_SKIP() << "the largest cache has " << detail::largest_cache_bytes();
  for (const index shift : {0, 1}) {          // rows of whole lines, and not
    for (const index rows : {1, 8, 9, 64}) {  // one part or several, a part of 1, 8 or 64 rows
      EXPECT_EQ(wrong_elements(few, many, rows, 1, shift), 0) << rows << " rows, shift " << shift;
    }
    EXPECT_EQ(wrong_elements(few, many, 5, 2, shift), 0);
    EXPECT_EQ(wrong_elements(many, few, 2, 2, shift), 0);
  }
}

}  // namespace
}  // namespace brgemm
