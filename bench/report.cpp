// The peers of a case, and from the seconds of each contestant in each round to its counters.
#include <cstdio>

#include "cases.hpp"

namespace bench {

const char* name_of(peer_pass p) {
  switch (p) {
    case peer_pass::forward: return "forward";
    case peer_pass::backward_data: return "backward_data";
    case peer_pass::backward_weights: break;
  }
  return "backward_weights";
}

void add_peers(benchmark::State& state, const settings& s,
               const std::function<peer_task*(const peer_api&, char* reason, std::size_t size)>& make,
               const std::function<bool()>& agrees, std::vector<std::unique_ptr<peer_task>>& tasks,
               std::vector<contestant>& contestants) {
  std::string label;
  for (const peer_api* peer : s.peers) {
    char reason[200] = "";
    std::unique_ptr<peer_task> task(make(*peer, reason, sizeof reason));
    if (task != nullptr) {
      task->run(1);
      task->deliver();
      if (agrees()) {
        contestants.push_back({peer->name, [t = task.get()](std::int64_t times) { t->run(times); }});
        tasks.push_back(std::move(task));
        continue;
      }
      std::snprintf(reason, sizeof reason, "its result differs from ours");
    }
    label += (label.empty() ? "" : "; ") + std::string(peer->name) + ": " + reason;
  }
  state.SetLabel(label);
}

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
