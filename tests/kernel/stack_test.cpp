// The stack that make_kernel and a call need, as docs/architecture.md says: measured on a thread whose stack is
// painted.
#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "brgemm/kernel/dump.hpp"
#include "brgemm/kernel/kernel.hpp"
#include "support/features.hpp"
#include "support/own_stack.hpp"

namespace {

using namespace brgemm;

constexpr std::size_t kib = 1024;
constexpr std::size_t stack_bytes = 512 * kib;
constexpr std::size_t promised = 128 * kib;
constexpr unsigned char paint = 0xa5;

struct work {
  std::string_view backend;
  desc description;
  bool right = false;
};

void* make_and_call(void* argument) {
  static float a[64 * 64], b[64 * 64], c[64 * 64], bias[64];
  auto& w = *static_cast<work*>(argument);
  const auto k = make_kernel(w.description, {.backend = w.backend});
  if (!k) return nullptr;
  arguments x{.a = a, .b = b, .c = c, .batch = 1};
  x.operand[0] = bias;
  w.right = k->call(x).has_value();
  return nullptr;
}

/// Bytes of its stack that a thread touched, what the system keeps there for it included.
std::size_t stack_of(work& w) {
  void* stack = ::mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  if (stack == MAP_FAILED) return 0;
  std::memset(stack, paint, stack_bytes);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstack(&attributes, stack, stack_bytes);
  pthread_t thread;
  const bool started = pthread_create(&thread, &attributes, make_and_call, &w) == 0;
  if (started) pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
  const auto* const bytes = static_cast<const unsigned char*>(stack);
  const auto* const touched = std::find_if(bytes, bytes + stack_bytes, [](unsigned char x) { return x != paint; });
  const auto used = static_cast<std::size_t>(bytes + stack_bytes - touched);
  ::munmap(stack, stack_bytes);
  return used;
}

desc small(brgemm::index m, brgemm::index n, brgemm::index k) {
  desc d;
  d.m = m, d.n = n, d.k = k;
  d.lda = k, d.ldb = d.ldc = n;
  return d;
}

TEST(Stack, MakeKernelNeedsNoMoreThanPromised) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__) || !defined(__OPTIMIZE__)
  GTEST_SKIP() << "the promise is of optimised code";
#endif
  desc chain = small(7, 19, 5);
  for (const epilogue_op& step : {op::bias(), op::gelu_erf(), op::tanh(), op::silu()}) append(chain, step);
  desc strided = small(14, 33, 20);
  strided.lda = strided.ldb = strided.ldc = at_call;
  for (const backend::entry& e : backend::built_in()) {
    if (!e.runs_here() || e.name == "amx") continue;  // these are of f32
    std::size_t most = 0;
    for (const desc& d : {small(64, 64, 64), small(5, 7, 9), chain, strided}) {
      work w{e.name, d};
      most = std::max(most, stack_of(w));
      EXPECT_TRUE(w.right || d == strided) << e.name;  // which needs more arguments: only made
    }
    std::printf("%s: %zu bytes\n", std::string(e.name).c_str(), most);
    EXPECT_GT(most, kib);
    EXPECT_LE(most, promised);
  }
}

// ---- the kernels' own ----

/// Kernels that use much of their frame: calls of functions behind the kernel, row sums, steps of order::tile, sizes at
/// the call, groups of entries, scratch for MXCSR.
std::vector<desc> deep_kernels() {
  desc at_the_call = small(61, 45, 30);
  at_the_call.lda = at_the_call.ldb = at_the_call.ldc = at_call;
  at_the_call.m_extent = extent_kind::at_call;
  desc activated = at_the_call;
  for (const epilogue_op& step : {op::bias(), op::gelu_erf(), op::tanh(), op::silu()}) append(activated, step);
  desc bytes = at_the_call;
  bytes.a = type::u8, bytes.b = type::s8;
  bytes.zero_a = bytes.zero_b = zero_point::at_call;
  desc activated_bytes = bytes;
  append(activated_bytes, op::bias());
  append(activated_bytes, op::gelu_erf());
  desc tile = small(61, 45, 70);
  tile.a = tile.b = type::bf16;
  tile.sums = order::tile;
  desc pair = tile;
  pair.sums = order::pair;
  desc turned = small(61, 45, 30);
  turned.layout_b = layout::transposed;
  turned.ldb = 30;
  desc grouped = small(120, 150, 130);
  append(grouped, op::gelu_tanh());
  desc offsets = activated_bytes;
  offsets.batch = batch_kind::offsets;
  desc interleaved = tile;  // what AMX reads
  interleaved.layout_b = layout::interleaved;
  desc odd_bytes = bytes;
  odd_bytes.layout_b = layout::interleaved;
  odd_bytes.k = 67;
  desc activated_tiles = interleaved;
  activated_tiles.k = 69, activated_tiles.beta = beta_kind::at_call;
  append(activated_tiles, op::gelu_erf());
  return {small(64, 64, 64), at_the_call, activated,   bytes,     activated_bytes, tile, pair, turned,
          grouped,           offsets,     interleaved, odd_bytes, activated_tiles};
}

/// Bytes of stack of a call with two entries.
std::size_t stack_of_call(const kernel& k) {
  static double a[64 * 1024], b[64 * 1024], c[64 * 1024];
  static float bias[256];
  static std::int32_t sums[256];
  static const offset_pair pairs[2] = {};
  const desc& d = k.description();
  arguments x{.a = a, .b = b, .c = c, .pairs = pairs, .batch = 2, .m = d.m, .lda = 100, .ldb = 100, .ldc = 100};
  x.zero_a = 1, x.zero_b = 2, x.column_sums = sums;
  x.operand[0] = bias;
  const auto right = k.call(x);
  EXPECT_TRUE(right) << right.error().message();
  const auto& record = kernel_access::record_of(k);
  return brgemm_test::stack_used(x, record.context, record.entry);
}

/// Emulated instructions take the stack of a signal handler.
void emulate_on_another_stack() {
  if (!brgemm_test::show_tiles()) return;
  static std::byte room[64 * kib];
  const stack_t other{.ss_sp = room, .ss_flags = 0, .ss_size = sizeof room};
  ASSERT_EQ(::sigaltstack(&other, nullptr), 0);
}

TEST(Stack, KernelsUseNoMoreThanTheySay) {
  emulate_on_another_stack();
  for (const char* hidden : {"", "-bf16,-vnni", "-avx512,-vnni,-f16c"}) {
    brgemm_test::hide_features(hidden);
    for (const backend::entry& e : backend::built_in()) {
      if (!e.runs_here() || e.name == "reference") continue;
      std::size_t most = 0;
      for (const desc& d : deep_kernels()) {
        if (e.name == "amx" && !e.supports(d)) continue;
        const auto k = make_kernel(d, {.backend = e.name});
        ASSERT_TRUE(k) << k.error().message();
        const auto dumped = dump(*k);
        ASSERT_TRUE(dumped);
        const std::string text(dumped->text());
        std::size_t said = 0;
        ASSERT_NE(text.find("At most "), std::string::npos) << text;
        ASSERT_EQ(1, std::sscanf(text.c_str() + text.rfind("At most "), "At most %zu bytes of stack", &said)) << text;
        const std::size_t used = stack_of_call(*k);
        EXPECT_LE(used, said) << e.name << " [" << hidden << "] " << k->name().c_str();
        most = std::max(most, used);
      }
      std::printf("%s [%s]: a call writes to %zu bytes of stack\n", std::string(e.name).c_str(), hidden, most);
      EXPECT_GT(most, 100u) << "more than return addresses and saved registers: these kernels use their frames";
    }
  }
  brgemm_test::hide_features("");
}

}  // namespace
