// Bad input to nn::linear: every field of its desc and of `quantisation`, and every argument of every call, wrong in
// each of its ways. The error names it with the numbers, and nothing is written. One without a case fails.
#include <gtest/gtest.h>

#include <algorithm>
#include <brgemm/nn/linear.hpp>
#include <functional>
#include <memory>

#include "nn/bad_input.hpp"

namespace brgemm_test {
namespace {

using namespace brgemm;
using brgemm::index;
using nn::activation;
using nn::linear_desc;
using nn::storage;

constexpr loops::serial alone;
constexpr index far = index{1} << 62;

// ---- the desc ----

constexpr linear_desc training{
    .rows = 4, .in = 20, .out = 30, .act = activation::relu, .training = true, .input_act = activation::relu};
constexpr linear_desc inference{.rows = 4, .in = 20, .out = 30};

linear_desc with(linear_desc d, type data, type y) {
  d.data = data;
  d.y = y;
  return d;
}
linear_desc by_pieces() {
  linear_desc d = training;
  d.compute = math::bf16x3;
  return d;
}
linear_desc bf16_training() { return with(training, type::bf16, type::bf16); }
linear_desc quantised() { return with(inference, type::u8, type::f32); }
linear_desc exact_sums() {
  linear_desc d = with(inference, type::s8, type::s32);
  d.bias = false;
  return d;
}

TEST(LinearErrors, EveryFieldOfTheDesc) {
  const struct {
    std::string field;
    std::vector<std::string> words;
    linear_desc d;
    void (*change)(linear_desc&);
    errc code = errc::invalid_argument;
  } cases[] = {
      {"rows", {"rows is 0", "1..2^29"}, training, [](auto& d) { d.rows = 0; }},
      {"rows", {"-5"}, training, [](auto& d) { d.rows = -5; }},
      {"rows", {"536870913"}, training, [](auto& d) { d.rows = (1 << 29) + 1; }},
      {"in", {"in is -1"}, training, [](auto& d) { d.in = -1; }},
      {"in", {"4611686018427387904"}, training, [](auto& d) { d.in = far; }},
      {"out", {"out is 0"}, training, [](auto& d) { d.out = 0; }},
      {"out", {"4611686018427387904"}, training, [](auto& d) { d.out = far; }},
      {"data", {"data is 99"}, training, [](auto& d) { d.data = static_cast<type>(99); }},
      {"data", {"f16", "f32, bf16"}, training, [](auto& d) { d.data = type::f16; }, errc::unsupported},
      {"y", {"y is 77"}, training, [](auto& d) { d.y = static_cast<type>(77); }},
      {"y", {"bf16", "f32"}, training, [](auto& d) { d.y = type::bf16; }, errc::unsupported},
      {"y", {"s32", "f32"}, training, [](auto& d) { d.y = type::s32; }, errc::unsupported},
      {"y", {"f16", "u8"}, quantised(), [](auto& d) { d.y = type::f16; }, errc::unsupported},
      {"y", {"e4m3", "u8"}, quantised(), [](auto& d) { d.y = type::e4m3; }, errc::unsupported},
      {"compute", {"compute is 3", "0..2"}, training, [](auto& d) { d.compute = static_cast<math>(3); }},
      {"compute",
       {"compute is 2", "bf16"},
       bf16_training(),
       [](auto& d) { d.compute = math::bf16x3; },
       errc::unsupported},
      {"compute", {"compute is 1", "u8"}, quantised(), [](auto& d) { d.compute = math::bf16x2; }, errc::unsupported},
      {"sums", {"pair", "f32"}, training, [](auto& d) { d.sums = order::pair; }, errc::unsupported},
      {"sums", {"chain", "bf16"}, bf16_training(), [](auto& d) { d.sums = order::chain; }, errc::unsupported},
      {"sums", {"sums is 9"}, training, [](auto& d) { d.sums = static_cast<order>(9); }},
      {"sums", {"sums is 9"}, by_pieces(), [](auto& d) { d.sums = static_cast<order>(9); }},
      {"sums", {"pieces"}, by_pieces(), [](auto& d) { d.sums = order::pair; }, errc::unsupported},
      {"act", {"act is 8", "0..7"}, training, [](auto& d) { d.act = static_cast<activation>(8); }},
      {"act", {"act is 1", "s32"}, exact_sums(), [](auto& d) { d.act = activation::relu; }, errc::unsupported},
      {"bias", {"true", "s32"}, exact_sums(), [](auto& d) { d.bias = true; }, errc::unsupported},
      {"training", {"u8", "forward"}, quantised(), [](auto& d) { d.training = true; }, errc::unsupported},
      {"training", {"s8", "forward"}, exact_sums(), [](auto& d) { d.training = true; }, errc::unsupported},
      {"input_act", {"input_act is 200"}, training, [](auto& d) { d.input_act = static_cast<activation>(200); }},
      {"input_act", {"training is false"}, inference, [](auto& d) { d.input_act = activation::relu; }},
      {"x_storage", {"x_storage is 2"}, training, [](auto& d) { d.x_storage = static_cast<storage>(2); }},
      {"x_storage", {"100 features", "64"}, training, [](auto& d) { d.in = 100, d.x_storage = storage::blocked; }},
      {"y_storage", {"y_storage is 3"}, training, [](auto& d) { d.y_storage = static_cast<storage>(3); }},
      {"y_storage", {"100 features", "64"}, training, [](auto& d) { d.out = 100, d.y_storage = storage::blocked; }},
      {"ldx", {"ldx is 19", "20"}, training, [](auto& d) { d.ldx = 19; }},
      {"ldx", {"ldx is -7", "20"}, training, [](auto& d) { d.ldx = -7; }},
      {"ldx", {"4611686018427387904", "2^29"}, training, [](auto& d) { d.ldx = far; }},
      {"ldy", {"ldy is 29", "30"}, training, [](auto& d) { d.ldy = 29; }},
      {"ldy", {"ldy is 64"}, training, [](auto& d) { d.out = d.ldy = 64, d.y_storage = storage::blocked; }},
  };
  std::set<std::string> seen;
  for (const auto& c : cases) {
    SCOPED_TRACE(c.field);
    linear_desc d = c.d;
    const auto right = nn::linear::plan(d);
    ASSERT_TRUE(right) << right.error().message();
    c.change(d);
    expect_error(nn::linear::plan(d), c.code, c.field, c.words);
    seen.insert(c.field);
  }
  expect_a_case_for_each(NAMES_OF(training, rows, in, out, data, y, compute, sums, act, bias, training, input_act,
                                  x_storage, y_storage, ldx, ldy),
                         seen);
  expect_error(nn::linear::plan(training, {.backend = "none such"}), errc::forbidden, "backend", {"none such"});
}

// ---- the calls ----

/// A plan, and memory for each of its calls.
struct layer {
  nn::linear plan;
  filled_memory memory;
  explicit layer(const linear_desc& d) : plan(nn::linear::plan(d).value_or_throw()) {}

  bool is_untouched() const { return memory.is_untouched(); }
  void begin_again() { memory.fill(); }
  const linear_desc& d() const { return plan.description(); }
  /// dy or dz.
  void* gradient() { return memory.take(plan.y_bytes() / size_of(d().y) * size_of(d().data)); }
  float* parameters() { return memory.take<float>(plan.parameters() * 4); }
  std::int32_t* column_sums() { return memory.take<std::int32_t>(nn::panels(d().out) * nn::block_width(d().out) * 4); }
  bool has_8_bits() const { return size_of(d().data) == 1; }
};

// Each call through a pointer, so that no argument is left to its default value: one more does not compile. `threads`
// is no member: every executor is right.

struct forward_call {
  using description = linear_desc;
  static linear_desc usual() { return training; }
  index rows;
  const void *x, *weights;
  const float* bias;
  void *y, *saved;
  nn::quantisation q;
  void* workspace;

  explicit forward_call(layer& l)
      : rows(l.d().rows),
        x(l.memory.take(l.plan.x_bytes())),
        weights(l.memory.take(l.plan.weights_bytes())),
        bias(l.memory.take<float>(l.d().bias ? l.d().out * 4 : 0)),
        y(l.memory.take(l.plan.y_bytes())),
        saved(l.memory.take(l.plan.saved_bytes())),
        workspace(l.memory.take(l.plan.forward_workspace_bytes())) {
    if (l.has_8_bits()) q.column_sums = l.column_sums();
    if (l.has_8_bits() && l.d().y != type::s32) q.scale = l.memory.take<float>(l.d().out * 4);
  }
  result<void> operator()(const layer& l) const {
    result<void> (nn::linear::*const call)(loops::executor_ref, index, const void*, const void*, const float*, void*,
                                           void*, const nn::quantisation&, void*) const noexcept = &nn::linear::forward;
    return (l.plan.*call)(alone, rows, x, weights, bias, y, saved, q, workspace);
  }
};

TEST(LinearErrors, EveryArgumentOfForward) {
  const std::vector<bad_argument<forward_call>> cases = {
      {"rows", "rows", {"rows is 0", "1..4"}, [](auto& c) { c.rows = 0; }},
      {"rows", "rows", {"rows is 5", "1..4"}, [](auto& c) { c.rows = 5; }},
      {"rows", "rows", {"-4611686018427387904"}, [](auto& c) { c.rows = -far; }},
      {"x", "x", {"null", "320 bytes"}, [](auto& c) { c.x = nullptr; }},
      {"x", "x", {"multiple of 4"}, [](auto& c) { c.x = shifted(c.x); }},
      {"x", "x", {"multiple of 2"}, [](auto& c) { c.x = shifted(c.x, 1); }, bf16_training()},
      {"x", "x", {"320 bytes", "address space"}, [](auto& c) { c.x = reinterpret_cast<void*>(~std::uintptr_t{15}); }},
      {"x", "y", {"480 bytes", "overlaps x", "320 bytes"}, [](auto& c) { c.x = shifted(c.y, -316); }},
      {"weights", "weights", {"null", "bytes of it are used"}, [](auto& c) { c.weights = nullptr; }},
      {"weights", "weights", {"multiple of 4"}, [](auto& c) { c.weights = shifted(c.weights); }},
      {"weights", "saved", {"16 bytes", "overlaps weights"}, [](auto& c) { c.weights = c.saved; }},
      {"bias", "bias", {"null", "120 bytes"}, [](auto& c) { c.bias = nullptr; }},
      {"bias", "bias", {"multiple of 4"}, [](auto& c) { c.bias = shifted(c.bias); }},
      {"bias", "bias", {"must be null"}, [](auto& c) { lay_on(c.bias, c.weights); }, exact_sums()},
      {"bias", "y", {"480 bytes", "overlaps bias"}, [](auto& c) { lay_on(c.bias, shifted(c.y, 476)); }},
      {"y", "y", {"null", "480 bytes"}, [](auto& c) { c.y = nullptr; }},
      {"y", "y", {"multiple of 4"}, [](auto& c) { c.y = shifted(c.y); }},
      {"y", "y", {"480 bytes", "overlaps weights"}, [](auto& c) { lay_on(c.y, shifted(c.weights, 4)); }},
      {"saved", "saved", {"null", "16 bytes"}, [](auto& c) { c.saved = nullptr; }},
      {"saved", "saved", {"must be null"}, [](auto& c) { lay_on(c.saved, c.x); }, inference},
      {"saved", "y", {"overlaps saved", "16 bytes"}, [](auto& c) { c.saved = shifted(c.y, 479); }},
      {"q", "scale", {"must be null"}, [](auto& c) { c.q.scale = c.bias; }},
      {"q", "column_sums", {"must be null"}, [](auto& c) { lay_on(c.q.column_sums, c.bias); }},
      {"workspace", "workspace", {"must be null"}, [](auto& c) { lay_on(c.workspace, c.x); }},
      {"workspace", "workspace", {"null", "768 bytes"}, [](auto& c) { c.workspace = nullptr; }, by_pieces()},
      {"workspace", "workspace", {"multiple of 4"}, [](auto& c) { c.workspace = shifted(c.workspace); }, by_pieces()},
      {"workspace", "workspace", {"overlaps x"}, [](auto& c) { lay_on(c.workspace, c.x); }, by_pieces()},
  };
  const forward_call all(*std::make_unique<layer>(training));
  walk<layer>(cases, NAMES_OF(all, rows, x, weights, bias, y, saved, q, workspace));
}

TEST(LinearErrors, EveryFieldOfQuantisation) {
  const std::vector<bad_argument<forward_call>> cases = {
      {"scale", "scale", {"null", "120 bytes"}, [](auto& c) { c.q.scale = nullptr; }, quantised()},
      {"scale", "scale", {"multiple of 4"}, [](auto& c) { c.q.scale = shifted(c.q.scale); }, quantised()},
      {"scale", "scale", {"must be null"}, [](auto& c) { lay_on(c.q.scale, c.weights); }, exact_sums()},
      {"scale", "y", {"overlaps scale", "120 bytes"}, [](auto& c) { lay_on(c.q.scale, c.y); }, quantised()},
      {"column_sums", "column_sums", {"null", "120 bytes"}, [](auto& c) { c.q.column_sums = nullptr; }, quantised()},
      {"column_sums", "column_sums", {"null", "120 bytes"}, [](auto& c) { c.q.column_sums = nullptr; }, exact_sums()},
      {"column_sums",
       "column_sums",
       {"multiple of 4"},
       [](auto& c) { c.q.column_sums = shifted(c.q.column_sums); },
       quantised()},
      {"column_sums", "y", {"overlaps column_sums"}, [](auto& c) { lay_on(c.q.column_sums, c.y); }, quantised()},
  };
  walk<layer>(cases, NAMES_OF(nn::quantisation{}, scale, zero_x, column_sums), {"zero_x"});
}

struct forward_views_call {
  using description = linear_desc;
  static linear_desc usual() { return inference; }
  view<const float, 2> x;
  const void* weights;
  const float* bias;
  view<float, 2> y;
  void* saved = nullptr;
  nn::quantisation q = {};
  void* workspace = nullptr;

  explicit forward_views_call(layer& l)
      : x(l.memory.take<float>(l.plan.x_bytes()), {4, l.d().in}),
        weights(l.memory.take(l.plan.weights_bytes())),
        bias(l.memory.take<float>(l.d().out * 4)),
        y(l.memory.take<float>(l.plan.y_bytes()), {4, l.d().out}) {}
  result<void> operator()(const layer& l) const {
    result<void> (nn::linear::*const call)(loops::executor_ref, const view<const float, 2>&, const void*, const float*,
                                           const view<float, 2>&, void*, const nn::quantisation&, void*)
        const noexcept = &nn::linear::forward<float, float>;
    return (l.plan.*call)(alone, x, weights, bias, y, saved, q, workspace);
  }
};

linear_desc blocked_x() {
  linear_desc d = inference;
  d.in = 64;
  d.x_storage = storage::blocked;
  return d;
}
linear_desc blocked_y() {
  linear_desc d = inference;
  d.out = 64;
  d.y_storage = storage::blocked;
  return d;
}

TEST(LinearErrors, EveryArgumentOfForwardWithViews) {
  const std::vector<bad_argument<forward_views_call>> cases = {
      {"x", "x", {"(4,21)", "20 features"}, [](auto& c) { reshape(c.x, 4, 21); }},
      {"x", "x", {"strides (21,1)"}, [](auto& c) { reshape(c.x, 4, 20, 21, 1); }},
      {"x", "x", {"strides (20,2)"}, [](auto& c) { reshape(c.x, 4, 20, 20, 2); }},
      {"x",
       "rows",
       {"rows is 0", "1..4"},
       [](auto& c) {
         c.x = {nullptr, {0, 20}}, c.y = {nullptr, {0, 30}};
       }},
      {"x", "x", {"null", "320 bytes"}, [](auto& c) { move_to(c.x, nullptr); }},
      {"weights", "weights", {"null"}, [](auto& c) { c.weights = nullptr; }},
      {"bias", "bias", {"null", "120 bytes"}, [](auto& c) { c.bias = nullptr; }},
      {"y", "y", {"(4,29)", "30 features"}, [](auto& c) { reshape(c.y, 4, 29, 30, 1); }},
      {"y", "y", {"strides (30,2)"}, [](auto& c) { reshape(c.y, 4, 30, 30, 2); }},
      {"y", "y", {"x has 4 rows, y has 3"}, [](auto& c) { reshape(c.y, 3, 30); }},
      {"y", "y", {"null", "480 bytes"}, [](auto& c) { move_to(c.y, nullptr); }},
      {"saved", "saved", {"must be null"}, [](auto& c) { lay_on(c.saved, c.bias); }},
      {"q", "scale", {"must be null"}, [](auto& c) { c.q.scale = c.bias; }},
      {"workspace", "workspace", {"must be null"}, [](auto& c) { lay_on(c.workspace, c.bias); }},
      {"x", "x", {"elements of f32", "bf16"}, {}, with(inference, type::bf16, type::f32)},
      {"x", "x", {"blocked"}, {}, blocked_x()},
      {"y", "y", {"blocked"}, {}, blocked_y()},
  };
  const forward_views_call all(*std::make_unique<layer>(inference));
  walk<layer>(cases, NAMES_OF(all, x, weights, bias, y, saved, q, workspace));
}

struct backward_activation_call {
  using description = linear_desc;
  static linear_desc usual() { return training; }
  index rows;
  const void *dy, *saved;
  void* dz;

  explicit backward_activation_call(layer& l)
      : rows(4), dy(l.gradient()), saved(l.memory.take(l.plan.saved_bytes())), dz(l.gradient()) {}
  result<void> operator()(const layer& l) const {
    return std::invoke(&nn::linear::backward_activation, l.plan, alone, rows, dy, saved, dz);
  }
};

TEST(LinearErrors, EveryArgumentOfBackwardActivation) {
  const std::vector<bad_argument<backward_activation_call>> cases = {
      {"rows", "rows", {"rows is -1", "1..4"}, [](auto& c) { c.rows = -1; }},
      {"rows", "rows", {"rows is 5", "1..4"}, [](auto& c) { c.rows = 5; }},
      {"dy", "dy", {"null", "480 bytes"}, [](auto& c) { c.dy = nullptr; }},
      {"dy", "dy", {"multiple of 4"}, [](auto& c) { c.dy = shifted(c.dy); }},
      {"dy", "dz", {"480 bytes", "overlaps dy"}, [](auto& c) { c.dy = shifted(c.dz, 4); }},
      {"saved", "saved", {"null", "16 bytes"}, [](auto& c) { c.saved = nullptr; }},
      {"saved", "dz", {"overlaps saved", "16 bytes"}, [](auto& c) { c.saved = shifted(c.dz, 479); }},
      {"dz", "dz", {"null", "480 bytes"}, [](auto& c) { c.dz = nullptr; }},
      {"dz", "dz", {"multiple of 4"}, [](auto& c) { c.dz = shifted(c.dz); }},
      {"dz", "dz", {"multiple of 2"}, [](auto& c) { c.dz = shifted(c.dz, 1); }, bf16_training()},
      {"", "training", {"backward_activation", "training = true"}, {}, inference},
  };
  const backward_activation_call all(*std::make_unique<layer>(training));
  walk<layer>(cases, NAMES_OF(all, rows, dy, saved, dz));
}

struct backward_data_call {
  using description = linear_desc;
  static linear_desc usual() { return training; }
  index rows;
  const void *dz, *transposed;
  void* dx;
  const void* input_saved;
  void* workspace;

  explicit backward_data_call(layer& l)
      : rows(4),
        dz(l.gradient()),
        transposed(l.memory.take(l.plan.transposed_bytes())),
        dx(l.memory.take(l.plan.x_bytes())),
        input_saved(l.memory.take(l.plan.input_saved_bytes())),
        workspace(l.memory.take(l.plan.backward_data_workspace_bytes())) {}
  result<void> operator()(const layer& l) const {
    return std::invoke(&nn::linear::backward_data, l.plan, alone, rows, dz, transposed, dx, input_saved, workspace);
  }
};

linear_desc first_layer() {
  linear_desc d = training;
  d.input_act = activation::none;
  return d;
}

TEST(LinearErrors, EveryArgumentOfBackwardData) {
  const std::vector<bad_argument<backward_data_call>> cases = {
      {"rows", "rows", {"rows is 0", "1..4"}, [](auto& c) { c.rows = 0; }},
      {"rows", "rows", {"rows is 5", "1..4"}, [](auto& c) { c.rows = 5; }},
      {"dz", "dz", {"null", "480 bytes"}, [](auto& c) { c.dz = nullptr; }},
      {"dz", "dz", {"multiple of 4"}, [](auto& c) { c.dz = shifted(c.dz); }},
      {"dz", "dx", {"320 bytes", "overlaps dz"}, [](auto& c) { c.dz = c.dx; }},
      {"transposed", "transposed", {"null", "bytes of it are used"}, [](auto& c) { c.transposed = nullptr; }},
      {"transposed", "transposed", {"multiple of 4"}, [](auto& c) { c.transposed = shifted(c.transposed); }},
      {"transposed", "dx", {"overlaps transposed"}, [](auto& c) { c.transposed = shifted(c.dx, 316); }},
      {"dx", "dx", {"null", "320 bytes"}, [](auto& c) { c.dx = nullptr; }},
      {"dx", "dx", {"multiple of 4"}, [](auto& c) { c.dx = shifted(c.dx); }},
      {"dx", "dx", {"multiple of 2"}, [](auto& c) { c.dx = shifted(c.dx, 1); }, bf16_training()},
      {"dx", "dx", {"320 bytes", "overlaps dz", "480 bytes"}, [](auto& c) { lay_on(c.dx, c.dz); }},
      {"input_saved", "input_saved", {"null", "12 bytes"}, [](auto& c) { c.input_saved = nullptr; }},
      {"input_saved", "input_saved", {"must be null"}, [](auto& c) { c.input_saved = c.dz; }, first_layer()},
      {"input_saved", "dx", {"overlaps input_saved"}, [](auto& c) { c.input_saved = shifted(c.dx, 319); }},
      {"workspace", "workspace", {"must be null"}, [](auto& c) { lay_on(c.workspace, c.dz); }},
      {"workspace", "workspace", {"null", "768 bytes"}, [](auto& c) { c.workspace = nullptr; }, by_pieces()},
      {"workspace", "workspace", {"overlaps dz"}, [](auto& c) { lay_on(c.workspace, c.dz); }, by_pieces()},
      {"", "training", {"backward_data", "training = true"}, {}, inference},
  };
  const backward_data_call all(*std::make_unique<layer>(training));
  walk<layer>(cases, NAMES_OF(all, rows, dz, transposed, dx, input_saved, workspace));
}

struct backward_weights_call {
  using description = linear_desc;
  static linear_desc usual() { return training; }
  index rows;
  const void *x, *dz;
  float *dw, *db;
  void* workspace;

  explicit backward_weights_call(layer& l)
      : rows(4),
        x(l.memory.take(l.plan.x_bytes())),
        dz(l.gradient()),
        dw(l.parameters()),
        db(l.memory.take<float>(l.d().out * 4)),
        workspace(l.memory.take(l.plan.backward_weights_workspace_bytes())) {}
  result<void> operator()(const layer& l) const {
    return std::invoke(&nn::linear::backward_weights, l.plan, alone, rows, x, dz, dw, db, workspace);
  }
};

linear_desc blocked_both() {
  linear_desc d = first_layer();
  d.in = d.out = 64;
  d.x_storage = d.y_storage = storage::blocked;
  return d;
}

TEST(LinearErrors, EveryArgumentOfBackwardWeights) {
  const std::vector<bad_argument<backward_weights_call>> cases = {
      {"rows", "rows", {"rows is 0", "1..4"}, [](auto& c) { c.rows = 0; }},
      {"rows", "rows", {"rows is 9", "1..4"}, [](auto& c) { c.rows = 9; }},
      {"x", "x", {"null", "320 bytes"}, [](auto& c) { c.x = nullptr; }},
      {"x", "x", {"multiple of 4"}, [](auto& c) { c.x = shifted(c.x); }},
      {"x", "dw", {"overlaps x", "320 bytes"}, [](auto& c) { c.x = c.dw; }},
      {"dz", "dz", {"null", "480 bytes"}, [](auto& c) { c.dz = nullptr; }},
      {"dz", "dz", {"multiple of 4"}, [](auto& c) { c.dz = shifted(c.dz); }},
      {"dz", "db", {"120 bytes", "overlaps dz"}, [](auto& c) { c.dz = shifted(c.db, 116); }},
      {"dw", "dw", {"null", "bytes of it are used"}, [](auto& c) { c.dw = nullptr; }},
      {"dw", "dw", {"multiple of 4"}, [](auto& c) { c.dw = shifted(c.dw); }},
      {"dw", "dw", {"overlaps db", "120 bytes"}, [](auto& c) { c.dw = shifted(c.db, -4); }},
      {"db", "db", {"multiple of 4"}, [](auto& c) { c.db = shifted(c.db); }},
      {"db", "dw", {"overlaps db", "120 bytes"}, [](auto& c) { c.db = c.dw; }},
      {"db", "db", {"overlaps workspace"}, [](auto& c) { lay_on(c.db, c.workspace); }},
      {"workspace", "workspace", {"null", "bytes of it are used"}, [](auto& c) { c.workspace = nullptr; }},
      {"workspace", "workspace", {"multiple of 4"}, [](auto& c) { c.workspace = shifted(c.workspace); }},
      {"workspace", "workspace", {"must be null"}, [](auto& c) { c.workspace = c.dw; }, blocked_both()},
      {"workspace", "workspace", {"overlaps x", "320 bytes"}, [](auto& c) { c.x = shifted(c.workspace, 64); }},
      {"", "training", {"backward_weights", "training = true"}, {}, inference},
  };
  const backward_weights_call all(*std::make_unique<layer>(training));
  walk<layer>(cases, NAMES_OF(all, rows, x, dz, dw, db, workspace));
}

template <class T>
struct pack_weights_call {
  using description = linear_desc;
  static linear_desc usual() { return sizeof(T) == 1 ? quantised() : training; }
  view<const T, 2> w;
  layout stored = layout::plain;
  T* packed;
  std::int32_t* column_sums;

  explicit pack_weights_call(layer& l)
      : w(l.memory.take<T>(l.d().in * l.d().out * static_cast<index>(sizeof(T))), {l.d().in, l.d().out}),
        packed(l.memory.take<T>(l.plan.parameters() * static_cast<index>(sizeof(T)) + 64)),
        column_sums(sizeof(T) == 1 ? l.column_sums() : nullptr) {}
  result<void> operator()(const layer& l) const {
    return std::invoke(&nn::linear::pack_weights<T>, l.plan, alone, w, stored, packed, column_sums);
  }
};

TEST(LinearErrors, EveryArgumentOfPackWeights) {
  const std::vector<bad_argument<pack_weights_call<float>>> cases = {
      {"w", "w", {"(20,31)", "(20,30)"}, [](auto& c) { reshape(c.w, 20, 31); }},
      {"w", "w", {"(30,20)", "(20,30)"}, [](auto& c) { reshape(c.w, 30, 20); }},
      {"w", "w", {"strides (29,1)", "30..2^29"}, [](auto& c) { reshape(c.w, 20, 30, 29, 1); }},
      {"w", "w", {"strides (60,2)"}, [](auto& c) { reshape(c.w, 20, 30, 60, 2); }},
      {"w", "w", {"4611686018427387904"}, [](auto& c) { reshape(c.w, 20, 30, far, 1); }},
      {"w", "w", {"null", "2400 bytes"}, [](auto& c) { move_to(c.w, nullptr); }},
      {"w", "w", {"multiple of 4"}, [](auto& c) { move_to(c.w, shifted(c.w.data())); }},
      {"w", "packed", {"overlaps w", "2400 bytes"}, [](auto& c) { move_to(c.w, c.packed); }},
      {"stored", "stored", {"stored is 2"}, [](auto& c) { c.stored = layout::interleaved; }},
      {"stored", "stored", {"stored is 99"}, [](auto& c) { c.stored = static_cast<layout>(99); }},
      {"stored", "w", {"(20,30)", "(30,20)"}, [](auto& c) { c.stored = layout::transposed; }},
      {"packed", "packed", {"null", "bytes of it are used"}, [](auto& c) { c.packed = nullptr; }},
      {"packed", "packed", {"multiple of 4"}, [](auto& c) { c.packed = shifted(c.packed); }},
      {"column_sums", "column_sums", {"weights of s8"}, [](auto& c) { lay_on(c.column_sums, c.packed); }},
      {"", "w", {"f32", "s8", "quantise"}, {}, quantised()},
  };
  const pack_weights_call<float> all(*std::make_unique<layer>(training));
  walk<layer>(cases, NAMES_OF(all, w, stored, packed, column_sums));
}

TEST(LinearErrors, EveryArgumentOfPackWeightsOfBytes) {
  const std::vector<bad_argument<pack_weights_call<std::int8_t>>> cases = {
      {"w", "w", {"(20,29)", "(20,30)"}, [](auto& c) { reshape(c.w, 20, 29, 30, 1); }},
      {"w", "packed", {"overlaps w", "600 bytes"}, [](auto& c) { move_to(c.w, c.packed); }},
      {"stored", "stored", {"stored is 2"}, [](auto& c) { c.stored = layout::interleaved; }},
      {"packed", "packed", {"null", "bytes of it are used"}, [](auto& c) { c.packed = nullptr; }},
      {"column_sums", "column_sums", {"multiple of 4"}, [](auto& c) { c.column_sums = shifted(c.column_sums); }},
      {"column_sums", "packed", {"overlaps column_sums"}, [](auto& c) { lay_on(c.column_sums, c.packed); }},
      {"", "w", {"s8", "f32"}, {}, training},
  };
  const pack_weights_call<std::int8_t> all(*std::make_unique<layer>(quantised()));
  walk<layer>(cases, NAMES_OF(all, w, stored, packed, column_sums));
}

struct unpack_parameters_call {
  using description = linear_desc;
  static linear_desc usual() { return training; }
  const float* parameters;
  view<float, 2> w;
  layout stored = layout::transposed;

  explicit unpack_parameters_call(layer& l)
      : parameters(l.parameters()), w(l.memory.take<float>(l.d().in * l.d().out * 4), {l.d().out, l.d().in}) {}
  result<void> operator()(const layer& l) const {
    return std::invoke(&nn::linear::unpack_parameters, l.plan, alone, parameters, w, stored);
  }
};

TEST(LinearErrors, EveryArgumentOfUnpackParameters) {
  const std::vector<bad_argument<unpack_parameters_call>> cases = {
      {"parameters", "parameters", {"null", "bytes of it are used"}, [](auto& c) { c.parameters = nullptr; }},
      {"parameters", "parameters", {"multiple of 4"}, [](auto& c) { c.parameters = shifted(c.parameters); }},
      {"parameters", "w", {"2400 bytes", "overlaps parameters"}, [](auto& c) { c.parameters = c.w.data() + 599; }},
      {"w", "w", {"(30,30)", "(30,20)"}, [](auto& c) { reshape(c.w, 30, 30); }},
      {"w", "w", {"strides (19,1)", "20..2^29"}, [](auto& c) { reshape(c.w, 30, 20, 19, 1); }},
      {"w", "w", {"4611686018427387904"}, [](auto& c) { reshape(c.w, 30, 20, far, 1); }},
      {"w", "w", {"null", "2400 bytes"}, [](auto& c) { move_to(c.w, nullptr); }},
      {"w", "w", {"multiple of 4"}, [](auto& c) { move_to(c.w, shifted(c.w.data())); }},
      {"stored", "stored", {"stored is 2"}, [](auto& c) { c.stored = layout::interleaved; }},
      {"stored", "w", {"(30,20)", "(20,30)"}, [](auto& c) { c.stored = layout::plain; }},
  };
  const unpack_parameters_call all(*std::make_unique<layer>(training));
  walk<layer>(cases, NAMES_OF(all, parameters, w, stored));
}

struct prepare_call {
  using description = linear_desc;
  static linear_desc usual() { return bf16_training(); }
  const float* parameters;
  void *weights, *transposed;

  explicit prepare_call(layer& l)
      : parameters(l.parameters()),
        weights(l.memory.take(l.d().data == type::f32 ? 0 : l.plan.weights_bytes())),
        transposed(l.memory.take(l.plan.transposed_bytes())) {}
  result<void> operator()(const layer& l) const {
    return std::invoke(&nn::linear::prepare, l.plan, alone, parameters, weights, transposed);
  }
};

TEST(LinearErrors, EveryArgumentOfPrepare) {
  const std::vector<bad_argument<prepare_call>> cases = {
      {"parameters", "parameters", {"null", "bytes of it are used"}, [](auto& c) { c.parameters = nullptr; }},
      {"parameters", "parameters", {"multiple of 4"}, [](auto& c) { c.parameters = shifted(c.parameters); }},
      {"parameters", "weights", {"overlaps parameters"}, [](auto& c) { lay_on(c.parameters, c.weights); }},
      {"weights", "weights", {"null", "bytes of it are used"}, [](auto& c) { c.weights = nullptr; }},
      {"weights", "weights", {"must be null"}, [](auto& c) { c.weights = c.transposed; }, training},
      {"weights", "weights", {"multiple of 4"}, [](auto& c) { c.weights = shifted(c.weights); }},
      {"weights", "weights", {"overlaps transposed"}, [](auto& c) { c.weights = c.transposed; }},
      {"transposed", "transposed", {"multiple of 4"}, [](auto& c) { c.transposed = shifted(c.transposed); }},
      {"transposed", "transposed", {"overlaps parameters"}, [](auto& c) { lay_on(c.transposed, c.parameters); }},
      {"transposed",
       "training",
       {"transposed", "training = true"},
       [](auto& c) { c.transposed = c.weights; },
       with(inference, type::bf16, type::f32)},
      {"", "data", {"u8", "no parameters"}, {}, quantised(), errc::unsupported},
  };
  const prepare_call all(*std::make_unique<layer>(bf16_training()));
  walk<layer>(cases, NAMES_OF(all, parameters, weights, transposed));
}

}  // namespace
}  // namespace brgemm_test
