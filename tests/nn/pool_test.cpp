// nn::pool against plain loops: equal bits, for any number of threads and instruction set, and no byte touched outside
// of a tensor.
#include <gtest/gtest.h>

#include <algorithm>
#include <brgemm/nn/pool.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <sstream>
#include <vector>

#include "support/expect_error.hpp"
#include "support/features.hpp"
#include "support/guarded_memory.hpp"

namespace brgemm_test {
namespace {

using namespace brgemm;
using brgemm::index;
using nn::pool;
using nn::pool_desc;
using nn::pool_kind;

std::string text_of(const pool_desc& d) {
  std::ostringstream s;
  s << (d.kind == pool_kind::max ? "max" : "average") << " images " << d.images << " channels " << d.channels;
  for (const auto& a : d.axes) {
    s << " [" << a.in << " kernel " << a.kernel << " stride " << a.stride << " dilation " << a.dilation << " pad "
      << a.pad_before << ' ' << a.pad_after << ']';
  }
  return s.str();
}

bool is_nan(float v) { return std::isnan(v); }
bool is_nan(bf16 v) { return std::isnan(to_f32(v)); }
bool is_nan(std::uint8_t) { return false; }

template <class T>
class tensor {
 public:
  tensor(index count, guard side) : memory_(bytes(count)), count_(count) {
    data_ = reinterpret_cast<T*>(memory_.place(bytes(count), side));
  }
  T* data() const { return data_; }
  T& operator[](index i) const { return data_[i]; }
  /// NaNs are all the same.
  bool same_bits(const std::vector<T>& o) const {
    return std::equal(data_, data_ + count_, o.begin(), o.end(),
                      [](T x, T y) { return std::memcmp(&x, &y, sizeof x) == 0 || (is_nan(x) && is_nan(y)); });
  }

 private:
  static std::size_t bytes(index count) { return static_cast<std::size_t>(count) * sizeof(T); }
  guarded_memory memory_;
  index count_;
  T* data_;
};

index inputs(const pool_desc& d) { return d.images * d.axes[0].in * d.axes[1].in * d.axes[2].in * d.channels; }
index outputs(const pool_desc& d) {
  return d.images * d.axes[0].out() * d.axes[1].out() * d.axes[2].out() * d.channels;
}

/// Calls each(element of y, element of x, tap) for every tap in x, outputs and then taps in row-major order.
template <class Each>
void for_terms(const pool_desc& d, Each each) {
  index y = 0;
  for (index image = 0; image < d.images; ++image) {
    const auto& [a, b, c] = d.axes;
    for (index o = 0; o < a.out() * b.out() * c.out(); ++o, y += d.channels) {
      const index at[3] = {o / c.out() / b.out(), o / c.out() % b.out(), o % c.out()};
      for (index tap = 0; tap < a.kernel * b.kernel * c.kernel; ++tap) {
        const index taps[3] = {tap / c.kernel / b.kernel, tap / c.kernel % b.kernel, tap % c.kernel};
        index pixel = image;
        for (int i = 0; i < 3 && pixel >= 0; ++i) {
          const index in = at[i] * d.axes[i].stride - d.axes[i].pad_before + taps[i] * d.axes[i].dilation;
          pixel = in < 0 || in >= d.axes[i].in ? -1 : pixel * d.axes[i].in + in;
        }
        if (pixel < 0) continue;
        for (index channel = 0; channel < d.channels; ++channel) {
          each(y + channel, pixel * d.channels + channel, tap);
        }
      }
    }
  }
}

const loops::serial one_thread;

/// Elements of x, y and their gradients: f32 or bf16.
float value_of(float v) { return v; }
float value_of(bf16 v) { return to_f32(v); }
template <class T>
T as(float v) {
  if constexpr (std::is_same_v<T, bf16>) return to_bf16(v);
  if constexpr (std::is_same_v<T, float>) return v;
}

template <class T>
struct expected {
  std::vector<T> y, dx;
  std::vector<std::uint8_t> indices;
};

template <class T>
expected<T> expected_of(const pool_desc& d, const tensor<T>& x_of, const tensor<T>& dy) {
  const auto count = static_cast<std::size_t>(outputs(d));
  const bool max = d.kind == pool_kind::max;
  std::vector<float> y_of(count), dx(static_cast<std::size_t>(inputs(d)));
  expected<T> e{std::vector<T>(count), std::vector<T>(dx.size()), std::vector<std::uint8_t>(max ? count : 0)};
  std::vector<index> seen(count);
  const auto at = [](index i) { return static_cast<std::size_t>(i); };
  for_terms(d, [&](index y, index from, index tap) {
    float& to = y_of[at(y)];
    const float x = value_of(x_of[from]);
    const bool first = seen[at(y)]++ == 0;
    if (!max) {
      to += x;
    } else if (first || x > to || (std::isnan(x) && !std::isnan(to))) {
      to = x, e.y[at(y)] = x_of[from], e.indices[at(y)] = static_cast<std::uint8_t>(tap);
    }
  });
  const index taps = d.axes[0].kernel * d.axes[1].kernel * d.axes[2].kernel;
  const auto number = [&](index y) { return static_cast<float>(d.count_padding ? taps : seen[at(y)]); };
  for_terms(d, [&](index y, index to, index tap) {
    if (!max) dx[at(to)] += value_of(dy[y]) / number(y);
    if (max && e.indices[at(y)] == tap) dx[at(to)] += value_of(dy[y]);
  });
  for (std::size_t i = 0; i < dx.size(); ++i) e.dx[i] = as<T>(dx[i]);
  for (std::size_t i = 0; !max && i < count; ++i) e.y[i] = as<T>(y_of[i] / number(static_cast<index>(i)));
  return e;
}

pool_desc draw(std::mt19937& random) {
  const auto draw_in = [&](index least, index most) {
    return std::uniform_int_distribution<index>(least, most)(random);
  };
  for (;;) {
    pool_desc d;
    d.images = draw_in(1, 3);
    d.channels = draw_in(0, 2) == 0 ? draw_in(1, 70) : draw_in(1, 3) * (draw_in(0, 9) == 0 ? 397 : 16);
    d.kind = draw_in(0, 1) == 0 ? pool_kind::max : pool_kind::average;
    d.count_padding = draw_in(0, 1) == 0;
    for (index i = 3 - draw_in(1, 3); i < 3; ++i) {
      d.axes[i] = {draw_in(1, 9), draw_in(1, 4), draw_in(1, 3), draw_in(1, 2), draw_in(0, 2), draw_in(0, 2)};
    }
    if (pool::plan(d)) return d;
  }
}

/// Values that come twice, zeros of both signs; with `odd` NaN and infinities too.
template <class T>
void fill(const tensor<T>& t, index count, std::mt19937& random, bool odd) {
  const float strange[] = {std::numeric_limits<float>::quiet_NaN(), -__builtin_inff(), __builtin_inff(), -0.0f};
  for (index i = 0; i < count; ++i) {
    const auto drawn = static_cast<int>(random() % 64);
    t[i] = as<T>(odd && drawn < 4 ? strange[drawn] : static_cast<float>(drawn - 32) * 0.37f);
  }
}

template <class T>
void expect_right(pool_desc d, int threads, std::mt19937& random, bool odd) {
  d.data = element_traits<T>::value;
  const auto layer = pool::plan(d);
  auto executor = loops::thread_pool::make(threads);
  ASSERT_TRUE(layer && executor);
  const bool max = d.kind == pool_kind::max;
  const auto side = random() % 2 == 0 ? guard::before : guard::after;
  const tensor<T> x(inputs(d), side), dy(outputs(d), side), y(outputs(d), side), dx(inputs(d), side);
  const tensor<std::uint8_t> indices(layer->indices_bytes(), side);
  fill(x, inputs(d), random, odd);
  fill(dy, outputs(d), random, false);
  ASSERT_EQ(layer->x_bytes(), inputs(d) * size_of(d.data));
  ASSERT_EQ(layer->y_bytes(), outputs(d) * size_of(d.data));
  const expected<T> e = expected_of(d, x, dy);
  auto r = layer->forward(*executor, d.images, x.data(), y.data(), max ? indices.data() : nullptr);
  ASSERT_TRUE(r) << r.error().message();
  EXPECT_TRUE(y.same_bits(e.y)) << text_of(d);
  EXPECT_TRUE(!max || indices.same_bits(e.indices)) << text_of(d);
  r = layer->backward(*executor, d.images, dy.data(), max ? indices.data() : nullptr, dx.data());
  ASSERT_TRUE(r) << r.error().message();
  EXPECT_TRUE(dx.same_bits(e.dx)) << text_of(d);
  if (!max) return;
  std::memset(static_cast<void*>(y.data()), 0xee, static_cast<std::size_t>(layer->y_bytes()));
  ASSERT_TRUE(layer->forward(*executor, d.images, x.data(), y.data(), nullptr));
  EXPECT_TRUE(y.same_bits(e.y)) << text_of(d) << " without indices";
}

TEST(Pool, HasTheBitsOfThePlainLoops) {
  for (const char* hidden : {"", "-avx512", "-avx512,-avx2"}) {
    hide_features(hidden);
    SCOPED_TRACE(hidden);
    std::mt19937 random(1);
    for (int i = 0; i < 400; ++i) {
      expect_right<float>(draw(random), 1 + i % 3, random, i % 2 == 0);
      expect_right<bf16>(draw(random), 1 + i % 3, random, i % 2 == 0);
      if (testing::Test::HasFailure()) break;
    }
  }
  hide_features("");
}

TEST(Pool, GlobalAverageIsTheMeanOfAChannel) {
  const pool_desc d = nn::global_average(2, 20, 1, 7, 5);
  std::mt19937 random(2);
  expect_right<float>(d, 2, random, false);
  expect_right<bf16>(d, 2, random, false);
  const auto layer = pool::plan(d);
  ASSERT_TRUE(layer);
  std::vector<float> x(2 * 20 * 35), y(40);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 20);
  ASSERT_TRUE(layer->forward(one_thread, 2, x.data(), y.data(), nullptr));
  for (std::size_t i = 0; i < y.size(); ++i) EXPECT_EQ(y[i], static_cast<float>(i % 20));
}

TEST(Pool, FewerImagesThanPlanned) {
  pool_desc d;
  d.images = 3, d.channels = 5, d.axes[2] = {6, 2, 2};
  const auto layer = pool::plan(d);
  ASSERT_TRUE(layer);
  const tensor<float> x(2 * 6 * 5, guard::after), y(2 * 3 * 5, guard::after);
  std::mt19937 random(3);
  fill(x, 60, random, false);
  EXPECT_TRUE(layer->forward(one_thread, 2, x.data(), y.data(), nullptr));
}

TEST(Pool, WrongDescs) {
  pool_desc right;
  right.channels = 3;
  right.axes[2] = {7, 3, 2, 1, 1, 1};
  const struct {
    std::string field;
    std::vector<std::string> words;
    void (*change)(pool_desc&);
  } cases[] = {
      {"images", {"images is 0"}, [](auto& d) { d.images = 0; }},
      {"channels", {"channels is -3"}, [](auto& d) { d.channels = -3; }},
      {"data", {"data is f64"}, [](auto& d) { d.data = type::f64; }},
      {"kind", {"7"}, [](auto& d) { d.kind = static_cast<pool_kind>(7); }},
      {"axes[2]", {"axes[2].stride is 0"}, [](auto& d) { d.axes[2].stride = 0; }},
      {"axes[1]", {"kernel of 2", "more than 1"}, [](auto& d) { d.axes[1].kernel = 2; }},
      {"axes[2]", {"output 0", "padding 3"}, [](auto& d) { d.axes[2].pad_before = 3; }},
      {"axes[2]", {"output 4", "padding 1 and 4"}, [](auto& d) { d.axes[2].pad_after = 4; }},
      {"axes[2]", {"output 0", "dilation 3"}, [](auto& d) { d.axes[2] = {2, 2, 1, 3, 1, 1}; }},
      {"axes",
       {"324"},
       [](auto& d) {
         d.axes[1] = d.axes[2] = {18, 18};
       }},
      {"axes",
       {"2^62"},
       [](auto& d) {
         d.kind = pool_kind::average;
         for (auto& a : d.axes) a = {1, index{1} << 21, 1, 1, (index{1} << 21) - 1, 0};
       }},
      {"images", {"2^62"}, [](auto& d) { d.images = d.channels = index{1} << 29, d.axes[2] = {64}; }},
  };
  ASSERT_TRUE(pool::plan(right));
  for (const auto& c : cases) {
    pool_desc d = right;
    c.change(d);
    expect_error(pool::plan(d), errc::invalid_argument, c.field, c.words);
  }
}

TEST(Pool, WrongArguments) {
  pool_desc d;
  d.images = 2, d.channels = 3, d.axes[2] = {6, 2, 2};
  const auto max = pool::plan(d);
  d.kind = pool_kind::average;
  const auto average = pool::plan(d);
  ASSERT_TRUE(max && average);
  std::vector<float> x(36, 1.0f), y(18, 7.0f);
  std::vector<std::uint8_t> indices(18, 7);
  const auto expect = [&](const auto& r, const char* field, std::vector<std::string> words) {
    expect_error(r, errc::invalid_argument, field, words);
    EXPECT_EQ(y, std::vector<float>(18, 7.0f));
    EXPECT_EQ(x, std::vector<float>(36, 1.0f));
    EXPECT_EQ(indices, std::vector<std::uint8_t>(18, 7));
  };
  float* const none = nullptr;
  expect(max->forward(one_thread, 3, x.data(), y.data(), nullptr), "images", {"3", "1..2"});
  expect(max->forward(one_thread, 0, x.data(), y.data(), nullptr), "images", {"0", "1..2"});
  expect(max->forward(one_thread, 2, none, y.data(), nullptr), "x", {"144 bytes"});
  expect(max->forward(one_thread, 2, x.data(), none, nullptr), "y", {"72 bytes"});
  expect(max->forward(one_thread, 2, x.data(), x.data() + 20, nullptr), "y", {"overlaps x"});
  expect(average->forward(one_thread, 2, x.data(), y.data(), indices.data()), "indices", {"none"});
  expect(max->backward(one_thread, 3, y.data(), indices.data(), x.data()), "images", {"3", "1..2"});
  expect(max->backward(one_thread, 2, y.data(), nullptr, x.data()), "indices", {"18 bytes"});
  expect(average->backward(one_thread, 2, y.data(), indices.data(), x.data()), "indices", {"none"});
  expect(max->backward(one_thread, 2, none, indices.data(), x.data()), "dy", {"72 bytes"});
  expect(max->backward(one_thread, 2, y.data(), indices.data(), none), "dx", {"144 bytes"});
  expect(max->backward(one_thread, 2, x.data(), indices.data(), x.data()), "dx", {"overlaps dy"});
}

}  // namespace
}  // namespace brgemm_test
