// The backend of AMX tiles, on the CPU's own or on emulated ones: what it refuses, what it asks the system for, how it
// divides, and sums of larger shapes than kernel.grid has. That grid compares it with the reference too.
#include <gtest/gtest.h>

#include <brgemm/backend/amx.hpp>
#include <brgemm/core/validate.hpp>
#include <brgemm/kernel/dump.hpp>
#include <brgemm/kernel/kernel.hpp>
#include <cerrno>
#include <string>

#include "support/code_runner.hpp"
#include "support/features.hpp"
#include "support/problem.hpp"

namespace brgemm_test {
namespace {

using namespace brgemm;
using brgemm::index;

desc tiles_of(type a, type b, type c, index m, index n, index k) {
  desc d;
  d.a = a, d.b = b, d.c = c;
  d.m = m, d.n = n, d.k = k;
  d.lda = std::max<index>(k, 1), d.ldb = d.ldc = n;
  d.layout_b = layout::interleaved;
  d.stride_a = m * d.lda, d.stride_b = (k + 3) / 4 * 4 * n;
  if (a == type::bf16) d.sums = order::tile;
  return d;
}
desc bf16_tiles(index m, index n, index k) { return tiles_of(type::bf16, type::bf16, type::f32, m, n, k); }

class Amx : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    emulated_ = show_tiles();
    ASSERT_TRUE(register_amx());
  }
  static void TearDownTestSuite() {
    std::printf("[tiles] %s, %llu instructions emulated\n", emulated_ ? "emulated" : "the CPU's own",
                static_cast<unsigned long long>(emulated_tile_instructions()));
  }
  void SetUp() override {
    if (!backend::amx.runs_here()) GTEST_SKIP() << "vectors end what tiles began: no AVX-512 on this CPU";
  }
  static inline bool emulated_ = false;
};

/// As the reference, bit for bit, with a page before and after every matrix.
void expect_equal_bits(const drawn_desc& d, std::uint64_t seed, index batch) {
  static problem_memory memory(7, 512 * 512 * 8);
  static code_runner runner;
  entropy e(seed);
  const problem p = draw_problem(e, d, 7);
  const auto expected_by = runner.make(backend::reference, p.d);
  const auto made = runner.make(backend::amx, p.d);
  ASSERT_TRUE(expected_by) << expected_by.error().message();
  ASSERT_TRUE(made) << made.error().message();
  outputs expected;
  for (const guard side : {guard::before, guard::after}) {
    const auto x = place(p, batch, side, memory);
    if (side == guard::before) {
      (*expected_by)(x);
      expected = collect(p, x);
    }
    reset_outputs(p, x);
    (*made)(x);
    EXPECT_EQ(difference(p, expected, x), "") << text_of(p, batch, side);
  }
}
drawn_desc drawn(const desc& d) {
  drawn_desc x{.d = d, .m = d.m, .lda = d.lda, .ldb = d.ldb, .ldc = d.ldc};
  return x;
}

void expect_refused(const desc& d, const char* field, const char* words) {
  const auto r = backend::amx.supports(d);
  ASSERT_FALSE(r) << words;
  EXPECT_EQ(r.error().code(), errc::unsupported);
  EXPECT_EQ(r.error().field(), field);
  EXPECT_NE(r.error().message().find(words), std::string_view::npos) << r.error().message();
}

TEST_F(Amx, SaysWhatItDoesNotDo) {
  EXPECT_TRUE(backend::amx.supports(bf16_tiles(5, 6, 7)));
  desc d = bf16_tiles(5, 6, 7);
  d.a = d.b = type::f32, d.sums = order::machine, d.layout_b = layout::plain;
  expect_refused(d, "a", "do not multiply f32");
  d = bf16_tiles(5, 6, 7);
  d.layout_b = layout::plain;
  expect_refused(d, "layout_b", "groups of 2 k: use pack_b");
  d = bf16_tiles(5, 6, 7);
  d.sums = order::pair;
  expect_refused(d, "sums", "order::tile");
  d = bf16_tiles(5, 6, 7);
  d.layout_a = layout::transposed;
  expect_refused(d, "layout_a", "use pack_a");
}

TEST_F(Amx, ARefusalOfTheSystemIsAReason) {
  auto& calls = backend::current_system_calls;
  const auto granted = calls.request_tiles;
  const int answer = backend::detail::tiles_granted.exchange(0);
  static int requests;
  requests = 0;
  calls.request_tiles = []() noexcept { return ++requests, errno = EPERM, -1; };
  expect_refused(bf16_tiles(5, 6, 7), "backend", "does not grant the state of AMX tiles");
  expect_refused(bf16_tiles(5, 6, 7), "backend", "not permitted");
  EXPECT_EQ(requests, 1) << "asked once a process";
  backend::detail::tiles_granted = 0;
  desc f32 = bf16_tiles(5, 6, 7);
  f32.layout_b = layout::plain;
  EXPECT_FALSE(backend::amx.supports(f32));
  EXPECT_EQ(requests, 1) << "and only when a kernel needs tiles";
  calls.request_tiles = granted;
  backend::detail::tiles_granted = answer;
}

TEST_F(Amx, EveryPairOf8BitTypes) {
  for (const type a : {type::u8, type::s8}) {
    for (const type b : {type::u8, type::s8}) {
      const desc d = tiles_of(a, b, type::s32, 21, 37, 75);
      if (validate(d)) expect_equal_bits(drawn(d), 1, 2);
    }
  }
}

// Several areas, blocks of rows and columns of each kind, chunks with and without a shorter one.
TEST_F(Amx, LargerShapes) {
  for (const index m : {16, 48, 130}) {
    for (const index n : {64, 130}) {
      for (const index k : {32, 96, 129}) {
        expect_equal_bits(drawn(bf16_tiles(m, n, k)), 2, 2);
        desc converted = tiles_of(type::u8, type::s8, type::bf16, m, n, k);
        append(converted, op::bias());
        append(converted, op::relu());
        expect_equal_bits(drawn(converted), 3, 2);
      }
    }
  }
}

TEST_F(Amx, RowsAtTheCall) {
  desc d = bf16_tiles(50, 37, 45);
  d.m_extent = extent_kind::at_call;
  append(d, op::gelu_erf());
  for (const index m : {1, 15, 16, 17, 31, 32, 50}) {
    drawn_desc x = drawn(d);
    x.m = m;
    expect_equal_bits(x, 4, 2);
  }
}

TEST_F(Amx, BlocksFitTheTiles) {
  for (index m = 1; m <= 100; ++m) {
    for (index n = 1; n <= 100; ++n) {
      for (const index k : {0, 1, 31, 32, 33, 64, 95}) {
        const backend::tile_blocking t = backend::choose_tile_blocking(bf16_tiles(m, n, k));
        ASSERT_GT(t.areas(), 0) << m << " " << n << " " << k;
        index rows = 0;
        index columns = 0;
        for (const backend::strip& r : t.rows) {
          rows += r.count * r.total();
          for (const backend::strip& c : t.columns) {
            if (r.count == 0 || c.count == 0) continue;
            ASSERT_LE(backend::detail::assign_tiles(t.depth, r, c).used, backend::tile_count);
          }
        }
        for (const backend::strip& c : t.columns) columns += c.count * c.total();
        ASSERT_EQ(rows, m);
        ASSERT_EQ(columns, n);
      }
    }
  }
}

TEST_F(Amx, IsTakenWhereItIsNamed) {
  const desc d = bf16_tiles(5, 6, 7);
  ASSERT_TRUE(register_amx()) << "a second time";
  const auto named = make_kernel(d, {.backend = "amx"});
  ASSERT_TRUE(named) << named.error().message();
  EXPECT_EQ(named->backend(), "amx");
  EXPECT_EQ(named->order(), order::tile);
  const auto any = make_kernel(d);
  ASSERT_TRUE(any);
  EXPECT_EQ(any->backend(), "avx512");
}

TEST_F(Amx, ExplainsItself) {
  const auto k = make_kernel(bf16_tiles(64, 64, 80), {.backend = "amx"});
  ASSERT_TRUE(k) << k.error().message();
  const auto dumped = dump(*k);
  ASSERT_TRUE(dumped);
  const std::string_view said = dumped->text();
  for (const char* words :
       {"tdpbf16ps", "blocks of rows", "2 chunks of 32 k and one of 16", "bound", "predicted", "At most"}) {
    EXPECT_NE(said.find(words), std::string_view::npos) << said;
  }
  std::printf("%.*s\n", static_cast<int>(said.size()), said.data());
}

}  // namespace
}  // namespace brgemm_test
