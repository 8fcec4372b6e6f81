// The cache of kernels: once each, bounded, no lock for a repeated request, threads, failures, fork, late destruction.
#include "brgemm/kernel/code_cache.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "fake_backend.hpp"
#include "support/failing_system.hpp"

// A child that starts threads: ThreadSanitizer ends it. In it AddressSanitizer's allocator waits for ever for a lock
// that a thread of the parent held (before LLVM 18, github.com/llvm/llvm-project/pull/75290).
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr bool sanitizer_breaks_fork = true;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
constexpr bool sanitizer_breaks_fork = true;
#else
constexpr bool sanitizer_breaks_fork = false;
#endif
#else
constexpr bool sanitizer_breaks_fork = false;
#endif

namespace {

using namespace brgemm;
using brgemm_test::failing_call;
using fake::problem;
using fake::run;

constexpr options use_fake{.backend = "fake"};
constexpr std::size_t per_kernel = 4096;  // where a record waits to be used again

result<kernel> make(brgemm::index m) { return make_kernel(problem(m), use_fake); }

/// A kernel that lives until after main: the cache must still be there.
struct late_user {
  kernel held;
  ~late_user() {
    if (!held) return;
    const auto made = make(4242);
    if (run(held) != 77 || !made || run(*made) != 4242) _exit(99);
    held = {};
    clear_code_cache();
    if (code_cache_stats().kernels != 1) _exit(98);  // `made`
  }
};
late_user late;

/// Gives back the buffers that wait to be generated in.
void drop_scratch() {
  for (void*& slot : detail::cache.scratch) {
    if (slot != nullptr) --detail::cache.scratch_buffers;
    std::free(std::exchange(slot, nullptr));
  }
}

/// As many threads would that generate at once.
void fill_scratch(int threads) {
  void* seen = nullptr;
  detail::scratch_buffer buffer(seen);
  {
    std::lock_guard guard(detail::cache.lock);
    ASSERT_TRUE(buffer.take_locked());
  }
  if (threads > 1) fill_scratch(threads - 1);
}

class CodeCache : public testing::Test {
 protected:
  void SetUp() override {
    fake::register_all();
    late.held = {};
    clear_code_cache();
    set_code_cache_limit(std::size_t{64} << 20);
    drop_scratch();
    {
      std::vector<kernel> held;  // so that records wait to be used again
      for (brgemm::index m = 1; m <= 64; ++m) held.push_back(*make(m));
    }
    clear_code_cache();
    before_ = code_cache_stats();
    ASSERT_EQ(before_.kernels, 0u);
    ASSERT_EQ(before_.bytes, sizeof(detail::code_cache) + detail::cache.records * detail::record_bytes + scratch_bytes);
    fake::made = 0;
    fake::most_inside = 0;
  }
  void TearDown() override {
    backend::current_system_calls = backend::real_system_calls;
    fake::in_make = nullptr;
    fake::fails = false;
    hide_cpu_features("");
    clear_code_cache();
    const auto after = code_cache_stats();
    EXPECT_EQ(after.kernels, 0u);  // nothing holds a pin that was not given back
    EXPECT_EQ(after.bytes, sizeof(detail::code_cache) + detail::cache.records * detail::record_bytes +
                               detail::cache.scratch_buffers * scratch_bytes);
    set_code_cache_limit(std::size_t{64} << 20);
  }
  /// Room for so many kernels besides what is there already.
  std::size_t limit_of(std::size_t kernels) const { return before_.bytes + kernels * per_kernel; }
  static constexpr std::size_t scratch_bytes = backend::max_code_bytes;
  code_cache_statistics before_;
};

template <class F>
void in_threads(int count, F f) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back([&f, i] { f(i); });
  for (auto& t : threads) t.join();
}

TEST_F(CodeCache, GivesTheSameKernelAgain) {
  const auto first = make(5);
  const auto second = make(5);
  const auto other = make(6);
  ASSERT_TRUE(first && second && other);
  EXPECT_EQ(&first->description(), &second->description());
  EXPECT_NE(&first->description(), &other->description());
  EXPECT_EQ(run(*first), 5);
  EXPECT_EQ(run(*other), 6);
  EXPECT_EQ(fake::made, 2);
  const auto s = code_cache_stats();
  EXPECT_EQ(s.kernels, 2u);
  EXPECT_EQ(s.bytes, limit_of(2));
  EXPECT_EQ(s.hits - before_.hits, 1u);
  EXPECT_EQ(s.misses - before_.misses, 2u);
}

TEST_F(CodeCache, EveryFieldOfTheDescCounts) {
  desc base = problem(3);
  const auto first = make_kernel(base, use_fake);
  ASSERT_TRUE(first);
  const auto finds = [&base] {
    const detail::cache_key key(base, static_cast<std::uint32_t>(detail::number_of("fake")));
    detail::record* found = detail::find_pinned(key, detail::bucket_hash(key));
    if (found != nullptr) detail::unpin(found);
    return found != nullptr;
  };
  EXPECT_TRUE(finds());
  const std::uint64_t hash = detail::bucket_hash({base, 0});
  auto* bytes = reinterpret_cast<unsigned char*>(&base);
  for (std::size_t i = 0; i < sizeof(desc); ++i) {  // no such desc need be valid: only the lookup is asked
    bytes[i] ^= 1;
    EXPECT_FALSE(finds()) << "byte " << i;
    EXPECT_TRUE(i >= offsetof(desc, epilogue) || detail::bucket_hash({base, 0}) != hash) << "byte " << i;
    bytes[i] ^= 1;
  }
}

/// Descs that differ in any one field, and dense shapes, spread over the buckets about as chance would have it.
TEST_F(CodeCache, BucketsAreUsedEvenly) {
  std::vector<desc> one_field[6];
  std::vector<desc> shapes;
  for (brgemm::index i = 1; i <= 1000; ++i) {
    for (auto& list : one_field) list.push_back(problem(64));
    one_field[0].back().m = i;
    one_field[1].back().n = i;
    one_field[2].back().k = 64 * i;
    one_field[3].back().ldc = i;
    one_field[4].back().stride_a = 4096 * i;
    append(append(one_field[5].back(), op::relu()), op::add(i));
    desc d;
    d.m = 1 + i % 10, d.n = d.ldb = d.ldc = 16 * (1 + i / 10 % 10), d.k = d.lda = 8 * (1 + i / 100);
    d.stride_a = d.m * d.k, d.stride_b = d.k * d.n;
    shapes.push_back(d);
  }
  const auto longest = [](const std::vector<desc>& list) {
    std::vector<int> length(detail::bucket_count);
    for (const desc& d : list) ++length[detail::bucket_hash({d, 0}) >> detail::bucket_shift];
    return *std::max_element(length.begin(), length.end());
  };
  for (const auto& list : one_field) EXPECT_LE(longest(list), 8) << "field " << &list - one_field;
  EXPECT_LE(longest(shapes), 8);
}

TEST_F(CodeCache, HiddenFeaturesMakeAnotherKernel) {
  const auto all = make(5);
  hide_cpu_features("-avx2");
  const auto fewer = make(5);
  hide_cpu_features("");
  const auto again = make(5);
  ASSERT_TRUE(all && fewer && again);
  EXPECT_NE(&all->description(), &fewer->description());
  EXPECT_EQ(&all->description(), &again->description());
}

TEST_F(CodeCache, RestrictionsMakeAnotherKernel) {
  restrict_backend("fake");
  const auto all = make_kernel(problem(5));
  hide_cpu_features("-avx2");
  const auto fewer = make_kernel(problem(5));
  hide_cpu_features("");
  restrict_backend("fake_function");
  const auto function = make_kernel(problem(5));
  restrict_backend("");
  ASSERT_TRUE(all && fewer && function);
  EXPECT_NE(&all->description(), &fewer->description());
  EXPECT_EQ(function->backend(), "fake_function");
}

TEST_F(CodeCache, ManyThreadsGenerateTheSameOnce) {
  fake::in_make = [] { std::this_thread::sleep_for(std::chrono::milliseconds(20)); };
  in_threads(8, [](int) {
    const auto k = make(9);
    ASSERT_TRUE(k);
    EXPECT_EQ(run(*k), 9);
  });
  EXPECT_EQ(fake::made, 1);
}

TEST_F(CodeCache, DifferentDescsAreGeneratedInParallel) {
  static std::atomic<int> arrived;
  arrived = 0;
  fake::in_make = [] {  // goes on when both are here, or after long
    ++arrived;
    for (int i = 0; i < 5000 && arrived < 2; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  };
  in_threads(2, [](int i) { ASSERT_TRUE(make(20 + i)); });
  EXPECT_EQ(fake::most_inside, 2);
}

TEST_F(CodeCache, AFailureIsToldToAllAndForgotten) {
  fake::fails = true;
  fake::in_make = [] { std::this_thread::sleep_for(std::chrono::milliseconds(5)); };
  in_threads(4, [](int) {
    const auto k = make(9);
    ASSERT_FALSE(k);
    EXPECT_EQ(k.error().code(), errc::out_of_memory);
  });
  fake::fails = false;
  EXPECT_EQ(code_cache_stats().bytes, before_.bytes + (detail::cache.scratch_buffers - 1) * scratch_bytes);
  EXPECT_TRUE(make(9));
}

TEST_F(CodeCache, ARepeatedRequestTakesNoLock) {
  ASSERT_TRUE(make(1) && make(2));
  std::lock_guard guard(detail::cache.lock);  // who wants it waits for ever
  in_threads(2, [](int) {
    for (int i = 0; i < 100; ++i) {
      const auto k = make(1 + i % 2);
      ASSERT_TRUE(k);
      kernel copy = *k;
      EXPECT_EQ(run(copy), 1 + i % 2);
    }
  });
}

TEST_F(CodeCache, StaysWithinItsBound) {
  set_code_cache_limit(limit_of(10) + 100);
  for (brgemm::index m = 1; m <= 200; ++m) {
    const auto k = make(m);
    ASSERT_TRUE(k);
    EXPECT_EQ(run(*k), m);
    EXPECT_LE(code_cache_stats().bytes, limit_of(10) + 100);
  }
  const auto s = code_cache_stats();
  EXPECT_EQ(s.kernels, 10u);
  EXPECT_EQ(s.evictions - before_.evictions, 190u);
  set_code_cache_limit(limit_of(3));
  EXPECT_EQ(code_cache_stats().kernels, 3u);
}

TEST_F(CodeCache, LeastRecentlyUsedLeavesFirst) {
  set_code_cache_limit(limit_of(3));
  ASSERT_TRUE(make(1) && make(2) && make(3));
  ASSERT_TRUE(make(1));  // now 2 is the oldest
  ASSERT_TRUE(make(4));
  fake::made = 0;
  ASSERT_TRUE(make(1) && make(3) && make(4));
  EXPECT_EQ(fake::made, 0);
  ASSERT_TRUE(make(2));
  EXPECT_EQ(fake::made, 1);
}

TEST_F(CodeCache, HeldKernelsStayAndAFullCacheSaysSo) {
  set_code_cache_limit(limit_of(2));
  auto one = make(1);
  auto two = make(2);
  ASSERT_TRUE(one && two);
  const auto three = make(3);
  ASSERT_FALSE(three);
  EXPECT_EQ(three.error().code(), errc::cache_full);
  EXPECT_NE(three.error().message().find(std::to_string(limit_of(2))), std::string_view::npos)
      << three.error().message();
  EXPECT_EQ(run(*one) + run(*two), 3);
  *one = {};
  EXPECT_TRUE(make(3));
  EXPECT_EQ(run(*two), 2);
  set_code_cache_limit(0);
  EXPECT_EQ(code_cache_stats().kernels, 1u);
  EXPECT_EQ(run(*two), 2);
}

std::size_t pending_records() {
  std::lock_guard guard(detail::cache.lock);
  std::size_t count = 0;
  for (const detail::record* r = detail::cache.pending.oldest; r != nullptr; r = r->newer) ++count;
  return count;
}

/// There is room for the buffer of one thread only.
TEST_F(CodeCache, ARequestWaitsForABufferThatAnotherGeneratesIn) {
  set_code_cache_limit(limit_of(2));
  fake::in_make = [] {  // goes on when the other request is there, and has had time to look for room
    for (int i = 0; i < 5000 && pending_records() < 2; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    fake::in_make = nullptr;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  };
  in_threads(2, [](int i) {
    const auto k = make(20 + i);
    ASSERT_TRUE(k) << k.error().message();
    EXPECT_EQ(run(*k), 20 + i);
  });
  EXPECT_EQ(fake::most_inside, 1);
  EXPECT_LE(code_cache_stats().bytes, limit_of(2));
}

/// There is room for two buffers and nothing else: one of two that have generated gives its buffer back for the other's
/// kernel, and generates again.
TEST_F(CodeCache, ARequestGivesItsBufferBackWhereTheKernelsHaveNoRoomBesideAll) {
  for (const char* name : {"fake", "fake_function"}) {
    static std::atomic<int> arrived;
    arrived = 0;
    fake::made = 0;
    const int contexts = fake::contexts;
    set_code_cache_limit(before_.bytes + scratch_bytes + 10);
    const auto hook = [] {
      ++arrived;
      for (int i = 0; i < 5000 && arrived < 2; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    };
    fake::in_make = hook;
    in_threads(2, [name](int i) {
      const auto k = make_kernel(problem(20 + i), {.backend = name});
      ASSERT_TRUE(k) << k.error().message();
      EXPECT_EQ(run(*k), 20 + i);
    });
    EXPECT_EQ(arrived, 3) << name;
    EXPECT_LE(code_cache_stats().bytes, before_.bytes + scratch_bytes + 10);
    clear_code_cache();
    EXPECT_EQ(fake::contexts, contexts);
  }
}

/// Many threads and little room: nothing is refused, as each holds one kernel at most.
TEST_F(CodeCache, NothingIsRefusedWhereNearlyNothingIsHeld) {
  for (const std::size_t limit : {limit_of(9), limit_of(40) + scratch_bytes}) {
    set_code_cache_limit(limit);
    in_threads(8, [limit](int thread) {
      for (brgemm::index i = 1; i <= 200; ++i) {
        const auto k = make(1000 * (thread + 1) + i);
        ASSERT_TRUE(k) << k.error().message();
        ASSERT_LE(code_cache_stats().bytes, limit);
      }
    });
  }
}

/// A backend that asks for a kernel while it makes one does not wait for itself.
TEST_F(CodeCache, ABackendThatAsksForAKernelIsRefusedWhereItsOwnBufferIsInTheWay) {
  set_code_cache_limit(limit_of(2));
  static errc code;
  code = errc::invalid_argument;
  fake::in_make = [] {
    fake::in_make = nullptr;
    const auto inner = make(31);
    if (!inner) code = inner.error().code();
  };
  EXPECT_TRUE(make(30));
  EXPECT_EQ(code, errc::cache_full);
}

/// Records stay: where the limit is lowered below what they take, no kernel fits though none is held.
TEST_F(CodeCache, ALimitBelowTheRecordsIsToldAsSuch) {
  {
    std::vector<kernel> held;
    for (brgemm::index m = 1; m <= 500; ++m) held.push_back(*make(m));
  }
  const std::size_t in_records = detail::cache.records * detail::record_bytes;
  ASSERT_GT(in_records, 500 * sizeof(detail::record));
  set_code_cache_limit(in_records);
  EXPECT_EQ(code_cache_stats().kernels, 0u);
  EXPECT_GT(code_cache_stats().bytes, in_records);
  const auto k = make(1);
  ASSERT_FALSE(k);
  EXPECT_EQ(k.error().code(), errc::cache_full);
  const auto text = std::string(k.error().message());
  EXPECT_NE(text.find(" 0 kernels that are held"), std::string::npos) << text;
  EXPECT_NE(text.find(std::to_string(in_records) + " by records"), std::string::npos) << text;
  EXPECT_NE(text.find("table"), std::string::npos) << text;  // not cut off
  set_code_cache_limit(std::size_t{64} << 20);
  EXPECT_TRUE(make(1));
}

/// As before the first kernel of the process.
TEST_F(CodeCache, WithoutHandlersOfForkNoKernelIsMade) {
  detail::cache.started = false;
  backend::current_system_calls.at_fork = [](void (*)(), void (*)(), void (*)()) noexcept { return ENOMEM; };
  const auto k = make(1);
  detail::cache.started = true;
  ASSERT_FALSE(k);
  EXPECT_EQ(k.error().code(), errc::out_of_memory);
  EXPECT_NE(k.error().message().find("pthread_atfork"), std::string_view::npos) << k.error().message();
  EXPECT_TRUE(make(1));
}

TEST_F(CodeCache, HandlesCountInAnyThread) {
  kernel held = *make(7);
  in_threads(40, [&held](int) {  // more than there are counters of threads' own
    kernel copy = held;
    kernel moved = std::move(copy);
    EXPECT_EQ(run(moved), 7);
    kernel again;
    again = moved;
  });
  std::thread([k = std::move(held)] { EXPECT_EQ(run(k), 7); }).join();
  EXPECT_FALSE(held);  // NOLINT: moved from on purpose
  clear_code_cache();
  EXPECT_EQ(code_cache_stats().kernels, 0u);
}

TEST_F(CodeCache, AHandleFromAnotherCopyOfTheLibraryCountsInTheSharedShard) {
  kernel held = *make(7);
  auto& r = const_cast<detail::record&>(kernel_access::record_of(held));
  const auto shared = [&r] {
    const detail::shard& s = r.shards[detail::shared_shard];
    return std::pair(s.acquired.load(), s.released.load());
  };
  const auto before = shared();
  { kernel copy = held; }
  EXPECT_EQ(shared(), before);
  r.owner = nullptr;  // as another copy sees it
  { kernel copy = held; }
  EXPECT_EQ(shared(), std::pair(before.first + 1, before.second + 1));
  r.owner = &detail::cache;
}

TEST_F(CodeCache, AContextIsReleasedWithItsKernel) {
  {
    const auto k = make_kernel(problem(3), {.backend = "fake_function"});
    ASSERT_TRUE(k);
    EXPECT_EQ(run(*k), 3);
    EXPECT_EQ(k->order(), order::foreign);
    EXPECT_EQ(fake::contexts, 1);
    EXPECT_EQ(code_cache_stats().bytes, before_.bytes + sizeof(desc));
    clear_code_cache();
    EXPECT_EQ(fake::contexts, 1);
  }
  clear_code_cache();
  EXPECT_EQ(fake::contexts, 0);
}

/// A thread that pins a kernel while its eviction is on the way, after the first look and before the second.
TEST_F(CodeCache, APinDuringEvictionStopsIt) {
  kernel held = *make(7);
  static detail::record* r;
  r = const_cast<detail::record*>(&kernel_access::record_of(held));
  held = {};
  backend::current_system_calls.barrier = [](int) noexcept {
    r->shards[detail::shared_shard].acquired.fetch_add(1);
    return 0;
  };
  clear_code_cache();
  backend::current_system_calls = backend::real_system_calls;
  EXPECT_EQ(code_cache_stats().kernels, 1u);
  const auto again = make(7);
  ASSERT_TRUE(again);
  EXPECT_EQ(&kernel_access::record_of(*again), r);
  EXPECT_EQ(run(*again), 7);
  r->shards[detail::shared_shard].released.fetch_add(1);
}

/// Without it a pin could go unseen.
TEST_F(CodeCache, NothingIsEvictedWhereTheBarrierIsForbiddenLater) {
  ASSERT_TRUE(make(7));
  if (!detail::cache.asymmetric) GTEST_SKIP() << "no membarrier here";
  backend::current_system_calls.barrier = [](int) noexcept { return -1; };
  clear_code_cache();
  EXPECT_EQ(code_cache_stats().kernels, 1u);
  EXPECT_EQ(run(*make(7)), 7);
}

/// Threads make, call, keep and drop 24 kernels, and others of `kernels`, while most of them do not fit.
void make_call_and_evict(std::size_t limit, unsigned kernels, bool clears) {
  set_code_cache_limit(limit);
  in_threads(4, [=](int thread) {
    std::vector<kernel> held(3);
    std::uint32_t random = 12345u + static_cast<std::uint32_t>(thread);
    for (int i = 0; i < 3000; ++i) {
      random = random * 1664525u + 1013904223u;
      const brgemm::index m = 1 + (random >> 16) % (i % 2 == 0 ? 24 : kernels);
      auto k = make(m);
      if (!k) {
        ASSERT_EQ(k.error().code(), errc::cache_full);
        continue;
      }
      ASSERT_EQ(run(*k), m);
      held[random % 3] = std::move(*k);
      for (const kernel& h : held) {
        if (h) {
          ASSERT_EQ(run(h), h.description().m);
        }
      }
      if (clears && i % 1000 == 0) clear_code_cache();
    }
  });
  EXPECT_LE(code_cache_stats().bytes, limit);
}

TEST_F(CodeCache, EvictionUnderUse) {
  fill_scratch(4);  // one a thread
  make_call_and_evict(code_cache_stats().bytes + 12 * per_kernel, 600, true);
  EXPECT_GT(code_cache_stats().evictions - before_.evictions, 100u);
}

TEST_F(CodeCache, EvictionUnderUseWithoutMembarrier) {
  ASSERT_TRUE(make(1));
  const bool asymmetric = detail::cache.asymmetric;
  detail::cache.asymmetric = false;  // as where the system lacks it
  backend::current_system_calls.barrier = [](int) noexcept { return -1; };
  fill_scratch(4);  // one a thread
  make_call_and_evict(code_cache_stats().bytes + 12 * per_kernel, 600, true);
  clear_code_cache();
  detail::cache.asymmetric = asymmetric;
}

TEST_F(CodeCache, NoMappingIsWritableAndExecutable) {
  std::atomic<bool> stop{false};
  std::thread watch([&stop] {
    char line[512];
    while (!stop) {
      std::FILE* maps = std::fopen("/proc/self/maps", "r");
      while (std::fgets(line, sizeof line, maps) != nullptr) {
        EXPECT_EQ(std::strstr(line, " rwx"), nullptr) << line;
      }
      std::fclose(maps);
    }
  });
  for (const char* way : {"/proc/self/mem", "mprotect", "memfd"}) {
    backend::set_code_memory(way);
    set_code_cache_limit(std::size_t{4} << 20);  // half for records, three buffers, so that kernels leave
    in_threads(3, [](int thread) {
      for (brgemm::index i = 1; i <= 300; ++i) ASSERT_TRUE(make(1000 * (thread + 1) + i));
    });
  }
  backend::set_code_memory("");
  stop = true;
  watch.join();
}

/// What the table of system calls has given and not got back.
std::map<void*, std::size_t> blocks;
std::size_t allocated = 0;
std::ptrdiff_t mapped = 0;

TEST_F(CodeCache, CountsEverythingThatItAllocates) {
  auto& os = backend::current_system_calls;
  drop_scratch();
  blocks.clear();
  allocated = 0;
  mapped = 0;
  os.allocate = [](std::size_t bytes) noexcept {
    void* p = std::malloc(bytes);
    allocated += blocks[p] = bytes;
    return p;
  };
  os.free = [](void* p) noexcept {
    allocated -= blocks.at(p);
    blocks.erase(p);
    std::free(p);
  };
  os.map = [](void* at, std::size_t bytes, int protection, int flags, int fd, off_t offset) noexcept {
    mapped += static_cast<std::ptrdiff_t>(bytes);
    return ::mmap(at, bytes, protection, flags, fd, offset);
  };
  os.unmap = [](void* at, std::size_t bytes) noexcept {
    mapped -= static_cast<std::ptrdiff_t>(bytes);
    return ::munmap(at, bytes);
  };
  static const auto& memory = backend::code_memory::state;
  const auto seen = [] {  // reserved addresses have no memory yet
    return mapped + static_cast<std::ptrdiff_t>(allocated + static_cast<std::size_t>(fake::contexts) * sizeof(desc)) -
           (memory.end - memory.next);
  };
  const auto counted = [] { return static_cast<std::ptrdiff_t>(code_cache_stats().bytes); };
  const std::ptrdiff_t base = counted() - seen();
  {
    std::vector<kernel> held;
    for (brgemm::index m = 1; m <= 300; ++m) {
      if (m == 200) backend::jit_registry::set_targets("gdb");  // which takes memory too
      held.push_back(m % 10 == 0 ? *make_kernel(problem(m), {.backend = "fake_function"}) : *make(m));
      ASSERT_EQ(counted() - seen(), base) << "kernel " << m;
    }
    fill_scratch(6);  // of which four stay
    EXPECT_EQ(counted() - seen(), base);
  }
  set_code_cache_limit(code_cache_stats().bytes - 500 * per_kernel);
  EXPECT_EQ(counted() - seen(), base);
  fake::fails = true;
  EXPECT_FALSE(make(900));
  fake::fails = false;
  EXPECT_EQ(counted() - seen(), base);
  clear_code_cache();
  backend::jit_registry::set_targets("");
  EXPECT_EQ(counted() - seen(), base);
  set_code_cache_limit(0);
  EXPECT_EQ(detail::cache.scratch_buffers, 0u);
  EXPECT_EQ(counted() - seen(), base);
  const auto full = make(1);
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code(), errc::cache_full);
}

/// Kernels without code fill the bound with records, which stay; kernels with code must fit nonetheless.
TEST_F(CodeCache, RecordsLeaveRoomForCode) {
  const std::size_t limit = std::size_t{2} << 20;
  set_code_cache_limit(limit);
  for (brgemm::index m = 1; m <= 3000; ++m) {
    ASSERT_TRUE(make_kernel(problem(m), {.backend = "fake_function"}));
    ASSERT_LE(code_cache_stats().bytes, limit);
  }
  std::vector<kernel> held;
  for (brgemm::index m = 1; m <= 100; ++m) {
    auto k = make(m);
    ASSERT_TRUE(k) << k.error().message();
    held.push_back(std::move(*k));
    ASSERT_LE(code_cache_stats().bytes, limit);
  }
}

/// Every allocation and every call to the system fails in turn, with all ways round it closed.
TEST_F(CodeCache, InjectedFailuresGiveTypedErrorsAndLeakNothing) {
  const brgemm_test::failing_system system;
  backend::set_code_memory("mprotect");  // its calls are always the same
  ASSERT_TRUE(make(900));
  std::size_t of_kind[2] = {};
  const std::size_t kernels = code_cache_stats().kernels;
  std::vector<kernel> held;  // so that every kernel takes a record of its own
  for (int n = 1; n <= 12; ++n) {
    drop_scratch();
    if (n % 2 != 0) fill_scratch(1);
    failing_call = (n + 1) / 2;
    auto k = make(1000 + n);
    failing_call = 0;
    if (k) {
      held.push_back(std::move(*k));
    } else {
      const bool memory = k.error().code() == errc::out_of_memory;
      EXPECT_TRUE(memory || k.error().code() == errc::code_memory) << k.error().message();
      ++of_kind[memory ? 0 : 1];
    }
    EXPECT_EQ(code_cache_stats().kernels, kernels + held.size());
    EXPECT_EQ(code_cache_stats().bytes, sizeof(detail::code_cache) + detail::cache.records * detail::record_bytes +
                                            detail::cache.scratch_buffers * scratch_bytes +
                                            (kernels + held.size()) * per_kernel);
  }
  backend::set_code_memory("");
  EXPECT_GE(of_kind[0], 1u);
  EXPECT_EQ(of_kind[1], 4u);  // mapping and protecting, each with a buffer at hand and without
}

void fork_while_other_threads_generate(std::size_t limit) {
  if (sanitizer_breaks_fork) GTEST_SKIP() << "a sanitizer that ends or stops a child of several threads";
  set_code_cache_limit(limit);
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&stop, t] {
      for (brgemm::index i = 1; !stop; ++i) {
        const brgemm::index m = 10000 * (t + 1) + i % 500;
        const auto k = make(m);
        ASSERT_TRUE(k);
        ASSERT_EQ(run(*k), m);
      }
    });
  }
  for (int round = 0; round < 30; ++round) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);
      for (brgemm::index m = 1; m <= 100; ++m) {
        const auto k = make(10000 + m);  // the ones that the other threads were at
        if (!k || run(*k) != 10000 + m) _exit(1);
      }
      std::thread([] {
        if (!make(5)) _exit(2);
      }).join();
      _exit(0);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
    EXPECT_EQ(WEXITSTATUS(status), 0);
    const auto k = make(round + 1);
    ASSERT_TRUE(k);
    EXPECT_EQ(run(*k), round + 1);
  }
  stop = true;
  for (auto& t : threads) t.join();
}

TEST_F(CodeCache, ForkWhileOtherThreadsGenerate) {
  fork_while_other_threads_generate(std::size_t{4} << 20);  // half for records, a quarter for four buffers
}

TEST_F(CodeCache, ForkWhileOtherThreadsWaitForABuffer) { fork_while_other_threads_generate(limit_of(20)); }

/// A program's handlers that were registered before those of the library, so that they run while its locks are held.
struct early_handlers {
  static inline bool active = false;
  static inline int refused = 0;
  static inline int found = 0;

  static void ask() {
    if (!active) return;
    const auto known = make(51);
    found += known && run(*known) == 51 ? 1 : 0;
    const auto k = make(52);
    refused += !k && k.error().code() == errc::unsupported && k.error().field() == "fork" ? 1 : 0;
  }
  early_handlers() { pthread_atfork(ask, ask, ask); }
} early;

TEST_F(CodeCache, AHandlerOfForkFindsKernelsAndCannotMakeThem) {
  const kernel held = *make(51);
  early_handlers::active = true;
  const pid_t child = fork();
  early_handlers::active = false;
  if (child == 0) _exit(early_handlers::refused == 2 && early_handlers::found == 2 && make(52) ? 0 : 1);
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(early_handlers::refused, 2);
  EXPECT_EQ(early_handlers::found, 2);
  EXPECT_TRUE(make(52));
}

/// Whether all buffers that are counted wait in slots, as they do where nobody generates.
bool all_buffers_wait() {
  std::size_t waiting = 0;
  for (const void* slot : detail::cache.scratch) waiting += slot != nullptr ? 1 : 0;
  return waiting == detail::cache.scratch_buffers;
}

int exit_status_of_fork(int (*in_child)()) {
  const pid_t child = fork();
  if (child == 0) _exit(in_child());
  int status = -1;
  if (waitpid(child, &status, 0) != child || !WIFEXITED(status)) return 1000;
  return WEXITSTATUS(status);
}

/// Forks while another thread takes a buffer for a kernel and gives it back, all the time.
TEST_F(CodeCache, AForksChildCountsTheBuffersThatItHas) {
  ASSERT_TRUE(make(1));
  const desc d = problem(2);
  const detail::cache_key key(d, 0);
  detail::cache.lock.lock();
  detail::record* const r = detail::take_record_locked(key, detail::bucket_hash(key));
  detail::cache.lock.unlock();
  std::atomic<bool> stop{false};
  std::thread other([&stop, r] {
    while (!stop) {
      detail::scratch_buffer buffer(r->buffer);
      std::lock_guard guard(detail::cache.lock);
      buffer.take_locked();
    }
  });
  int wrong = 0;
  for (int round = 0; round < 200; ++round) wrong += exit_status_of_fork([] { return all_buffers_wait() ? 0 : 1; });
  stop = true;
  other.join();
  detail::finish(r, false);
  EXPECT_EQ(wrong, 0);
}

/// A fork while a buffer for which there is no slot is being freed.
TEST_F(CodeCache, AForksChildDoesNotCountABufferThatIsBeingFreed) {
  static int status;
  status = -1;
  ASSERT_TRUE(make(1));
  backend::current_system_calls.free = [](void* p) noexcept {
    std::free(p);
    if (status < 0) status = exit_status_of_fork([] { return all_buffers_wait() ? 0 : 1; });
  };
  fill_scratch(detail::scratch_count + 1);
  EXPECT_EQ(status, 0);
}

/// More threads at a time than there are counters of threads' own.
TEST_F(CodeCache, HitsAreCountedInEveryThread) {
  constexpr int threads = 24;
  constexpr int requests = 20000;
  const kernel held = *make(3);
  const auto start = code_cache_stats();
  std::atomic<int> ready{0};
  in_threads(threads, [&ready](int) {
    for (++ready; ready < threads;) std::this_thread::yield();
    for (int i = 0; i < requests; ++i) ASSERT_TRUE(make(3));
  });
  EXPECT_EQ(code_cache_stats().hits - start.hits, std::uint64_t{threads} * requests);
}

/// In a cache that holds many, one barrier and few calls to the system serve several that leave. Late among the tests,
/// as its records stay.
TEST_F(CodeCache, ALargeCacheEvictsSeveralAtATime) {
  static int barriers = 0;
  static int unmapped = 0;
  set_code_cache_limit(std::size_t{16} << 20);
  std::vector<kernel> held;
  for (brgemm::index m = 1; m <= 8; ++m) held.push_back(*make(m));
  brgemm::index last = 8;
  while (code_cache_stats().evictions == before_.evictions) ASSERT_TRUE(make(++last));
  EXPECT_EQ(code_cache_stats().evictions - before_.evictions, 4u);
  backend::current_system_calls.barrier = [](int command) noexcept {
    return ++barriers, backend::real_system_calls.barrier(command);
  };
  backend::current_system_calls.unmap = [](void* at, std::size_t bytes) noexcept {
    return ++unmapped, ::munmap(at, bytes);
  };
  const auto start = code_cache_stats();
  for (int i = 0; i < 256; ++i) ASSERT_TRUE(make(++last));
  const auto evictions = code_cache_stats().evictions - start.evictions;
  EXPECT_GE(evictions, 256u - 4);
  EXPECT_LE(evictions, 256u + 4);
  EXPECT_LE(barriers, 72);  // 64 for those that leave, others before addresses are used again
  EXPECT_LE(unmapped, 96);
  for (brgemm::index m = 1; m <= 8; ++m) EXPECT_EQ(run(held[static_cast<std::size_t>(m - 1)]), m);
  EXPECT_LE(code_cache_stats().bytes, std::size_t{16} << 20);
}

/// The last test: what it leaves is destroyed after main, and the exit status tells.
TEST(CodeCacheLate, LivesAfterMain) {
  fake::register_all();
  late.held = *make(77);
}

/// The last one here: the records of its kernels stay.
TEST_F(CodeCache, EvictionOfSeveralAtATimeUnderUse) {
  make_call_and_evict(std::size_t{12} << 20, 8000, false);
  EXPECT_GT(code_cache_stats().evictions - before_.evictions, 100u);
}

}  // namespace
