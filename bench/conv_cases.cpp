// Convolutions over height and width, forward, without bias and activation:
//   conv TYPE IMAGES IN OUT GROUPS HEIGHT WIDTH KERNEL_H KERNEL_W STRIDE_H STRIDE_W PAD_H PAD_W THREADS
// Ours reads and writes (images, height, width, channels) in place; oneDNN has every tensor in the layout that it likes
// best, brought there outside the timing. Work is counted without the taps that padding hides.
#include <algorithm>
#include <brgemm/loops/parallel_for.hpp>
#include <brgemm/nn/conv.hpp>
#include <memory>

#include "cases.hpp"
#include "operands.hpp"

namespace bench {
namespace {

namespace nn = brgemm::nn;

struct layer {
  peer_type type;
  nn::conv_desc d;
  int threads;
};

layer layer_of(const problem& p) {
  layer l{p.words[1] == "bf16" ? peer_type::bf16 : peer_type::f32, {}, static_cast<int>(p.number(14))};
  l.d.images = p.number(2), l.d.in = p.number(3), l.d.out = p.number(4), l.d.groups = p.number(5);
  for (std::size_t i = 0; i < 2; ++i) {
    l.d.axes[i + 1] = {p.number(6 + i), p.number(8 + i), p.number(10 + i), 1, p.number(12 + i), p.number(12 + i)};
  }
  l.d.data = l.d.y = l.type == peer_type::bf16 ? brgemm::type::bf16 : brgemm::type::f32;
  l.d.bias = false;
  return l;
}

// Multiplications and additions, hidden taps left out.
double operations_of(const nn::conv_desc& d) {
  double work = 2.0 * static_cast<double>(d.images) * static_cast<double>(d.out) * static_cast<double>(d.in / d.groups);
  for (const nn::conv_axis& a : d.axes) {
    double taps = 0;
    brgemm::detail::for_forward_runs(a, [&](const brgemm::detail::conv_run& r) {
      taps += static_cast<double>(r.count) * static_cast<double>(r.taps);
    });
    work *= taps;
  }
  return work;
}

peer_conv problem_of(const layer& l, const buffer& x, const buffer& w, const buffer& y) {
  const nn::conv_axis& h = l.d.axes[1];
  const nn::conv_axis& v = l.d.axes[2];
  return {l.type,
          l.d.images,
          l.d.in,
          l.d.out,
          l.d.groups,
          {h.in, v.in},
          {h.kernel, v.kernel},
          {h.stride, v.stride},
          {h.pad_before, v.pad_before},
          l.threads,
          x.data(),
          w.data(),
          y.data()};
}

void run_conv(benchmark::State& state, const layer& l, const settings& s) {
  for ([[maybe_unused]] auto _ : state) {
    const auto plan = nn::conv::plan(l.d);
    if (!plan) return state.SkipWithError(plan.error().message().data());
    const auto executor = brgemm::loops::openmp::make(l.threads);
    if (!executor) return state.SkipWithError(executor.error().message().data());
    const std::int64_t weights = l.d.out * (l.d.in / l.d.groups) * l.d.axes[1].kernel * l.d.axes[2].kernel;
    const std::int64_t outputs = plan->y_bytes() / brgemm::size_of(l.d.y);
    const buffer x(plan->x_bytes()), w(weights * 4), wide(weights * 4), packed(plan->weights_bytes());
    const buffer y(plan->y_bytes()), theirs(plan->y_bytes());
    fill(x, l.d.data, plan->x_bytes() / brgemm::size_of(l.d.data), 1);
    fill(w, l.d.data, weights, 2);
    for (std::int64_t i = 0; i < weights; ++i) wide.as<float>()[i] = static_cast<float>(value_of(w, l.d.data, i));
    if (auto r = plan->pack_weights(*executor, wide.as<float>(), nn::conv_weights::out_first, packed.data()); !r) {
      return state.SkipWithError(r.error().message().data());
    }
    const auto run = [&] { return plan->forward(*executor, l.d.images, x.data(), packed.data(), nullptr, y.data()); };
    if (auto r = run(); !r) return state.SkipWithError(r.error().message().data());

    const ceiling limit = ceiling_of(l.type);
    std::vector<contestant> contestants = {on_threads(limit, l.threads), {"ours", [&run](std::int64_t times) {
                                                                            for (std::int64_t i = 0; i < times; ++i) {
                                                                              run();
                                                                            }
                                                                          }}};
    std::vector<std::unique_ptr<peer_task>> tasks;
    const peer_conv problem = problem_of(l, x, w, theirs);
    add_peers(
        state, s,
        [&](const peer_api& peer, char* reason, std::size_t size) { return peer.make_conv(problem, reason, size); },
        [&] { return agrees(y, theirs, l.d.y, outputs, l.type == peer_type::bf16 ? 2e-2 : 1e-4); }, tasks, contestants);
    effort e = s.layers;
    e.sample_seconds = std::max(e.sample_seconds, l.threads > 1 ? 8e-3 : 2e-3);
    if (l.threads > 1) e.settled = true;
    report(state, contestants, interleave(contestants, e), operations_of(l.d), limit.operations * l.threads);
  }
}

}  // namespace

bool add_conv(const problem& p, const settings& s) {
  if (p.words[0] != "conv") return false;
  std::string name = "conv/" + p.words[1] + "/images" + p.words[2] + "/" + p.words[6] + "x" + p.words[7] + "/" +
                     p.words[3] + "to" + p.words[4] + "/kernel" + p.words[8] + "x" + p.words[9];
  if (p.words[5] != "1") name += "/groups" + p.words[5];
  if (p.words[10] != "1" || p.words[11] != "1") name += "/stride" + p.words[10] + "x" + p.words[11];
  name += "/threads" + p.words[14] + "/forward";
  add_case(s, name, [l = layer_of(p), &s](benchmark::State& state) { run_conv(state, l, s); });
  return true;
}

}  // namespace bench
