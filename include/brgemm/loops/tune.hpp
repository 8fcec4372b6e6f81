// The search for a schedule: times those that a caller proposes, and keeps what won in a file of the user's.
#pragma once

#include <cpuid.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "../core/result.hpp"
#include "../core/user_cache.hpp"
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
/// $HOME/.cache/brgemm-schedules; empty where neither is an absolute path. The folder must exist.
inline std::string tuning_file() {
  const std::string folder = detail::user_cache();
  return folder.empty() ? folder : folder + "/brgemm-schedules";
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

/// Whether keep_tuning could write. Error: as it has.
inline result<void> check_tuning_file(const std::string& file) noexcept {
  std::FILE* const out = std::fopen(file.c_str(), "a");
  if (out != nullptr && std::fclose(out) == 0) return {};
  return error(errc::invalid_argument, "file", "%s cannot be written", file.c_str());
}

/// The quickest of `count` candidates by run(i). Rounds in turn, because machines change their pace; medians. Another
/// than the first must be quicker by 2 %, and once more where the two are measured alone.
template <class Clock = std::chrono::steady_clock, class Run>
tuned quickest(std::size_t count, const Run& run, int rounds = 9, double sample_seconds = 1e-3) {
  constexpr double worth = 1.02;
  const auto timed = [&](std::size_t i, int times) {
    const auto begin = Clock::now();
    for (int t = 0; t < times; ++t) run(i);
    return std::chrono::duration<double>(Clock::now() - begin).count() / times;
  };
  for (std::size_t i = 0; i < count; ++i) run(i);
  const int times = static_cast<int>(std::clamp(sample_seconds / std::max(timed(0, 1), 1e-9), 1.0, 1e6));
  const auto medians = [&](const std::vector<std::size_t>& candidates) {
    std::vector<std::vector<double>> seconds(candidates.size());
    for (int r = 0; r < rounds; ++r) {
      for (std::size_t i = 0; i < candidates.size(); ++i) seconds[i].push_back(timed(candidates[i], times));
    }
    std::vector<double> middle;
    for (auto& s : seconds) {
      std::nth_element(s.begin(), s.begin() + rounds / 2, s.end());
      middle.push_back(s[static_cast<std::size_t>(rounds / 2)]);
    }
    return middle;
  };
  std::vector<std::size_t> all(count);
  for (std::size_t i = 0; i < count; ++i) all[i] = i;
  const std::vector<double> seconds = medians(all);
  const auto best = static_cast<std::size_t>(std::min_element(seconds.begin(), seconds.end()) - seconds.begin());
  if (best == 0 || seconds[0] / seconds[best] <= worth) return {};
  const std::vector<double> again = medians({0, best});
  if (again[0] / again[1] <= worth) return {};
  return {best, again[0] / again[1], true};
}

}  // namespace brgemm::inline abi_0::loops
