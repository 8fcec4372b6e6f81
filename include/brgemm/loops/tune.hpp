// The search for a schedule: times those that a caller proposes, and keeps what won in a file of the user's.
#pragma once

#include <cpuid.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "../core/result.hpp"
#include "../version.hpp"

namespace brgemm::inline abi_0::loops {

/// What a search found: the number of the candidate, and how many times as quick as the first one it is. `measured` is
/// false where a file had it.
struct tuned {
  std::size_t candidate = 0;
  double speedup = 1;
  bool measured = true;
};

/// The CPU's name and the library's version: a schedule is good for these.
inline std::string tuning_machine() {
  std::string name;
  for (unsigned leaf = 0x80000002; leaf <= 0x80000004; ++leaf) {
    unsigned words[4] = {};
    if (__get_cpuid(leaf, &words[0], &words[1], &words[2], &words[3]) == 0) break;
    for (const unsigned w : words) {
      for (int i = 0; i < 4; ++i) name += static_cast<char>(w >> (8 * i));
    }
  }
  unsigned model = 0, b = 0, c = 0, d = 0;
  __get_cpuid(1, &model, &b, &c, &d);
  std::string clean;
  for (const char letter : name) {
    if (letter > ' ' && letter <= '~') clean += letter;
  }
  return clean + '/' + std::to_string(model) + "/brgemm-" + std::to_string(BRGEMM_VERSION_MAJOR) + '.' +
         std::to_string(BRGEMM_VERSION_MINOR) + '.' + std::to_string(BRGEMM_VERSION_PATCH);
}

/// Where schedules are kept unless the caller says otherwise: $XDG_CACHE_HOME/brgemm-schedules, else
/// $HOME/.cache/brgemm-schedules; empty where neither is set. The folder must exist.
inline std::string tuning_file() {
  if (const char* folder = std::getenv("XDG_CACHE_HOME"); folder != nullptr && *folder != 0) {
    return std::string(folder) + "/brgemm-schedules";
  }
  const char* home = std::getenv("HOME");
  return home != nullptr && *home != 0 ? std::string(home) + "/.cache/brgemm-schedules" : std::string();
}

/// The value that a file has for a key: the last line "key value" counts. Nothing where there is no file.
inline std::string tuning_of(const std::string& file, const std::string& key) {
  std::ifstream in(file);
  std::string found;
  for (std::string line; std::getline(in, line);) {
    if (line.size() > key.size() && line.compare(0, key.size(), key) == 0 && line[key.size()] == ' ') {
      found = line.substr(key.size() + 1);
    }
  }
  return found;
}

/// Appends "key value" in one write, so that several processes may share a file. Error: invalid_argument "file".
inline result<void> keep_tuning(const std::string& file, const std::string& key, const std::string& value) {
  std::FILE* const out = std::fopen(file.c_str(), "a");
  const std::string line = key + ' ' + value + '\n';
  const bool written = out != nullptr && std::fwrite(line.data(), 1, line.size(), out) == line.size();
  const bool closed = out != nullptr && std::fclose(out) == 0;
  if (written && closed) return {};
  return error(errc::invalid_argument, "file", "%s cannot be written", file.c_str());
}

/// The quickest of `count` candidates by run(i), each of which has run once before. Rounds in turn, because machines
/// change their pace; medians; another than the first must be quicker by 2 %.
template <class Run>
tuned quickest(std::size_t count, const Run& run, int rounds = 9, double sample_seconds = 1e-3) {
  using clock = std::chrono::steady_clock;
  const auto timed = [&](std::size_t i, int times) {
    const auto begin = clock::now();
    for (int t = 0; t < times; ++t) run(i);
    return std::chrono::duration<double>(clock::now() - begin).count() / times;
  };
  const int times = static_cast<int>(std::clamp(sample_seconds / std::max(timed(0, 1), 1e-9), 1.0, 1e6));
  std::vector<std::vector<double>> seconds(count);
  for (int r = 0; r < rounds; ++r) {
    for (std::size_t i = 0; i < count; ++i) seconds[i].push_back(timed(i, times));
  }
  for (auto& s : seconds) std::nth_element(s.begin(), s.begin() + rounds / 2, s.end());
  const auto median = [&](std::size_t i) { return seconds[i][static_cast<std::size_t>(rounds / 2)]; };
  tuned best;
  for (std::size_t i = 1; i < count; ++i) {
    const double speedup = median(0) / median(i);
    if (speedup > std::max(best.speedup, 1.02)) best = {i, speedup, true};
  }
  return best;
}

}  // namespace brgemm::inline abi_0::loops
