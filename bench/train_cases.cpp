// The training step of the demo:
//   train TYPE BATCH THREADS FEATURES...     forward, softmax cross-entropy, backward, SGD with momentum
// PyTorch's step runs in a process of its own, peers/pytorch_step.py, in turn with this one; accept.py sees to it.
#include <algorithm>
#include <brgemm/loops/parallel_for.hpp>
#include <brgemm/train/classifier.hpp>

#include "cases.hpp"
#include "operands.hpp"

namespace bench {
namespace {

using brgemm::index;

struct step {
  brgemm::type type;
  index batch;
  int threads;
  std::vector<index> features;
};

// Batches of random pictures and labels, more than caches hold, taken in turn.
struct pictures {
  static constexpr index batches = 64;
  buffer x, labels;
  explicit pictures(const step& t) : x(batches * t.batch * t.features.front() * 4), labels(batches * t.batch * 4) {
    fill(x, brgemm::type::f32, batches * t.batch * t.features.front(), 1);
    fill(labels, brgemm::type::s32, batches * t.batch, 2);
    for (index i = 0; i < batches * t.batch; ++i) {
      labels.as<std::int32_t>()[i] = static_cast<std::int32_t>(
          static_cast<std::uint32_t>(labels.as<std::int32_t>()[i]) % static_cast<std::uint32_t>(t.features.back()));
    }
  }
};

void run_step(benchmark::State& state, const step& t, const settings& s) {
  for ([[maybe_unused]] auto _ : state) {
    auto executor = brgemm::loops::openmp::make(t.threads);
    auto network = brgemm::nn::mlp::make({.rows = t.batch, .sizes = t.features, .data = t.type});
    if (!network) return state.SkipWithError(network.error().message().data());
    brgemm::train::generator random(1);
    if (auto r = brgemm::train::initialise(*executor, *network, random); !r) {
      return state.SkipWithError(r.error().message().data());
    }
    auto learner =
        brgemm::train::classifier<brgemm::train::sgd>::make(*network, {.learning_rate = 0.01f, .momentum = 0.9f});
    if (!learner) return state.SkipWithError(learner.error().message().data());
    const pictures data(t);
    index next = 0;
    bool failed = false;
    const contestant ours{
        "ours", [&](std::int64_t times) {
          for (std::int64_t i = 0; i < times; ++i) {
            const index row = next * t.batch;
            const auto loss =
                learner->step(*executor, {data.x.as<float>() + row * t.features.front(), {t.batch, t.features.front()}},
                              {data.labels.as<std::int32_t>() + row, static_cast<std::size_t>(t.batch)});
            failed = failed || !loss;
            next = (next + 1) % pictures::batches;
          }
        }};
    const ceiling limit = ceiling_of(t.type == brgemm::type::bf16 ? peer_type::bf16 : peer_type::f32);
    const std::vector<contestant> contestants = {on_threads(limit, t.threads), ours};
    effort e = s.layers;
    e.sample_seconds = std::max(e.sample_seconds, 50e-3);
    if (t.threads > 1) e.settled = true;
    const auto seconds = interleave(contestants, e);
    if (failed) return state.SkipWithError("a step failed");
    report(state, contestants, seconds, network->step_operations(t.batch), limit.operations * t.threads);
    state.counters["pictures per second"] = static_cast<double>(t.batch) / median(seconds[1]);
  }
}

}  // namespace

bool add_train(const problem& p, const settings& s) {
  if (p.words[0] != "train") return false;
  step t{p.words[1] == "bf16" ? brgemm::type::bf16 : brgemm::type::f32, p.number(2), static_cast<int>(p.number(3)), {}};
  std::string layers;
  for (std::size_t i = 4; i < p.words.size(); ++i) {
    t.features.push_back(p.number(i));
    layers += (layers.empty() ? "" : "-") + p.words[i];
  }
  add_case(s, "train/" + p.words[1] + "/" + layers + "/batch" + p.words[2] + "/threads" + p.words[3],
           [t, &s](benchmark::State& state) { run_step(state, t, s); });
  return true;
}

}  // namespace bench
