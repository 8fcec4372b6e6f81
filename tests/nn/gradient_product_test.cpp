// The gradient of weights that are larger than the caches: written past them, with the bits of the contract's order.
#include <gtest/gtest.h>

#include <brgemm/nn/linear.hpp>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "support/tile_order.hpp"

namespace brgemm {
namespace {

using nn::storage;

// Values that bf16 can hold, of so many sizes that sums of their products are rounded: a changed order shows.
float power_at(index r, index i) { return std::ldexp(1.0f, static_cast<int>((r * 3 + i) % 11 - 5)); }
float x_at(index r, index i) { return static_cast<float>((r * 31 + i * 7) % 61 - 30) * power_at(r, i); }
float z_at(index r, index j) { return static_cast<float>((r * 17 + j * 11) % 53 - 26) * power_at(r + 4, j); }

/// In the contract's order: one fma a row, ascending; bf16 in pairs of rows, the second one first, or as tiles do.
template <class X, class Z>
float sum_of(type data, index rows, X&& x, Z&& z) {
  if (data == type::bf16 && brgemm_test::machine_sums_in_tiles()) {
    return brgemm_test::sum_in_tiles(rows, x, z, brgemm_test::rows_of_entry);
  }
  float sum = 0;
  for (index r = 0; r < rows; r += data == type::f32 ? 1 : 2) {
    if (data != type::f32 && r + 1 < rows) sum = std::fma(x(r + 1), z(r + 1), sum);
    sum = std::fma(x(r), z(r), sum);
  }
  return sum;
}

struct release {
  void operator()(void* p) const { std::free(p); }
};
using memory = std::unique_ptr<char, release>;
memory allocate(index bytes) {  // null for none
  if (bytes == 0) return nullptr;
  const auto size = static_cast<std::size_t>((bytes + 127) / 64 * 64);
  memory m(static_cast<char*>(std::aligned_alloc(64, size)));
  std::memset(m.get(), 0, size);
  return m;
}

/// A matrix (rows, features) as the layer stores it.
memory stored(index rows, index features, type data, storage s, index bytes, float (*value)(index, index)) {
  memory all = allocate(bytes);
  const nn::tiling t = nn::tiling_of(s, features, features);
  const index width = nn::block_width(features);
  for (index r = 0; r < rows; ++r) {
    for (index i = 0; i < features; ++i) {
      const index at = t.offset(r / nn::block_rows, i / width) + r % nn::block_rows * t.ld + i % width;
      if (data == type::f32) {
        reinterpret_cast<float*>(all.get())[at] = value(r, i);
      } else {
        reinterpret_cast<bf16*>(all.get())[at] = to_bf16(value(r, i));
      }
    }
  }
  return all;
}

struct gradient {
  index in, out, rows;
  type data = type::f32;
  storage kept = storage::plain;
  int threads = 1;
  index shift = 0;         ///< dW begins so many floats behind a line
  index every_column = 1;  ///< looks at one column of dW in so many
};

/// How many elements of dW and db are wrong; -1 if there is no plan.
index wrong_elements(const gradient& g) {
  const auto plan = nn::linear::plan({.rows = g.rows,
                                      .in = g.in,
                                      .out = g.out,
                                      .data = g.data,
                                      .y = g.data,
                                      .training = true,
                                      .x_storage = g.kept,
                                      .y_storage = g.kept});
  const auto pool = loops::thread_pool::make(g.threads);
  if (!plan || !pool) return -1;
  const memory x = stored(g.rows, g.in, g.data, g.kept, plan->x_bytes(), x_at);
  const memory z = stored(g.rows, g.out, g.data, g.kept, plan->y_bytes(), z_at);
  const memory workspace = allocate(plan->backward_weights_workspace_bytes());
  const memory gradients = allocate(plan->parameters() * 4 + 64);
  float* const dw = reinterpret_cast<float*>(gradients.get()) + g.shift;
  std::fill(dw, dw + plan->parameters(), std::numeric_limits<float>::quiet_NaN());
  std::vector<float> db(static_cast<std::size_t>(g.out));
  const auto done = plan->backward_weights(*pool, g.rows, x.get(), z.get(), dw, db.data(), workspace.get());
  EXPECT_TRUE(done) << done.error().message();
  if (!done) return -1;
  const index width = nn::block_width(g.out);
  index wrong = 0;
  for (index j = 0; j < g.out; j += g.every_column) {
    const auto z_of = [j](index r) { return z_at(r, j); };
    wrong += db[static_cast<std::size_t>(j)] != sum_of(
                                                    g.data, g.rows, [](index) { return 1.0f; }, z_of);
    const float* const column = dw + j / width * g.in * width + j % width;
    for (index i = 0; i < g.in; ++i) {
      wrong += column[i * width] != sum_of(
                                        g.data, g.rows, [i](index r) { return x_at(r, i); }, z_of);
    }
  }
  return wrong;
}

TEST(GradientProduct, LargerThanTheCaches) {
  constexpr index few = 512;
  const index many = (std::max<index>(detail::largest_cache_bytes(), 1 << 20) / (few * 4) / 64 + 2) * 64;
  if (few * many * 4 > index{1} << 28) GTEST_SKIP() << "the largest cache has " << detail::largest_cache_bytes();
  for (const type data : {type::f32, type::bf16}) {
    for (const storage kept : {storage::plain, storage::blocked}) {
      SCOPED_TRACE(testing::Message() << name_of(data) << (kept == storage::plain ? ", plain" : ", blocked"));
      const index odd = kept == storage::plain ? 4 : 0;  // a narrow last panel
      for (const index shift : {0, 1}) {                 // rows of whole lines, and not
        for (const index rows : {1, 8, 9, 64}) {         // one part or several, a part of 1 (bf16: 2), 8 or 64 rows
          EXPECT_EQ(wrong_elements({few, many + odd, rows, data, kept, 1, shift, 29}), 0)
              << rows << " rows, shift " << shift;
        }
      }
      EXPECT_EQ(wrong_elements({few, many + odd, 5, data, kept, 2, 0, 29}), 0);
      EXPECT_EQ(wrong_elements({many + odd, few, 2, data, kept, 2, 0, 29}), 0);
    }
  }
  EXPECT_EQ(wrong_elements({few, many, 3, type::f32, storage::blocked}), 0);  // every element
  EXPECT_EQ(wrong_elements({few, many, 3, type::bf16, storage::plain}), 0);
}

}  // namespace
}  // namespace brgemm
