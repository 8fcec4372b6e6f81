// The backend of AMX tiles, on the CPU's own or on emulated ones: what it refuses, what it asks the system for, how it
// divides, and sums of larger shapes than kernel.grid has. That grid compares it with the reference too.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <brgemm/backend/amx.hpp>
#include <brgemm/core/validate.hpp>
#include <brgemm/kernel/dump.hpp>
#include <brgemm/kernel/kernel.hpp>
#include <brgemm/kernel/tile_scope.hpp>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

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
  static void SetUpTestSuite() { emulated_ = show_tiles(); }
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

/// Calls a kernel with its stack below `top`.
void call_on(std::uint8_t* top, entry_point entry, const arguments* x) {
  __asm__ volatile("mov %%rsp, %%rbx\n\tmov %0, %%rsp\n\tcall *%1\n\tmov %%rbx, %%rsp"
                   :
                   : "r"(top), "r"(entry), "D"(x), "S"(nullptr)
                   : "rbx", "rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "memory", "cc");
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
  expect_refused(d, "a", "tiles take bf16, u8 and s8, not f32");
  d = bf16_tiles(5, 6, 7);
  d.layout_b = layout::transposed, d.ldb = 7;
  expect_refused(d, "layout_b", "stored (n,k) is not turned for tiles: use pack_b");
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
  calls.request_tiles = []() noexcept { return ++requests, errno = ENOSPC, -1; };
  expect_refused(bf16_tiles(5, 6, 7), "backend", "alternate stack for signals is too small");
  calls.request_tiles = []() noexcept { return ++requests, 0; };
  EXPECT_TRUE(backend::amx.supports(bf16_tiles(5, 6, 7))) << "there may be space later";
  EXPECT_TRUE(backend::amx.supports(bf16_tiles(5, 6, 7)));
  EXPECT_EQ(requests, 3);
  backend::detail::tiles_granted = 0;
  desc f32;
  EXPECT_FALSE(backend::amx.supports(f32));
  EXPECT_EQ(requests, 3) << "and only when a kernel needs tiles";
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

// Where vectors would need too much code for a part of C, parts are smaller.
TEST_F(Amx, LongEpiloguesAreNotRefused) {
  hide_features("-bf16");
  desc d = bf16_tiles(197, 130, 75);
  for (int i = 0; i < max_epilogue; ++i) append(d, op::store(130, type::bf16));
  code_runner runner;
  const auto made = runner.make(backend::amx, d);
  EXPECT_TRUE(made) << made.error().message();
  hide_features("");
}

// A kernel whose stack ends above a page without access faults there, and changes no byte beneath it.
TEST_F(Amx, NoPageOfTheStackIsJumpedOver) {
  constexpr std::size_t page = 4096;
  desc d = tiles_of(type::s8, type::s8, type::bf16, 78, 88, 67);
  append(d, op::gelu_erf());
  code_runner runner;
  const auto made = runner.make(backend::amx, d);
  ASSERT_TRUE(made) << made.error().message();
  for (const std::size_t above : {160u, 304u, 1000u, 2000u, 3000u, 4000u}) {
    auto* const stack = static_cast<std::uint8_t*>(
        ::mmap(nullptr, 8 * page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(stack, MAP_FAILED);
    std::memset(stack, 0xa5, 8 * page);
    ASSERT_EQ(::mprotect(stack + 4 * page, page, PROT_NONE), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      static std::uint8_t a[78 * 67], b[68 * 88], c[78 * 88 * 2];
      static arguments x{.a = a, .b = b, .c = c, .batch = 1};
      static std::byte room[64 * 1024];
      const stack_t other{.ss_sp = room, .ss_flags = 0, .ss_size = sizeof room};
      if (emulated_) ::sigaltstack(&other, nullptr);
      std::signal(SIGSEGV, SIG_DFL);  // sanitizers have a handler of their own
      call_on(stack + 5 * page + above, made->entry, &x);
      ::_exit(0);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV) << "the kernel needs more than there is";
    EXPECT_EQ(std::count(stack, stack + 4 * page, 0xa5), 4 * page) << above;
    ::munmap(stack, 8 * page);
  }
}

// Needs no tiles.
TEST(TileBlocking, BlocksFitTheTilesAndTheStack) {
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
        desc most = bf16_tiles(m, n, k);
        most.layout_b = layout::plain;
        most.c = type::bf16;
        const std::size_t bytes = backend::jit_tiles::layout_of_stack(most, backend::choose_tile_blocking(most)).bytes;
        ASSERT_LE(backend::max_stack_bytes + bytes + 64, std::size_t{12} << 10) << m << " " << n << " " << k;
      }
    }
  }
}

TEST(TileBlocking, RowsThatDivideEvenlyNeedOneConfiguration) {
  for (const index m : {7, 14, 20, 28, 56, 60}) {  // widths of images; 60 = 4 x 15
    EXPECT_EQ(backend::choose_tile_blocking(bf16_tiles(m, 64, 64)).areas(), 1) << m;
  }
  EXPECT_EQ(backend::choose_tile_blocking(bf16_tiles(53, 64, 64)).areas(), 2) << "a prime number of rows";
}

TEST_F(Amx, ComesFirstAndOrderMachineIsItsOwn) {
  desc d = bf16_tiles(5, 6, 7);
  d.sums = order::machine;
  const auto on_tiles = make_kernel(d);
  ASSERT_TRUE(on_tiles) << on_tiles.error().message();
  EXPECT_EQ(on_tiles->backend(), "amx");
  EXPECT_EQ(on_tiles->order(), order::tile);
  d.layout_a = layout::interleaved;  // columns of A: for vectors
  const auto on_vectors = make_kernel(d);
  ASSERT_TRUE(on_vectors) << on_vectors.error().message();
  EXPECT_EQ(on_vectors->backend(), "avx512");
  EXPECT_EQ(on_vectors->order(), order::tile) << "of all shapes on such a machine";
  hide_features("-amx");
  d.layout_a = layout::plain;
  const auto without = make_kernel(d);
  hide_features("");
  ASSERT_TRUE(without) << without.error().message();
  EXPECT_EQ(without->backend(), "avx512");
  EXPECT_EQ(without->order(), order::pair);
}

// ---- configurations ----

backend::tile_configuration loaded_configuration() {
  backend::tile_configuration c;
  __asm__ volatile("sttilecfg %0" : "=m"(c));
  return c;
}
void load(const backend::tile_configuration& c) { __asm__ volatile("ldtilecfg %0" ::"m"(c)); }

/// A kernel with matrices of ones and its calls; on emulated tiles it counts the configurations that they load.
struct caller {
  kernel k;
  std::vector<bf16> a, b;
  std::vector<float> c;
  explicit caller(const desc& d)
      : k(*make_kernel(d, {.backend = "amx"})), a(64 * 512, to_bf16(1)), b(a), c(200 * 200) {}
  std::uint64_t loads_of_call() {
    const arguments x{.a = a.data(), .b = b.data(), .c = c.data(), .batch = 1, .m = k.description().m};
    std::fill(c.begin(), c.end(), -1.0f);
    const std::uint64_t before = tiles::loads_of_configuration;
    k(x);
    EXPECT_EQ(c[0], static_cast<float>(k.description().k));
    EXPECT_EQ(c[static_cast<std::size_t>(k.description().m * k.description().n) - 1], c[0]);
    return tiles::loads_of_configuration - before;
  }
};

TEST_F(Amx, ACallLeavesTheConfigurationAsItWas) {
  for (const index m : {5, 40}) {
    caller one(bf16_tiles(m, 20, 45));
    const std::uint64_t loads = one.loads_of_call();
    EXPECT_TRUE(loaded_configuration() == backend::tile_configuration{});
    backend::tile_configuration foreign{{1}};
    foreign.words[2] = 64, foreign.words[6] = 3;
    load(foreign);
    EXPECT_EQ(one.loads_of_call(), emulated_ ? loads + 1 : 0) << "and brings it back";
    EXPECT_TRUE(loaded_configuration() == foreign);
    load({});
  }
}

TEST_F(Amx, AScopeSharesAConfiguration) {
  caller one(bf16_tiles(64, 64, 64));
  caller alike(bf16_tiles(32, 64, 96));
  caller other(bf16_tiles(5, 20, 45));
  {
    const tile_scope scope(one.k);
    EXPECT_TRUE(scope.loaded());
    const auto own = loaded_configuration();
    const std::uint64_t once = emulated_ ? 2 : 0;  // its own and, after that, the scope's
    EXPECT_EQ(one.loads_of_call(), 0u);
    EXPECT_EQ(alike.loads_of_call(), 0u);
    EXPECT_EQ(other.loads_of_call(), once);
    EXPECT_EQ(one.loads_of_call(), 0u);
    {
      const tile_scope inner(other.k);
      EXPECT_EQ(other.loads_of_call(), 0u);
      EXPECT_EQ(one.loads_of_call(), once);
    }
    EXPECT_TRUE(loaded_configuration() == own);
    std::uint64_t of_thread = 99;
    std::thread([&] { of_thread = one.loads_of_call(); }).join();
    EXPECT_EQ(of_thread, emulated_ ? 1u : 0u) << "a scope is its thread's";
  }
  EXPECT_TRUE(loaded_configuration() == backend::tile_configuration{});
  EXPECT_EQ(one.loads_of_call(), emulated_ ? 1u : 0u);
}

TEST_F(Amx, AScopeOfAKernelWithNothingToShareDoesNothing) {
  desc at_call = bf16_tiles(20, 20, 20);
  at_call.m_extent = extent_kind::at_call;
  for (const desc& d : {at_call, bf16_tiles(70, 70, 20)}) {
    caller c(d);
    const tile_scope scope(c.k);
    EXPECT_FALSE(scope.loaded());
    c.loads_of_call();
    EXPECT_TRUE(loaded_configuration() == backend::tile_configuration{});
  }
  const auto vectors = make_kernel(bf16_tiles(5, 6, 7), {.backend = "avx512"});
  ASSERT_TRUE(vectors);
  EXPECT_FALSE(tile_scope(*vectors).loaded());
}

// The system keeps the tiles of who was interrupted, and a child has a copy.
TEST_F(Amx, SignalsAndForkInAScope) {
  static caller* one;
  caller c(bf16_tiles(32, 32, 64));
  one = &c;
  const tile_scope scope(c.k);
  const auto own = loaded_configuration();
  static bool right;
  right = false;
  const auto before = std::signal(SIGUSR1, [](int) {
    one->loads_of_call();
    right = true;
  });
  std::raise(SIGUSR1);
  std::signal(SIGUSR1, before);
  EXPECT_TRUE(right);
  EXPECT_TRUE(loaded_configuration() == own);
  const pid_t child = ::fork();
  if (child == 0) ::_exit(loaded_configuration() == own && c.loads_of_call() == 0 ? 0 : 1);
  int status = 1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST_F(Amx, ExplainsItself) {
  // As its cost model says: 32 products of 16 cycles an entry, 32 KiB of tiles; or nothing but a configuration.
  const struct {
    desc d;
    const char* words;
  } binding[] = {{bf16_tiles(64, 64, 64), "in L1 the products bind, in L2 loads bind"},
                 {bf16_tiles(1, 16, 4), "in L1 the configuration binds"}};
  for (const auto& b : binding) {
    const auto k = make_kernel(b.d, {.backend = "amx"});
    ASSERT_TRUE(k) << k.error().message();
    const auto dumped = dump(*k);
    ASSERT_TRUE(dumped);
    EXPECT_NE(dumped->text().find(b.words), std::string_view::npos) << dumped->text();
  }
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
