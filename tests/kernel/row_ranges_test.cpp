// desc::rows, entries that add to some rows of C only: every backend against loops over entries that see all of their
// rows, next to pages that must not be touched where the others would be.
#include <gtest/gtest.h>

#include <brgemm/kernel/kernel.hpp>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "support/code_runner.hpp"
#include "support/expect_error.hpp"
#include "support/features.hpp"
#include "support/guarded_memory.hpp"

namespace {

using namespace brgemm;
using brgemm::index;
using brgemm_test::expect_error;
using brgemm_test::guard;
using brgemm_test::guarded_memory;

constexpr index batch = 6;  // entries: a multiple of 1, 2, 3 and 6 ranges

struct memory {
  guarded_memory a{1 << 13}, b{1 << 17}, c{1 << 12};
};

/// A line of a convolution: row r of entry i is at r + i - 1 of `lines` rows of A, so that the first entry's first row,
/// or the last one's last, lies on an inaccessible page.
struct line {
  desc d;
  std::vector<std::byte> a, b, start;

  std::vector<std::byte> result_of(const kernel& k, const std::vector<offset_pair>& pairs, guard side,
                                   const memory& room) const {
    std::byte* const at_a = room.a.place(a.size(), side);
    std::byte* const at_b = room.b.place(b.size(), side);
    std::byte* const at_c = room.c.place(start.size(), side);
    std::memcpy(at_a, a.data(), a.size());
    std::memcpy(at_b, b.data(), b.size());
    std::memcpy(at_c, start.data(), start.size());
    k({.a = at_a, .b = at_b, .c = at_c, .pairs = pairs.data(), .batch = static_cast<index>(pairs.size())});
    return {at_c, at_c + start.size()};
  }
};

std::vector<std::byte> draw(std::mt19937& random, type t, index count) {
  std::uniform_real_distribution<float> numbers(-1, 1);
  std::vector<std::byte> bytes(static_cast<std::size_t>(count * size_of(t)));
  for (index i = 0; i < count; ++i) {
    const float x = numbers(random);
    const bf16 narrow = to_bf16(x);
    const auto byte = static_cast<std::uint8_t>(random());
    const void* const from = t == type::f32 ? static_cast<const void*>(&x) : t == type::bf16 ? &narrow : nullptr;
    std::memcpy(&bytes[static_cast<std::size_t>(i * size_of(t))], from != nullptr ? from : &byte,
                static_cast<std::size_t>(size_of(t)));
  }
  return bytes;
}

line draw_line(std::mt19937& random, type data, index m, index n, index k, int taps) {
  line l;
  desc& d = l.d;
  d.m = m, d.n = n, d.k = k, d.lda = k, d.ldb = n, d.ldc = n;
  d.a = d.b = data, d.c = size_of(data) == 1 ? type::s32 : type::f32;
  if (size_of(data) == 1) d.b = type::s8;
  if (data != type::f32) d.layout_b = layout::interleaved;
  if (data == type::bf16) d.sums = random() % 2 == 0 ? order::tile : order::pair;
  d.batch = batch_kind::offsets;
  d.beta = random() % 2 == 0 ? beta_kind::one : beta_kind::zero;
  const index group = k_group_of(data);
  const bool of_none = m > 2 && random() % 4 == 0;  // the first row: it keeps its bits
  for (int t = 0; t < taps; ++t) {                  // of padding 1: A has m + taps - 3 rows
    const index first = std::max<index>(of_none ? 1 : 0, 1 - t);
    const index end = std::min<index>(m, m + taps - 2 - t);
    d.rows[t] = {static_cast<std::uint8_t>(first), static_cast<std::uint8_t>(end)};
  }
  l.a = draw(random, d.a, (m + taps - 3) * k);
  l.b = draw(random, d.b, batch * ((k + group - 1) / group * group) * n);
  l.start = draw(random, type::f32, m * n);
  for (std::size_t i = 3; i < l.start.size(); i += 28) {  // -0, which +0 added would change
    std::memset(&l.start[i - 3], 0, 3);
    l.start[i] = std::byte{0x80};
  }
  if (d.c == type::s32) std::memset(l.start.data(), 3, l.start.size());
  return l;
}

std::vector<offset_pair> pairs_of(const line& l, int taps) {
  const index group = k_group_of(l.d.a);
  std::vector<offset_pair> pairs;
  for (index i = 0; i < batch; ++i) {
    pairs.push_back({(i % taps - 1) * l.d.k, i * ((l.d.k + group - 1) / group * group) * l.d.n});
  }
  return pairs;
}

/// Row by row, by kernels whose entries see it.
std::vector<std::byte> by_rows(const line& l, int taps, guard side, const memory& room) {
  std::vector<std::byte> all = l.start;
  const std::vector<offset_pair> pairs = pairs_of(l, taps);
  for (index row = 0; row < l.d.m; ++row) {
    desc d = l.d;
    d.m = 1;
    for (row_range& r : d.rows) r = {};
    const auto made = make_kernel(d, {.backend = "reference"});
    EXPECT_TRUE(made) << made.error().message();
    std::vector<offset_pair> seen;
    for (index i = 0; i < batch; ++i) {
      const row_range& r = l.d.rows[i % taps];
      const offset_pair& p = pairs[static_cast<std::size_t>(i)];
      if (row >= r.first && row < r.end) seen.push_back({p.a + row * d.lda, p.b});
    }
    line one = l;
    const auto bytes = static_cast<std::ptrdiff_t>(l.d.n * size_of(l.d.c));
    one.start.assign(l.start.begin() + row * bytes, l.start.begin() + (row + 1) * bytes);
    const auto found = one.result_of(*made, seen, side, room);
    std::copy(found.begin(), found.end(), all.begin() + row * bytes);
  }
  return all;
}

TEST(RowRanges, HaveTheBitsOfEveryRowByItself) {
  std::mt19937 random(1);
  const memory room;
  std::map<std::string, int> compared;
  for (const type data : {type::f32, type::bf16, type::u8, type::s8}) {
    for (const index m : {2, 5, 7, 14}) {
      for (const index n : {1, 8, 17, 33, 64}) {
        for (const index k : {1, 6, 64, 67}) {
          for (const int taps : {2, 3}) {
            const line l = draw_line(random, data, m, n, k, taps);
            const guard side = random() % 2 == 0 ? guard::before : guard::after;
            const auto right = by_rows(l, taps, side, room);
            for (const char* hidden : {"", "-avx512", "-bf16,-vnni"}) {
              brgemm_test::hide_features(hidden);
              for (const auto& backend : backend::built_in()) {
                if (!backend.runs_here() || !backend.supports(l.d)) continue;
                const auto made = make_kernel(l.d, {.backend = backend.name});
                ASSERT_TRUE(made) << made.error().message();
                ASSERT_EQ(l.result_of(*made, pairs_of(l, taps), side, room), right)
                    << backend.name << hidden << ' ' << name_of(l.d).c_str();
                ++compared[std::string(backend.name) + hidden];
              }
            }
            brgemm_test::hide_features("");
          }
        }
      }
    }
  }
  for (const char* hidden : {"", "-avx512", "-bf16,-vnni"}) {
    for (const auto& backend : backend::built_in()) {
      brgemm_test::hide_features(hidden);
      const bool runs = backend.runs_here();
      brgemm_test::hide_features("");
      if (!runs || backend.name == "amx" || backend.name == "libxsmm") continue;
      // All 640, but s8 x s8 where instructions correct it, and 14 rows that are more than registers.
      EXPECT_GE(compared[std::string(backend.name) + hidden], backend.name == "reference" ? 640 : 360)
          << backend.name << hidden;
    }
  }
}

TEST(RowRanges, SupportsAndMakeAgreeOnTheLongestCode) {
  brgemm_test::code_runner runner;
  for (const char* hidden : {"", "-avx512", "-bf16,-vnni", "-avx512,-f16c"}) {
    brgemm_test::hide_features(hidden);
    for (const type data : {type::f32, type::bf16, type::f16, type::u8, type::f64}) {
      for (const layout of_b : {layout::plain, layout::transposed, layout::interleaved}) {
        for (const index m : {1, 2, 3, 6, 14, 28}) {
          for (const index n : {1, 8, 17, 31, 64, 100}) {
            for (const index k : {1, 15, 64}) {
              desc d;
              d.m = m, d.n = n, d.k = k, d.lda = k, d.ldc = n;
              d.ldb = of_b == layout::transposed ? k : n;
              d.a = data, d.b = data == type::u8 ? type::s8 : data, d.layout_b = of_b;
              d.c = data == type::u8 ? type::s32 : data == type::f64 ? data : type::f32;
              for (int i = 0; i < max_row_ranges; ++i) {
                d.rows[i] = {static_cast<std::uint8_t>(i % m), static_cast<std::uint8_t>(m)};
              }
              if (!validate(d)) continue;
              for (const auto& backend : backend::built_in()) {
                if (!backend.runs_here()) continue;
                ASSERT_EQ(static_cast<bool>(backend.supports(d)), static_cast<bool>(runner.make(backend, d)))
                    << backend.name << hidden << ' ' << name_of(d).c_str();
              }
            }
          }
        }
      }
    }
    brgemm_test::hide_features("");
  }
}

TEST(RowRanges, ACheckedCallLooksAtRowsThatAreReadOnly) {
  desc d;
  d.m = 4, d.n = 16, d.k = 16, d.lda = d.ldb = d.ldc = 16;
  d.rows[0] = {2, 4}, d.rows[1] = {0, 2};
  std::vector<float> x(8 * 16), b(16 * 16);
  for (const batch_kind batch : {batch_kind::strides, batch_kind::offsets}) {
    d.batch = batch;
    d.stride_a = batch == batch_kind::strides ? 4 * 16 : 0;
    const auto made = make_kernel(d);
    ASSERT_TRUE(made) << made.error().message();
    // A's rows 2 and 3 of entry 0 are x's first two, 0 and 1 of entry 1 the two behind them; C is what follows.
    const offset_pair pairs[] = {{0, 0}, {4 * 16, 0}};
    arguments call{.a = x.data() - 2 * 16, .b = b.data(), .c = x.data() + 4 * 16, .pairs = pairs, .batch = 2};
    EXPECT_TRUE(made->call(call)) << made->call(call).error().message();
    call.c = x.data() + 3 * 16;
    expect_error(made->call(call), errc::invalid_argument, "a", {"A of entry 1", "overlaps C"});
    call.c = x.data() + 1 * 16;
    expect_error(made->call(call), errc::invalid_argument, "a", {"A of entry 0", "overlaps C"});
  }
}

TEST(RowRanges, BadDescsAndCalls) {
  desc right;
  right.m = 5, right.n = 16, right.k = 8, right.lda = 8, right.ldb = right.ldc = 16;
  right.rows[0] = {1, 5}, right.rows[1] = {0, 5}, right.rows[2] = {0, 4};
  const auto made = make_kernel(right);
  ASSERT_TRUE(made) << made.error().message();
  EXPECT_EQ(std::string_view(name_of(right).c_str()), "brgemm_f32_5x16x8_strd_b0_by0and0_rows1to5_0to5_0to4");
  const auto expect = [&](auto change, errc code, const char* field, const std::vector<std::string>& words) {
    desc d = right;
    change(d);
    expect_error(make_kernel(d), code, field, words);
  };
  const auto wrong = errc::invalid_argument;
  const auto missing = errc::unsupported;
  expect([](desc& d) { d.rows[1] = {0, 6}; }, wrong, "rows", {"rows[1]", "0..6", "m = 5"});
  expect([](desc& d) { d.rows[1] = {3, 3}; }, wrong, "rows", {"rows[1]", "3..3"});
  expect([](desc& d) { d.rows[4] = {0, 2}; }, wrong, "rows", {"rows[4]", "0..2"});
  expect([](desc& d) { d.rows[3] = {2, 0}; }, wrong, "rows", {"rows[3]", "2..0"});
  expect([](desc& d) { d.layout_a = layout::transposed; }, missing, "layout_a", {"plain"});
  expect([](desc& d) { d.m_extent = extent_kind::at_call; }, missing, "m_extent", {"fixed"});
  expect([](desc& d) { d.chains = 2; }, missing, "chains", {"one chain"});
  desc bytes = right;
  bytes.a = type::u8, bytes.b = type::s8, bytes.c = type::s32;
  bytes.zero_a = zero_point::at_call;
  expect_error(make_kernel(bytes), missing, "zero_a", {"zero points"});
  bytes.zero_a = zero_point::none, bytes.zero_b = zero_point::at_call;
  expect_error(make_kernel(bytes), missing, "zero_b", {"zero points"});
  desc high = right;
  high.m = 40, high.rows[0].end = 40;
  EXPECT_TRUE(make_kernel(high, {.backend = "reference"}));
  for (const auto& backend : backend::built_in()) {
    if (backend.name == "reference") continue;
    expect_error(backend.supports(high), missing, "rows", {"40 rows"});
  }
  desc tiles = right;
  tiles.a = tiles.b = type::bf16, tiles.sums = order::tile, tiles.layout_b = layout::interleaved;
  expect_error(backend::amx.supports(tiles), missing, "rows", {"all rows"});
  std::vector<float> a(64), b(256), c(80);
  expect_error(made->call({.a = a.data(), .b = b.data(), .c = c.data(), .batch = 4}), wrong, "batch",
               {"4", "3 ranges"});
}

}  // namespace
