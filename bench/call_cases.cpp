// What a kernel costs besides its work:
//   handle_call              the handle of a kernel that only returns, against a direct call of such code
//   lookup DESCS THREADS     make_kernel again, for so many descs in turn
//   generation FILE COUNT    make_kernel for the first time: the shapes of a file, by one thread and by two
#include <sys/mman.h>

#include <atomic>
#include <brgemm/kernel/kernel.hpp>
#include <memory>
#include <thread>

#include "cases.hpp"

namespace bench {
namespace {

// endbr64, ret: position-independent, as `make` of a backend has to write it.
constexpr std::uint8_t return_only[] = {0xf3, 0x0f, 0x1e, 0xfa, 0xc3};

bool runs_here() noexcept { return true; }
brgemm::result<void> supports(const brgemm::desc&) noexcept { return {}; }
brgemm::result<brgemm::backend::program> make(const brgemm::desc&, std::span<std::uint8_t> room) noexcept {
  std::copy(std::begin(return_only), std::end(return_only), room.begin());
  brgemm::backend::program made;
  made.code_bytes = sizeof return_only;
  return made;
}
std::size_t explain(const brgemm::desc&, char*, std::size_t) noexcept { return 0; }

constexpr brgemm::backend::entry returns{"bench_return", runs_here, supports, make, explain};

brgemm::desc square(std::int64_t size, std::int64_t ldc) {
  brgemm::desc d;
  d.m = d.n = d.k = size;
  d.lda = d.ldb = size;
  d.ldc = ldc;
  d.stride_a = d.stride_b = size * size;
  return d;
}

// The same code in a page of its own, called by its address.
brgemm::entry_point bare_code() {
  void* page = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return nullptr;
  std::copy(std::begin(return_only), std::end(return_only), static_cast<std::uint8_t*>(page));
  if (mprotect(page, 4096, PROT_READ | PROT_EXEC) != 0) return nullptr;
  return reinterpret_cast<brgemm::entry_point>(page);
}

void run_handle_call(benchmark::State& state, const settings& s) {
  for ([[maybe_unused]] auto _ : state) {
    static const bool registered = static_cast<bool>(brgemm::backend::register_backend(returns));
    const brgemm::entry_point volatile bare = bare_code();
    if (!registered || bare == nullptr) return state.SkipWithError("could not register a backend that only returns");
    const auto handle = brgemm::make_kernel(square(1, 1), {.backend = "bench_return"});
    if (!handle) return state.SkipWithError(handle.error().message().data());
    const auto smallest = brgemm::make_kernel(square(1, 1));
    if (!smallest) return state.SkipWithError(smallest.error().message().data());
    float c = 0;
    brgemm::arguments arguments;
    arguments.a = arguments.b = arguments.c = &c;
    arguments.batch = 0;
    const auto repeat = [&arguments](const auto& callee) {
      return [&callee, &arguments](std::int64_t times) {
        for (std::int64_t i = 0; i < times; ++i) callee(arguments);
      };
    };
    const std::vector<contestant> contestants = {
        {"bare call",
         [bare, &arguments](std::int64_t times) {
           for (std::int64_t i = 0; i < times; ++i) bare(&arguments, nullptr);
         }},
        {"ours", repeat(*handle)},
        {"smallest kernel", repeat(*smallest)},  // 1x1x1, batch 0: its entry, one store and its return besides the call
    };
    const auto seconds = interleave(contestants, s.kernels);
    report(state, contestants, seconds, 1, 0);
    std::vector<double> excess;
    for (std::size_t r = 0; r < seconds[0].size(); ++r) excess.push_back(seconds[1][r] - seconds[0][r]);
    state.counters["excess seconds"] = median(excess);
  }
}

// Runs f(thread) on each of `threads` threads; seconds from when all are awake until the last one is done.
template <class F>
double together(int threads, const F& f) {
  using clock = std::chrono::steady_clock;
  std::atomic<int> awake{0};
  std::vector<clock::time_point> begin(static_cast<std::size_t>(threads));
  std::vector<clock::time_point> end(begin.size());
  std::vector<std::jthread> workers;
  for (std::size_t t = 0; t < begin.size(); ++t) {
    workers.emplace_back([&, t] {
      ++awake;
      while (awake < threads) {  // a barrier would sleep, and waking takes as long as generating several kernels
      }
      begin[t] = clock::now();
      f(static_cast<int>(t));
      end[t] = clock::now();
    });
  }
  workers.clear();  // joins
  const auto first = *std::min_element(begin.begin(), begin.end());
  return std::chrono::duration<double>(*std::max_element(end.begin(), end.end()) - first).count();
}

void run_lookup(benchmark::State& state, std::int64_t count, int threads, const settings& s) {
  for ([[maybe_unused]] auto _ : state) {
    std::vector<brgemm::desc> descs;
    std::vector<brgemm::kernel> held;
    for (std::int64_t i = 0; i < count; ++i) {
      descs.push_back(square(8, 8 + i));
      auto made = brgemm::make_kernel(descs.back());
      if (!made) return state.SkipWithError(made.error().message().data());
      held.push_back(*made);
    }
    const auto look = [&descs](std::int64_t times) {
      std::size_t i = 0;
      for (std::int64_t t = 0; t < times; ++t) {
        const auto kernel = brgemm::make_kernel(descs[i]);
        benchmark::DoNotOptimize(&kernel);
        i = i + 1 == descs.size() ? 0 : i + 1;
      }
    };
    const contestant ours{"ours", [&](std::int64_t times) {
                            if (threads == 1) return look(times);
                            together(threads, [&](int) { look(times); });
                          }};
    effort e = s.kernels;
    if (threads > 1) e.sample_seconds = 20e-3;  // starting the threads is then nothing
    report(state, {ours}, interleave({ours}, e), 1, 0);
  }
}

std::vector<brgemm::desc> unseen(const std::string& file, std::int64_t count) {
  static std::int64_t variant = 0;  // each list differs from all before in its leading dimension
  ++variant;
  std::vector<brgemm::desc> descs;
  for (const problem& line : read_shapes(file)) {
    if (static_cast<std::int64_t>(descs.size()) == count) break;
    brgemm::desc d;
    d.m = line.number(0), d.n = line.number(1), d.k = line.number(2);
    d.lda = d.k, d.ldb = d.n, d.ldc = d.n + variant;
    d.stride_a = d.m * d.k, d.stride_b = d.k * d.n;
    descs.push_back(d);
  }
  return descs;
}

// What two threads reach on this machine where they share nothing: each generates code into a buffer of its own.
double unshared_speedup(const std::vector<brgemm::desc>& descs) {
  const auto made = brgemm::make_kernel(descs[0]);
  if (!made) return 0;
  const brgemm::backend::entry& backend = *brgemm::backend::find(made->backend());
  std::vector<std::uint8_t> room[2];
  for (auto& r : room) r.resize(brgemm::backend::max_code_bytes);
  const auto generate = [&](int threads) {  // all of the list in each thread
    return together(threads, [&](int t) {
      for (const brgemm::desc& d : descs) benchmark::DoNotOptimize(backend.make(d, room[t]).has_value());
    });
  };
  const double one = generate(1);
  return 2 * one / generate(2);
}

void run_generation(benchmark::State& state, const std::string& file, std::int64_t count) {
  for ([[maybe_unused]] auto _ : state) {
    brgemm::clear_code_cache();  // with the kernels of earlier repetitions it would be full, and each evict another
    std::vector<double> each;
    std::vector<double> speedup;
    std::vector<double> unshared;
    std::atomic<bool> failed{false};
    const auto generate = [&failed](const std::vector<brgemm::desc>& descs, int threads) {
      std::atomic<std::size_t> next{0};  // each takes what is next, as the kernels of a list differ in their work
      return together(threads, [&](int) {
        for (std::size_t i = next++; i < descs.size(); i = next++) {
          if (!brgemm::make_kernel(descs[i])) failed = true;
        }
      });
    };
    for (int round = 0; round < 9; ++round) {
      for (const brgemm::desc& d : unseen(file, count)) {
        each.push_back(seconds_of([&](std::int64_t) { failed = failed || !brgemm::make_kernel(d); }, 1));
      }
      const double one = generate(unseen(file, count), 1);
      speedup.push_back(one / generate(unseen(file, count), 2));
      unshared.push_back(unshared_speedup(unseen(file, count)));
    }
    if (failed) return state.SkipWithError("a kernel of the list could not be made");
    state.counters["seconds ours"] = median(each);
    state.counters["speedup two threads"] = median(speedup);
    state.counters["speedup two threads, code alone"] = median(unshared);  // what the machine allows
    state.SetIterationTime(median(each));
  }
}

}  // namespace

bool add_call(const problem& p, const settings& s) {
  if (p.words[0] == "handle_call") {
    add_case(s, "handle_call", [&s](benchmark::State& state) { run_handle_call(state, s); });
  } else if (p.words[0] == "lookup") {
    const std::int64_t descs = p.number(1);
    const int threads = static_cast<int>(p.number(2));
    add_case(s, "lookup/descs" + p.words.at(1) + "/threads" + p.words.at(2),
             [descs, threads, &s](benchmark::State& state) { run_lookup(state, descs, threads, s); });
  } else if (p.words[0] == "generation") {
    const std::string file = p.folder + p.words.at(1);
    const std::int64_t count = p.number(2);
    add_case(s, "generation", [file, count](benchmark::State& state) { run_generation(state, file, count); });
  } else {
    return false;
  }
  return true;
}

}  // namespace bench
