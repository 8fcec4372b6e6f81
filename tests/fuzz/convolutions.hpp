// One fuzzed input: bytes draw a convolution, which may be nonsense, and its data; every backend must then have the
// reference's bits in all directions, and touch no byte outside of a tensor. The loops are the same for all backends:
// that their sums are right is for nn/conv_test.cpp.
#pragma once

#include <array>
#include <brgemm/nn/conv.hpp>
#include <cstring>
#include <string>
#include <vector>

#include "support/entropy.hpp"
#include "support/guarded_memory.hpp"

namespace brgemm_test {

/// Mostly small sizes, one in 64 any number; a plan takes time and memory in proportion to the pixels, so none of the
/// largest that are right.
inline brgemm::index draw_size(entropy& e, brgemm::index low, brgemm::index high) {
  if (!e.one_in(64)) return e.between(low, high);
  return e.pick<brgemm::index>({-1, 0, 1, 63, 64, 65, 129, 1000, (1 << 29) + 1, brgemm::index{1} << 62});
}

inline brgemm::nn::conv_desc draw_conv(entropy& e) {
  using brgemm::type;
  brgemm::nn::conv_desc d;
  d.images = draw_size(e, 1, 3);
  d.groups = e.one_in(4) ? draw_size(e, 1, 3) : 1;
  for (brgemm::index* const channels : {&d.in, &d.out}) {
    *channels = draw_size(e, 1, e.one_in(4) ? 140 : 20);
    if (*channels <= 140 && d.groups <= 3) *channels *= d.groups;
  }
  if (e.one_in(8)) d.groups = d.out = d.in;  // depthwise
  for (brgemm::index* const block : {&d.x_block, &d.y_block}) {
    if (e.one_in(3)) *block = e.pick<brgemm::index>({8, 16, 32, 64, 4});
  }
  for (auto& a : d.axes) {
    if (e.one_in(3)) continue;
    a = {draw_size(e, 1, 12), draw_size(e, 1, 5), draw_size(e, 1, 4),
         e.one_in(3) ? 2 : 1, draw_size(e, 0, 3), draw_size(e, 0, 3)};
  }
  d.data = e.pick({type::f32, type::bf16, type::u8, type::s8, type::f32, type::bf16, type::f16});
  if (e.one_in(d.data == type::bf16 ? 2 : 32)) d.sums = e.pick({brgemm::order::pair, brgemm::order::tile});
  d.y = e.one_in(2) ? d.data : e.pick({type::f32, type::bf16, type::s32, type::u8, type::s8});
  d.act =
      static_cast<brgemm::nn::activation>(e.one_in(4) ? e.between(0, brgemm::nn::activation_count) : e.between(0, 1));
  d.bias = e.one_in(2), d.scale = e.one_in(2), d.residual = e.one_in(4);
  d.transposed = e.one_in(8);
  if (e.one_in(4)) d.clamp = true, d.lower = static_cast<float>(e.between(-9, 9)), d.upper = d.lower + 1;
  if (e.one_in(16)) d.algorithm = static_cast<brgemm::nn::conv_algorithm>(e.between(0, 4)), d.inexact = e.one_in(2);
  if (e.one_in(8)) {  // what Winograd's algorithm can do
    d.groups = 1, d.axes[0] = {}, d.data = d.y = type::f32, d.transposed = false;
    d.algorithm = e.pick({brgemm::nn::conv_algorithm::winograd_2x2, brgemm::nn::conv_algorithm::winograd_4x4});
    for (int i : {1, 2}) d.axes[i].kernel = 3, d.axes[i].stride = d.axes[i].dilation = 1;
  }
  d.mask = e.one_in(4), d.input_mask = e.one_in(4), d.training = e.one_in(2);
  return d;
}

class conv_fuzzer {
 public:
  /// What is wrong, empty where nothing is.
  std::string run(entropy e) {
    const brgemm::nn::conv_desc d = draw_conv(e);
    const auto right = brgemm::nn::conv::plan(d, {.backend = "reference"});
    if (!right) return right.error().field().empty() ? "an error without a field" : "";
    if (right->operations() * static_cast<double>(d.images) > 3e5 || !fits(*right)) return {};
    draw_data(e, *right);
    brgemm::nn::conv_schedules by;  // no bit depends on it
    for (auto* const s : {&by.forward, &by.backward_data}) {
      if (e.one_in(2))
        *s = {static_cast<int>(e.between(0, 40)), static_cast<int>(e.between(0, 40)),
              static_cast<int>(e.between(-1, 4)), static_cast<int>(e.between(-1, 1)), e.pick({-1, 0, 1, 2, 4})};
    }
    if (e.one_in(2)) {
      by.backward_weights = {static_cast<int>(e.between(0, 40)), static_cast<int>(e.between(0, 40)), e.pick({-1, 0, 1}),
                             e.pick({-1, 0, 1})};
    }
    std::vector<std::byte> expected;
    if (const auto text = pass(*right, expected); !text.empty()) return "reference: " + text;
    std::string text;
    brgemm::backend::for_each([&](const brgemm::backend::entry& backend) {
      if (!backend.runs_here() || backend.name == "reference" || !text.empty()) return;
      const auto made = brgemm::nn::conv::plan(d, {.backend = backend.name}, by);
      if (!made) return;  // what it cannot do it says
      std::vector<std::byte> found;
      text = pass(*made, found);
      if (text.empty() && found != expected) text = "other bits than the reference";
      if (!text.empty()) text = std::string(backend.name) + ": " + text;
      ++compared_;
    });
    return text;
  }
  long compared() const { return compared_; }

 private:
  static constexpr std::size_t room = std::size_t{1} << 20;
  enum buffer { x, y, z, dx, w, dw, weights, transposed, vectors, residual, mask, input_mask, buffers };

  static bool fits(const brgemm::nn::conv& c) {
    const brgemm::index largest =
        std::max({c.x_bytes(), c.y_bytes() * 4, c.weights() * 4, c.weights_bytes(), c.transposed_bytes(),
                  c.description().out * 8, c.mask_bytes(), c.input_mask_bytes()});
    return static_cast<std::size_t>(largest) <= room;
  }
  void* at(buffer b, brgemm::index bytes) const { return memory_[b].place(static_cast<std::size_t>(bytes), side_); }

  void draw_data(entropy& e, const brgemm::nn::conv& c) {
    const auto& d = c.description();
    side_ = e.pick({guard::before, guard::after});
    threads_ = static_cast<int>(e.between(1, 3));
    zero_x_ = static_cast<std::int32_t>(e.between(-128, 255));
    stored_ = e.pick({brgemm::nn::conv_weights::out_first, brgemm::nn::conv_weights::out_last});
    const auto fill = [&e](void* to, brgemm::type t, brgemm::index bytes) {
      for (brgemm::index i = 0; i < bytes / size_of(t); ++i) {
        const auto bits = e.bits();
        const float value = static_cast<float>(static_cast<std::int32_t>(bits >> 32)) * 0x1p-31f;
        if (t == brgemm::type::f32) {
          static_cast<float*>(to)[i] = value;
        } else if (t == brgemm::type::bf16) {
          static_cast<brgemm::bf16*>(to)[i] = brgemm::to_bf16(value);
        } else {
          std::memcpy(static_cast<char*>(to) + i * size_of(t), &bits, static_cast<std::size_t>(size_of(t)));
        }
      }
    };
    const bool is_8bit = size_of(d.data) == 1;
    const brgemm::index z_bytes = c.y_bytes() / size_of(d.y) * size_of(d.data);
    fill(at(x, c.x_bytes()), d.data, c.x_bytes());
    fill(at(z, z_bytes), d.data, z_bytes);
    const brgemm::type of_w = is_8bit ? brgemm::type::s8 : brgemm::type::f32;
    fill(at(w, c.weights() * size_of(of_w)), of_w, c.weights() * size_of(of_w));
    fill(at(vectors, d.out * 8), brgemm::type::f32, d.out * 8);
    fill(at(residual, c.y_bytes()), d.y, c.y_bytes());
    fill(at(input_mask, c.input_mask_bytes()), brgemm::type::u8, c.input_mask_bytes());
  }

  /// All directions that the plan has; what they wrote comes behind each other into `written`.
  std::string pass(const brgemm::nn::conv& c, std::vector<std::byte>& written) const {
    const auto& d = c.description();
    auto pool = brgemm::loops::thread_pool::make(threads_);
    if (!pool) return std::string(pool.error().message());
    const auto keep = [&](buffer b, brgemm::index bytes) {
      const auto* const from = static_cast<const std::byte*>(at(b, bytes));
      written.insert(written.end(), from, from + bytes);
    };
    const auto clean = [&](buffer b, brgemm::index bytes) {
      std::memset(at(b, bytes), 0xee, static_cast<std::size_t>(bytes));
      return at(b, bytes);
    };
    void* const packed = clean(weights, c.weights_bytes());
    void* const back = c.transposed_bytes() > 0 ? clean(transposed, c.transposed_bytes()) : nullptr;
    const bool is_8bit = size_of(d.data) == 1;
    const auto ready =
        is_8bit ? c.pack_weights(*pool, static_cast<const std::int8_t*>(at(w, c.weights())), stored_, packed)
                : c.pack_weights(*pool, static_cast<const float*>(at(w, c.weights() * 4)), stored_, packed, back);
    if (!ready) return std::string(ready.error().message());
    const brgemm::index space = c.forward_workspace_bytes(threads_);
    const guarded_memory points(static_cast<std::size_t>(space));
    void* const forward_space = points.place(static_cast<std::size_t>(space), guard::after);
    const auto* const vector = static_cast<const float*>(at(vectors, d.out * 8));
    const brgemm::nn::conv_operands with{.bias = d.bias ? vector : nullptr,
                                         .scale = d.scale ? vector + d.out : nullptr,
                                         .residual = d.residual ? at(residual, c.y_bytes()) : nullptr,
                                         .mask = d.mask ? clean(mask, c.mask_bytes()) : nullptr,
                                         .zero_x = is_8bit ? zero_x_ : 0,
                                         .workspace = space > 0 ? forward_space : nullptr};
    const auto done = c.forward(*pool, d.images, at(x, c.x_bytes()), packed, with, clean(y, c.y_bytes()));
    if (!done) return std::string(done.error().message());
    keep(y, c.y_bytes());
    if (d.mask) keep(mask, c.mask_bytes());
    if (!d.training) return {};
    const brgemm::index z_bytes = c.y_bytes() / size_of(d.y) * size_of(d.data);
    const auto data = c.backward_data(*pool, d.images, at(z, z_bytes), back, clean(dx, c.x_bytes()),
                                      d.input_mask ? at(input_mask, c.input_mask_bytes()) : nullptr);
    if (!data) return std::string(data.error().message());
    keep(dx, c.x_bytes());
    const brgemm::index bytes = (c.weights() + d.out) * 4;
    auto* const sums = static_cast<float*>(clean(dw, bytes));
    const guarded_memory copies(static_cast<std::size_t>(c.backward_weights_workspace_bytes()));
    void* const copy = copies.place(static_cast<std::size_t>(c.backward_weights_workspace_bytes()), guard::after);
    std::memset(copy, 0xff, static_cast<std::size_t>(c.backward_weights_workspace_bytes()));
    const auto update =
        c.backward_weights(*pool, d.images, at(x, c.x_bytes()), at(z, z_bytes), sums, sums + c.weights(),
                           c.backward_weights_workspace_bytes() > 0 ? copy : nullptr);
    if (!update) return std::string(update.error().message());
    keep(dw, bytes);
    return {};
  }

  std::vector<guarded_memory> memory_ = [] {
    std::vector<guarded_memory> m;
    for (int i = 0; i < buffers; ++i) m.emplace_back(room + (std::size_t{1} << 16));
    return m;
  }();
  guard side_ = guard::before;
  int threads_ = 1;
  std::int32_t zero_x_ = 0;
  brgemm::nn::conv_weights stored_ = brgemm::nn::conv_weights::out_first;
  long compared_ = 0;
};

}  // namespace brgemm_test
