// Convolutions over height and width, without bias and activation: forward, and of f32 and bf16 backward by data and
// weight update; of u8s8 y is u8, by a scale a channel:
//   conv TYPE IMAGES IN OUT GROUPS HEIGHT WIDTH KERNEL_H KERNEL_W STRIDE_H STRIDE_W PAD_H PAD_W THREADS
// and 3 x 3 layers of f32 by Winograd's algorithm, against ours direct:
//   winograd IMAGES IN OUT HEIGHT WIDTH THREADS
// Ours and oneDNN have every tensor in the layout that each likes best, brought there outside the timing: ours (images,
// height, width, channels), depthwise in blocks of channels. Work is counted without the taps that padding hides.
#include <algorithm>
#include <brgemm/loops/parallel_for.hpp>
#include <brgemm/nn/conv.hpp>
#include <cmath>
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
  peer_pass pass;
};

layer layer_of(const problem& p, peer_pass pass) {
  const bool is_8bit = p.words[1] == "u8s8";
  const peer_type type = is_8bit ? peer_type::u8s8 : p.words[1] == "bf16" ? peer_type::bf16 : peer_type::f32;
  layer l{type, {}, static_cast<int>(p.number(14)), pass};
  l.d.images = p.number(2), l.d.in = p.number(3), l.d.out = p.number(4), l.d.groups = p.number(5);
  for (std::size_t i = 0; i < 2; ++i) {
    l.d.axes[i + 1] = {p.number(6 + i), p.number(8 + i), p.number(10 + i), 1, p.number(12 + i), p.number(12 + i)};
  }
  l.d.data = is_8bit ? brgemm::type::u8 : type == peer_type::bf16 ? brgemm::type::bf16 : brgemm::type::f32;
  l.d.y = l.d.data;
  l.d.bias = false;
  l.d.scale = is_8bit;
  l.d.training = pass != peer_pass::forward;
  l.d.x_block = l.d.y_block = nn::conv::preferred_block(l.d);
  return l;
}

// A layer of ours made ready: the plan, what it reads, in the peers' layouts too, and its result.
class planned_conv {
 public:
  static brgemm::result<std::unique_ptr<planned_conv>> make(const layer& l) {
    auto plan = nn::conv::plan(l.d);
    if (!plan) return plan.error();
    const auto executor = brgemm::loops::openmp::make(l.threads);
    if (!executor) return executor.error();
    std::unique_ptr<planned_conv> made(new planned_conv(l, *std::move(plan), *executor));
    if (auto r = made->load(); !r) return r.error();
    return made;
  }

  brgemm::result<void> run() const {
    switch (l_.pass) {
      case peer_pass::forward:
        return plan_.forward(threads_, l_.d.images, x_.data(), packed_.data(),
                             {.scale = l_.d.scale ? scale_.as<float>() : nullptr,
                              .workspace = forward_workspace_bytes() > 0 ? workspace_.data() : nullptr},
                             result_.data());
      case peer_pass::backward_data:
        return plan_.backward_data(threads_, l_.d.images, y_.data(), transposed_.data(), result_.data());
      case peer_pass::backward_weights: break;
    }
    return plan_.backward_weights(threads_, l_.d.images, x_.data(), y_.data(), result_.as<float>(), nullptr,
                                  plan_.backward_weights_workspace_bytes() > 0 ? workspace_.data() : nullptr);
  }

  brgemm::type result_type() const { return l_.pass == peer_pass::backward_weights ? brgemm::type::f32 : l_.d.data; }
  // Elements of the result, with its channels adjacent.
  std::int64_t result_size() const {
    switch (l_.pass) {
      case peer_pass::forward: return elements(y_order());
      case peer_pass::backward_data: return elements(x_order());
      case peer_pass::backward_weights: break;
    }
    return plan_.weights();
  }

  nn::conv_algorithm algorithm() const { return plan_.algorithm(); }
  double operations() const { return plan_.operations() * static_cast<double>(l_.d.images); }

  // The same for a peer, which writes to `to`.
  peer_conv problem(const buffer& to) const {
    const nn::conv_axis& h = l_.d.axes[1];
    const nn::conv_axis& v = l_.d.axes[2];
    const auto pick = [&](peer_pass writes, const buffer& own) { return l_.pass == writes ? to.data() : own.data(); };
    return {l_.type,
            l_.pass,
            l_.d.images,
            l_.d.in,
            l_.d.out,
            l_.d.groups,
            {h.in, v.in},
            {h.kernel, v.kernel},
            {h.stride, v.stride},
            {h.pad_before, v.pad_before},
            l_.threads,
            scale_of_all(),
            pick(peer_pass::backward_data, adjacent_x_),
            pick(peer_pass::backward_weights, w_),
            pick(peer_pass::forward, adjacent_y_)};
  }

  // The result in the peers' layout: dw (groups, kernel_h, kernel_w, in, out) becomes (groups, out, in, kernel_h,
  // kernel_w), in and out of a group.
  void deliver(const buffer& to) const {
    if (l_.pass != peer_pass::backward_weights) {
      nn::reorder_desc order = l_.pass == peer_pass::forward ? y_order() : x_order();
      std::swap(order.from, order.to);
      move(order, result_, to);
      return;
    }
    const std::int64_t in = l_.d.in / l_.d.groups, out = l_.d.out / l_.d.groups;
    const std::int64_t taps = l_.d.axes[1].kernel * l_.d.axes[2].kernel;
    const float* from = result_.as<float>();
    for (std::int64_t g = 0; g < l_.d.groups; ++g) {
      for (std::int64_t t = 0; t < taps; ++t) {
        for (std::int64_t i = 0; i < in; ++i) {
          for (std::int64_t o = 0; o < out; ++o) to.as<float>()[((g * out + o) * in + i) * taps + t] = *from++;
        }
      }
    }
  }

 private:
  planned_conv(const layer& l, nn::conv plan, brgemm::loops::openmp executor)
      : l_(l),
        plan_(std::move(plan)),
        executor_(executor),
        threads_(executor_),
        x_(plan_.x_bytes()),
        w_(plan_.weights() * 4),
        y_(plan_.y_bytes()),
        adjacent_x_(elements(x_order()) * brgemm::size_of(l.d.data)),
        adjacent_y_(elements(y_order()) * brgemm::size_of(l.d.y)),
        packed_(plan_.weights_bytes()),
        transposed_(plan_.transposed_bytes()),
        workspace_(std::max(plan_.backward_weights_workspace_bytes(), forward_workspace_bytes())),
        scale_(l.d.out * 4),
        result_(std::max({plan_.x_bytes(), plan_.y_bytes(), plan_.weights() * 4})) {}

  std::int64_t forward_workspace_bytes() const { return plan_.forward_workspace_bytes(l_.threads); }

  // Sums of x and w over their whole ranges become some hundreds at most.
  float scale_of_all() const { return 0.01f / std::sqrt(static_cast<float>(plan_.weights() / l_.d.out)); }

  // From adjacent channels to ours.
  nn::reorder_desc x_order() const {
    const auto to = l_.d.x_block > 0 ? nn::channel_order::blocks : nn::channel_order::last;
    return plan_.reorder_x(nn::channel_order::last, to, std::max<std::int64_t>(l_.d.x_block, 1))->description();
  }
  nn::reorder_desc y_order() const {
    const auto to = l_.d.y_block > 0 ? nn::channel_order::blocks : nn::channel_order::last;
    return plan_.reorder_y(nn::channel_order::last, to, std::max<std::int64_t>(l_.d.y_block, 1))->description();
  }
  static std::int64_t elements(const nn::reorder_desc& d) { return d.images * d.channels * d.pixels; }
  static void move(const nn::reorder_desc& d, const buffer& from, const buffer& to) {
    constexpr brgemm::loops::serial alone;
    (*nn::reorder::plan(d))(alone, d.images, from.data(), to.data());
  }

  brgemm::result<void> load() {
    std::fill_n(scale_.as<float>(), l_.d.out, scale_of_all());
    fill(adjacent_x_, l_.d.data, elements(x_order()), 1);
    move(x_order(), adjacent_x_, x_);
    if (l_.type == peer_type::u8s8) {
      fill(w_, brgemm::type::s8, plan_.weights(), 2);
      return plan_.pack_weights(threads_, w_.as<std::int8_t>(), nn::conv_weights::out_first, packed_.data());
    }
    fill(w_, l_.d.data, plan_.weights(), 2);
    fill(adjacent_y_, l_.d.data, elements(y_order()), 3);
    move(y_order(), adjacent_y_, y_);
    const buffer wide(plan_.weights() * 4);
    for (std::int64_t i = 0; i < plan_.weights(); ++i) {
      wide.as<float>()[i] = static_cast<float>(value_of(w_, l_.d.data, i));
    }
    return plan_.pack_weights(threads_, wide.as<float>(), nn::conv_weights::out_first, packed_.data(),
                              l_.d.training ? transposed_.data() : nullptr);
  }

  layer l_;
  nn::conv plan_;
  brgemm::loops::openmp executor_;
  brgemm::loops::executor_ref threads_;
  buffer x_, w_, y_, adjacent_x_, adjacent_y_, packed_, transposed_, workspace_, scale_, result_;
};

void run_conv(benchmark::State& state, const layer& l, const settings& s) {
  for ([[maybe_unused]] auto _ : state) {
    const auto ours = planned_conv::make(l);
    if (!ours) return state.SkipWithError(ours.error().message().data());
    if (auto r = (*ours)->run(); !r) return state.SkipWithError(r.error().message().data());
    const std::int64_t size = (*ours)->result_size();
    const buffer expected(size * 4), theirs(size * 4);
    (*ours)->deliver(expected);

    const ceiling limit = ceiling_of(l.type);
    std::vector<contestant> contestants = {on_threads(limit, l.threads)};
    contestants.push_back({"ours", [&ours](std::int64_t times) {
                             for (std::int64_t i = 0; i < times; ++i) (*ours)->run();
                           }});
    std::vector<std::unique_ptr<peer_task>> tasks;
    const peer_conv problem = (*ours)->problem(theirs);
    const double tolerance = l.type == peer_type::f32 ? 1e-4 : l.type == peer_type::bf16 ? 2e-2 : 1.0 / 254;
    add_peers(
        state, s,
        [&](const peer_api& peer, char* reason, std::size_t room) { return peer.make_conv(problem, reason, room); },
        [&] { return agrees(expected, theirs, (*ours)->result_type(), size, tolerance); }, tasks, contestants);
    effort e = s.layers;
    e.sample_seconds = std::max(e.sample_seconds, l.threads > 1 ? 8e-3 : 2e-3);
    if (l.threads > 1) e.settled = true;
    report(state, contestants, interleave(contestants, e), (*ours)->operations(), limit.operations * l.threads);
  }
}

// What the two differ in most is the products; the peer is ours by the contract's order of sums.
void run_winograd(benchmark::State& state, const layer& l, const settings& s) {
  for ([[maybe_unused]] auto _ : state) {
    layer inexact = l;
    inexact.d.inexact = true;
    const auto ours = planned_conv::make(inexact);
    const auto direct = planned_conv::make(l);
    if (!ours || !direct) return state.SkipWithError((ours ? direct : ours).error().message().data());
    for (const auto* one : {&*ours, &*direct}) {
      if (auto r = (*one)->run(); !r) return state.SkipWithError(r.error().message().data());
    }
    const std::int64_t size = (*ours)->result_size();
    const buffer expected(size * 4), theirs(size * 4);
    (*ours)->deliver(expected), (*direct)->deliver(theirs);
    if (!agrees(expected, theirs, brgemm::type::f32, size, 1e-3)) return state.SkipWithError("the results differ");
    const ceiling limit = ceiling_of(l.type);
    const std::vector<contestant> contestants = {on_threads(limit, l.threads),
                                                 {"ours",
                                                  [&ours](std::int64_t times) {
                                                    for (std::int64_t i = 0; i < times; ++i) (*ours)->run();
                                                  }},
                                                 {"direct", [&direct](std::int64_t times) {
                                                    for (std::int64_t i = 0; i < times; ++i) (*direct)->run();
                                                  }}};
    effort e = s.layers;
    e.sample_seconds = std::max(e.sample_seconds, l.threads > 1 ? 8e-3 : 2e-3);
    if (l.threads > 1) e.settled = true;
    // Work of the products that are done: 36 for 16 outputs, or 16 for 4.
    const double fewer = (*ours)->algorithm() == nn::conv_algorithm::winograd_4x4 ? 4 : 2.25;
    report(state, contestants, interleave(contestants, e), (*ours)->operations() / fewer, limit.operations * l.threads);
  }
}

}  // namespace

bool add_winograd(const problem& p, const settings& s) {
  if (p.words[0] != "winograd") return false;
  layer l{peer_type::f32, {}, static_cast<int>(p.number(6)), peer_pass::forward};
  l.d.images = p.number(1), l.d.in = p.number(2), l.d.out = p.number(3);
  for (std::size_t i = 0; i < 2; ++i) l.d.axes[i + 1] = {p.number(4 + i), 3, 1, 1, 1, 1};
  l.d.bias = false;
  add_case(s,
           "winograd/images" + p.words[1] + "/" + p.words[4] + "x" + p.words[5] + "/" + p.words[2] + "to" + p.words[3] +
               "/threads" + p.words[6],
           [l, &s](benchmark::State& state) { run_winograd(state, l, s); });
  return true;
}

bool add_conv(const problem& p, const settings& s) {
  if (p.words[0] != "conv") return false;
  std::string name = "conv/" + p.words[1] + "/images" + p.words[2] + "/" + p.words[6] + "x" + p.words[7] + "/" +
                     p.words[3] + "to" + p.words[4] + "/kernel" + p.words[8] + "x" + p.words[9];
  if (p.words[5] != "1") name += "/groups" + p.words[5];
  if (p.words[10] != "1" || p.words[11] != "1") name += "/stride" + p.words[10] + "x" + p.words[11];
  name += "/threads" + p.words[14] + "/";
  for (const peer_pass pass : {peer_pass::forward, peer_pass::backward_data, peer_pass::backward_weights}) {
    if (p.words[1] == "u8s8" && pass != peer_pass::forward) continue;
    const layer l = layer_of(p, pass);
    add_case(s, name + name_of(pass), [l, &s](benchmark::State& state) { run_conv(state, l, s); });
  }
  return true;
}

}  // namespace bench
