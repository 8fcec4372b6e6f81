// Interleaved measuring: in each round every contestant of a case runs once, one behind the other, so that a change of
// the clock meets all of them. What is compared is compared within a round; medians are taken over the rounds.
#pragma once

#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace bench {

/// Something that is timed: `run(times)` does one call `times` times.
struct contestant {
  std::string name;
  std::function<void(std::int64_t times)> run;
};

struct effort {
  int rounds = 15;
  double sample_seconds = 500e-6;  ///< how long one contestant runs in one round, at least
  double warm_share = 1. / 16;     ///< calls before each sample, of those in it: for caches and branch predictors
  bool settled = false;            ///< each sample begins when the process's other threads have gone to sleep
};

inline double median(std::vector<double> v) {
  if (v.empty()) return 0;
  const auto middle = v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2);
  std::nth_element(v.begin(), middle, v.end());
  if (v.size() % 2 == 1) return *middle;
  return (*middle + *std::max_element(v.begin(), middle)) / 2;
}

inline double seconds_of(const std::function<void(std::int64_t)>& run, std::int64_t times) {
  const auto start = std::chrono::steady_clock::now();
  run(times);
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  return taken.count();
}

/// Seconds of CPU that all threads of the process have taken together.
inline double cpu_seconds() {
  timespec t = {};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

/// Other libraries' idle threads look for work for a while: waits until they take less than a tenth of a core, at most
/// 0.6 s.
inline void settle(const effort& e) {
  for (int i = 0; e.settled && i < 200; ++i) {
    const double before = cpu_seconds();
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    if (cpu_seconds() - before < 0.3e-3) return;
  }
}

/// How many calls last `e.sample_seconds`. The less of two times each: one that something else disturbed counts little.
inline std::int64_t calls_for(const contestant& c, const effort& e) {
  settle(e);
  c.run(1);
  for (std::int64_t times = 1;; times *= 2) {
    const double taken = std::min(seconds_of(c.run, times), seconds_of(c.run, times));
    if (taken < e.sample_seconds / 4 && times < (std::int64_t{1} << 40)) continue;
    return std::max<std::int64_t>(1, static_cast<std::int64_t>(static_cast<double>(times) * e.sample_seconds / taken));
  }
}

/// Seconds per call: [contestant][round].
inline std::vector<std::vector<double>> interleave(const std::vector<contestant>& contestants, const effort& e) {
  std::vector<std::int64_t> times;
  for (const contestant& c : contestants) times.push_back(calls_for(c, e));
  std::vector<std::vector<double>> seconds(contestants.size());
  for (int round = 0; round < e.rounds; ++round) {
    for (std::size_t i = 0; i < contestants.size(); ++i) {
      settle(e);
      contestants[i].run(
          std::max<std::int64_t>(1, static_cast<std::int64_t>(static_cast<double>(times[i]) * e.warm_share)));
      seconds[i].push_back(seconds_of(contestants[i].run, times[i]) / static_cast<double>(times[i]));
    }
  }
  return seconds;
}

/// The median over the rounds of x[round] / y[round].
inline double median_ratio(const std::vector<double>& x, const std::vector<double>& y) {
  std::vector<double> ratio;
  for (std::size_t i = 0; i < x.size(); ++i) ratio.push_back(x[i] / y[i]);
  return median(std::move(ratio));
}

}  // namespace bench
