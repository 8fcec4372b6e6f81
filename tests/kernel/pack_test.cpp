// Packing against the layouts' definitions, element by element, for every type and shape around a block or a group.
#include "brgemm/kernel/pack.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "brgemm/backend/reference.hpp"
#include "support/guarded_memory.hpp"

namespace brgemm {
namespace {

using brgemm_test::guard;
using brgemm_test::guarded_memory;

constexpr std::array sizes = {0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 33, 40};

/// A matrix at the end of guarded memory; the gaps between its rows hold 0x5a.
template <class T>
struct matrix {
  matrix(index rows, index columns, index ld) : shape{rows, columns, ld} {
    const index elements = rows == 0 || columns == 0 ? 0 : (rows - 1) * ld + columns;
    bytes = static_cast<std::size_t>(elements) * sizeof(T);
    data = reinterpret_cast<T*>(memory.place(bytes, guard::after));
    std::memset(static_cast<void*>(data), 0x5a, bytes);
  }
  void draw(std::mt19937_64& engine) {
    for (std::size_t i = 0; i < bytes; ++i)
      reinterpret_cast<unsigned char*>(data)[i] = static_cast<unsigned char>(engine());
  }
  std::array<index, 3> shape;
  guarded_memory memory{1 << 17};
  std::size_t bytes = 0;
  T* data = nullptr;
};

template <class T>
bool same_bits(const T& x, const T& y) {
  return std::memcmp(&x, &y, sizeof x) == 0;
}

template <class T>
bool is_gap(const T& x) {
  T gap;
  std::memset(static_cast<void*>(&gap), 0x5a, sizeof gap);
  return same_bits(x, gap);
}

template <class T>
class Pack : public testing::Test {};
using all_types = testing::Types<float, double, bf16, f16, std::int8_t, std::uint8_t, std::int32_t>;
TYPED_TEST_SUITE(Pack, all_types);

template <class T>
class PackGroups : public testing::Test {};
using grouped_types = testing::Types<bf16, std::int8_t, std::uint8_t>;
TYPED_TEST_SUITE(PackGroups, grouped_types);

template <class T>
constexpr bool is_byte = sizeof(T) == 1;

TYPED_TEST(Pack, AIsPlain) {
  using T = TypeParam;
  std::mt19937_64 engine(1);
  for (const index m : sizes) {
    for (const index k : sizes) {
      for (const layout stored : {layout::plain, layout::transposed}) {
        const bool turned = stored == layout::transposed;
        matrix<T> from(turned ? k : m, turned ? m : k, (turned ? m : k) + 3);
        matrix<T> to(m, k, k + 1);
        from.draw(engine);
        const view<const T, 2> a{from.data, {from.shape[0], from.shape[1]}, {from.shape[2], 1}};
        const view<T, 2> packed{to.data, {m, k}, {k + 1, 1}};
        std::vector<std::int32_t> sums(static_cast<std::size_t>(m), 1000);
        const auto r = is_byte<T> ? pack_a(a, stored, packed, sums.data()) : pack_a(a, stored, packed);
        ASSERT_TRUE(r) << r.error().message();
        for (index i = 0; i < m; ++i) {
          std::int64_t sum = 1000;
          for (index p = 0; p < k; ++p) {
            const T expected = turned ? a(p, i) : a(i, p);
            ASSERT_TRUE(same_bits(packed(i, p), expected)) << m << ' ' << k << ' ' << i << ' ' << p;
            if constexpr (is_byte<T>) sum += expected;
          }
          ASSERT_TRUE(i + 1 == m || k == 0 || is_gap(to.data[i * (k + 1) + k]));
          ASSERT_TRUE(!is_byte<T> || sums[static_cast<std::size_t>(i)] == sum);
        }
      }
    }
  }
}

TYPED_TEST(PackGroups, BIsInterleaved) {
  using T = TypeParam;
  constexpr index g = k_group_of(element_traits<T>::value);
  std::mt19937_64 engine(2);
  for (const index k : sizes) {
    for (const index n : sizes) {
      for (const layout stored : {layout::plain, layout::transposed}) {
        const bool turned = stored == layout::transposed;
        matrix<T> from(turned ? n : k, turned ? k : n, (turned ? k : n) + 2);
        const index groups = (k + g - 1) / g;
        matrix<T> to(groups, n * g, (n + 1) * g);
        from.draw(engine);
        const view<const T, 2> b{from.data, {from.shape[0], from.shape[1]}, {from.shape[2], 1}};
        const view<T, 3> packed{to.data, {groups, n, g}, {(n + 1) * g, g, 1}};
        std::vector<std::int32_t> sums(static_cast<std::size_t>(n), -5);
        const auto r = is_byte<T> ? pack_b(b, stored, packed, sums.data()) : pack_b(b, stored, packed);
        ASSERT_TRUE(r) << r.error().message();
        for (index j = 0; j < n; ++j) {
          std::int64_t sum = -5;
          for (index p = 0; p < groups * g; ++p) {
            const T expected = p >= k ? T{} : turned ? b(j, p) : b(p, j);
            ASSERT_TRUE(same_bits(packed(p / g, j, p % g), expected)) << k << ' ' << n << ' ' << p << ' ' << j;
            if constexpr (is_byte<T>) sum += expected;
          }
          ASSERT_TRUE(!is_byte<T> || sums[static_cast<std::size_t>(j)] == sum);
        }
        for (index p = 0; n > 0 && p + 1 < groups; ++p) {
          for (index i = n * g; i < (n + 1) * g; ++i) ASSERT_TRUE(is_gap(to.data[p * (n + 1) * g + i]));
        }
      }
    }
  }
}

TEST(Pack, BWithoutGroupsIsPlain) {
  std::mt19937_64 engine(3);
  for (const index k : sizes) {
    for (const index n : sizes) {
      matrix<float> from(n, k, k + 2);
      matrix<float> to(k, n, n);
      from.draw(engine);
      const view<float, 2> b{from.data, {n, k}, {k + 2, 1}};
      const view<float, 2> packed{to.data, {k, n}};
      const auto r = pack_b(b, layout::transposed, packed);
      ASSERT_TRUE(r) << r.error().message();
      for (index p = 0; p < k; ++p) {
        for (index j = 0; j < n; ++j) ASSERT_TRUE(same_bits(packed(p, j), b(j, p)));
      }
    }
  }
}

TEST(Pack, ByRunTimeType) {
  const std::array<bf16, 3> b = {bf16{1}, bf16{2}, bf16{3}};  // (3,1)
  std::array<bf16, 4> packed;
  ASSERT_TRUE(pack_b(packing{type::bf16, 3, 1, layout::plain, b.data(), 1, packed.data(), 1}));
  EXPECT_EQ(packed, (std::array<bf16, 4>{bf16{1}, bf16{2}, bf16{3}, bf16{0}}));
}

TEST(Pack, BytesOfPackedB) {
  desc d;
  d.n = d.ldb = 5, d.k = 7;
  EXPECT_EQ(packed_b_bytes(d), 7 * 5 * 4);
  d.a = d.b = type::bf16;
  EXPECT_EQ(packed_b_bytes(d), 4 * 5 * 2 * 2);
  d.a = type::u8, d.b = type::s8;
  EXPECT_EQ(packed_b_bytes(d), 2 * 5 * 4);
  d.layout_b = layout::interleaved, d.ldb = 8;
  EXPECT_EQ(packed_b_bytes(d), (8 + 5) * 4);
  d.ldb = at_call;
  EXPECT_EQ(packed_b_bytes(d), 2 * 5 * 4);
  d.k = 0;
  EXPECT_EQ(packed_b_bytes(d), 0);
  d.k = d.n = index{1} << 40;
  EXPECT_EQ(packed_b_bytes(d), -1);
}

/// What packing is for: plain and packed B give the same C, zero points included.
TEST(Pack, PackedBGivesTheSameProduct) {
  constexpr index m = 3, n = 5, k = 6, batch = 2;
  std::mt19937_64 engine(4);
  std::array<std::uint8_t, batch * m * k> a;
  std::array<std::int8_t, batch * k * n> b;
  for (auto& x : a) x = static_cast<std::uint8_t>(engine());
  for (auto& x : b) x = static_cast<std::int8_t>(engine());
  std::array<std::int8_t, batch * 8 * n> packed;
  std::array<std::int32_t, n> sums{};
  for (index e = 0; e < batch; ++e) {
    const view<const std::int8_t, 2> from{b.data() + e * k * n, {k, n}};
    const view<std::int8_t, 3> to{packed.data() + e * 8 * n, {2, n, 4}};
    ASSERT_TRUE(pack_b(from, layout::plain, to, sums.data()));
  }
  std::array<std::int32_t, m * n> c;
  desc d;
  d.m = m, d.n = d.ldb = d.ldc = n, d.k = d.lda = k;
  d.a = type::u8, d.b = type::s8, d.c = type::s32;
  d.layout_b = layout::interleaved;
  d.stride_a = m * k, d.stride_b = 8 * n;
  d.zero_a = d.zero_b = zero_point::at_call;
  arguments x;
  x.a = a.data(), x.b = packed.data(), x.c = c.data(), x.batch = batch;
  x.zero_a = 128, x.zero_b = -3, x.column_sums = sums.data();
  ASSERT_TRUE(validate(d, x));
  auto made = backend::reference.make(d, {});
  ASSERT_TRUE(made);
  (*made).entry(&x, (*made).context);
  (*made).release((*made).context);
  for (index i = 0; i < m; ++i) {
    for (index j = 0; j < n; ++j) {
      std::int32_t expected = 0;
      for (index e = 0; e < batch; ++e) {
        for (index p = 0; p < k; ++p) {
          expected += (a[static_cast<std::size_t>((e * m + i) * k + p)] - 128) *
                      (b[static_cast<std::size_t>((e * k + p) * n + j)] + 3);
        }
      }
      EXPECT_EQ(c[static_cast<std::size_t>(i * n + j)], expected);
    }
  }
}

void expect_error(const result<void>& r, const char* field, const char* words) {
  ASSERT_FALSE(r) << field;
  EXPECT_EQ(r.error().field(), field) << r.error().message();
  EXPECT_NE(r.error().message().find(words), std::string_view::npos) << r.error().message();
}

TEST(Pack, BadInputIsNamedAndNothingIsWritten) {
  std::array<bf16, 64> from{};
  std::array<bf16, 64> to{};
  to.fill(bf16{7});
  const packing right{type::bf16, 3, 4, layout::plain, from.data(), 4, to.data(), 4};
  const auto with = [&](auto change) {
    packing p = right;
    change(p);
    return p;
  };
  [[maybe_unused]] const auto& [element, rows, columns, stored, source, ld_from, target, ld_to] = right;  // the cases
  expect_error(pack_b(with([](packing& p) { p.element = static_cast<type>(99); })), "element", "99");
  expect_error(pack_b(with([](packing& p) { p.rows = -1; })), "rows", "-1");
  expect_error(pack_b(with([](packing& p) { p.columns = -2; })), "columns", "-2");
  expect_error(pack_b(with([](packing& p) { p.stored = layout::interleaved; })), "stored", "2");
  expect_error(pack_b(with([](packing& p) { p.stored = static_cast<layout>(77); })), "stored", "77");
  expect_error(pack_b(with([](packing& p) { p.from = nullptr; })), "from", "null");
  expect_error(pack_b(with([](packing& p) { p.ld_from = 3; })), "ld_from", "3");
  expect_error(pack_b(with([](packing& p) { p.to = nullptr; })), "to", "null");
  expect_error(pack_b(with([](packing& p) { p.ld_to = 3; })), "ld_to", "3");
  expect_error(pack_b(with([](packing& p) { p.ld_from = index{1} << 62; })), "ld_from", "2^63 - 1");
  expect_error(pack_b(with([&](packing& p) { p.to = from.data() + 1; })), "to", "overlaps");
  expect_error(pack_a(with([](packing& p) { p.ld_from = at_call; })), "ld_from", "-1");
  std::int32_t sums[4] = {};
  expect_error(pack_b(right, sums), "column_sums", "bf16");
  expect_error(pack_a(right, sums), "row_sums", "bf16");
  for (const bf16 x : to) EXPECT_EQ(x, bf16{7});
  EXPECT_TRUE(pack_b(right));
  EXPECT_TRUE(pack_b(with([](packing& p) { p.rows = 0, p.from = nullptr, p.to = nullptr; })));
}

TEST(Pack, SumsOverlapNothingAndAreAligned) {
  constexpr index rows = 3, columns = 5;  // B (3,5), packed (1,5,4); A (3,5), packed (3,5)
  alignas(4) std::array<std::int8_t, 128> all;
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::int8_t>(i);
  const auto before = all;
  // The source at 40, the packed matrix at 80, the sums at `place`.
  const packing p{type::s8, rows, columns, layout::plain, &all[40], columns, &all[80], columns};
  const auto at = [&](std::size_t place) { return reinterpret_cast<std::int32_t*>(all.data() + place); };
  const auto expect = [&](const result<void>& r, const char* field, const char* words) {
    expect_error(r, field, words);
    ASSERT_EQ(all, before) << words;
  };
  expect(pack_b(p, at(40)), "column_sums", "overlaps the source");
  expect(pack_b(p, at(52)), "column_sums", "overlaps the source");  // its last byte
  expect(pack_b(p, at(24)), "column_sums", "overlaps the source");  // the last sum
  expect(pack_b(p, at(80)), "column_sums", "overlaps the packed matrix");
  expect(pack_b(p, at(96)), "column_sums", "overlaps the packed matrix");
  expect(pack_b(p, at(64)), "column_sums", "overlaps the packed matrix");
  expect(pack_b(p, at(1)), "column_sums", "multiple of 4");
  expect(pack_a(p, at(52)), "row_sums", "overlaps the source");
  expect(pack_a(p, at(32)), "row_sums", "overlaps the source");
  expect(pack_a(p, at(92)), "row_sums", "overlaps the packed matrix");
  expect(pack_a(p, at(72)), "row_sums", "overlaps the packed matrix");
  expect(pack_a(p, at(2)), "row_sums", "multiple of 4");
  const view<const std::int8_t, 2> b{&all[40], {rows, columns}};
  expect(pack_b(b, layout::plain, view<std::int8_t, 3>{&all[80], {1, columns, 4}}, at(80)), "column_sums", "overlaps");
  expect(pack_a(b, layout::plain, view<std::int8_t, 2>{&all[80], {rows, columns}}, at(40)), "row_sums", "overlaps");
  // Beside both they are right.
  EXPECT_TRUE(pack_b(p, at(20)));
  EXPECT_TRUE(pack_b(p, at(100)));
  EXPECT_TRUE(pack_a(p, at(28)));
  EXPECT_TRUE(pack_a(p, at(96)));
}

TEST(Pack, BadViewsAreNamed) {
  std::array<bf16, 64> from{};
  std::array<bf16, 64> to{};
  const view<const bf16, 2> b{from.data(), {3, 4}};
  const auto packed = [&](std::array<index, 3> shape, std::array<index, 3> strides) {
    return view<bf16, 3>{to.data(), shape, strides};
  };
  EXPECT_TRUE(pack_b(b, layout::plain, packed({2, 4, 2}, {8, 2, 1})));
  expect_error(pack_b(b, layout::plain, packed({1, 4, 2}, {8, 2, 1})), "packed", "(1,4,2)");
  expect_error(pack_b(b, layout::plain, packed({2, 5, 2}, {8, 2, 1})), "packed", "(2,5,2)");
  expect_error(pack_b(b, layout::transposed, packed({2, 4, 2}, {8, 2, 1})), "packed", "B (4,3)");
  expect_error(pack_b(b, layout::plain, packed({2, 4, 2}, {9, 2, 1})), "packed", "(9,2,1)");
  expect_error(pack_b(b, layout::plain, packed({2, 4, 2}, {8, 4, 1})), "packed", "(8,4,1)");
  expect_error(pack_b(b, layout::plain, packed({2, 4, 2}, {8, 2, 3})), "packed", "3 apart");
  const view<const bf16, 2> spread{from.data(), {3, 4}, {8, 2}};
  expect_error(pack_b(spread, layout::plain, packed({2, 4, 2}, {8, 2, 1})), "b", "2 apart");
  const view<bf16, 2> plain{to.data(), {4, 3}};
  EXPECT_TRUE(pack_a(b, layout::transposed, plain));
  expect_error(pack_a(b, layout::plain, plain), "packed", "(4,3)");
  expect_error(pack_a(spread, layout::plain, plain), "a", "2 apart");
}

}  // namespace
}  // namespace brgemm
