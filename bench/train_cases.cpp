// The training steps of the demo, forward, softmax cross-entropy, backward, SGD with momentum:
//   train TYPE BATCH THREADS FEATURES...     fully connected layers
//   train_cnn TYPE BATCH THREADS CHANNELS... 28 x 28 pixels: convolutions, see make_network
// PyTorch's step runs in a process of its own, peers/pytorch_step.py, in turn with this one; accept.py sees to it.
#include <algorithm>
#include <brgemm/loops/parallel_for.hpp>
#include <brgemm/train/classifier.hpp>
#include <brgemm/train/convnet.hpp>

#include "cases.hpp"
#include "operands.hpp"

namespace bench {
namespace {

using brgemm::index;

struct step {
  brgemm::type type;
  index batch;
  int threads;
  std::vector<index> sizes;  // features; or channels of the stages of a cnn
  bool cnn = false;
  index pixels() const { return cnn ? 28 * 28 : sizes.front(); }
  index classes() const { return cnn ? 10 : sizes.back(); }
};

// A cnn: 3 x 3 convolutions with batch normalisation and relu, the largest of 2 x 2 pixels behind the first two, the
// mean and a last layer.
template <class Network>
brgemm::result<Network> make_network(const step& t) {
  if constexpr (std::is_same_v<Network, brgemm::nn::mlp>) {
    return Network::make({.rows = t.batch, .sizes = t.sizes, .data = t.type});
  } else {
    std::vector<brgemm::train::convnet_stage> stages;
    for (const index channels : t.sizes) stages.push_back({.out = channels, .pool = stages.size() < 2 ? 2 : 1});
    return Network::make(
        {.images = t.batch, .height = 28, .width = 28, .stages = stages, .classes = t.classes(), .data = t.type});
  }
}

// Batches of random pictures and labels, more than caches hold, taken in turn.
struct pictures {
  static constexpr index batches = 64;
  buffer x, labels;
  explicit pictures(const step& t) : x(batches * t.batch * t.pixels() * 4), labels(batches * t.batch * 4) {
    fill(x, brgemm::type::f32, batches * t.batch * t.pixels(), 1);
    fill(labels, brgemm::type::s32, batches * t.batch, 2);
    for (index i = 0; i < batches * t.batch; ++i) {
      labels.as<std::int32_t>()[i] = static_cast<std::int32_t>(
          static_cast<std::uint32_t>(labels.as<std::int32_t>()[i]) % static_cast<std::uint32_t>(t.classes()));
    }
  }
};

template <class Network>
void run_step(benchmark::State& state, const step& t, const settings& s) {
  for ([[maybe_unused]] auto _ : state) {
    auto executor = brgemm::loops::openmp::make(t.threads);
    auto network = make_network<Network>(t);
    if (!network) return state.SkipWithError(network.error().message().data());
    brgemm::train::generator random(1);
    if (auto r = brgemm::train::initialise(*executor, *network, random); !r) {
      return state.SkipWithError(r.error().message().data());
    }
    auto learner = brgemm::train::classifier<brgemm::train::sgd, Network>::make(
        *network, {.learning_rate = 0.01f, .momentum = 0.9f});
    if (!learner) return state.SkipWithError(learner.error().message().data());
    const pictures data(t);
    index next = 0;
    bool failed = false;
    const contestant ours{"ours", [&](std::int64_t times) {
                            for (std::int64_t i = 0; i < times; ++i) {
                              const index row = next * t.batch;
                              const auto loss = learner->step(
                                  *executor, {data.x.as<float>() + row * t.pixels(), {t.batch, t.pixels()}},
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
  const bool cnn = p.words[0] == "train_cnn";
  if (p.words[0] != "train" && !cnn) return false;
  step t{p.words[1] == "bf16" ? brgemm::type::bf16 : brgemm::type::f32, p.number(2), static_cast<int>(p.number(3)), {}};
  t.cnn = cnn;
  std::string layers;
  for (std::size_t i = 4; i < p.words.size(); ++i) {
    t.sizes.push_back(p.number(i));
    layers += (layers.empty() ? "" : "-") + p.words[i];
  }
  add_case(s, "train/" + p.words[1] + (cnn ? "/cnn" : "/") + layers + "/batch" + p.words[2] + "/threads" + p.words[3],
           [t, &s](benchmark::State& state) {
             t.cnn ? run_step<brgemm::train::convnet>(state, t, s) : run_step<brgemm::nn::mlp>(state, t, s);
           });
  return true;
}

}  // namespace bench
