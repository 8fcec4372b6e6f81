// Layers of convolution whose channels lie in blocks, for tests that compare them with those of adjacent channels.
#pragma once

#include <gtest/gtest.h>

#include <brgemm/nn/conv.hpp>
#include <random>
#include <span>

namespace brgemm_test {

/// d with blocks of x, y or both, drawn; without where those can't be.
inline brgemm::nn::conv_desc draw_blocks(std::mt19937& random, const brgemm::nn::conv_desc& d) {
  constexpr brgemm::index sizes[] = {0, 8, 16, 32, 64};
  brgemm::nn::conv_desc blocked = d;
  blocked.x_block = sizes[random() % 5], blocked.y_block = sizes[random() % 5];
  return brgemm::nn::conv::plan(blocked) ? blocked : d;
}

/// Calls each(bytes) for what is missing from the last block of each pixel: a span of `tensor`.
template <class Each>
void for_missing(const brgemm::nn::reorder_desc& image, brgemm::index block, void* tensor, Each each) {
  if (block == 0) return;
  const brgemm::index count = (image.channels + block - 1) / block;
  const brgemm::index missing = (count * block - image.channels) * size_of(image.element);
  for (brgemm::index i = 0; i < image.images; ++i) {
    for (brgemm::index pixel = 0; pixel < image.pixels; ++pixel) {
      const brgemm::index end = (((i + 1) * count - 1) * image.pixels + pixel + 1) * block * size_of(image.element);
      each(std::span(static_cast<std::uint8_t*>(tensor) + end - missing, static_cast<std::size_t>(missing)));
    }
  }
}
/// That it is as it was before the call.
inline void expect_untouched(const brgemm::nn::reorder_desc& image, brgemm::index block, void* tensor) {
  for_missing(image, block, tensor, [](std::span<std::uint8_t> bytes) {
    for (const std::uint8_t b : bytes) ASSERT_EQ(b, 0xee);
  });
}

/// Brings channels that are adjacent into blocks of `block`, or back; 0: they stay adjacent.
inline void move_channels(const brgemm::nn::reorder_desc& image, const void* from, void* to) {
  constexpr brgemm::loops::serial alone;
  const auto plan = brgemm::nn::reorder::plan(image);
  ASSERT_TRUE(plan) << plan.error().message();
  const auto done = (*plan)(alone, image.images, from, to);
  ASSERT_TRUE(done) << done.error().message();
}
inline void into_blocks(brgemm::nn::reorder_desc image, brgemm::index block, const void* from, void* to) {
  image.from = brgemm::nn::channel_order::last;
  image.to = block == 0 ? brgemm::nn::channel_order::last : brgemm::nn::channel_order::blocks;
  image.block = block == 0 ? 16 : block;
  move_channels(image, from, to);
  // What is missing is not to be read: NaN in f32 and bf16.
  for_missing(image, block, to, [](std::span<std::uint8_t> bytes) { std::fill(bytes.begin(), bytes.end(), 0xff); });
}
inline void out_of_blocks(brgemm::nn::reorder_desc image, brgemm::index block, const void* from, void* to) {
  image.from = block == 0 ? brgemm::nn::channel_order::last : brgemm::nn::channel_order::blocks;
  image.to = brgemm::nn::channel_order::last;
  image.block = block == 0 ? 16 : block;
  move_channels(image, from, to);
}

}  // namespace brgemm_test
