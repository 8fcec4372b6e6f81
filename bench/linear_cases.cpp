// Fully connected layers, without bias and activation, which the peers' products have none of either:
//   linear TYPE ROWS IN OUT THREADS          f32, bf16, or f32 by pieces (bf16x3, bf16x2): forward, backward by data,
//                                            weight update; u8s8: forward, y u8 by a scale a feature
// Ours and oneDNN keep activations and weights in the layout they like best, prepared outside the timing. In bf16 the
// weight update writes f32, as training with f32 master weights needs. With one row the limit is reading the weights.
#include <algorithm>
#include <brgemm/loops/parallel_for.hpp>
#include <brgemm/nn/linear.hpp>
#include <cmath>
#include <memory>
#include <optional>

#include "cases.hpp"
#include "operands.hpp"

namespace bench {
namespace {

namespace nn = brgemm::nn;
using brgemm::result;

struct layer {
  peer_type type;
  brgemm::math compute;
  std::int64_t rows, in, out;
  int threads;
  peer_pass pass;
};

bool is_8bit(const layer& l) { return l.type == peer_type::u8s8; }
brgemm::type type_of(const layer& l) {
  return is_8bit(l) ? brgemm::type::u8 : l.type == peer_type::bf16 ? brgemm::type::bf16 : brgemm::type::f32;
}
brgemm::type weights_type_of(const layer& l) { return is_8bit(l) ? brgemm::type::s8 : type_of(l); }
// Of all features of u8s8: sums of `in` random products then lie within u8 for the most part.
float scale_of(const layer& l) { return 100.0f / (127 * 127 * std::sqrt(static_cast<float>(l.in))); }
brgemm::type result_type_of(const layer& l) {
  return l.pass == peer_pass::backward_weights ? brgemm::type::f32 : type_of(l);
}
std::int64_t result_size_of(const layer& l) {
  switch (l.pass) {
    case peer_pass::forward: return l.rows * l.out;
    case peer_pass::backward_data: return l.rows * l.in;
    case peer_pass::backward_weights: break;
  }
  return l.out * l.in;
}

// Plain matrices that ours and the peers start from: x (rows,in), w (out,in), y (rows,out).
struct plain_matrices {
  buffer x, w, y;
  explicit plain_matrices(const layer& l) : x(l.rows * l.in * 4), w(l.out * l.in * 4), y(l.rows * l.out * 4) {
    fill(x, type_of(l), l.rows * l.in, 1);
    fill(w, weights_type_of(l), l.out * l.in, 2);
    fill(y, type_of(l), l.rows * l.out, 3);
  }
  const buffer& result(const layer& l) const {
    return l.pass == peer_pass::forward ? y : l.pass == peer_pass::backward_data ? x : w;
  }
};

// A layer of ours made ready: its plan and all its memory.
class planned_layer {
 public:
  static result<std::unique_ptr<planned_layer>> make(const layer& l, nn::storage storage, const plain_matrices& from) {
    nn::linear_desc d;
    d.rows = l.rows, d.in = l.in, d.out = l.out;
    d.data = d.y = type_of(l);
    d.compute = l.compute;
    d.bias = false;
    d.training = l.pass != peer_pass::forward;
    if (nn::can_block(l.in)) d.x_storage = storage;
    if (nn::can_block(l.out)) d.y_storage = storage;
    auto plan = nn::linear::plan(d);
    if (!plan) return plan.error();
    const auto executor = brgemm::loops::openmp::make(l.threads);
    if (!executor) return executor.error();
    std::unique_ptr<planned_layer> made(new planned_layer(l, *std::move(plan), *executor));
    if (auto r = made->load(from); !r) return r.error();
    return made;
  }

  result<void> run() const {
    switch (l_.pass) {
      case peer_pass::forward:
        return plan_.forward(threads_, l_.rows, x_.data(), weights(), nullptr, y_.data(), nullptr, quantised(),
                             plan_.forward_workspace_bytes() > 0 ? workspace_.data() : nullptr);
      case peer_pass::backward_data:
        return plan_.backward_data(threads_, l_.rows, y_.data(), weights(), x_.data(), nullptr,
                                   plan_.backward_data_workspace_bytes() > 0 ? workspace_.data() : nullptr);
      case peer_pass::backward_weights: break;
    }
    void* const workspace = plan_.backward_weights_workspace_bytes() > 0 ? workspace_.data() : nullptr;
    return plan_.backward_weights(threads_, l_.rows, x_.data(), y_.data(), gradient_.as<float>(), nullptr, workspace);
  }

  // What forward or backward_data reads.
  const void* weights() const {
    if (l_.pass == peer_pass::backward_data) return transposed_.data();
    return makes_weights() ? weights_.data() : parameters_.data();
  }

  // With plain storage: the result of the last run in the layout of `plain_matrices`.
  result<void> deliver(const buffer& to) const {
    if (l_.pass == peer_pass::backward_weights) {
      return plan_.unpack_parameters(threads_, gradient_.as<float>(),
                                     brgemm::view<float, 2>(to.as<float>(), {l_.out, l_.in}),
                                     brgemm::layout::transposed);
    }
    const buffer& from = l_.pass == peer_pass::forward ? y_ : x_;
    std::memcpy(to.data(), from.data(), static_cast<std::size_t>(result_size_of(l_) * brgemm::size_of(type_of(l_))));
    return {};
  }

 private:
  planned_layer(const layer& l, nn::linear plan, brgemm::loops::openmp executor)
      : l_(l),
        plan_(std::move(plan)),
        executor_(executor),
        threads_(executor_),
        x_(plan_.x_bytes()),
        y_(plan_.y_bytes()),
        parameters_(plan_.parameters() * 4),
        weights_(plan_.weights_bytes()),
        transposed_(plan_.transposed_bytes()),
        gradient_(plan_.parameters() * 4),
        scale_(l.out * 4),
        column_sums_(nn::panels(l.out) * nn::block_width(l.out) * 4),
        workspace_(std::max({plan_.backward_weights_workspace_bytes(), plan_.forward_workspace_bytes(),
                             plan_.backward_data_workspace_bytes()})) {}

  bool makes_weights() const { return l_.type != peer_type::f32 || l_.compute != brgemm::math::f32; }
  nn::quantisation quantised() const {
    if (!is_8bit(l_)) return {};
    return {.scale = scale_.as<float>(), .column_sums = column_sums_.as<std::int32_t>()};
  }

  // Blocked activations get random values of their own: what they are does not matter to the time.
  result<void> load(const plain_matrices& from) {
    const brgemm::type t = type_of(l_);
    fill(x_, t, plan_.x_bytes() / brgemm::size_of(t), 1);
    fill(y_, t, plan_.y_bytes() / brgemm::size_of(t), 3);
    if (is_8bit(l_)) {
      std::fill_n(scale_.as<float>(), l_.out, scale_of(l_));
      const brgemm::view<const std::int8_t, 2> bytes(from.w.as<std::int8_t>(), {l_.out, l_.in});
      return plan_.pack_weights(threads_, bytes, brgemm::layout::transposed, weights_.as<std::int8_t>(),
                                column_sums_.as<std::int32_t>());
    }
    buffer wide(l_.out * l_.in * 4);
    for (std::int64_t i = 0; i < l_.out * l_.in; ++i) {
      wide.as<float>()[i] = static_cast<float>(value_of(from.w, t, i));
    }
    const brgemm::view<const float, 2> w(wide.as<float>(), {l_.out, l_.in});
    auto r = plan_.pack_weights(threads_, w, brgemm::layout::transposed, parameters_.as<float>());
    if (!r) return r;
    return plan_.prepare(threads_, parameters_.as<float>(), makes_weights() ? weights_.data() : nullptr,
                         l_.pass == peer_pass::backward_data ? transposed_.data() : nullptr);
  }

  layer l_;
  nn::linear plan_;
  brgemm::loops::openmp executor_;
  brgemm::loops::executor_ref threads_;
  buffer x_, y_, parameters_, weights_, transposed_, gradient_, scale_, column_sums_, workspace_;
};

// Our result in plain layout, which the peers' must agree with.
result<void> expected_result(const layer& l, const plain_matrices& from, const buffer& to) {
  const auto plain = planned_layer::make(l, nn::storage::plain, from);
  if (!plain) return plain.error();
  if (auto r = (*plain)->run(); !r) return r;
  return (*plain)->deliver(to);
}

// Of the first `count` contestants the quickest stays.
void keep_the_quickest(std::vector<contestant>& contestants, std::vector<std::vector<double>>& seconds, int count) {
  for (int i = 1; i < count; ++i) {
    if (median(seconds[1]) < median(seconds[0])) std::swap(seconds[0], seconds[1]);
    contestants.erase(contestants.begin() + 1);
    seconds.erase(seconds.begin() + 1);
  }
}

void run_linear(benchmark::State& state, const layer& l, const settings& s) {
  for ([[maybe_unused]] auto _ : state) {
    const plain_matrices plain(l);
    const buffer expected(result_size_of(l) * 4);
    if (auto r = expected_result(l, plain, expected); !r) return state.SkipWithError(r.error().message().data());
    const auto ours = planned_layer::make(l, nn::storage::blocked, plain);
    if (!ours) return state.SkipWithError(ours.error().message().data());
    if (auto r = (*ours)->run(); !r) return state.SkipWithError(r.error().message().data());

    const bool pieces = l.compute != brgemm::math::f32;
    const std::int64_t weights_bytes = l.in * l.out * brgemm::size_of(type_of(l));
    const bool reading = l.rows == 1 && !pieces && l.pass != peer_pass::backward_weights &&
                         weights_bytes >= l.threads * read_bandwidth::granule;
    const ceiling limit = ceiling_of(pieces ? peer_type::bf16 : l.type);
    std::optional<read_bandwidth> read;
    if (reading) read.emplace((*ours)->weights(), weights_bytes, l.threads);
    std::vector<contestant> contestants;
    for (int i = 0; reading && i < read_bandwidth::count; ++i) {
      contestants.push_back({"ceiling", [&read, i](std::int64_t times) { (*read)(i, times); }});
    }
    if (!reading) contestants.push_back(on_threads(limit, l.threads));
    contestants.push_back({"ours", [&ours](std::int64_t times) {
                             for (std::int64_t i = 0; i < times; ++i) (*ours)->run();
                           }});
    std::vector<std::unique_ptr<peer_task>> tasks;
    const peer_linear problem{l.type,    l.pass,      l.rows,         l.in,           l.out,
                              l.threads, scale_of(l), plain.x.data(), plain.w.data(), plain.y.data()};
    const double tolerance = is_8bit(l)                          ? 1.0 / 254
                             : l.type == peer_type::bf16         ? 2e-2
                             : l.compute == brgemm::math::bf16x2 ? 1e-3
                                                                 : 1e-4;
    add_peers(
        state, s,
        [&](const peer_api& peer, char* reason, std::size_t size) { return peer.make_linear(problem, reason, size); },
        [&] { return agrees(expected, plain.result(l), result_type_of(l), result_size_of(l), tolerance); }, tasks,
        contestants);
    effort e = s.layers;
    // Starting threads is then little, and a cache that others have filled holds the weights as far as it can.
    e.sample_seconds = std::max(e.sample_seconds, l.threads > 1 || reading ? 8e-3 : 2e-3);
    if (l.threads > 1) e.settled = true;
    if (reading) e.warm_share = 1;
    const double work = reading ? static_cast<double>(weights_bytes) : 2.0 * static_cast<double>(l.rows * l.in * l.out);
    auto seconds = interleave(contestants, e);
    if (reading) keep_the_quickest(contestants, seconds, read_bandwidth::count);
    report(state, contestants, seconds, work,
           reading ? read->bytes() : limit.operations * l.threads / products_of(l.compute));
    state.counters["reading"] = reading ? 1 : 0;
  }
}

}  // namespace

bool add_linear(const problem& p, const settings& s) {
  if (p.words[0] != "linear") return false;
  const peer_type type = p.words[1] == "bf16"   ? peer_type::bf16
                         : p.words[1] == "u8s8" ? peer_type::u8s8
                                                : peer_type::f32;
  for (const peer_pass pass : {peer_pass::forward, peer_pass::backward_data, peer_pass::backward_weights}) {
    if (type == peer_type::u8s8 && pass != peer_pass::forward) continue;
    const layer l{type,        math_of(p.words[1]),           p.number(2), p.number(3),
                  p.number(4), static_cast<int>(p.number(5)), pass};
    const std::string shape = p.words[2] + "x" + p.words[3] + "x" + p.words[4];
    add_case(s, "linear/" + p.words[1] + "/" + shape + "/threads" + p.words[5] + "/" + name_of(pass),
             [l, &s](benchmark::State& state) { run_linear(state, l, s); });
  }
  return true;
}

}  // namespace bench
