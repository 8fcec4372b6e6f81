// nn::conv against a plain loop nest in the order of the contract: equal bits, for any number of threads, and no byte
// touched outside of a tensor.
#include <gtest/gtest.h>

#include <brgemm/backend/amx.hpp>

#include "support/conv_problem.hpp"
#include "support/expect_error.hpp"
#include "support/features.hpp"

namespace brgemm_test {
namespace {

using namespace brgemm;
using namespace convolution;
using brgemm::index;

TEST(Conv, HasTheBitsOfThePlainLoops) {
  std::mt19937 random(1);
  for (int i = 0; i < 400; ++i) {
    const problem p = draw(random, type::f32);
    run(p, p.y, p.dx, 1 + i % 3);
    expect_bits(p);
    if (testing::Test::HasFatalFailure()) return;
  }
}

/// With rows of x transposed, as tiles read them.
std::vector<float> turned_update_of(const problem& p) {
  const conv_desc& d = p.d;
  const auto update = detail::conv_update::make({.images = d.images,
                                                 .groups = d.groups,
                                                 .in = d.in / d.groups,
                                                 .out = d.out / d.groups,
                                                 .forward = {{d.axes[0], d.axes[1], d.axes[2]}, false, {d.in}, {d.out}},
                                                 .data = d.data,
                                                 .sums = d.sums,
                                                 .turned = true},
                                                {});
  EXPECT_TRUE(update) << update.error().message();
  std::vector<float> sums(static_cast<std::size_t>(conv::plan(d)->weights() + d.out), NAN);
  const tensor workspace(update->workspace_bytes(), guard::after);
  workspace.fill(std::byte{0xff});
  float* const db = sums.data() + (sums.size() - static_cast<std::size_t>(d.out));
  constexpr loops::serial alone;
  (*update)(alone, d.images, p.x.data(), p.z.data(), sums.data(), db, workspace.data());
  return sums;
}

TEST(Conv, UpdateHasTheBitsOfThePlainLoops) {
  std::mt19937 random(4);
  for (int i = 0; i < 300; ++i) {
    const problem p = draw(random, type::f32);
    const auto right = expected_update(p);
    ASSERT_TRUE(same_bits(update_of(p, 1 + i % 4), right)) << text_of(p.d);
    if (i % 8 != 0) continue;
    backend::for_each([&](const backend::entry& e) {
      if (!does(e, p.d)) return;
      EXPECT_TRUE(same_bits(update_of(p, 2, e.name), right)) << text_of(p.d) << ' ' << e.name;
    });
  }
}

// Several steps, whole blocks of channels and what is left of them.
TEST(Conv, UpdateOfLargerImages) {
  for (const index channels : {64, 70}) {
    conv_desc d;
    d.images = 2, d.in = channels, d.out = 150 - channels;
    d.axes[1] = {40, 3, 1, 1, 1, 1};
    d.axes[2] = {45, 3, 2, 1, 0, 1};
    d.training = true;
    std::mt19937 random(5);
    const problem p = draw_data(random, d);
    EXPECT_TRUE(same_bits(update_of(p, 2), expected_update(p))) << text_of(d);
  }
}

// Depthwise: a depth; bands of rows; strides that dilations divide, and not; lines of taps together, some left over, of
// too many taps for that, and at no whole number of taps from each other; a single row; a last panel of few channels.
TEST(Conv, DepthwiseUpdateOfManyKinds) {
  std::mt19937 random(21);
  const struct {
    index channels;
    conv_axis axes[3];
  } cases[] = {{128, {{}, {20, 3, 2, 1, 1, 1}, {20, 3, 2, 1, 1, 1}}},
               {100, {{}, {7, 3, 1, 1, 1, 1}, {141, 3, 1, 1, 1, 1}}},
               {64, {{}, {40, 3, 2, 1, 1, 1}, {13, 3, 2, 1, 1, 1}}},
               {64, {{}, {60, 3, 1, 2, 2, 2}, {9, 3, 1, 2, 2, 2}}},
               {20, {{}, {12, 3, 1, 1, 1, 1}, {21, 3, 4, 2, 2, 2}}},
               {36, {{}, {13, 5, 1, 1, 2, 2}, {16, 5, 2, 1, 2, 1}}},
               {40, {{}, {9, 3, 1, 1, 1, 1}, {30, 13, 1, 1, 6, 6}}},
               {80, {{}, {}, {30, 5, 3, 1, 2, 1}}},
               {8, {{8, 2, 4, 2, 3, 0}, {8, 3, 3, 1, 3, 0}, {5, 4, 3, 1, 3, 3}}},
               {16, {{5, 3, 2, 1, 1, 1}, {9, 2, 1, 1, 0, 1}, {11, 3, 2, 1, 1, 0}}}};
  for (const auto& c : cases) {
    for (const type data : {type::f32, type::bf16}) {
      conv_desc d;
      d.images = 2, d.groups = d.in = d.out = c.channels, d.data = d.y = data, d.training = true;
      std::copy(std::begin(c.axes), std::end(c.axes), d.axes);
      const problem p = draw_data(random, d);
      const auto expected = expected_update(p);
      for (const int threads : {1, 3, 4}) {
        EXPECT_TRUE(same_bits(update_of(p, threads), expected)) << text_of(d) << threads;
      }
    }
  }
}

// Panels of channels that blocks of either tensor divide, and one of outputs of a stride that has several blocks of
// rows.
TEST(Conv, DepthwiseInBlocks) {
  std::mt19937 random(22);
  for (const index channels : {16, 36, 70, 144, 192, 288}) {
    for (const index block : {0, 8, 16, 32, 64}) {
      conv_desc d;
      d.groups = d.in = d.out = channels, d.training = true;
      d.axes[1] = {5, 3, 2, 1, 1, 1}, d.axes[2] = {channels == 16 ? 150 : 9, 3, 2, 1, 1, 1};
      const problem p = draw_data(random, d);
      d.x_block = block, d.y_block = block == 8 ? 64 : block == 64 ? 0 : block;
      const problem b = in_blocks(p, d);
      run(b, b.y, b.dx, 2);
      expect_bits(with_adjacent_channels(p, b));
      ASSERT_TRUE(same_bits(update_of(b, 2), expected_update(p))) << text_of(d);
    }
  }
}

TEST(Conv, Bf16UpdateHasTheBitsOfThePlainLoops) {
  std::mt19937 random(7);
  for (int i = 0; i < 200; ++i) {
    const problem p = draw(random, type::bf16);
    const auto right = expected_update(p);
    ASSERT_TRUE(same_bits(update_of(p, 1 + i % 4), right)) << text_of(p.d);
    if (!is_depthwise(p.d)) {
      ASSERT_TRUE(same_bits(turned_update_of(p), right)) << text_of(p.d);
    }
    if (i % 8 != 0) continue;
    backend::for_each([&](const backend::entry& e) {
      if (!does(e, p.d)) return;
      EXPECT_TRUE(same_bits(update_of(p, 2, e.name), right)) << text_of(p.d) << ' ' << e.name;
    });
  }
}

// Gradients by data of which most is 0, of more images than caches keep: as of each image alone.
TEST(Conv, StridedImagesPastTheCaches) {
  conv_desc d;
  d.images = 4, d.in = 128, d.out = 8, d.training = true, d.input_mask = true;
  d.axes[1] = {101, 1, 2}, d.axes[2] = {100, 1, 2};  // two images of dx at once
  const auto one = conv::plan(d);
  ASSERT_TRUE(one) << one.error().message();
  const index x_image = one->x_bytes() / 4 / d.images, z_image = one->y_bytes() / 4 / d.images;
  const index mask_image = one->input_mask_bytes() / d.images;
  std::vector<float> dz(static_cast<std::size_t>(z_image * d.images)), w(static_cast<std::size_t>(one->weights()));
  for (std::size_t i = 0; i < dz.size(); ++i) dz[i] = static_cast<float>(i * 7919 % 2003) / 1001 - 1;
  for (std::size_t i = 0; i < w.size(); ++i) w[i] = static_cast<float>(i * 7907 % 1999) / 999 - 1;
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(mask_image * d.images));
  for (std::size_t i = 0; i < mask.size(); ++i) mask[i] = static_cast<std::uint8_t>(i * 2654435761u >> 24);
  const auto by = [&](int band, int threads, index at_once) {
    const auto layer = conv::plan(d, {}, {.forward = {}, .backward_data = {.band = band}});
    const auto pool = loops::thread_pool::make(threads);
    std::vector<float> weights(static_cast<std::size_t>(layer->weights_bytes() / 4));
    std::vector<float> transposed(static_cast<std::size_t>(layer->transposed_bytes() / 4));
    EXPECT_TRUE(layer->pack_weights(*pool, w.data(), nn::conv_weights::out_first, weights.data(), transposed.data()));
    std::vector<float> dx(static_cast<std::size_t>(x_image * d.images), 7.0f);
    for (index i = 0; i < d.images; i += at_once) {
      EXPECT_TRUE(layer->backward_data(*pool, std::min(at_once, d.images - i), dz.data() + i * z_image,
                                       transposed.data(), dx.data() + i * x_image, mask.data() + i * mask_image));
    }
    return dx;
  };
  const auto right = by(0, 1, 1);
  EXPECT_EQ(std::count(right.begin(), right.end(), 7.0f), 0);
  for (const int band : {-1, 0, 1}) {
    for (const int threads : {1, 3}) {
      for (const index at_once : {3, 4}) EXPECT_TRUE(by(band, threads, at_once) == right) << band << ' ' << threads;
    }
  }
}

// The channels of all taps of a row, in more than one panel.
TEST(Conv, UpdateOfJoinedTapsInNarrowPanels) {
  std::mt19937 random(16);
  for (const type data : {type::f32, type::bf16}) {
    for (const auto& [in, kernel] : {std::pair<index, index>{16, 3}, {12, 5}, {32, 2}, {20, 3}}) {
      conv_desc d;
      d.images = 2, d.in = in, d.out = 16, d.data = data, d.training = true;
      d.axes[1] = d.axes[2] = {9, kernel, 1, 1, kernel / 2, kernel / 2};
      const problem p = draw_data(random, d);
      for (const int threads : {1, 4}) {
        EXPECT_TRUE(same_bits(update_of(p, threads), expected_update(p))) << text_of(d);
      }
    }
  }
}

// Layers whose blocks are copied: several bands, images that end within an entry, fewer images than planned.
TEST(Conv, UpdateByCopies) {
  std::mt19937 random(6);
  struct shape {
    type data;
    index images, groups, in, out, height, width, stride, depth = 1, kernel = 1, pad = kernel / 2;
  };
  const shape shapes[] = {{type::f32, 3, 1, 20, 2100, 7, 7, 1},          {type::f32, 2, 1, 1030, 70, 9, 8, 2},
                          {type::f32, 2, 2, 2080, 40, 15, 17, 1},        {type::bf16, 3, 1, 64, 64, 7, 7, 1},
                          {type::bf16, 2, 1, 100, 64, 9, 8, 2},          {type::bf16, 1, 2, 6, 128, 33, 33, 1},
                          {type::bf16, 2, 1, 1024, 64, 18, 20, 1},       {type::bf16, 2, 1, 17, 64, 5, 4, 2, 7},
                          {type::bf16, 3, 1, 70, 64, 28, 28, 1, 1, 3},   {type::bf16, 2, 1, 3, 64, 61, 63, 2, 1, 7},
                          {type::bf16, 1, 1, 1024, 8, 40, 41, 1, 1, 3},  {type::f32, 2, 1, 2052, 8, 20, 40, 1},
                          {type::f32, 2, 1, 1024, 16, 5, 7, 2, 3, 1, 1}, {type::bf16, 1, 1, 64, 16, 6, 8, 5, 1, 2}};
  for (const shape& s : shapes) {
    conv_desc d;
    d.images = s.images, d.groups = s.groups, d.in = s.in, d.out = s.out, d.data = s.data, d.training = true;
    d.axes[0] = {s.depth, 1, s.stride};
    d.axes[1] = {s.height, s.kernel, s.stride, 1, s.pad, s.pad};
    d.axes[2] = {s.width, s.kernel, s.stride, 1, s.pad, s.pad};
    const problem p = draw_data(random, d);
    const auto right = expected_update(p);
    EXPECT_GT(conv::plan(d)->backward_weights_workspace_bytes(), 0);
    for (const int threads : {1, 2, 3}) EXPECT_TRUE(same_bits(update_of(p, threads), right)) << text_of(d);
    EXPECT_TRUE(same_bits(update_of(p, 2, "", 7), right)) << text_of(d);
    if (s.data == type::bf16) {
      EXPECT_TRUE(same_bits(turned_update_of(p), right)) << text_of(d);
    }
    if (s.in > 1000) continue;
    backend::for_each([&](const backend::entry& e) {
      if (!does(e, p.d)) return;
      EXPECT_TRUE(same_bits(update_of(p, 2, e.name), right)) << text_of(d) << ' ' << e.name;
    });
  }
}

TEST(Conv, Bf16HasTheBitsOfThePlainLoops) {
  std::mt19937 random(2);
  for (int i = 0; i < 200; ++i) {
    const problem p = draw(random, type::bf16);
    run(p, p.y, p.dx, 1 + i % 3);
    expect_bits(p);
    if (testing::Test::HasFatalFailure()) return;
  }
}

// The other way round: with x where z was, and the same weights.
TEST(Conv, TransposedIsTheGradientByData) {
  std::mt19937 random(8);
  for (int i = 0; i < 200; ++i) {
    conv_desc gradient = draw_desc(random);
    gradient.data = gradient.y = i % 2 == 0 ? type::f32 : type::bf16;
    gradient.in = gradient.groups * (1 + i % 30), gradient.out = gradient.groups * (1 + i % 19);
    gradient.training = true;
    const problem p = draw_data(random, gradient);
    run(p, p.y, p.dx, 1);
    conv_desc d = p.d;
    d.transposed = true, d.training = false, d.act = nn::activation::none;
    std::swap(d.in, d.out);
    d.bias = i % 4 < 2;
    const auto layer = conv::plan(d);
    ASSERT_TRUE(layer) << layer.error().message();
    ASSERT_EQ(layer->x_bytes(), conv::plan(gradient)->y_bytes());
    ASSERT_EQ(layer->y_bytes(), conv::plan(gradient)->x_bytes());
    ASSERT_EQ(layer->operations(), conv::plan(gradient)->operations());
    auto pool = loops::thread_pool::make(1 + i % 3);
    const tensor weights(layer->weights_bytes(), guard::after), y(layer->y_bytes(), guard::before);
    const std::vector<float> bias(static_cast<std::size_t>(d.out), 0.25f);
    ASSERT_TRUE(layer->pack_weights(*pool, p.w.data(), p.stored, weights.data()));
    ASSERT_TRUE(layer->forward(*pool, d.images, p.z.data(), weights.data(), d.bias ? bias.data() : nullptr, y.data()));
    if (!d.bias) {
      EXPECT_TRUE(y.same_bytes(p.dx)) << text_of(d);
      continue;
    }
    if (d.data == type::bf16) continue;  // dx was rounded before a bias could be added
    for (index at = 0; at < layer->y_bytes() / 4; ++at) {
      ASSERT_EQ(y.get(d.y, at), p.dx.get(d.y, at) + 0.25f) << text_of(d);
    }
  }
}

TEST(Conv, BlocksHaveTheBitsOfThePlainLoops) {
  std::mt19937 random(12);
  int blocked = 0;
  for (int i = 0; i < 400; ++i) {
    const problem p = draw(random, i % 2 == 0 ? type::f32 : type::bf16);
    const conv_desc d = draw_blocks(random, p.d);
    if (d == p.d) continue;
    ++blocked;
    const problem b = in_blocks(p, d);
    run(b, b.y, b.dx, 1 + i % 3);
    const auto layer = conv::plan(d);
    const auto of_y = layer->reorder_y({}, {})->description(), of_x = layer->reorder_x({}, {})->description();
    expect_untouched(of_y, d.y_block, b.y.data());
    expect_untouched(of_x, d.x_block, b.dx.data());
    const problem adjacent = with_adjacent_channels(p, b);
    std::memcpy(adjacent.mask.data(), b.mask.data(), static_cast<std::size_t>(layer->mask_bytes()));
    expect_bits(adjacent);
    ASSERT_TRUE(same_bits(update_of(b, 1 + i % 4), expected_update(adjacent))) << text_of(d);
    if (testing::Test::HasFatalFailure()) return;
  }
  EXPECT_GT(blocked, 200);
}

// Blocks that have the channels of a group, or parts of them: rows of taps are one entry in groups too.
TEST(Conv, GroupsInBlocks) {
  std::mt19937 random(13);
  const struct {
    index groups, in, out, x_block, y_block;
  } cases[] = {{3, 96, 96, 32, 32}, {2, 128, 64, 16, 32}, {4, 32, 64, 16, 16}, {2, 48, 32, 8, 16}, {2, 64, 96, 32, 16}};
  for (const auto& c : cases) {
    for (const type data : {type::f32, type::bf16}) {
      conv_desc d;
      d.images = 2, d.groups = c.groups, d.in = c.in, d.out = c.out, d.data = d.y = data, d.training = true;
      d.axes[1] = {6, 3, 1, 1, 1, 1}, d.axes[2] = {9, 3, 1 + c.groups % 2, 1, 1, 0};
      const problem p = draw_data(random, d);
      d.x_block = c.x_block, d.y_block = c.y_block;
      const problem b = in_blocks(p, d);
      run(b, b.y, b.dx, 2);
      const problem adjacent = with_adjacent_channels(p, b);
      expect_bits(adjacent);
      EXPECT_TRUE(same_bits(update_of(b, 2), expected_update(adjacent))) << text_of(d);
    }
  }
}

// Images that caches do not keep until the next panel reads them: another order of the loops; y then goes past the
// caches where it is on lines.
TEST(Conv, MoreThanCachesKeep) {
  const index cache = detail::largest_cache_bytes();
  if (cache > index{512} << 20) GTEST_SKIP() << "caches of " << cache << " bytes";
  conv_desc d;
  d.in = 4, d.out = 208, d.images = 2;
  const index width = 160, height = std::max<index>(cache / (d.images * width * (d.in + d.out) * 4) + 1, 80);
  d.axes[1] = {height, 1}, d.axes[2] = {width, 1};
  std::mt19937 random(14);
  const problem p = draw_data(random, d);
  const auto bytes = static_cast<std::size_t>(conv::plan(d)->y_bytes());
  ASSERT_EQ(bytes % 64, 0u);
  const tensor on_lines(conv::plan(d)->y_bytes(), guard::after),
      beside_lines(conv::plan(d)->y_bytes() + 4, guard::after);
  for (const int band : {-1, 0}) {
    for (const int threads : {1, 2}) {
      const auto layer = conv::plan(d, {}, {.forward = {.band = band}, .backward_data = {}});
      auto pool = loops::thread_pool::make(threads);
      ASSERT_TRUE(layer && pool);
      const tensor weights(layer->weights_bytes(), guard::after);
      ASSERT_TRUE(layer->pack_weights(*pool, p.w.data(), p.stored, weights.data()));
      const nn::conv_operands with = {.bias = p.bias.data()};
      for (const tensor* const y : {&on_lines, &beside_lines}) {
        y->fill(std::byte{0xee});
        ASSERT_TRUE(layer->forward(*pool, d.images, p.x.data(), weights.data(), with, y->data()));
      }
      EXPECT_EQ(std::memcmp(on_lines.data(), beside_lines.data(), bytes), 0) << band << ' ' << threads;
      if (band == -1 && threads == 1) std::memcpy(p.y.data(), on_lines.data(), bytes);
      EXPECT_TRUE(on_lines.same_bytes(p.y)) << band << ' ' << threads;
    }
  }
}

/// Channels and types of which y and dx are on lines.
conv_desc draw_lines(std::mt19937& random) {
  conv_desc d = draw_desc(random);
  const auto channels = [&] { return d.groups * 32 * (1 + static_cast<index>(random() % 2)); };
  if (is_depthwise(d)) {
    d.groups = d.in = d.out = 32 * (1 + static_cast<index>(random() % 5));
  } else {
    d.in = channels(), d.out = channels();
  }
  if (random() % 2 == 0) d.data = d.y = type::bf16;
  d.training = true;
  return d;
}

// Layers of any size whose y and dx go past the caches because a schedule says so.
TEST(Conv, PastTheCaches) {
  std::mt19937 random(15);
  const nn::conv_schedules past = {{.streaming = 1}, {.streaming = 1}}, never = {{.streaming = -1}, {.streaming = -1}};
  int streamed = 0;
  for (int i = 0; i < 150; ++i) {
    const problem p = draw_data(random, draw_lines(random));
    const conv_desc d = draw_blocks(random, p.d);
    const problem b = in_blocks(p, d);
    ASSERT_TRUE(conv::plan(d, {}, never));
    const auto kernels = code_cache_stats().misses;
    ASSERT_TRUE(conv::plan(d, {}, past));
    streamed += code_cache_stats().misses > kernels;
    run(b, b.y, b.dx, 1 + i % 3, "", past);
    expect_bits(with_adjacent_channels(p, b));
    if (testing::Test::HasFatalFailure()) return;
  }
  EXPECT_GT(streamed, cpu().has(feature::avx2) ? 40 : -1);
}

// dW goes past the caches where it is written once: only lines of it, of any layout of y.
TEST(Conv, UpdatePastTheCaches) {
  std::mt19937 random(18);
  const auto from = [&](index low, index high) { return low + static_cast<index>(random()) % (high - low + 1); };
  constexpr conv_update_schedule past = {.streaming = 1}, never = {.streaming = -1};
  int streamed = 0;
  for (int i = 0; i < 120; ++i) {
    conv_desc d;
    d.images = from(1, 3), d.groups = from(1, 2);
    d.data = i % 2 == 0 ? type::f32 : type::bf16, d.training = true;
    d.in = d.groups * from(17, 100), d.out = d.groups * (i % 2 == 0 ? 16 * from(1, 9) : 64 * from(1, 3));
    for (const int a : {1, 2}) {
      const index kernel = 1 + 2 * from(0, 1);
      d.axes[a] = {from(1, 9), kernel, from(1, 2), 1, kernel / 2, kernel / 2};
    }
    if (i % 5 == 0) d.axes[0] = {3, 2, 1, 1, 1, 0};
    const problem p = draw_data(random, d);
    const conv_desc blocked = draw_blocks(random, d);
    const problem b = in_blocks(p, blocked);
    ASSERT_TRUE(conv::plan(blocked, {}, {{}, {}, never}));
    const auto kernels = code_cache_stats().misses;
    ASSERT_TRUE(conv::plan(blocked, {}, {{}, {}, past}));
    streamed += code_cache_stats().misses > kernels;
    const auto right = expected_update(with_adjacent_channels(p, b));
    ASSERT_TRUE(same_bits(update_of(b, 1 + i % 3, "", 0, past), right)) << text_of(blocked);
    ASSERT_TRUE(same_bits(update_of(b, 1 + i % 3, "", 2, past), right)) << text_of(blocked);
  }
  EXPECT_GT(streamed, cpu().has(feature::avx2) ? 30 : -1);
}

// By itself one of more than 1 MiB does.
TEST(Conv, LargeUpdatesGoPastTheCaches) {
  std::mt19937 random(18);
  for (const type data : {type::f32, type::bf16}) {
    for (const index in : {1024, 1025}) {
      conv_desc d;
      d.in = in, d.out = 256, d.axes[1].in = 2;
      d.data = data, d.training = true;
      const auto cached = conv::plan(d, {}, {{}, {}, {.streaming = -1}});
      ASSERT_TRUE(cached) << cached.error().message();
      const auto kernels = code_cache_stats().misses;
      ASSERT_TRUE(conv::plan(d));
      EXPECT_EQ(code_cache_stats().misses > kernels, in == 1025 && cpu().has(feature::avx2)) << text_of(d);
      const problem p = draw_data(random, d);
      EXPECT_TRUE(same_bits(update_of(p, 2), expected_update(p))) << text_of(d);
    }
  }
}

// Images of one pixel, more than caches keep, go in chunks.
TEST(Conv, ManySmallImages) {
  conv_desc d;
  d.images = 12000, d.in = 64, d.out = 208, d.bias = false;
  std::mt19937 random(16);
  const problem p = draw_data(random, d);
  const auto layer = conv::plan(d);
  ASSERT_TRUE(layer);
  auto pool = loops::thread_pool::make(2);
  const tensor weights(layer->weights_bytes(), guard::after), single(layer->y_bytes() / d.images, guard::after);
  ASSERT_TRUE(layer->pack_weights(*pool, p.w.data(), p.stored, weights.data()));
  p.y.fill(std::byte{0xee});
  ASSERT_TRUE(layer->forward(*pool, d.images, p.x.data(), weights.data(), nullptr, p.y.data()));
  for (index i = 0; i < d.images; i += 499) {
    ASSERT_TRUE(layer->forward(*pool, 1, static_cast<const float*>(p.x.data()) + i * d.in, weights.data(), nullptr,
                               single.data()));
    EXPECT_EQ(std::memcmp(static_cast<const float*>(p.y.data()) + i * d.out, single.data(),
                          static_cast<std::size_t>(d.out) * 4),
              0)
        << i;
  }
}

/// As many threads as are asked for, one behind the other; it keeps how many tasks there were.
struct counted_tasks {
  int count = 1;
  index tasks = 0;
  int threads() const noexcept { return count; }
  void run(index all, loops::range_task task, void* context) {
    tasks = all;
    task(context, 0, all);
  }
};

// Images that share the weights of a step leave work for all threads.
TEST(Conv, ThreadsHaveWork) {
  for (const auto& [in, out, height, images] :
       {std::array<index, 4>{2048, 64, 1, 32}, {2048, 128, 1, 32}, {1024, 64, 4, 32}, {512, 512, 7, 4}}) {
    conv_desc d;
    d.in = in, d.out = out, d.images = images, d.bias = false;
    const index kernel = height > 1 ? 3 : 1;
    for (const int i : {1, 2})
      d.axes[i] = {.in = height, .kernel = kernel, .pad_before = kernel / 2, .pad_after = kernel / 2};
    std::mt19937 random(17);
    const problem p = draw_data(random, d);
    const auto layer = conv::plan(d);
    ASSERT_TRUE(layer);
    const tensor weights(layer->weights_bytes(), guard::after);
    counted_tasks threads;
    ASSERT_TRUE(layer->pack_weights(threads, p.w.data(), p.stored, weights.data()));
    for (const int count : {2, 16}) {
      threads.count = count;
      ASSERT_TRUE(layer->forward(threads, images, p.x.data(), weights.data(), nullptr, p.y.data()));
      EXPECT_GE(threads.tasks, count) << text_of(d);
    }
  }
}

TEST(Conv, EveryBackendAndNumberOfThreads) {
  std::mt19937 random(3);
  for (int i = 0; i < 60; ++i) {
    const problem p = draw(random, i % 2 == 0 ? type::f32 : type::bf16);
    run(p, p.y, p.dx, 1);
    backend::for_each([&](const backend::entry& e) {
      if (!does(e, p.d)) return;
      const tensor y(conv::plan(p.d)->y_bytes(), guard::before);
      const tensor dx(conv::plan(p.d)->x_bytes(), guard::before);
      run(p, y, dx, 2 + i % 3, e.name);
      EXPECT_TRUE(y.same_bytes(p.y) && dx.same_bytes(p.dx)) << text_of(p.d) << ' ' << e.name;
    });
  }
}

// dW of more than most caches, with rows that begin within a line.
TEST(Conv, PlansLayersLargerThanTheCaches) {
  for (const type data : {type::f32, type::bf16}) {
    conv_desc d;
    d.in = 4096, d.out = 33004, d.data = data, d.training = true;
    if (data == type::bf16) d.in = index{1} << 23, d.out = 60;
    const auto made = conv::plan(d);
    EXPECT_TRUE(made) << made.error().message();
  }
}

TEST(Conv, PreferredBlocks) {
  conv_desc d;
  d.in = d.out = 128;
  EXPECT_EQ(conv::preferred_block(d), 0);
  d.groups = 128;
  EXPECT_EQ(conv::preferred_block(d), 64);
  d.axes[1] = d.axes[2] = {56, 3, 1, 1, 1, 1};
  EXPECT_EQ(conv::preferred_block(d), 16);
  d.axes[2].in = 32;
  EXPECT_EQ(conv::preferred_block(d), 32);
  d.axes[2].in = 16;
  EXPECT_EQ(conv::preferred_block(d), 64);
  d.in = d.out = d.groups = 144;  // 192 would be a third more
  EXPECT_EQ(conv::preferred_block(d), 32);
  d.in = d.out = d.groups = 33;
  EXPECT_EQ(conv::preferred_block(d), 0);
  d = {};
  d.in = d.out = 96, d.groups = 3;
  EXPECT_EQ(conv::preferred_block(d), 32);
  d.data = type::bf16;
  EXPECT_EQ(conv::preferred_block(d), 0);
  d.data = type::f32, d.out = 99;
  EXPECT_EQ(conv::preferred_block(d), 0);
  d.in = d.out = d.groups = 128;
  d.x_block = d.y_block = conv::preferred_block(d);
  EXPECT_TRUE(conv::plan(d));
}

TEST(Conv, WrongDescs) {
  conv_desc right;
  right.in = 12, right.out = 8, right.groups = 2;
  right.axes[2] = {7, 3, 1, 1, 1, 1};
  const struct {
    std::string field;
    std::vector<std::string> words;
    void (*change)(conv_desc&);
    errc code = errc::invalid_argument;
  } cases[] = {
      {"images", {"images is 0"}, [](auto& d) { d.images = 0; }},
      {"in", {"in is -12"}, [](auto& d) { d.in = -12; }},
      {"in", {"in is 13", "2"}, [](auto& d) { d.in = 13; }},
      {"out", {"out is 9", "2"}, [](auto& d) { d.out = 9; }},
      {"groups", {"groups is 0"}, [](auto& d) { d.groups = 0; }},
      {"axes[2]", {"axes[2].in is 0"}, [](auto& d) { d.axes[2].in = 0; }},
      {"axes[2]", {"stride is 0"}, [](auto& d) { d.axes[2].stride = 0; }},
      {"axes[2]", {"dilation is -1"}, [](auto& d) { d.axes[2].dilation = -1; }},
      {"axes[1]", {"axes[1].kernel is 0"}, [](auto& d) { d.axes[1].kernel = 0; }},
      {"axes[0]", {"pad_before is -1"}, [](auto& d) { d.axes[0].pad_before = -1; }},
      {"axes[0]", {"pad_after is -2"}, [](auto& d) { d.axes[0].pad_after = -2; }},
      {"axes[2]", {"kernel of 10", "spans 10", "more than 7"}, [](auto& d) { d.axes[2].kernel = 10; }},
      {"images", {"2^62"}, [](auto& d) { d.axes[0].in = d.axes[1].in = d.images = index{1} << 29; }},
      {"training", {"transposed"}, [](auto& d) { d.transposed = d.training = true; }, errc::unsupported},
      {"mask",
       {"[0, 6]"},
       [](auto& d) { d.groups = 1, d.mask = d.clamp = true, d.act = nn::activation::relu; },
       errc::unsupported},
      {"images",
       {"2^62"},
       [](auto& d) { d.in = 64, d.transposed = true, d.axes[1] = d.axes[2] = {1, 1, 1, 1, 0, 1 << 29}; }},
      {"clamp", {"[1, 0.5]"}, [](auto& d) { d.clamp = true, d.lower = 1, d.upper = 0.5f; }},
      {"act", {"77"}, [](auto& d) { d.act = static_cast<nn::activation>(77); }},
      {"mask", {"act is 0"}, [](auto& d) { d.mask = true; }},
      {"mask", {"4 channels"}, [](auto& d) { d.mask = true, d.act = nn::activation::relu; }, errc::unsupported},
      {"input_mask", {"training"}, [](auto& d) { d.input_mask = true; }},
      {"input_mask", {"6 channels"}, [](auto& d) { d.input_mask = d.training = true; }, errc::unsupported},
      {"data", {"f32, bf16, u8 and s8"}, [](auto& d) { d.data = type::f64; }, errc::unsupported},
      {"y", {"f32"}, [](auto& d) { d.y = type::bf16; }, errc::unsupported},
      {"x_block", {"x_block is 12", "16"}, [](auto& d) { d.x_block = 12; }},
      {"y_block", {"y_block is -8"}, [](auto& d) { d.y_block = -8; }},
      {"x_block", {"6 channels", "blocks of 16"}, [](auto& d) { d.x_block = 16; }, errc::unsupported},
      {"y_block", {"12 channels", "blocks of 8"}, [](auto& d) { d.out = 24, d.y_block = 8; }, errc::unsupported},
      {"x_block",
       {"17 channels", "bf16", "blocks of 16", "multiple of 2"},
       [](auto& d) { d.groups = 1, d.in = 17, d.data = type::bf16, d.x_block = 16; },
       errc::unsupported},
      {"x_block",
       {"18 channels", "u8", "blocks of 16", "multiple of 4"},
       [](auto& d) { d.groups = 1, d.in = 18, d.data = type::u8, d.x_block = 16; },
       errc::unsupported},
      {"algorithm",
       {"blocks of 8 and 0"},
       [](auto& d) {
         d.groups = 1, d.x_block = 8, d.axes[1] = d.axes[2] = {9, 3};
         d.algorithm = nn::conv_algorithm::winograd_2x2;
       },
       errc::unsupported},
      {"y", {"65 channels", "64"}, [](auto& d) { d.in = 130, d.data = d.y = type::bf16; }, errc::unsupported},
      {"data",
       {"67 channels", "64"},
       [](auto& d) { d.out = 134, d.data = type::bf16, d.training = true; },
       errc::unsupported},
  };
  ASSERT_TRUE(conv::plan(right));
  for (const auto& c : cases) {
    conv_desc d = right;
    c.change(d);
    const auto made = conv::plan(d);
    expect_error(made, c.code, c.field, c.words);
  }
}

TEST(Conv, WrongArguments) {
  conv_desc d;
  d.images = 2, d.in = 3, d.out = 5;
  d.axes[2] = {7, 3, 1, 1, 1, 1};
  const auto layer = conv::plan(d);
  ASSERT_TRUE(layer);
  constexpr loops::serial alone;
  std::vector<float> x(2 * 7 * 3), w(5 * 3 * 3), bias(5), y(2 * 7 * 5, 7.0f);
  std::vector<float> weights(static_cast<std::size_t>(layer->weights_bytes() / 4));
  const auto fails = [&](const char* field, std::vector<std::string> words, index images, const void* px,
                         const void* pw, const float* pb, void* py) {
    const auto r = layer->forward(alone, images, px, pw, pb, py);
    expect_error(r, errc::invalid_argument, field, words);
    EXPECT_EQ(y, std::vector<float>(y.size(), 7.0f));
  };
  fails("images", {"3", "1..2"}, 3, x.data(), weights.data(), bias.data(), y.data());
  fails("images", {"0", "1..2"}, 0, x.data(), weights.data(), bias.data(), y.data());
  fails("x", {"null", "168"}, 2, nullptr, weights.data(), bias.data(), y.data());
  fails("weights", {"null"}, 2, x.data(), nullptr, bias.data(), y.data());
  fails("bias", {"null", "20"}, 2, x.data(), weights.data(), nullptr, y.data());
  fails("y", {"null", "280"}, 2, x.data(), weights.data(), bias.data(), nullptr);
  fails("y", {"overlaps x"}, 2, y.data() + 1, weights.data(), bias.data(), y.data());
  fails("x", {"no multiple of 4"}, 2, reinterpret_cast<char*>(x.data()) + 1, weights.data(), bias.data(), y.data());
  const auto invalid = errc::invalid_argument;
  expect_error(layer->pack_weights(alone, w.data(), conv_weights::out_first, nullptr), invalid, "weights", {"null"});
  expect_error(layer->pack_weights(alone, w.data(), static_cast<conv_weights>(9), weights.data()), invalid, "stored",
               {"9"});
  expect_error(layer->pack_weights(alone, w.data(), conv_weights::out_first, weights.data(), w.data()), invalid,
               "transposed", {"null"});
  expect_error(
      layer->pack_weights(alone, reinterpret_cast<const bf16*>(w.data()), conv_weights::out_first, weights.data()),
      invalid, "w", {"f32"});
  expect_error(layer->backward_data(alone, 1, y.data(), weights.data(), x.data()), invalid, "training", {"true"});
}

TEST(Conv, WrongOperands) {
  conv_desc d;
  d.images = 2, d.in = 3, d.out = 5, d.training = true;
  d.axes[2] = {7, 3, 1, 1, 1, 1};
  const auto plain = conv::plan(d);
  d.scale = d.residual = d.mask = d.input_mask = true, d.act = nn::activation::relu;
  const auto layer = conv::plan(d);
  ASSERT_TRUE(plain && layer);
  ASSERT_EQ(layer->mask_bytes(), 14);
  ASSERT_EQ(layer->input_mask_bytes(), 14);
  constexpr loops::serial alone;
  std::vector<float> x(2 * 7 * 3), vector(5), residual(2 * 7 * 5), y(2 * 7 * 5, 7.0f);
  std::vector<float> weights(static_cast<std::size_t>(layer->weights_bytes() / 4));
  std::vector<std::uint8_t> mask(14, 7);
  const nn::conv_operands right{vector.data(), vector.data(), residual.data(), mask.data()};
  const auto fails = [&](const conv& of, const nn::conv_operands& with, const char* field,
                         std::vector<std::string> words) {
    expect_error(of.forward(alone, 2, x.data(), weights.data(), with, y.data()), errc::invalid_argument, field, words);
    EXPECT_EQ(y, std::vector<float>(y.size(), 7.0f));
    EXPECT_EQ(mask, std::vector<std::uint8_t>(14, 7));
  };
  fails(*layer, {nullptr, right.scale, right.residual, right.mask}, "bias", {"null", "20"});
  fails(*layer, {right.bias, nullptr, right.residual, right.mask}, "scale", {"null", "20"});
  fails(*layer, {right.bias, right.scale, nullptr, right.mask}, "residual", {"null", "280"});
  fails(*layer, {right.bias, right.scale, right.residual, nullptr}, "mask", {"null", "14"});
  fails(*layer, {right.bias, right.scale, y.data(), right.mask}, "y", {"overlaps residual"});
  fails(*layer, {right.bias, right.scale, right.residual, residual.data()}, "mask", {"overlaps residual"});
  fails(*plain, right, "mask", {"none"});
  fails(*plain, {.bias = right.bias, .zero_x = 3}, "zero_x", {"3", "f32"});
  fails(*plain, {right.bias, right.scale, nullptr, nullptr}, "scale", {"none"});
  fails(*plain, {right.bias, nullptr, right.residual, nullptr}, "residual", {"none"});
  std::vector<float> transposed(static_cast<std::size_t>(layer->transposed_bytes() / 4));
  const auto backward = [&](const conv& of, const void* with) {
    return of.backward_data(alone, 2, residual.data(), transposed.data(), x.data(), with);
  };
  expect_error(backward(*layer, nullptr), errc::invalid_argument, "input_mask", {"null", "14"});
  expect_error(backward(*plain, mask.data()), errc::invalid_argument, "input_mask", {"none"});
  EXPECT_TRUE(backward(*layer, mask.data()));
  EXPECT_TRUE(layer->forward(alone, 2, x.data(), weights.data(), right, y.data()));
}

conv_desc small_training() {
  conv_desc d;
  d.images = 2, d.in = 3, d.out = 5, d.training = true;
  d.axes[2] = {7, 3, 1, 1, 1, 1};
  return d;
}

TEST(Conv, WrongArgumentsOfTheGradient) {
  conv_desc d = small_training();
  const auto layer = conv::plan(d);
  ASSERT_TRUE(layer);
  constexpr loops::serial alone;
  std::vector<float> z(2 * 7 * 5), dx(2 * 7 * 3, 7.0f);
  std::vector<float> transposed(static_cast<std::size_t>(layer->transposed_bytes() / 4));
  const auto fails = [&](const char* field, std::vector<std::string> words, index images, const void* pz,
                         const void* pt, void* px) {
    expect_error(layer->backward_data(alone, images, pz, pt, px), errc::invalid_argument, field, words);
    EXPECT_EQ(dx, std::vector<float>(dx.size(), 7.0f));
  };
  fails("images", {"3", "1..2"}, 3, z.data(), transposed.data(), dx.data());
  fails("dz", {"null", "280"}, 2, nullptr, transposed.data(), dx.data());
  fails("transposed", {"null"}, 2, z.data(), nullptr, dx.data());
  fails("dx", {"null", "168"}, 2, z.data(), transposed.data(), nullptr);
  fails("dx", {"overlaps dz"}, 2, dx.data() + 1, transposed.data(), dx.data());
}

TEST(Conv, WrongArgumentsOfTheUpdate) {
  conv_desc d = small_training();
  const auto layer = conv::plan(d);
  ASSERT_TRUE(layer);
  constexpr loops::serial alone;
  std::vector<float> x(2 * 7 * 3), z(2 * 7 * 5), dw(5 * 3 * 3, 7.0f), db(5, 7.0f);
  const auto fails = [&](const char* field, std::vector<std::string> words, index images, const void* px,
                         const void* pz, float* pw, float* pb) {
    expect_error(layer->backward_weights(alone, images, px, pz, pw, pb), errc::invalid_argument, field, words);
    EXPECT_EQ(dw, std::vector<float>(dw.size(), 7.0f));
    EXPECT_EQ(db, std::vector<float>(db.size(), 7.0f));
  };
  fails("images", {"3", "1..2"}, 3, x.data(), z.data(), dw.data(), db.data());
  fails("x", {"null", "168"}, 2, nullptr, z.data(), dw.data(), db.data());
  fails("dz", {"null", "280"}, 2, x.data(), nullptr, dw.data(), db.data());
  fails("dw", {"null", "180"}, 2, x.data(), z.data(), nullptr, db.data());
  fails("dw", {"overlaps db"}, 2, x.data(), z.data(), dw.data(), dw.data() + 1);
  fails("db", {"no multiple of 4"}, 2, x.data(), z.data(), dw.data(),
        reinterpret_cast<float*>(reinterpret_cast<char*>(db.data()) + 1));
  fails("dw", {"overlaps x"}, 2, dw.data() - 1, z.data(), dw.data(), db.data());
  d.training = false;
  expect_error(conv::plan(d)->backward_weights(alone, 1, x.data(), z.data(), dw.data(), nullptr),
               errc::invalid_argument, "training", {"true"});
  d.training = true, d.data = type::bf16;
  const auto copying = conv::plan(d);
  ASSERT_TRUE(copying);
  const auto bytes = static_cast<std::size_t>(copying->backward_weights_workspace_bytes());
  ASSERT_GT(bytes, 0u);
  expect_error(copying->backward_weights(alone, 1, x.data(), z.data(), dw.data(), nullptr), errc::invalid_argument,
               "workspace", {"null", std::to_string(bytes)});
  EXPECT_EQ(dw, std::vector<float>(dw.size(), 7.0f));
}

TEST(Conv, TilesAreTakenWhereACpuHasThem) {
  show_tiles();
  if (!backend::amx.runs_here()) GTEST_SKIP() << "the CPU has no AVX-512, or BRGEMM_CPU hides it or AMX";
  for (const index size : {7, 16}) {  // 7 pixels: on vectors kernels of ranges of rows, which tiles do not have
    conv_desc d;
    d.in = d.out = 128, d.data = d.y = type::bf16, d.training = true;
    d.axes[1] = d.axes[2] = {size, 3, 1, 1, 1, 1};
    EXPECT_EQ(conv::plan(d)->backend(), "amx") << size;
    d.training = false, d.data = d.y = type::u8;
    EXPECT_EQ(conv::plan(d)->backend(), "amx") << size;
    d.sums = order::chain;
    d.data = d.y = type::f32;
    EXPECT_EQ(conv::plan(d)->backend(), "avx512") << size;
  }
}

TEST(Conv, TilesStayConfiguredFromCallToCall) {
  if (!show_tiles()) GTEST_SKIP() << "loads of configurations are counted where tiles are emulated, and none are here";
  conv_desc d;
  d.images = 2, d.in = 64, d.out = 128, d.data = type::bf16, d.sums = order::tile, d.training = true;
  d.axes[1] = {16}, d.axes[2] = {16};
  std::mt19937 random(11);
  const problem p = draw_data(random, d);
  const tensor y(conv::plan(d)->y_bytes(), guard::before), dx(conv::plan(d)->x_bytes(), guard::before);
  const auto loads = [](auto&& call) {
    const std::uint64_t before = tiles::loads_of_configuration;
    call();
    return tiles::loads_of_configuration - before;
  };
  // Sixteen kernels forward, eight back, for dW one a block and for db two: a thread loads each configuration once, and
  // at the end that which was there before.
  EXPECT_EQ(loads([&] { run(p, y, dx, 1, "amx"); }), 4u);
  EXPECT_EQ(loads([&] { update_of(p, 1, "amx"); }), 3u);
}

// The last test of this file: from here on the list of backends has tiles, emulated where the CPU has none.
TEST(Conv, OrderOfTilesOnEveryBackend) {
  show_tiles();
  std::mt19937 random(10);
  for (int i = 0; i < 12; ++i) {
    conv_desc d;
    d.images = 1 + i % 2, d.in = i % 3 == 0 ? 3 : 70, d.out = i % 2 == 0 ? 64 : 17;
    d.axes[1] = {3 + i % 4, 1 + i % 3, 1, 1, i % 2, 0};
    d.axes[2] = {8, 3, 1 + i % 2, 1, 1, 1};
    d.data = type::bf16, d.sums = order::tile, d.training = true;
    const problem p = draw_data(random, d);
    // What no tap but one sees, beside what another pairs with nothing.
    for (index k = 0; k < d.out; ++k) p.z.set(d.data, (d.axes[2].out() - 1) * d.out + k, HUGE_VALF);
    std::vector<float> right;
    backend::for_each([&](const backend::entry& e) {
      if (!does(e, p.d)) return;
      const tensor y(conv::plan(d)->y_bytes(), guard::before), dx(conv::plan(d)->x_bytes(), guard::before);
      run(p, y, dx, 2, e.name);
      auto sums = update_of(p, 2, e.name);
      for (float& v : sums) v = v == v ? v : 0;  // infinities of both signs: NaN with any bits
      if (right.empty()) {
        run(p, p.y, p.dx, 1, "reference");
        right = update_of(p, 1, "reference");
        for (float& v : right) v = v == v ? v : 0;
      }
      EXPECT_TRUE(y.same_bytes(p.y)) << text_of(d) << ' ' << e.name;
      EXPECT_TRUE(same_bits(sums, right)) << text_of(d) << ' ' << e.name;
    });
  }
}

}  // namespace
}  // namespace brgemm_test
