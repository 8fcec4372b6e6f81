// The kinds of problem: each turns one line of a problem file into benchmarks, registered by name.
#pragma once

#include <benchmark/benchmark.h>

#include <brgemm/loops/split.hpp>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "ceilings.hpp"
#include "measure.hpp"
#include "peers/peer.hpp"
#include "problem.hpp"

namespace bench {

struct settings {
  effort kernels;                      ///< for cases of microseconds
  effort layers;                       ///< for cases of milliseconds
  std::vector<const peer_api*> peers;  ///< each case takes those that can do it
  std::set<std::string> only;          ///< names of the cases to run; empty for all
};

/// Registers one benchmark that runs its body once a repetition.
template <class Body>
void add_case(const settings& s, const std::string& name, Body body) {
  if (!s.only.empty() && !s.only.contains(name)) return;
  benchmark::RegisterBenchmark(name.c_str(), body)->Iterations(1)->UseManualTime()->Unit(benchmark::kMicrosecond);
}

/// Makes the problem ready with each peer, by make(peer, reason, bytes of it), and runs it once. Where agrees() then
/// says that the result is ours the peer is a contestant; the label says of the others why not.
void add_peers(benchmark::State& state, const settings& s,
               const std::function<peer_task*(const peer_api&, char* reason, std::size_t size)>& make,
               const std::function<bool()>& agrees, std::vector<std::unique_ptr<peer_task>>& tasks,
               std::vector<contestant>& contestants);

/// What is reported of a case. Counters: "seconds NAME" a call; "share NAME" of the ceiling; "speed NAME", how many
/// times ours is as quick as NAME. Shares and speeds are medians of what was seen within one round.
void report(benchmark::State& state, const std::vector<contestant>& contestants,
            const std::vector<std::vector<double>>& seconds, double work, double ceiling_work);

/// "forward", "backward_data", "backward_weights".
const char* name_of(peer_pass p);

/// MATH of a problem; and products of pieces for one of f32.
brgemm::math math_of(const std::string& word);
double products_of(brgemm::math how);

// One function a kind; false where the line is not of this kind.
bool add_gemm(const problem&, const settings&);
bool add_call(const problem&, const settings&);
bool add_linear(const problem&, const settings&);
bool add_product(const problem&, const settings&);
bool add_conv(const problem&, const settings&);
bool add_winograd(const problem&, const settings&);
bool add_train(const problem&, const settings&);
bool add_bandwidth(const problem&, const settings&);

}  // namespace bench
