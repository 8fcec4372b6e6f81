// Every executor runs each point of a box once, sees the caller's MXCSR, and says what is wrong with a thread count.
#include <gtest/gtest.h>

#include <atomic>
#include <brgemm/loops/parallel_for.hpp>
#include <cfenv>
#include <thread>
#include <vector>

namespace {

using brgemm::index;
namespace loops = brgemm::loops;

/// A caller's own executor: one range a task, in descending order, alternating between two threads of its own.
struct backwards {
  int threads() const { return 2; }
  void run(index count, loops::range_task task, void* context) const {
    for (index i = count; i-- > 0;) std::thread([=] { task(context, i, i + 1); }).join();
  }
};
static_assert(loops::executor<backwards> && loops::executor<const loops::serial> &&
              loops::executor<loops::thread_pool>);
static_assert(!loops::executor<int>);

/// Calls `check` with every executor.
template <class F>
void with_every_executor(F&& check) {
  {
    SCOPED_TRACE("serial");
    const loops::serial e;
    check(e);
  }
  for (const int threads : {1, 2, 3, 4, 7}) {
    SCOPED_TRACE(threads);
    auto pool = loops::thread_pool::make(threads);
    ASSERT_TRUE(pool) << pool.error().message();
    EXPECT_EQ(pool->threads(), threads);
    check(*pool);
#if defined(_OPENMP)
    auto openmp = loops::openmp::make(threads);
    ASSERT_TRUE(openmp);
    check(*openmp);
#endif
  }
  {
    SCOPED_TRACE("own");
    backwards e;
    check(e);
  }
}

TEST(ParallelFor, VisitsEachPointOnce) {
  with_every_executor([](loops::executor_ref e) {
    for (const index extent : {0, 1, 2, 5}) {
      std::vector<std::atomic<int>> seen(static_cast<std::size_t>(extent * 3 * 2 + 1));
      loops::parallel_for(e, {extent, 3, 2}, [&](index i, index j, index k) {
        EXPECT_TRUE(i >= 0 && i < extent && j >= 0 && j < 3 && k >= 0 && k < 2);
        ++seen[static_cast<std::size_t>((i * 3 + j) * 2 + k)];
      });
      for (index p = 0; p < extent * 6; ++p) EXPECT_EQ(seen[static_cast<std::size_t>(p)].load(), 1) << p;
    }
  });
}

/// One range for each thread, also where there is nothing to do.
struct hands_out_empty_ranges {
  int threads() const noexcept { return 3; }
  void run(index count, loops::range_task task, void* context) const noexcept {
    for (index part = 0; part < 3; ++part) {
      task(context, loops::part_begin(count, 3, part), loops::part_begin(count, 3, part + 1));
    }
  }
};

TEST(ParallelFor, RangesMayBeEmpty) {
  hands_out_empty_ranges e;
  for (const index extent : {0, 1, 2, 7}) {
    int seen = 0;
    loops::parallel_for(e, {extent, 1}, [&](index, index) { ++seen; });
    EXPECT_EQ(seen, extent);
  }
}

TEST(ParallelFor, NeighbouringPointsRunInOrder) {
  const loops::serial e;
  std::vector<index> order;
  loops::parallel_for(e, {2, 2}, [&](index i, index j) { order.push_back(10 * i + j); });
  EXPECT_EQ(order, (std::vector<index>{0, 1, 10, 11}));
}

TEST(ParallelFor, CarriesRoundingMode) {
  with_every_executor([](loops::executor_ref e) {
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040u | 0x2000u);  // flush subnormals, round down
    const unsigned wanted = _mm_getcsr();
    std::atomic<int> wrong = 0;
    loops::parallel_for(e, {16}, [&](index) { wrong += _mm_getcsr() != wanted; });
    _mm_setcsr(before);
    EXPECT_EQ(wrong.load(), 0);
    loops::parallel_for(e, {16}, [&](index) { wrong += _mm_getcsr() != before; });
    EXPECT_EQ(wrong.load(), 0);
  });
}

/// An executor that compares its thread's MXCSR before and after a task.
struct watching {
  mutable bool restored = false;
  int threads() const { return 1; }
  void run(index count, loops::range_task task, void* context) const {
    std::thread([=, this] {
      const unsigned own = _mm_getcsr();
      task(context, 0, count);
      restored = _mm_getcsr() == own;
    }).join();
  }
};

TEST(ParallelFor, GivesTheThreadItsRoundingModeBack) {
  const watching e;
  const unsigned before = _mm_getcsr();
  std::thread([&] {
    _mm_setcsr(before | 0x6000u);  // a thread inherits the mode of the one that makes it, so it is set in between
    struct other {
      const watching& w;
      int threads() const { return 1; }
      void run(index count, loops::range_task task, void* context) const {
        const unsigned mode = _mm_getcsr();
        _mm_setcsr(mode & ~0x6000u);
        w.run(count, task, context);
        _mm_setcsr(mode);
      }
    } const between{e};
    loops::parallel_for(between, {1}, [](index) {});
  }).join();
  EXPECT_TRUE(e.restored);
}

TEST(ParallelFor, SeesWhatTheCallerWroteThousandsOfTimes) {
  auto pool = loops::thread_pool::make(3);
  ASSERT_TRUE(pool);
  std::vector<int> values(64, 0);
  for (int round = 1; round <= 5000; ++round) {
    loops::parallel_for(*pool, {64}, [&](index i) { ++values[static_cast<std::size_t>(i)]; });
    for (const int v : values) ASSERT_EQ(v, round);
  }
}

TEST(ParallelFor, NestedAndConcurrentRunsFinish) {
  auto pool = loops::thread_pool::make(2);
  ASSERT_TRUE(pool);
  std::atomic<int> sum = 0;
  const auto use = [&] {
    for (int round = 0; round < 100; ++round) {
      loops::parallel_for(*pool, {4}, [&](index) { loops::parallel_for(*pool, {4}, [&](index) { ++sum; }); });
    }
  };
  std::thread other(use);
  use();
  other.join();
  EXPECT_EQ(sum.load(), 2 * 100 * 16);
}

TEST(ParallelFor, PartsCoverTheRange) {
  for (index count = 0; count < 40; ++count) {
    for (index parts = 1; parts < 9; ++parts) {
      EXPECT_EQ(loops::part_begin(count, parts, 0), 0);
      EXPECT_EQ(loops::part_begin(count, parts, parts), count);
      for (index p = 0; p < parts; ++p) {
        const index size = loops::part_begin(count, parts, p + 1) - loops::part_begin(count, parts, p);
        EXPECT_TRUE(size == count / parts || size == count / parts + 1);
      }
    }
  }
}

TEST(ThreadPool, RefusesImpossibleCounts) {
  for (const int threads : {0, -3, 100000}) {
    const auto pool = loops::thread_pool::make(threads);
    ASSERT_FALSE(pool);
    EXPECT_EQ(pool.error().field(), "threads");
    EXPECT_NE(pool.error().message().find(std::to_string(threads)), std::string_view::npos);
  }
}

}  // namespace
