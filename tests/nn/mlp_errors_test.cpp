// Bad input to nn::mlp: every field of its desc and every argument of every call, wrong in each of its ways. The error
// names it with the numbers, and nothing is written. One without a case fails.
#include <gtest/gtest.h>

#include <brgemm/nn/mlp.hpp>
#include <functional>
#include <memory>

#include "nn/bad_input.hpp"

namespace brgemm_test {
namespace {

using namespace brgemm;
using brgemm::index;

constexpr loops::serial alone;
constexpr index far = index{1} << 62;
constexpr index sizes[] = {4, 5, 6};
constexpr nn::mlp_desc training{.rows = 8, .sizes = sizes};
constexpr nn::mlp_desc inference{.rows = 8, .sizes = sizes, .training = false};

TEST(MlpErrors, EveryFieldOfTheDesc) {
  constexpr index zero[] = {4, 0, 6}, negative[] = {4, -2, 6}, one[] = {4};
  constexpr index large = index{1} << 29;
  constexpr index too_large[] = {4, large + 1, 6}, too_many[] = {large, large, large, large, large, large, large};
  const std::vector<index> too_deep(nn::mlp::max_layers + 2, 1);
  const struct {
    std::string field;
    std::string error_field;
    std::vector<std::string> words;
    nn::mlp_desc d;
    errc code = errc::invalid_argument;
  } cases[] = {
      {"rows", "rows", {"rows is 0", "1..2^29"}, {.rows = 0, .sizes = sizes}},
      {"rows", "rows", {"-3"}, {.rows = -3, .sizes = sizes}},
      {"rows", "rows", {"4611686018427387904"}, {.rows = far, .sizes = sizes}},
      {"sizes", "sizes", {"0 sizes", "2..1025"}, {.rows = 1, .sizes = {}}},
      {"sizes", "sizes", {"1 sizes"}, {.rows = 1, .sizes = one}},
      {"sizes", "sizes", {"3 sizes", "null"}, {.rows = 1, .sizes = {static_cast<const index*>(nullptr), 3}}},
      {"sizes", "sizes", {"1026 sizes"}, {.rows = 1, .sizes = too_deep}},
      {"sizes", "sizes", {"sizes[1] is 0"}, {.rows = 1, .sizes = zero}},
      {"sizes", "sizes", {"sizes[1] is -2"}, {.rows = 1, .sizes = negative}},
      {"sizes", "out", {"out is 536870913"}, {.rows = 1, .sizes = too_large}},
      {"sizes", "sizes", {"2^62"}, {.rows = large, .sizes = too_many}, errc::out_of_memory},
      {"data", "data", {"f16", "f32 or bf16"}, {.rows = 1, .sizes = sizes, .data = type::f16}},
      {"data", "data", {"u8", "f32 or bf16"}, {.rows = 1, .sizes = sizes, .data = type::u8}},
      {"data", "data", {"data is 99"}, {.rows = 1, .sizes = sizes, .data = static_cast<type>(99)}},
      {"hidden", "hidden", {"hidden is 9"}, {.rows = 1, .sizes = sizes, .hidden = static_cast<nn::activation>(9)}},
      {"sums", "sums", {"pair", "f32"}, {.rows = 1, .sizes = sizes, .sums = order::pair}, errc::unsupported},
  };
  std::set<std::string> seen;
  for (const auto& c : cases) {
    SCOPED_TRACE(c.field);
    expect_error(nn::mlp::make(c.d), c.code, c.error_field, c.words);
    seen.insert(c.field);
  }
  expect_a_case_for_each(NAMES_OF(training, rows, sizes, data, hidden, training, sums), seen, {"training"});
  expect_error(nn::mlp::make(training, {.backend = "none such"}), errc::forbidden, "backend", {"none such"});
}

// ---- the calls ----

/// A network after a forward pass of all rows; what it shows of itself is filled, as the caller's memory is.
struct network {
  nn::mlp plan;
  filled_memory memory;
  std::span<const float> logits;

  explicit network(const nn::mlp_desc& d) : plan(nn::mlp::make(d).value_or_throw()) {
    const auto made =
        plan.forward(alone, view<const float, 2>(memory.take<float>(d.rows * 4 * 4), {d.rows, 4})).value_or_throw();
    logits = {made.data(), static_cast<std::size_t>(d.rows * 6)};
    begin_again();
  }
  static std::span<unsigned char> bytes_of(std::span<const float> s) {
    return {reinterpret_cast<unsigned char*>(const_cast<float*>(s.data())), s.size_bytes()};
  }
  bool is_untouched() const {
    return memory.is_untouched() && is_filled(bytes_of(plan.parameters())) && is_filled(bytes_of(plan.gradients())) &&
           is_filled(bytes_of(logits));
  }
  void begin_again() {
    memory.fill();
    for (const auto& s : {std::span<const float>(plan.parameters()), plan.gradients(), logits}) fill(bytes_of(s));
  }
};

// Each call through a pointer, so that no argument is left to its default value: one more does not compile. `threads`
// is no member: every executor is right.

struct set_call {
  using description = nn::mlp_desc;
  static nn::mlp_desc usual() { return training; }
  index l = 0;
  view<const float, 2> w;
  layout stored = layout::plain;
  std::span<const float> bias;
  float* own_weights;  ///< no argument: where a case lays one

  explicit set_call(network& n)
      : w(n.memory.take<float>(80), {4, 5}),
        bias(n.memory.take<float>(20), 5),
        own_weights(n.plan.parameters().data()) {}
  result<void> operator()(network& n) const { return std::invoke(&nn::mlp::set, n.plan, alone, l, w, stored, bias); }
};

TEST(MlpErrors, EveryArgumentOfSet) {
  const std::vector<bad_argument<set_call>> cases = {
      {"l", "layer", {"layer is 2", "0..1"}, [](auto& c) { c.l = 2; }},
      {"l", "layer", {"layer is -1", "0..1"}, [](auto& c) { c.l = -1; }},
      {"w", "w", {"(4,6)", "(4,5)"}, [](auto& c) { reshape(c.w, 4, 6); }},
      {"w", "w", {"strides (4,1)", "5..2^29"}, [](auto& c) { reshape(c.w, 4, 5, 4, 1); }},
      {"w", "w", {"4611686018427387904"}, [](auto& c) { reshape(c.w, 4, 5, far, 1); }},
      {"w", "w", {"null", "80 bytes"}, [](auto& c) { move_to(c.w, nullptr); }},
      {"w", "w", {"multiple of 4"}, [](auto& c) { move_to(c.w, shifted(c.w.data())); }},
      {"w", "w", {"overlaps the network's memory"}, [](auto& c) { move_to(c.w, c.own_weights + 1); }},
      {"stored", "stored", {"stored is 2"}, [](auto& c) { c.stored = layout::interleaved; }},
      {"stored", "w", {"(4,5)", "(5,4)"}, [](auto& c) { c.stored = layout::transposed; }},
      {"bias", "bias", {"4 elements", "5 outputs"}, [](auto& c) { c.bias = c.bias.first(4); }},
      {"bias", "bias", {"0 elements", "5 outputs"}, [](auto& c) { c.bias = {}; }},
      {"bias", "bias", {"null", "20 bytes"}, [](auto& c) { move_to(c.bias, nullptr); }},
      {"bias", "bias", {"multiple of 4"}, [](auto& c) { move_to(c.bias, shifted(c.bias.data())); }},
      {"bias", "bias", {"20 bytes", "overlaps the network's memory"}, [](auto& c) { move_to(c.bias, c.own_weights); }},
  };
  const set_call all(*std::make_unique<network>(training));
  walk<network>(cases, NAMES_OF(all, l, w, stored, bias, own_weights), {"own_weights"});
}

struct get_call {
  using description = nn::mlp_desc;
  static nn::mlp_desc usual() { return training; }
  index l = 0;
  view<float, 2> w;
  layout stored = layout::transposed;
  std::span<float> bias;
  bool gradient = false;
  float *own_weights, *own_bias;  ///< no arguments: where a case lays one

  explicit get_call(network& n)
      : w(n.memory.take<float>(80), {5, 4}),
        bias(n.memory.take<float>(20), 5),
        own_weights(n.plan.parameters().data()),
        own_bias(own_weights + (n.plan.layer(0).parameters() + 15) / 16 * 16) {}
  result<void> operator()(const network& n) const {
    return std::invoke(&nn::mlp::get, n.plan, alone, l, w, stored, bias, gradient);
  }
};

TEST(MlpErrors, EveryArgumentOfGet) {
  const std::vector<bad_argument<get_call>> cases = {
      {"l", "layer", {"layer is 2", "0..1"}, [](auto& c) { c.l = 2; }},
      {"l", "layer", {"layer is -1", "0..1"}, [](auto& c) { c.l = -1; }},
      {"w", "w", {"(4,5)", "(5,4)"}, [](auto& c) { reshape(c.w, 4, 5); }},
      {"w", "w", {"strides (3,1)", "4..2^29"}, [](auto& c) { reshape(c.w, 5, 4, 3, 1); }},
      {"w", "w", {"null", "80 bytes"}, [](auto& c) { move_to(c.w, nullptr); }},
      {"w", "w", {"multiple of 4"}, [](auto& c) { move_to(c.w, shifted(c.w.data())); }},
      {"w", "w", {"overlaps the network's memory"}, [](auto& c) { move_to(c.w, c.own_weights); }},
      {"w", "w", {"overlaps the network's memory"}, [](auto& c) { move_to(c.w, c.own_bias + 4); }},
      {"stored", "stored", {"stored is 2"}, [](auto& c) { c.stored = layout::interleaved; }},
      {"stored", "w", {"(5,4)", "(4,5)"}, [](auto& c) { c.stored = layout::plain; }},
      {"bias", "bias", {"2 elements", "5 outputs"}, [](auto& c) { c.bias = c.bias.first(2); }},
      {"bias", "bias", {"null", "20 bytes"}, [](auto& c) { move_to(c.bias, nullptr); }},
      {"bias", "bias", {"multiple of 4"}, [](auto& c) { move_to(c.bias, shifted(c.bias.data())); }},
      {"bias", "w", {"overlaps bias", "80 bytes"}, [](auto& c) { move_to(c.bias, c.w.data() + 19); }},
      {"bias", "bias", {"overlaps the network's memory"}, [](auto& c) { move_to(c.bias, c.own_weights); }},
      {"gradient", "training", {"gradients", "training = true"}, [](auto& c) { c.gradient = true; }, inference},
  };
  const get_call all(*std::make_unique<network>(training));
  walk<network>(cases, NAMES_OF(all, l, w, stored, bias, gradient, own_weights, own_bias), {"own_weights", "own_bias"});
}

struct forward_call {
  using description = nn::mlp_desc;
  static nn::mlp_desc usual() { return training; }
  view<const float, 2> x;

  explicit forward_call(network& n) : x(n.memory.take<float>(8 * 4 * 4), {8, 4}) {}
  auto operator()(network& n) const { return std::invoke(&nn::mlp::forward, n.plan, alone, x); }
};

TEST(MlpErrors, EveryArgumentOfForward) {
  const std::vector<bad_argument<forward_call>> cases = {
      {"x", "rows", {"x has 0 rows", "1..8"}, [](auto& c) { reshape(c.x, 0, 4); }},
      {"x", "rows", {"x has 9 rows", "1..8"}, [](auto& c) { reshape(c.x, 9, 4); }},
      {"x", "rows", {"x has -1 rows", "1..8"}, [](auto& c) { reshape(c.x, -1, 4); }},
      {"x", "x", {"null", "128 bytes"}, [](auto& c) { move_to(c.x, nullptr); }},
      {"x", "x", {"multiple of 4"}, [](auto& c) { move_to(c.x, shifted(c.x.data())); }},
      {"x", "x", {"(8,5)", "(rows,4)"}, [](auto& c) { reshape(c.x, 8, 5); }},
      {"x", "x", {"strides (3,1)"}, [](auto& c) { reshape(c.x, 8, 4, 3, 1); }},
      {"x", "x", {"strides (8,2)"}, [](auto& c) { reshape(c.x, 8, 4, 8, 2); }},
      {"x", "x", {"4611686018427387904"}, [](auto& c) { reshape(c.x, 8, 4, far, 1); }},
  };
  const forward_call all(*std::make_unique<network>(training));
  walk<network>(cases, NAMES_OF(all, x));
}

struct backward_call {
  using description = nn::mlp_desc;
  static nn::mlp_desc usual() { return training; }
  view<const float, 2> gradient;
  const float* gradients;  ///< no argument: where a case lays one

  explicit backward_call(network& n)
      : gradient(n.memory.take<float>(8 * 6 * 4), {8, 6}), gradients(n.plan.gradients().data()) {}
  result<void> operator()(network& n) const { return std::invoke(&nn::mlp::backward, n.plan, alone, gradient); }
};

TEST(MlpErrors, EveryArgumentOfBackward) {
  const std::vector<bad_argument<backward_call>> cases = {
      {"gradient", "gradient", {"(7,6)", "(8,6)"}, [](auto& c) { reshape(c.gradient, 7, 6); }},
      {"gradient", "gradient", {"(8,5)", "(8,6)"}, [](auto& c) { reshape(c.gradient, 8, 5); }},
      {"gradient", "gradient", {"null", "192 bytes"}, [](auto& c) { move_to(c.gradient, nullptr); }},
      {"gradient", "gradient", {"strides (7,1)"}, [](auto& c) { reshape(c.gradient, 8, 6, 7, 1); }},
      {"gradient", "gradient", {"multiple of 4"}, [](auto& c) { move_to(c.gradient, shifted(c.gradient.data())); }},
      {"gradient", "gradient", {"192 bytes", "overlaps"}, [](auto& c) { move_to(c.gradient, c.gradients); }},
      {"", "training", {"backward", "training = true"}, {}, inference},
  };
  const backward_call all(*std::make_unique<network>(training));
  walk<network>(cases, NAMES_OF(all, gradient, gradients), {"gradients"});
}

TEST(MlpErrors, BackwardNeedsAForwardBeforeIt) {
  nn::mlp fresh = nn::mlp::make(training).value_or_throw();
  const std::vector<float> gradient(8 * 6, 1);
  for (const index rows : {0, 8}) {
    expect_error(fresh.backward(alone, view<const float, 2>(gradient.data(), {rows, 6})), errc::invalid_argument,
                 "rows", {"forward before"});
  }
  for (const float g : fresh.gradients()) EXPECT_EQ(g, 0);
}

}  // namespace
}  // namespace brgemm_test
