// Loops over an index box, spread over threads by an executor: serial, a pool of threads, OpenMP or the caller's own.
#pragma once

#include <emmintrin.h>
#include <pthread.h>
#include <sched.h>

#include <array>
#include <atomic>
#include <chrono>
#include <concepts>
#include <memory>
#include <tuple>
#include <type_traits>
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "../core/result.hpp"
#include "../core/types.hpp"

namespace brgemm::inline abi_0::loops {

/// Work on the tasks begin, begin + 1, ..., end - 1.
using range_task = void (*)(void* context, index begin, index end);

/// Runs tasks. `run(count, task, context)` calls task(context, begin, end) for ranges that together hold each of
/// 0..count-1 once, on any threads, and returns when all of them are done; it must make what the caller wrote before
/// visible to the tasks, and what they wrote visible to the caller. `threads()` is how many ranges run at once. `run`
/// must not throw: the library calls it from noexcept functions, where an exception ends the program (std::terminate).
/// Results of this library never depend on how an executor cuts the ranges.
template <class E>
concept executor = requires(E& e, index count, range_task task, void* context) {
  { e.threads() } -> std::convertible_to<int>;
  e.run(count, task, context);
};

/// Runs every task in the calling thread, in ascending order.
struct serial {
  int threads() const noexcept { return 1; }
  void run(index count, range_task task, void* context) const noexcept {
    if (count > 0) task(context, 0, count);
  }
};

/// Where part `part` of `parts` equal ranges of 0..count-1 begins (their sizes differ by at most 1).
constexpr index part_begin(index count, index parts, index part) noexcept {
  return count / parts * part + (part < count % parts ? part : count % parts);
}

/// A pool of threads that wait for work. `make` creates threads - 1 of them (the caller of `run` is the last), the
/// destructor ends them. `run` allocates nothing. One `run` at a time uses the pool: a second one at the same time, or
/// one from within a task, runs its tasks in its own thread. Not for use in a child after fork: the threads stay
/// behind.
class thread_pool {
 public:
  /// Errors: invalid_argument "threads" unless 1 <= threads <= 1024; out_of_memory where threads cannot be created.
  static result<thread_pool> make(int threads) noexcept {
    if (threads < 1 || threads > max_threads) {
      return error(errc::invalid_argument, "threads", "a pool has 1 to %d threads, not %d", max_threads, threads);
    }
    thread_pool pool;
    pool.state_.reset(new (std::nothrow) state);
    if (!pool.state_) return error(errc::out_of_memory, "threads", "no memory for a pool of %d threads", threads);
    pool.state_->threads = threads;
    for (int t = 1; t < threads; ++t) {
      worker& w = pool.state_->workers[static_cast<std::size_t>(t)];
      w = {pool.state_.get(), t, {}};
      // pthread_create and not std::thread, whose constructor can only throw what is a typed error here.
      if (const int reason = pthread_create(&w.handle, nullptr, work, &w); reason != 0) {
        return error(errc::out_of_memory, "threads", "thread %d of %d could not be created (errno %d)", t, threads,
                     reason);
      }
      ++pool.state_->started;
    }
    return pool;
  }

  int threads() const noexcept { return state_->threads; }

  void run(index count, range_task task, void* context) const noexcept {
    if (count <= 0) return;
    state& s = *state_;
    if (s.threads == 1 || count == 1 || s.busy.exchange(true, std::memory_order_acquire)) {
      task(context, 0, count);
      return;
    }
    s.task = task;
    s.context = context;
    s.count = count;
    s.unfinished.store(s.threads - 1, std::memory_order_relaxed);
    s.generation.fetch_add(1, std::memory_order_release);
    s.generation.notify_all();
    s.run_part(0);
    wait_while(s.unfinished, [](int left) { return left != 0; });
    s.busy.store(false, std::memory_order_release);
  }

 private:
  static constexpr int max_threads = 1024;
  struct state;
  struct worker {
    state* pool = nullptr;
    int number = 0;
    pthread_t handle = {};
  };
  struct state {
    int threads = 1;
    int started = 0;
    std::atomic<bool> busy = false;
    std::atomic<bool> stop = false;
    range_task task = nullptr;
    void* context = nullptr;
    index count = 0;
    alignas(64) std::atomic<int> generation = 0;
    alignas(64) std::atomic<int> unfinished = 0;
    std::array<worker, max_threads> workers = {};

    void run_part(int part) noexcept {
      const index begin = part_begin(count, threads, part);
      const index end = part_begin(count, threads, part + 1);
      if (begin < end) task(context, begin, end);
    }

    ~state() {
      stop.store(true, std::memory_order_relaxed);
      generation.fetch_add(1, std::memory_order_release);
      generation.notify_all();
      for (int t = 1; t <= started; ++t) pthread_join(workers[static_cast<std::size_t>(t)].handle, nullptr);
    }
  };

  /// Looks for a while (a step of a network calls again within microseconds), then sleeps. It looks between pauses at
  /// first, then between yields, which give the core to other work that is there: the thread it waits for, perhaps. Of
  /// two threads on one core that both want to run the system moves one; where they sleep in turn it sees no need to.
  template <class Condition>
  static int wait_while(std::atomic<int>& value, Condition goes_on) noexcept {
    for (int i = 0; i < 100; ++i) {  // some 40 cycles each
      if (const int v = value.load(std::memory_order_acquire); !goes_on(v)) return v;
      _mm_pause();
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(300);
    do {
      if (const int v = value.load(std::memory_order_acquire); !goes_on(v)) return v;
      sched_yield();
    } while (std::chrono::steady_clock::now() < end);
    for (;;) {
      const int v = value.load(std::memory_order_acquire);
      if (!goes_on(v)) return v;
      value.wait(v, std::memory_order_acquire);
    }
  }

  static void* work(void* argument) noexcept {
    const worker& w = *static_cast<worker*>(argument);
    state& s = *w.pool;
    for (int seen = 0;;) {
      seen = wait_while(s.generation, [seen](int now) { return now == seen; });
      if (s.stop.load(std::memory_order_relaxed)) return nullptr;
      s.run_part(w.number);
      if (s.unfinished.fetch_sub(1, std::memory_order_acq_rel) == 1) s.unfinished.notify_one();
    }
  }

  thread_pool() = default;
  std::unique_ptr<state> state_;
};

#if defined(_OPENMP)
/// The threads of OpenMP; only in files that are compiled with it. Make one with the number of threads to use.
class openmp {
 public:
  /// Errors: invalid_argument "threads" unless threads >= 1.
  static result<openmp> make(int threads) noexcept {
    if (threads < 1) return error(errc::invalid_argument, "threads", "OpenMP needs 1 thread or more, not %d", threads);
    return openmp(threads);
  }
  int threads() const noexcept { return threads_; }
  void run(index count, range_task task, void* context) const noexcept {
    const int parts = static_cast<int>(count < threads_ ? count : threads_);
    if (parts <= 1) return serial{}.run(count, task, context);
#pragma omp parallel for num_threads(parts) schedule(static, 1)
    for (int part = 0; part < parts; ++part) {
      task(context, part_begin(count, parts, part), part_begin(count, parts, part + 1));
    }
  }

 private:
  explicit openmp(int threads) noexcept : threads_(threads) {}
  int threads_;
};
#endif

// OpenMP where the file is compiled with it, because its threads are then the ones that the rest of the program uses
// already, and two sets of threads on the same cores are slower than one. An alias, which may differ from file to file;
// no inline function of the library uses it.
#if defined(_OPENMP)
using default_executor = openmp;
#else
using default_executor = thread_pool;
#endif

/// An executor by reference, its type forgotten: what plans take at a call. The executor must outlive the call.
class executor_ref {
 public:
  template <executor E>
  requires(!std::same_as<std::remove_const_t<E>, executor_ref>) executor_ref(E& e)
  noexcept  // NOLINT: implicit
      : self_(const_cast<void*>(static_cast<const void*>(&e))),
        threads_(e.threads()),
        run_([](void* self, index count, range_task task, void* context) {
          static_cast<E*>(self)->run(count, task, context);
        }) {}
  int threads() const noexcept { return threads_; }
  void run(index count, range_task task, void* context) const { run_(self_, count, task, context); }

 private:
  void* self_;
  int threads_;
  void (*run_)(void*, index, range_task, void*);
};

/// Calls f(i, j, ...) once for every point of the box 0 <= i < extents[0], 0 <= j < extents[1], ..., spread over the
/// executor's threads: each range runs through neighbouring points, the last index fastest. Allocates nothing. The
/// caller's MXCSR (rounding, flushing of subnormals) holds in every task. f must not throw. With a State each range
/// makes one, and f(state, i, j, ...) is called with it.
template <class State = void, int Rank, class F>
void parallel_for(executor_ref threads, const index (&extents)[Rank], F&& f) {
  struct job {
    std::remove_reference_t<F>* f;
    const index* extents;
    unsigned mxcsr;
  };
  index count = 1;
  for (const index extent : extents) count *= extent > 0 ? extent : 0;
  job j{&f, extents, _mm_getcsr()};
  threads.run(
      count,
      [](void* context, index begin, index end) {
        if (begin >= end) return;  // an executor may hand out empty ranges
        const job& all = *static_cast<const job*>(context);
        const unsigned own = _mm_getcsr();
        if (own != all.mxcsr) _mm_setcsr(all.mxcsr);
        std::array<index, Rank> at{};
        index rest = begin;
        for (std::size_t d = Rank; d-- > 0; rest /= all.extents[d]) at[d] = rest % all.extents[d];
        const auto each = [&](auto&... state) {
          for (index i = begin; i < end; ++i) {
            std::apply([&](auto... point) { (*all.f)(state..., point...); }, at);
            for (std::size_t d = Rank; d-- > 0;) {
              if (++at[d] < all.extents[d]) break;
              at[d] = 0;
            }
          }
        };
        if constexpr (std::is_void_v<State>) {
          each();
        } else {
          State state;
          each(state);
        }
        if (own != all.mxcsr) _mm_setcsr(own);
      },
      &j);
}

}  // namespace brgemm::inline abi_0::loops
