// Lines of a convolution: each output is in one, and the rows of a tap are the outputs that see an input through it.
#include <gtest/gtest.h>

#include <brgemm/nn/conv_geometry.hpp>
#include <set>
#include <tuple>
#include <vector>

namespace {

using namespace brgemm::detail;
using brgemm::index;
using brgemm::row_range;

/// The input that an output sees through a tap, -1 for none.
index seen_input(const conv_geometry& g, index output, index tap) {
  const conv_axis& a = g.axes[2];
  if (!g.backward) {
    const index in = output * a.stride - a.pad_before + tap * a.dilation;
    return in >= 0 && in < a.in ? in : -1;
  }
  const index out = output + a.pad_before - tap * a.dilation;
  return out >= 0 && out % a.stride == 0 && out / a.stride < a.out() ? out / a.stride : -1;
}

using term = std::tuple<index, index, index>;  // output, tap, input

/// Of all lines; `outputs` gets every output that is in one.
std::set<term> terms_of_lines(const conv_geometry& g, std::multiset<index>& outputs, bool& fits) {
  std::set<term> terms;
  fits = g.for_lines([&](const conv_line& line) {
    const conv_run& r = line.run;
    const bool all = line.rows[0] == row_range{};
    for (index j = 0; j < r.count; ++j) {
      const index output = r.first + j * r.out_step;
      outputs.insert(output);
      for (index n = 0; n < r.taps; ++n) {
        const row_range& rows = line.rows[n];
        if (all || (j >= rows.first && j < rows.end)) {
          terms.insert({output, r.tap + n * r.tap_step, r.in + j * r.in_step + n * r.in_tap_step});
        }
      }
    }
  });
  return terms;
}

TEST(ConvGeometry, LinesHaveTheTermsOfTheirOutputs) {
  int whole = 0, refused = 0;
  for (const bool backward : {false, true}) {
    for (index i = 0; i < 14 * 9 * 3 * 3 * 5 * 5; ++i) {
      conv_axis a;
      index rest = i;
      const auto next = [&rest](index count) { return std::exchange(rest, rest / count) % count; };
      a.in = 1 + next(14), a.kernel = 1 + next(9), a.stride = 1 + next(3), a.dilation = 1 + next(3);
      a.pad_before = next(5), a.pad_after = next(5);
      if (!check_axis(a, 2) || (!backward && a.out() > 14)) continue;
      const conv_geometry g = {{{}, {}, a}, backward, {1}, {1}};
      std::multiset<index> outputs;
      bool fits = false;
      const std::set<term> found = terms_of_lines(g, outputs, fits);
      if (!fits) {  // more taps than a kernel can tell apart, or one among them that no output sees
        ASSERT_TRUE(a.kernel > brgemm::max_row_ranges || a.dilation > 1 || a.stride > 1) << i;
        ++refused;
        continue;
      }
      std::set<term> right;
      for (index output = 0; output < g.size_out(2); ++output) {
        ASSERT_EQ(outputs.count(output), 1u) << i;
        for (index tap = 0; tap < a.kernel; ++tap) {
          if (const index in = seen_input(g, output, tap); in >= 0) right.insert({output, tap, in});
        }
      }
      ASSERT_EQ(found, right) << i;
      ++whole;
    }
  }
  EXPECT_GT(whole, 10000);
  EXPECT_GT(refused, 100);
}

TEST(ConvGeometry, SevenTapsAreALineAndEightAreNot) {
  for (const index kernel : {7, 8}) {
    const conv_geometry g = {{{}, {}, {.in = 14, .kernel = kernel, .pad_before = 4, .pad_after = 4}}, false, {1}, {1}};
    int lines = 0;
    EXPECT_EQ(g.for_lines([&](const conv_line& line) { lines += static_cast<int>(line.run.taps); }), kernel == 7);
    EXPECT_EQ(lines, kernel == 7 ? 7 : 0);
  }
}

TEST(ConvGeometry, RangesCountTo255) {
  for (const index width : {255, 256}) {
    const conv_geometry g = {{{}, {}, {.in = width, .kernel = 3, .pad_before = 1, .pad_after = 1}}, false, {1}, {1}};
    EXPECT_EQ(g.for_lines([](const conv_line&) {}), width == 255);
  }
}

}  // namespace
