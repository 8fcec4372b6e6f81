// Schedules of convolutions: no bit depends on one; the search, its file, and what it refuses.
#include <gtest/gtest.h>
#include <unistd.h>

#include <brgemm/nn/conv_tune.hpp>
#include <cstring>
#include <random>

#include "support/expect_error.hpp"

namespace brgemm_test {
namespace {

using namespace brgemm;
using brgemm::index;
using nn::conv;
using nn::conv_desc;
using nn::conv_schedule;
using nn::conv_update_schedule;

conv_desc draw(std::mt19937& random) {
  const auto from = [&](index low, index high) {
    return low + static_cast<index>(random() % static_cast<std::uint32_t>(high - low + 1));
  };
  conv_desc d;
  d.images = from(1, 2);
  d.groups = from(0, 2) == 0 ? from(2, 4) : 1;
  d.in = d.groups * from(1, 150), d.out = d.groups * from(1, 150);
  if (from(0, 3) == 0) d.groups = d.in = d.out;
  for (int i : {1, 2}) d.axes[i] = {from(3, 20), from(1, 3), from(1, 2), 1, from(0, 1), from(0, 1)};
  d.act = nn::activation::relu;
  d.training = true;
  return d;
}

/// y and dx of a layer by a schedule.
std::vector<float> written(const conv_desc& d, const conv_schedule& s, int threads) {
  const auto layer = conv::plan(d, {}, {s, s});
  EXPECT_TRUE(layer) << layer.error().message();
  const auto pool = loops::thread_pool::make(threads);
  const auto floats = [](index bytes) { return std::vector<float>(static_cast<std::size_t>(bytes / 4)); };
  std::vector<float> x = floats(layer->x_bytes()), y = floats(layer->y_bytes()), dx = x;
  std::vector<float> w(static_cast<std::size_t>(layer->weights())), bias(static_cast<std::size_t>(d.out), 0.1f);
  std::vector<float> packed = floats(layer->weights_bytes()), transposed = floats(layer->transposed_bytes());
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 7919 % 2003) / 1001 - 1;
  for (std::size_t i = 0; i < w.size(); ++i) w[i] = static_cast<float>(i * 7907 % 1999) / 999 - 1;
  EXPECT_TRUE(layer->pack_weights(*pool, w.data(), nn::conv_weights::out_first, packed.data(), transposed.data()));
  EXPECT_TRUE(layer->forward(*pool, d.images, x.data(), packed.data(), bias.data(), y.data()));
  EXPECT_TRUE(layer->backward_data(*pool, d.images, y.data(), transposed.data(), dx.data()));
  y.insert(y.end(), dx.begin(), dx.end());
  return y;
}

TEST(ConvTune, NoBitDependsOnASchedule) {
  std::mt19937 random(2);
  for (int i = 0; i < 25; ++i) {
    const conv_desc d = draw(random);
    const auto right = written(d, {}, 1);
    auto all = brgemm::detail::candidates();
    all.insert(all.end(), {{1, 0, 0}, {7, 1, 1}, {4096, 3, 2}, {.streaming = 1}, {.prefetch = 1}});
    for (const conv_schedule& s : all) {
      const auto found = written(d, s, 1 + i % 3);
      ASSERT_EQ(std::memcmp(found.data(), right.data(), right.size() * 4), 0)
          << i << ": " << s.rows << ' ' << s.weights << ' ' << s.band << ' ' << s.streaming << ' ' << s.prefetch;
    }
  }
}

/// dW and db of a layer by a schedule, for f32 or bf16.
template <class T>
std::vector<float> gradient(const conv_desc& d, const conv_update_schedule& s, int threads) {
  const auto layer = conv::plan(d, {}, {{}, {}, s});
  EXPECT_TRUE(layer) << layer.error().message();
  const auto pool = loops::thread_pool::make(threads);
  const auto data = [](index bytes) {
    std::vector<T> v(static_cast<std::size_t>(bytes) / sizeof(T));
    for (std::size_t i = 0; i < v.size(); ++i) {
      const float value = static_cast<float>(i * 7919 % 2003) / 1001 - 1;
      if constexpr (std::is_same_v<T, float>) {
        v[i] = value;
      } else {
        v[i] = brgemm::to_bf16(value);
      }
    }
    return v;
  };
  const std::vector<T> x = data(layer->x_bytes()), dz = data(layer->y_bytes());
  std::vector<float> dw(static_cast<std::size_t>(layer->weights() + d.out));
  std::vector<float> workspace(static_cast<std::size_t>(layer->backward_weights_workspace_bytes() + 3) / 4);
  EXPECT_TRUE(layer->backward_weights(*pool, d.images, x.data(), dz.data(), dw.data(), dw.data() + layer->weights(),
                                      workspace.empty() ? nullptr : workspace.data()));
  return dw;
}

TEST(ConvTune, NoBitOfAGradientDependsOnASchedule) {
  std::mt19937 random(3);
  int checked[2] = {};
  for (int i = 0; i < 25; ++i) {
    conv_desc d = draw(random);
    const bool is_bf16 = i % 2 == 1;
    if (is_bf16) d.data = d.y = type::bf16;
    if (i % 3 == 0) d.axes[1].dilation = 2;
    if (i % 5 == 0) d.axes[0] = {3, 2, 1, 1, 1, 0};
    if (!conv::plan(d)) continue;  // bf16 sums of some channels cannot be split
    ++checked[is_bf16];
    const auto by = [&](const conv_update_schedule& s, int threads) {
      return is_bf16 ? gradient<brgemm::bf16>(d, s, threads) : gradient<float>(d, s, threads);
    };
    const auto right = by({}, 1);
    auto all = brgemm::detail::update_candidates(d);
    all.insert(all.end(), {{1, 0, 0}, {7, 1, 1}, {100, 3, -1}, {1 << 20, 1 << 20, 1}});
    for (const conv_update_schedule& s : all) {
      const auto found = by(s, 1 + i % 3);
      ASSERT_EQ(std::memcmp(found.data(), right.data(), right.size() * 4), 0)
          << i << ": " << s.pixels << ' ' << s.band << ' ' << s.copies;
    }
  }
  EXPECT_GT(checked[false], 5);
  EXPECT_GT(checked[true], 5);
}

/// A clock that candidates advance.
struct clock_of_runs {
  using duration = std::chrono::nanoseconds;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::time_point<clock_of_runs>;
  static inline time_point time{};
  static time_point now() { return time; }
};

TEST(ConvTune, FindsTheQuickestAndSaysWhatItGained) {
  std::vector<int> microseconds;
  int late = 0;  // how much slower a candidate is once it has been found
  std::size_t runs = 0;
  const auto run = [&](std::size_t i) {
    ++runs;
    clock_of_runs::time += std::chrono::microseconds(microseconds[i] + (runs > 4 * 10 + 1 && i > 0 ? late : 0));
  };
  const auto found = [&](std::vector<int> of) {
    microseconds = std::move(of), runs = 0;
    return loops::quickest<clock_of_runs>(microseconds.size(), run);
  };
  EXPECT_EQ(found({1000, 980, 400, 700}).candidate, 2u);
  EXPECT_DOUBLE_EQ(found({1000, 980, 400, 700}).speedup, 2.5);
  EXPECT_EQ(found({1000, 970, 990, 1500}).candidate, 1u);
  EXPECT_EQ(found({1000, 990, 985, 1500}).candidate, 0u);  // less than 2 %
  EXPECT_EQ(found({1000, 990, 985, 1500}).speedup, 1.0);
  EXPECT_EQ(found({1000}).candidate, 0u);
  late = 600;
  EXPECT_EQ(found({1000, 980, 400, 700}).candidate, 0u);  // not so the second time
}

struct temporary_file {
  std::string path = ::testing::TempDir() + "brgemm-schedules-XXXXXX";
  temporary_file() { ::close(::mkstemp(path.data())); }
  ~temporary_file() { ::unlink(path.c_str()); }
};

TEST(ConvTune, KeepsTheWinnerInAFile) {
  const temporary_file file;
  conv_desc d;
  d.in = 16, d.out = 32, d.training = true;
  d.scale = d.residual = true;
  d.axes[1] = d.axes[2] = {.in = 12, .kernel = 3, .pad_before = 1, .pad_after = 1};
  const loops::serial alone;
  const auto searched = nn::tune(alone, d, file.path);
  ASSERT_TRUE(searched) << searched.error().message();
  EXPECT_TRUE(searched->measured);
  EXPECT_GE(searched->forward_speedup, 1.0);
  const auto again = nn::tune(alone, d, file.path);
  ASSERT_TRUE(again);
  EXPECT_FALSE(again->measured);
  EXPECT_EQ(again->schedules, searched->schedules);
  ASSERT_TRUE(conv::plan(d, {}, again->schedules));
  // Another problem, another number of threads, another backend are searched for themselves.
  const auto two = loops::thread_pool::make(2);
  EXPECT_TRUE(nn::tune(*two, d, file.path)->measured);
  EXPECT_TRUE(nn::tune(alone, d, file.path, {.backend = "reference"})->measured);
  d.in = 17;
  EXPECT_TRUE(nn::tune(alone, d, file.path)->measured);
  conv_desc of_bf16 = d;  // whose update has a workspace
  of_bf16.data = of_bf16.y = type::bf16;
  EXPECT_TRUE(nn::tune(*two, of_bf16, file.path)->measured);
  conv_desc depthwise = d;
  depthwise.in = depthwise.out = depthwise.groups = 32;
  EXPECT_TRUE(nn::tune(alone, depthwise, file.path)->measured);
  EXPECT_FALSE(nn::tune(alone, depthwise, file.path)->measured);
  d.residual = false;
  EXPECT_TRUE(nn::tune(alone, d, file.path)->measured);
  // What somebody wrote there is taken only where it is one that would have been tried.
  const std::string key = brgemm::detail::key_of(*conv::plan(d), 1, "forward");
  ASSERT_TRUE(loops::keep_tuning(file.path, key, "28 0 0 0 3.5"));
  EXPECT_EQ(nn::tune(alone, d, file.path)->schedules.forward, (conv_schedule{28, 0, 0}));
  EXPECT_EQ(nn::tune(alone, d, file.path)->forward_speedup, 3.5);
  const std::string update = brgemm::detail::key_of(*conv::plan(d), 1, "backward_weights");
  ASSERT_TRUE(loops::keep_tuning(file.path, update, "256 0 0 1.5"));
  EXPECT_EQ(nn::tune(alone, d, file.path)->schedules.backward_weights, (conv_update_schedule{256, 0, 0}));
  EXPECT_EQ(nn::tune(alone, d, file.path)->backward_weights_speedup, 1.5);
  ASSERT_TRUE(loops::keep_tuning(file.path, update, "255 0 0 1.5"));
  EXPECT_TRUE(nn::tune(alone, d, file.path)->measured);
  for (const char* bad : {"-5 0 0 0 2", "nonsense", "29 0 0 0 2", "28 0 0 3.5", ""}) {
    ASSERT_TRUE(loops::keep_tuning(file.path, key, bad));
    EXPECT_TRUE(nn::tune(alone, d, file.path)->measured) << bad;
  }
}

TEST(ConvTune, WhatIsRefused) {
  conv_desc d;
  d.axes[2].in = 4;
  const loops::serial alone;
  expect_error(nn::tune(alone, d, "/nowhere/at/all"), errc::invalid_argument, "file", {"/nowhere/at/all"});
  EXPECT_TRUE(nn::tune(alone, d, ""));
  for (const conv_schedule& s : {conv_schedule{-1, 0, 0},
                                 {4097, 0, 0},
                                 {0, -1, 0},
                                 {0, (1 << 20) + 1, 0},
                                 {0, 0, -2},
                                 {.streaming = 2},
                                 {.prefetch = 3},
                                 {.prefetch = 5}}) {
    expect_error(conv::plan(d, {}, {s, {}}), errc::invalid_argument, "by", {std::to_string(s.rows)});
    expect_error(conv::plan(d, {}, {{}, s}), errc::invalid_argument, "by", {std::to_string(s.band)});
  }
  for (const conv_update_schedule& s : {conv_update_schedule{-1, 0, 0},
                                        {(1 << 20) + 1, 0, 0},
                                        {0, -1, 0},
                                        {0, (1 << 20) + 1, 0},
                                        {0, 0, -2},
                                        {0, 0, 2},
                                        {.streaming = 2},
                                        {.streaming = -2}}) {
    expect_error(conv::plan(d, {}, {{}, {}, s}), errc::invalid_argument, "by",
                 {std::to_string(s.pixels) + " pixels", "copies " + std::to_string(s.copies),
                  "streaming " + std::to_string(s.streaming)});
  }
  d.in = 0;
  expect_error(nn::tune(alone, d, ""), errc::invalid_argument, "in", {"in is 0"});
}

}  // namespace
}  // namespace brgemm_test
