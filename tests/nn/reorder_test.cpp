// nn::reorder against plain loops, between guard pages; what it refuses.
#include <gtest/gtest.h>

#include <brgemm/nn/conv.hpp>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "support/expect_error.hpp"
#include "support/features.hpp"
#include "support/guarded_memory.hpp"

namespace brgemm_test {
namespace {

using namespace brgemm;
using brgemm::index;
using nn::channel_order;
using nn::reorder;
using nn::reorder_desc;

/// Where an element stands, in elements.
index place(const reorder_desc& d, channel_order o, index image, index channel, index pixel) {
  switch (o) {
    case channel_order::last: return (image * d.pixels + pixel) * d.channels + channel;
    case channel_order::first: return (image * d.channels + channel) * d.pixels + pixel;
    case channel_order::blocks: break;
  }
  const index blocks = (d.channels + d.block - 1) / d.block;
  return ((image * blocks + channel / d.block) * d.pixels + pixel) * d.block + channel % d.block;
}

using bytes = std::vector<std::byte>;

bytes by_plain_loops(const reorder_desc& d, const bytes& from, index to_bytes) {
  const index size = size_of(d.element);
  bytes to(static_cast<std::size_t>(to_bytes));  // zeros behind the channels
  for (index image = 0; image < d.images; ++image) {
    for (index c = 0; c < d.channels; ++c) {
      for (index p = 0; p < d.pixels; ++p) {
        std::memcpy(to.data() + place(d, d.to, image, c, p) * size, from.data() + place(d, d.from, image, c, p) * size,
                    static_cast<std::size_t>(size));
      }
    }
  }
  return to;
}

/// What the plan writes between inaccessible pages.
bytes by_plan(const reorder& r, const bytes& from, int threads, guard side) {
  const guarded_memory source(from.size()), target(static_cast<std::size_t>(r.to_bytes()));
  std::byte* const a = source.place(from.size(), side);
  std::byte* const b = target.place(static_cast<std::size_t>(r.to_bytes()), side);
  std::memcpy(a, from.data(), from.size());
  std::memset(b, 0xa5, static_cast<std::size_t>(r.to_bytes()));
  const auto pool = loops::thread_pool::make(threads);
  EXPECT_TRUE(pool);
  const auto done = r(*pool, r.description().images, a, b);
  EXPECT_TRUE(done) << done.error().message();
  return {b, b + r.to_bytes()};
}

TEST(Reorder, EveryOrderOfEveryType) {
  std::mt19937 random(3);
  const auto from = [&](index low, index high) {
    return low + static_cast<index>(random() % static_cast<std::uint32_t>(high - low + 1));
  };
  for (const char* hidden : {"", "-avx512"}) {
    hide_features(hidden);
    for (int i = 0; i < 800; ++i) {
      reorder_desc d;
      d.images = from(1, 3);
      d.channels = from(1, i % 7 == 0 ? 200 : 40);
      d.pixels = from(1, i % 5 == 0 ? 300 : 60);
      d.element = static_cast<type>(i % type_count);
      d.from = static_cast<channel_order>(from(0, 2));
      d.to = static_cast<channel_order>(from(0, 2));
      d.block = from(0, 1) != 0 ? 16 : from(1, 100);
      const auto r = reorder::plan(d);
      ASSERT_TRUE(r) << r.error().message();
      bytes data(static_cast<std::size_t>(r->from_bytes()));
      for (std::byte& b : data) b = static_cast<std::byte>(random());
      ASSERT_EQ(by_plan(*r, data, 1 + i % 3, i % 2 == 0 ? guard::before : guard::after),
                by_plain_loops(d, data, r->to_bytes()))
          << d.channels << " x " << d.pixels << ", " << static_cast<int>(d.from) << " to " << static_cast<int>(d.to)
          << ", block " << d.block << ", " << name_of(d.element);
    }
  }
  hide_features("");
}

/// A layer of one who has channels first.
TEST(Reorder, BesideAConvolution) {
  nn::conv_desc d;
  d.images = 2, d.in = 5, d.out = 21, d.bias = false;
  d.axes[1] = {.in = 6, .kernel = 3, .pad_before = 1, .pad_after = 1};
  d.axes[2] = {.in = 7, .kernel = 1, .stride = 2};
  const auto layer = nn::conv::plan(d);
  ASSERT_TRUE(layer);
  EXPECT_EQ(nn::conv::preferred_block(d), 0);
  const auto before = layer->reorder_x(channel_order::first, channel_order::last);
  const auto after = layer->reorder_y(channel_order::last, channel_order::first);
  ASSERT_TRUE(before && after);
  EXPECT_EQ(before->description().pixels, 42);
  nn::conv_desc narrow = d;
  narrow.data = type::bf16;
  const auto mixed = nn::conv::plan(narrow);
  ASSERT_TRUE(mixed);  // y of f32, dz of bf16
  EXPECT_EQ(mixed->reorder_y(channel_order::last, channel_order::first)->to_bytes(), mixed->y_bytes());
  EXPECT_EQ(mixed->reorder_dz(channel_order::first, channel_order::last)->to_bytes(), mixed->y_bytes() / 2);
  EXPECT_EQ(after->description().pixels, 24);
  EXPECT_EQ(after->to_bytes(), layer->y_bytes());
  const loops::serial alone;
  std::vector<float> x(2 * 5 * 42), own_x(x.size()), w(21 * 5 * 3),
      packed(static_cast<std::size_t>(layer->weights_bytes() / 4));
  std::vector<float> own_y(2 * 24 * 21), y(own_y.size());
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 13) - 6;
  for (std::size_t i = 0; i < w.size(); ++i) w[i] = static_cast<float>(i % 7) - 3;
  ASSERT_TRUE(layer->pack_weights(alone, w.data(), nn::conv_weights::out_first, packed.data()));
  ASSERT_TRUE((*before)(alone, 2, x.data(), own_x.data()));
  ASSERT_TRUE(layer->forward(alone, 2, own_x.data(), packed.data(), nullptr, own_y.data()));
  ASSERT_TRUE((*after)(alone, 2, own_y.data(), y.data()));
  const auto at = [](index i) { return static_cast<std::size_t>(i); };
  for (index n = 0; n < 2 * 21 * 24; ++n) {
    const index image = n / (21 * 24), k = n / 24 % 21, h = n / 4 % 6, v = n % 4;
    float sum = 0;  // of small integers
    for (index c = 0; c < 5; ++c) {
      for (index r = 0; r < 3; ++r) {
        if (h + r < 1 || h + r > 6) continue;
        sum += x[at(((image * 5 + c) * 6 + h + r - 1) * 7 + 2 * v)] * w[at((k * 5 + c) * 3 + r)];
      }
    }
    ASSERT_EQ(y[at(n)], sum) << n;
  }
}

TEST(Reorder, WhatIsRefused) {
  const auto fails = [](auto change, const char* field, const std::vector<std::string>& words) {
    reorder_desc d;
    d.channels = d.pixels = 4;
    change(d);
    expect_error(reorder::plan(d), errc::invalid_argument, field, words);
  };
  fails([](auto& d) { d.images = 0; }, "images", {"images is 0"});
  fails([](auto& d) { d.channels = -1; }, "channels", {"-1"});
  fails([](auto& d) { d.pixels = (index{1} << 58) + 1; }, "pixels", {"288230376151711745"});
  fails([](auto& d) { d.block = 0; }, "block", {"block is 0"});
  fails([](auto& d) { d.element = static_cast<type>(99); }, "element", {"99"});
  fails([](auto& d) { d.from = static_cast<channel_order>(3); }, "from", {"3"});
  fails([](auto& d) { d.to = static_cast<channel_order>(7); }, "to", {"7"});
  fails([](auto& d) { d.images = d.channels = d.pixels = 1 << 29; }, "images", {"536870912", "2^62"});
  const auto r = reorder::plan({.images = 2, .channels = 4, .pixels = 4});
  ASSERT_TRUE(r);
  const loops::serial alone;
  std::vector<float> a(32), b(32);
  EXPECT_TRUE((*r)(alone, 2, a.data(), b.data()));
  expect_error((*r)(alone, 3, a.data(), b.data()), errc::invalid_argument, "images", {"3", "1..2"});
  expect_error((*r)(alone, 2, nullptr, b.data()), errc::invalid_argument, "from", {"null"});
  expect_error((*r)(alone, 2, a.data(), nullptr), errc::invalid_argument, "to", {"null"});
  expect_error((*r)(alone, 2, a.data(), a.data() + 31), errc::invalid_argument, "to", {"overlaps"});
  expect_error((*r)(alone, 1, a.data(), reinterpret_cast<char*>(b.data()) + 2), errc::invalid_argument, "to", {"4"});
}

}  // namespace
}  // namespace brgemm_test
