// From the seconds of each contestant in each round to the counters of a case.
#include "cases.hpp"

namespace bench {

void report(benchmark::State& state, const std::vector<contestant>& contestants,
            const std::vector<std::vector<double>>& seconds, double work, double ceiling_work) {
  std::size_t ours = contestants.size();
  std::size_t ceiling = contestants.size();
  for (std::size_t i = 0; i < contestants.size(); ++i) {
    if (contestants[i].name == "ours") ours = i;
    if (contestants[i].name == "ceiling") ceiling = i;
  }
  state.counters["work"] = work;
  for (std::size_t i = 0; i < contestants.size(); ++i) {
    const std::string& name = contestants[i].name;
    state.counters["seconds " + name] = median(seconds[i]);
    if (i == ceiling) {
      state.counters["rate ceiling"] = ceiling_work / median(seconds[i]);
      continue;
    }
    if (ceiling < contestants.size()) {
      state.counters["share " + name] = work / ceiling_work * median_ratio(seconds[ceiling], seconds[i]);
    }
    if (i != ours && ours < contestants.size()) {
      state.counters["speed " + name] = median_ratio(seconds[i], seconds[ours]);
    }
  }
  if (ours < contestants.size()) state.SetIterationTime(median(seconds[ours]));
}

}  // namespace bench
