// nn::linear against plain loops in the contract's order: equal bits for every type, storage, batch and thread count;
// gradients against finite differences and values made elsewhere; what is wrong is named.
#include <gtest/gtest.h>

#include <brgemm/nn/linear.hpp>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "npz.hpp"
#include "support/features.hpp"
#include "support/pieces.hpp"
#include "support/tile_order.hpp"

namespace brgemm {  // so that index is not the one of <strings.h>
namespace {

using nn::activation;
using nn::storage;

constexpr loops::serial alone;

/// A matrix (rows, columns) of floats; bf16 values are kept as floats that bf16 can hold.
struct matrix {
  index rows = 0;
  index columns = 0;
  std::vector<float> values;
  float& operator()(index r, index c) { return values[static_cast<std::size_t>(r * columns + c)]; }
  float operator()(index r, index c) const { return values[static_cast<std::size_t>(r * columns + c)]; }
};

float round_to(type t, float x) { return t == type::bf16 ? to_f32(to_bf16(x)) : x; }

matrix random_matrix(index rows, index columns, unsigned seed, type t = type::f32) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  matrix m{rows, columns, std::vector<float>(static_cast<std::size_t>(rows * columns))};
  for (float& v : m.values) v = round_to(t, uniform(random));
  return m;
}

/// a(k) * b(k) summed over k < count, in pairs as `vdpbf16ps` sums them.
template <class A, class B>
float chain_of_pairs(index count, A&& a, B&& b) {
  float sum = 0;
  for (index i = 0; i < count; i += 2) {
    const bool pair = i + 1 < count;
    sum = std::fma(pair ? a(i + 1) : 0.0f, pair ? b(i + 1) : 0.0f, sum);
    sum = std::fma(a(i), b(i), sum);
  }
  return sum;
}

/// k of an entry where rows of `features` lie in a storage.
index entry_of(storage s, index features) {
  return s == storage::blocked ? nn::block_width(features) : std::max<index>(features, 1);
}

/// sum over k of a(k) * b(k) in the order of the contract: one chain, for bf16 in pairs or as tiles sum entries, of
/// pieces as documented.
template <class A, class B, class Entry>
float sum_of(const nn::linear_desc& d, index count, A&& a, B&& b, Entry&& entry) {
  if (d.compute != math::f32) return brgemm_test::sum_of_pieces(d.compute, count, 0, a, b);
  const bool tiles = d.sums == order::machine ? brgemm_test::machine_sums_in_tiles() : d.sums == order::tile;
  if (d.data != type::f32) return tiles ? brgemm_test::sum_in_tiles(count, a, b, entry) : chain_of_pairs(count, a, b);
  float sum = 0;
  for (index i = 0; i < count; ++i) sum = std::fma(a(i), b(i), sum);
  return sum;
}

/// Memory of `bytes` bytes on a line of its own, with a pattern behind it that the destructor looks at.
class memory {
 public:
  explicit memory(index bytes) : bytes_(static_cast<std::size_t>(bytes)), words_((bytes_ + 192) / 8, pattern) {}
  ~memory() {
    const auto* end = reinterpret_cast<const unsigned char*>(start()) + bytes_;
    for (int i = 0; i < 64; ++i) EXPECT_EQ(end[i], 0xff) << "byte " << i << " behind a buffer was written";
  }
  void* get() { return bytes_ == 0 ? nullptr : start(); }
  template <class T>
  T* as() {
    return static_cast<T*>(get());
  }
  std::vector<unsigned char> bytes() {
    const auto* p = static_cast<const unsigned char*>(get());
    return {p, p + bytes_};
  }

 private:
  static constexpr std::uint64_t pattern = ~std::uint64_t{0};  // NaN in every type
  char* start() {
    auto p = reinterpret_cast<std::uintptr_t>(words_.data());
    return reinterpret_cast<char*>((p + 63) / 64 * 64);
  }
  std::size_t bytes_;
  std::vector<std::uint64_t> words_;
};

/// Where element (r, c) of activations lies.
index element_at(storage s, index features, index ld, index r, index c) {
  const nn::tiling t = nn::tiling_of(s, features, ld);
  const index w = nn::block_width(features);
  return t.offset(r / nn::block_rows, c / w) + r % nn::block_rows * t.ld + c % w;
}

void store(const matrix& m, type t, storage s, index ld, void* to) {
  for (index r = 0; r < m.rows; ++r) {
    for (index c = 0; c < m.columns; ++c) {
      const index at = element_at(s, m.columns, ld, r, c);
      if (t == type::f32) static_cast<float*>(to)[at] = m(r, c);
      if (t == type::bf16) static_cast<bf16*>(to)[at] = to_bf16(m(r, c));
    }
  }
}

matrix load(index rows, index columns, type t, storage s, index ld, const void* from) {
  matrix m{rows, columns, std::vector<float>(static_cast<std::size_t>(rows * columns))};
  for (index r = 0; r < rows; ++r) {
    for (index c = 0; c < columns; ++c) {
      const index at = element_at(s, columns, ld, r, c);
      m(r, c) = t == type::f32 ? static_cast<const float*>(from)[at] : to_f32(static_cast<const bf16*>(from)[at]);
    }
  }
  return m;
}

bool same_bits(const matrix& a, const matrix& b) {
  return a.values.size() == b.values.size() &&
         std::memcmp(a.values.data(), b.values.data(), a.values.size() * sizeof(float)) == 0;
}

/// Everything that one pass forward and backward gives.
struct outcome {
  matrix y, dx, dw;
  std::vector<float> db;
  friend bool operator==(const outcome& a, const outcome& b) {
    return same_bits(a.y, b.y) && same_bits(a.dx, b.dx) && same_bits(a.dw, b.dw) && a.db == b.db;
  }
};

struct problem {
  nn::linear_desc d;
  matrix x, w, dz;
  matrix bias, input_z;  // (1,out); what the layer before gave its activation (rows,in)
};

problem draw(const nn::linear_desc& d, unsigned seed) {
  return {d,
          random_matrix(d.rows, d.in, seed, d.data),
          random_matrix(d.in, d.out, seed + 1),
          random_matrix(d.rows, d.out, seed + 2, d.data),
          random_matrix(1, d.out, seed + 3),
          random_matrix(d.rows, d.in, seed + 4)};
}

/// The plain loops.
outcome wanted(const problem& p) {
  const nn::linear_desc& d = p.d;
  matrix w = p.w;
  for (float& v : w.values) v = round_to(d.data, v);
  outcome o{p.dz, p.x, p.w, std::vector<float>(static_cast<std::size_t>(d.out))};
  for (index r = 0; r < d.rows; ++r) {
    for (index j = 0; j < d.out; ++j) {
      float z = sum_of(
          d, d.in, [&](index k) { return p.x(r, k); }, [&](index k) { return w(k, j); },
          [&d](index) { return entry_of(d.x_storage, d.in); });
      if (d.bias) z += p.bias(0, j);
      if (d.act == activation::relu) z = z < 0 ? 0 : z;
      o.y(r, j) = round_to(d.y, activate(nn::op_of(d.act), z));
    }
    for (index i = 0; i < d.in; ++i) {
      float g = sum_of(
          d, d.out, [&](index k) { return p.dz(r, k); }, [&](index k) { return w(i, k); },
          [&d](index) { return entry_of(d.y_storage, d.out); });
      if (d.input_act == activation::relu) g = p.input_z(r, i) > 0 ? g : 0.0f;
      if (d.input_act != activation::relu) g *= nn::derivative(d.input_act, p.input_z(r, i));
      o.dx(r, i) = round_to(d.data, g);
    }
  }
  for (index j = 0; j < d.out; ++j) {
    for (index i = 0; i < d.in; ++i) {
      o.dw(i, j) = sum_of(
          d, d.rows, [&](index k) { return p.x(k, i); }, [&](index k) { return p.dz(k, j); },
          brgemm_test::rows_of_entry);
    }
    o.db[static_cast<std::size_t>(j)] = sum_of(
        d, d.rows, [&](index) { return 1.0f; }, [&](index k) { return p.dz(k, j); }, brgemm_test::rows_of_entry);
  }
  return o;
}

/// What the layer before would have written to `saved`: a bit mask for relu, else what it gave its activation.
void store_saved(const problem& p, void* saved) {
  const nn::linear_desc& d = p.d;
  if (saved == nullptr) return;
  if (d.input_act != activation::relu) return store(p.input_z, type::f32, d.x_storage, d.in, saved);
  const nn::tiling t = nn::mask_tiling(d.x_storage, d.in);
  const index w = nn::block_width(d.in);
  for (index r = 0; r < d.rows; ++r) {
    for (index c = 0; c < d.in; ++c) {
      auto& byte = static_cast<unsigned char*>(
          saved)[t.offset(r / nn::block_rows, c / w) + r % nn::block_rows * t.ld + c % w / 8];
      const int bit = 1 << (c % 8);
      byte = static_cast<unsigned char>(p.input_z(r, c) > 0 ? byte | bit : byte & ~bit);
    }
  }
}

/// The library, with `threads`.
outcome computed(const problem& p, loops::executor_ref threads, const options& how = {}) {
  const nn::linear_desc& d = p.d;
  const auto plan = nn::linear::plan(d, how);
  EXPECT_TRUE(plan) << plan.error().message();
  if (!plan) return {};
  const index ldx = d.ldx != 0 ? d.ldx : d.in;
  const index ldy = d.ldy != 0 ? d.ldy : d.out;
  const bool reads_parameters = d.data == type::f32 && d.compute == math::f32;
  memory pieces_of_x(plan->forward_workspace_bytes()), pieces_of_dz(plan->backward_data_workspace_bytes());
  memory parameters(plan->parameters() * 4), weights(reads_parameters ? 0 : plan->weights_bytes());
  memory transposed(plan->transposed_bytes()), x(plan->x_bytes()), y(plan->y_bytes()), dz(plan->x_bytes() * 0 + [&] {
    return nn::extent_of(d.y_storage, nn::tiling_of(d.y_storage, d.out, ldy), d.rows, d.out) * size_of(d.data);
  }());
  memory dx(plan->x_bytes()), dw(plan->parameters() * 4), db(d.out * 4), saved(plan->saved_bytes());
  memory input_saved(plan->input_saved_bytes()), workspace(plan->backward_weights_workspace_bytes());
  const auto expect = [](const result<void>& r) { EXPECT_TRUE(r) << r.error().field() << ": " << r.error().message(); };
  expect(plan->pack_weights(threads, view<const float, 2>(p.w.values.data(), {d.in, d.out}), layout::plain,
                            parameters.as<float>()));
  expect(plan->prepare(threads, parameters.as<float>(), weights.get(), transposed.get()));
  store(p.x, d.data, d.x_storage, ldx, x.get());
  store(p.dz, d.data, d.y_storage, ldy, dz.get());
  store_saved(p, input_saved.get());
  expect(plan->forward(threads, d.rows, x.get(), reads_parameters ? parameters.get() : weights.get(),
                       d.bias ? p.bias.values.data() : nullptr, y.get(), saved.get(), {}, pieces_of_x.get()));
  outcome o;
  o.y = load(d.rows, d.out, d.y, d.y_storage, ldy, y.get());
  if (!d.training) return o;
  expect(plan->backward_data(threads, d.rows, dz.get(), transposed.get(), dx.get(), input_saved.get(),
                             pieces_of_dz.get()));
  expect(plan->backward_weights(threads, d.rows, x.get(), dz.get(), dw.as<float>(), db.as<float>(), workspace.get()));
  o.dx = load(d.rows, d.in, d.data, d.x_storage, ldx, dx.get());
  o.dw = {d.in, d.out, std::vector<float>(static_cast<std::size_t>(d.in * d.out))};
  expect(plan->unpack_parameters(threads, dw.as<float>(), {o.dw.values.data(), {d.in, d.out}}, layout::plain));
  o.db.assign(db.as<float>(), db.as<float>() + d.out);
  const index w = nn::block_width(d.out);
  for (index c = d.out; c < nn::panels(d.out) * w; ++c) {
    for (index r = 0; r < d.in; ++r) EXPECT_EQ(dw.as<float>()[(c / w * d.in + r) * w + c % w], 0) << "padding of dw";
  }
  return o;
}

std::string text(const nn::linear_desc& d) {
  return "rows " + std::to_string(d.rows) + " in " + std::to_string(d.in) + " out " + std::to_string(d.out) + " " +
         std::string(name_of(d.data)) + " y " + std::string(name_of(d.y)) + " act " +
         std::to_string(static_cast<int>(d.act)) + " input_act " + std::to_string(static_cast<int>(d.input_act)) +
         " x_storage " + std::to_string(static_cast<int>(d.x_storage)) + " y_storage " +
         std::to_string(static_cast<int>(d.y_storage)) + " how " + std::to_string(static_cast<int>(d.compute)) +
         " ldx " + std::to_string(d.ldx);
}

void expect_right(const nn::linear_desc& d, unsigned seed) {
  SCOPED_TRACE(text(d));
  const problem p = draw(d, seed);
  const outcome right = wanted(p);
  const outcome got = computed(p, alone);
  EXPECT_TRUE(same_bits(got.y, right.y)) << "y";
  if (!d.training) return;
  EXPECT_TRUE(same_bits(got.dx, right.dx)) << "dx";
  EXPECT_TRUE(same_bits(got.dw, right.dw)) << "dw";
  EXPECT_EQ(got.db, right.db) << "db";
}

/// What the tests walk: f32; bf16 with y of bf16 or f32; f32 by pieces.
constexpr struct {
  type data, y;
  math how;
  order sums = order::machine;
} types[] = {{type::f32, type::f32, math::f32},
             {type::bf16, type::bf16, math::f32, order::pair},
             {type::bf16, type::f32, math::f32, order::tile},
             {type::bf16, type::f32, math::f32},
             {type::f32, type::f32, math::bf16x3},
             {type::f32, type::f32, math::bf16x2}};

TEST(Linear, EqualsPlainLoopsForAnySizes) {
  unsigned seed = 1;
  for (const auto& [data, y, how, sums] : types) {
    for (const index rows : {1, 3, 64, 77, 130}) {
      for (const auto& [in, out] : {std::pair<index, index>{1, 1}, {10, 70}, {33, 64}, {112, 10}, {130, 100}}) {
        expect_right(
            {.rows = rows, .in = in, .out = out, .data = data, .y = y, .compute = how, .sums = sums, .training = true},
            seed++);
      }
    }
  }
}

TEST(Linear, EqualsPlainLoopsForEachActivation) {
  unsigned seed = 100;
  for (const auto& [data, y, how, sums] : types) {
    for (int a = 0; a < nn::activation_count; ++a) {
      for (const bool training : {false, true}) {
        nn::linear_desc d{
            .rows = 70, .in = 40, .out = 90, .data = data, .y = y, .compute = how, .sums = sums, .training = training};
        d.act = static_cast<activation>(a);
        d.bias = a % 2 == 0;
        if (training) d.input_act = static_cast<activation>(nn::activation_count - 1 - a);
        expect_right(d, seed++);
      }
    }
  }
}

TEST(Linear, EqualsPlainLoopsForEachStorage) {
  unsigned seed = 200;
  for (const auto& [data, y, how, sums] : types) {
    for (const storage xs : {storage::plain, storage::blocked}) {
      for (const storage ys : {storage::plain, storage::blocked}) {
        for (const activation a : {activation::relu, activation::tanh}) {
          if (how != math::f32 && a == activation::tanh) continue;
          for (const auto& [in, out] : {std::pair<index, index>{50, 112}, {192, 112}, {144, 240}}) {  // last: 48 wide
            nn::linear_desc d{.rows = 100,
                              .in = in,
                              .out = out,
                              .data = data,
                              .y = y,
                              .compute = how,
                              .sums = sums,
                              .act = a,
                              .training = true};
            d.input_act = a;
            d.x_storage = xs;
            d.y_storage = ys;
            if (xs == storage::plain) d.ldx = in + 3;
            if (ys == storage::plain) d.ldy = out + 5;
            expect_right(d, seed++);
          }
        }
      }
    }
  }
}

TEST(Linear, SameBitsForAnyThreads) {
  unsigned seed = 300;
  for (const auto& [data, y, how, sums] : types) {
    for (const storage s : {storage::plain, storage::blocked}) {
      const problem p = draw({.rows = 150,
                              .in = 128,
                              .out = 192,
                              .data = data,
                              .y = y,
                              .compute = how,
                              .sums = sums,
                              .act = activation::relu,
                              .training = true,
                              .input_act = activation::relu,
                              .x_storage = s,
                              .y_storage = s},
                             seed++);
      const outcome one = computed(p, alone);
      for (const int threads : {2, 3, 4}) {
        auto pool = loops::thread_pool::make(threads);
        ASSERT_TRUE(pool);
        EXPECT_TRUE(computed(p, *pool) == one) << threads << " threads, " << text(p.d);
      }
    }
  }
}

/// Runs here, and BRGEMM_BACKEND does not forbid it.
bool permitted(const backend::entry& e) {
  if (!e.runs_here()) return false;
  const auto made = make_kernel(desc{}, {.backend = e.name});
  return made || made.error().code() != errc::forbidden;
}

TEST(Linear, SameBitsOnEveryBackend) {
  brgemm_test::show_tiles();
  int compared = 0;
  for (const auto& [data, y, how, sums] : types) {
    const problem p = draw({.rows = 75,
                            .in = 128,
                            .out = 70,
                            .data = data,
                            .y = y,
                            .compute = how,
                            .sums = sums,
                            .act = activation::relu,
                            .training = true,
                            .input_act = activation::silu,
                            .x_storage = storage::blocked},
                           350);
    const outcome right = wanted(p);
    for (const backend::entry& e : backend::built_in()) {
      if (!permitted(e)) continue;
      const auto plan = nn::linear::plan(p.d, {.backend = e.name});
      if (!plan) {
        EXPECT_TRUE(e.name == backend::amx.name && how == math::f32 && (data == type::f32 || sums == order::pair))
            << e.name << ": a backend for bf16 does all in order::tile, by pieces f32 too";
        EXPECT_EQ(plan.error().code(), errc::unsupported) << e.name << ": " << plan.error().message();
        continue;
      }
      EXPECT_EQ(plan->backend(), e.name);
      EXPECT_TRUE(computed(p, alone, {.backend = e.name}) == right) << e.name << ' ' << text(p.d);
      ++compared;
    }
  }
  EXPECT_GE(compared, static_cast<int>(std::size(types)));  // the reference does all of them
}

TEST(Linear, SameBitsForARowAloneOrInABatch) {
  for (const auto& [data, y, how, sums] : types) {
    const problem p = draw({.rows = 130,
                            .in = 70,
                            .out = 100,
                            .data = data,
                            .y = y,
                            .compute = how,
                            .sums = sums,
                            .act = activation::gelu_erf},
                           400);
    const outcome batch = computed(p, alone);
    for (const index r : {0, 63, 64, 129}) {
      problem one = p;
      one.d.rows = one.x.rows = one.dz.rows = 1;
      one.x.values.assign(&p.x.values[static_cast<std::size_t>(r * 70)],
                          &p.x.values[static_cast<std::size_t>(r * 70)] + 70);
      const outcome row = computed(one, alone);
      EXPECT_EQ(std::memcmp(row.y.values.data(), &batch.y.values[static_cast<std::size_t>(r * 100)], 400), 0) << r;
    }
  }
}

TEST(Linear, TakesFewerRowsThanPlanned) {
  for (const storage s : {storage::plain, storage::blocked}) {
    const problem p = draw({.rows = 200, .in = 64, .out = 64, .training = true, .x_storage = s, .y_storage = s}, 500);
    problem less = p;
    less.d.rows = less.x.rows = less.dz.rows = 71;
    less.x.values.resize(71 * 64);
    less.dz.values.resize(71 * 64);
    const outcome right = wanted(less);
    const auto plan = nn::linear::plan(p.d);
    ASSERT_TRUE(plan);
    memory w(plan->parameters() * 4), x(plan->x_bytes()), y(plan->y_bytes()), dz(plan->y_bytes()), dw(64 * 64 * 4);
    memory workspace(plan->backward_weights_workspace_bytes());
    ASSERT_TRUE(
        plan->pack_weights(alone, view<const float, 2>(p.w.values.data(), {64, 64}), layout::plain, w.as<float>()));
    store(less.x, type::f32, s, 64, x.get());
    store(less.dz, type::f32, s, 64, dz.get());
    ASSERT_TRUE(plan->forward(alone, 71, x.get(), w.get(), p.bias.values.data(), y.get()));
    ASSERT_TRUE(plan->backward_weights(alone, 71, x.get(), dz.get(), dw.as<float>(), nullptr, workspace.get()));
    EXPECT_TRUE(same_bits(load(71, 64, type::f32, s, 64, y.get()), right.y));
    EXPECT_EQ(std::memcmp(dw.get(), right.dw.values.data(), 64 * 64 * 4), 0);
  }
}

TEST(Linear, TakesWeightsAsPyTorchStoresThemAndGivesThemBack) {
  const auto plan = nn::linear::plan({.rows = 1, .in = 37, .out = 150});
  ASSERT_TRUE(plan);
  const matrix w = random_matrix(37, 150, 600);
  matrix turned{150, 37, std::vector<float>(150 * 37)}, back = turned, back_plain = w;
  for (index i = 0; i < 37; ++i) {
    for (index j = 0; j < 150; ++j) turned(j, i) = w(i, j);
  }
  memory a(plan->parameters() * 4), b(plan->parameters() * 4);
  ASSERT_TRUE(
      plan->pack_weights(alone, view<const float, 2>(w.values.data(), {37, 150}), layout::plain, a.as<float>()));
  ASSERT_TRUE(plan->pack_weights(alone, view<const float, 2>(turned.values.data(), {150, 37}), layout::transposed,
                                 b.as<float>()));
  EXPECT_EQ(a.bytes(), b.bytes());
  ASSERT_TRUE(plan->unpack_parameters(alone, a.as<float>(), {back.values.data(), {150, 37}}, layout::transposed));
  back_plain.values.assign(back_plain.values.size(), 0);
  ASSERT_TRUE(plan->unpack_parameters(alone, a.as<float>(), {back_plain.values.data(), {37, 150}}, layout::plain));
  EXPECT_TRUE(same_bits(back, turned));
  EXPECT_TRUE(same_bits(back_plain, w));
}

/// Written past the caches or not, the transposed weights are the same.
TEST(Linear, PreparesWeightsThatAreLargerThanTheCaches) {
  const index in = 1500;
  const index out = std::max<index>(detail::largest_cache_bytes(), 1 << 20) / (in * 4) + 77;
  if (in * out * 4 > index{1} << 28) GTEST_SKIP() << "the largest cache has " << detail::largest_cache_bytes();
  for (const type data : {type::f32, type::bf16}) {
    const auto plan = nn::linear::plan({.rows = 1, .in = in, .out = out, .data = data, .training = true});
    ASSERT_TRUE(plan);
    memory parameters(plan->parameters() * 4), weights(data == type::f32 ? 0 : plan->weights_bytes());
    memory aligned(plan->transposed_bytes()), shifted(plan->transposed_bytes() + 4);
    ASSERT_TRUE(detail::passes_caches(plan->transposed_bytes() + plan->parameters() * 4, aligned.get()));
    ASSERT_FALSE(detail::passes_caches(plan->transposed_bytes() + plan->parameters() * 4, shifted.as<char>() + 4));
    for (index i = 0; i < plan->parameters(); ++i) parameters.as<float>()[i] = static_cast<float>(i % 251);
    std::memset(aligned.get(), 0, static_cast<std::size_t>(plan->transposed_bytes()));
    std::memset(shifted.get(), 0, static_cast<std::size_t>(plan->transposed_bytes() + 4));
    auto pool = loops::thread_pool::make(2);
    ASSERT_TRUE(pool);
    ASSERT_TRUE(plan->prepare(*pool, parameters.as<float>(), weights.get(), aligned.get()));
    ASSERT_TRUE(plan->prepare(alone, parameters.as<float>(), weights.get(), shifted.as<char>() + 4));
    EXPECT_EQ(std::memcmp(aligned.get(), shifted.as<char>() + 4, static_cast<std::size_t>(plan->transposed_bytes())),
              0);
  }
}

TEST(Linear, BackwardActivationMultipliesByTheDerivative) {
  for (const auto& [data, y, how, sums] : types) {
    if (how != math::f32) continue;  // no product is made
    for (int i = 0; i < 2 * nn::activation_count; ++i) {
      const auto a = static_cast<activation>(i / 2);
      const bool in_place = i % 2 == 0;
      nn::linear_desc d{.rows = 70, .in = 20, .out = 77, .data = data, .y = y, .act = a, .training = true};
      const problem p = draw(d, 700);
      d.act = activation::none;
      d.y = type::f32;
      const matrix z = wanted({d, p.x, p.w, p.dz, p.bias, p.input_z}).y;
      const auto plan = nn::linear::plan(p.d);
      ASSERT_TRUE(plan);
      memory parameters(plan->parameters() * 4), weights(data == type::f32 ? 0 : plan->weights_bytes());
      memory x(plan->x_bytes()), out(plan->y_bytes()), saved(plan->saved_bytes()), g(70 * 77 * size_of(data));
      memory other(70 * 77 * size_of(data));
      ASSERT_TRUE(plan->pack_weights(alone, view<const float, 2>(p.w.values.data(), {20, 77}), layout::plain,
                                     parameters.as<float>()));
      ASSERT_TRUE(plan->prepare(alone, parameters.as<float>(), weights.get(), nullptr));
      store(p.x, data, storage::plain, 20, x.get());
      store(p.dz, data, storage::plain, 77, g.get());
      ASSERT_TRUE(plan->forward(alone, 70, x.get(), data == type::f32 ? parameters.get() : weights.get(),
                                p.bias.values.data(), out.get(), saved.get()));
      void* const dz = in_place ? g.get() : other.get();
      ASSERT_TRUE(plan->backward_activation(alone, 70, g.get(), saved.get(), dz));
      const matrix got = load(70, 77, data, storage::plain, 77, dz);
      for (index r = 0; r < 70; ++r) {
        for (index j = 0; j < 77; ++j) {
          const float right =
              a == activation::relu ? (z(r, j) > 0 ? p.dz(r, j) : 0.0f) : p.dz(r, j) * nn::derivative(a, z(r, j));
          ASSERT_EQ(got(r, j), round_to(data, right)) << r << ' ' << j;
        }
      }
    }
  }
}

TEST(Activation, DerivativeIsThatOfFiniteDifferences) {
  const auto exact = [](activation a, double z) {
    switch (a) {
      case activation::none: return z;
      case activation::relu: return z > 0 ? z : 0;
      case activation::sigmoid: return 1 / (1 + std::exp(-z));
      case activation::tanh: return std::tanh(z);
      case activation::gelu_erf: return z * (1 + std::erf(z / std::sqrt(2))) / 2;
      case activation::gelu_tanh:
        return z * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (z + 0.044715 * z * z * z))) / 2;
      case activation::silu: return z / (1 + std::exp(-z));
      case activation::hardswish: return z * std::fmin(std::fmax(z + 3, 0), 6) / 6;
    }
    return 0.0;
  };
  for (int i = 0; i < nn::activation_count; ++i) {
    const auto a = static_cast<activation>(i);
    for (float z = -4.03f; z < 4.1f; z += 0.0625f) {  // no point where a derivative jumps
      constexpr double h = 1e-5;
      const double slope = (exact(a, z + h) - exact(a, z - h)) / (2 * h);
      ASSERT_NEAR(nn::derivative(a, z), slope, 0x1p-24 + std::abs(slope) * 0x1p-21) << i << " at " << z;
      ASSERT_NEAR(a == activation::relu ? exact(a, z) : activate(nn::op_of(a), z), exact(a, z),
                  2e-7 * (1 + std::abs(exact(a, z))))
          << i << " at " << z;
    }
  }
}

TEST(Linear, GradientsAgreeWithValuesMadeElsewhere) {
  const std::string folder = npz::gradient_folder();
  if (folder.empty()) GTEST_SKIP() << "no folder BRGEMM_SHARED_DIR that has data/gradients";
  for (const char* file : {"/fc_relu0.npz", "/fc_relu1.npz"}) {
    const auto array = [&](const char* name) { return npz::load(folder + file, name); };
    const auto floats = [&](const char* name) {
      const auto a = array(name);
      return std::vector<float>(a.values.begin(), a.values.end());
    };
    const auto x_shape = array("x").shape;
    const index rows = x_shape[0], in = x_shape[1], out = array("w").shape[0];
    const auto plan = nn::linear::plan({.rows = rows, .in = in, .out = out, .act = activation::relu, .training = true});
    ASSERT_TRUE(plan);
    const std::vector<float> x = floats("x"), w = floats("w"), b = floats("b");
    std::vector<float> y(static_cast<std::size_t>(rows * out)), dz = floats("dy"), dx(x.size()), dw(w.size()),
                                                                db(b.size());
    memory parameters(plan->parameters() * 4), gradient(plan->parameters() * 4), transposed(plan->transposed_bytes());
    memory saved(plan->saved_bytes()), workspace(plan->backward_weights_workspace_bytes());
    ASSERT_TRUE(plan->pack_weights(alone, view<const float, 2>(w.data(), {out, in}), layout::transposed,
                                   parameters.as<float>()));
    ASSERT_TRUE(plan->prepare(alone, parameters.as<float>(), nullptr, transposed.get()));
    ASSERT_TRUE(plan->forward(alone, view<const float, 2>(x.data(), {rows, in}), parameters.get(), b.data(),
                              view<float, 2>(y.data(), {rows, out}), saved.get()));
    ASSERT_TRUE(plan->backward_activation(alone, rows, dz.data(), saved.get(), dz.data()));
    ASSERT_TRUE(plan->backward_data(alone, rows, dz.data(), transposed.get(), dx.data()));
    ASSERT_TRUE(
        plan->backward_weights(alone, rows, x.data(), dz.data(), gradient.as<float>(), db.data(), workspace.get()));
    ASSERT_TRUE(plan->unpack_parameters(alone, gradient.as<float>(), {dw.data(), {out, in}}, layout::transposed));
    // A chain of K fmas errs by at most K 2^-24 sum|a b|; entries are normal, so sum|a b| < 1.5 K stays below these.
    const auto expect_near = [&](const char* name, const std::vector<float>& got, double terms) {
      const auto right = array(name);
      for (std::size_t i = 0; i < got.size(); ++i) {
        ASSERT_NEAR(got[i], right.values[i], 1.5 * terms * terms * 0x1p-24) << file << ' ' << name << ' ' << i;
      }
    };
    expect_near("y", y, static_cast<double>(in + 1));
    expect_near("dx", dx, static_cast<double>(out));
    expect_near("dw", dw, static_cast<double>(rows));
    expect_near("db", db, static_cast<double>(rows));
  }
}

/// What an 8-bit layer of X makes of one sum, in the type of y.
template <class Y>
Y stored_as(float v) {
  if constexpr (std::is_same_v<Y, float>) return v;
  if constexpr (std::is_same_v<Y, bf16>) return to_bf16(v);
  if constexpr (sizeof(Y) == 1) {
    const auto lowest = static_cast<float>(std::numeric_limits<Y>::min());
    const auto highest = static_cast<float>(std::numeric_limits<Y>::max());
    return static_cast<Y>(std::fmin(std::fmax(std::nearbyint(v), lowest), highest));
  }
}

/// A layer of X (u8 or s8) with y of Y: each element is the exact sum, scaled, shifted, activated and converted.
template <class X, class Y>
void expect_exact_8bit(const nn::linear_desc& d, const std::int32_t zero_x, const options& how = {}) {
  SCOPED_TRACE(text(d) + " zero_x " + std::to_string(zero_x));
  std::mt19937 random(800);
  std::vector<X> x(static_cast<std::size_t>(d.rows * d.in));
  std::vector<std::int8_t> w(static_cast<std::size_t>(d.in * d.out));
  for (auto& v : x) v = static_cast<X>(random());
  for (auto& v : w) v = static_cast<std::int8_t>(random());
  const matrix bias = random_matrix(1, d.out, 801);
  matrix scale = random_matrix(1, d.out, 802);
  for (float& s : scale.values) s = (s + 1.5f) * 1e-3f;
  const auto plan = nn::linear::plan(d, how);
  ASSERT_TRUE(plan) << plan.error().message();
  memory weights(plan->weights_bytes()), sums(nn::panels(d.out) * nn::block_width(d.out) * 4);
  memory from(plan->x_bytes()), to(plan->y_bytes());
  ASSERT_TRUE(plan->pack_weights(alone, view<const std::int8_t, 2>(w.data(), {d.in, d.out}), layout::plain,
                                 weights.as<std::int8_t>(), sums.as<std::int32_t>()));
  const auto at = [](const auto& values, index columns, index r, index c) {
    return values[static_cast<std::size_t>(r * columns + c)];
  };
  for (index r = 0; r < d.rows; ++r) {
    for (index k = 0; k < d.in; ++k) from.as<X>()[element_at(d.x_storage, d.in, d.in, r, k)] = at(x, d.in, r, k);
  }
  const bool scales = d.y != type::s32;
  const auto r = plan->forward(alone, d.rows, from.get(), weights.get(), d.bias ? bias.values.data() : nullptr,
                               to.get(), nullptr, {scales ? scale.values.data() : nullptr, zero_x, sums.as<int>()});
  ASSERT_TRUE(r) << r.error().message();
  for (index i = 0; i < d.rows; ++i) {
    for (index j = 0; j < d.out; ++j) {
      std::int32_t sum = 0;
      for (index k = 0; k < d.in; ++k) sum += (at(x, d.in, i, k) - zero_x) * at(w, d.out, k, j);
      const Y got = to.as<Y>()[element_at(d.y_storage, d.out, d.out, i, j)];
      if constexpr (std::is_same_v<Y, std::int32_t>) {
        ASSERT_EQ(got, sum) << i << ' ' << j;
      } else {
        volatile float product = static_cast<float>(sum) * scale(0, j);  // rounded before the sum, as two steps are
        const float v = d.bias ? product + bias(0, j) : product;
        ASSERT_EQ(got, stored_as<Y>(d.act == activation::relu && v < 0 ? 0.0f : v)) << i << ' ' << j;
      }
    }
  }
}

/// Each type of x and y, on every backend, with and without a zero point.
template <class X>
void expect_exact_8bit_everywhere() {
  nn::linear_desc d{.rows = 70, .in = 131, .out = 100, .data = element_traits<X>::value};
  for (const backend::entry& e : backend::built_in()) {
    if (!permitted(e)) continue;
    SCOPED_TRACE(e.name);
    const options how{.backend = e.name};
    for (const std::int32_t zero_x : {0, 117, -128}) {
      for (const bool bias : {true, false}) {
        d.bias = bias;
        d.act = bias ? activation::relu : activation::none;
        d.y = type::f32, expect_exact_8bit<X, float>(d, zero_x, how);
        d.y = type::bf16, expect_exact_8bit<X, bf16>(d, zero_x, how);
        d.y = type::u8, expect_exact_8bit<X, std::uint8_t>(d, zero_x, how);
        d.y = type::s8, expect_exact_8bit<X, std::int8_t>(d, zero_x, how);
      }
      d.y = type::s32, expect_exact_8bit<X, std::int32_t>(d, zero_x, how);
    }
  }
}

TEST(Linear, EightBitForwardIsExact) {
  expect_exact_8bit_everywhere<std::uint8_t>();
  expect_exact_8bit_everywhere<std::int8_t>();
}

TEST(Linear, EightBitForwardIsExactForEachStorageAndOddSizes) {
  for (const storage xs : {storage::plain, storage::blocked}) {
    for (const storage ys : {storage::plain, storage::blocked}) {
      for (const auto& [in, out] : {std::pair<index, index>{1, 1}, {3, 17}, {192, 112}}) {
        nn::linear_desc d{.rows = 67, .in = in, .out = out, .data = type::s8, .y = type::s8};
        d.x_storage = xs;
        d.y_storage = ys;
        expect_exact_8bit<std::int8_t, std::int8_t>(d, 5);
        d.data = type::u8;
        expect_exact_8bit<std::uint8_t, std::int8_t>(d, 5);
        d.y = type::s32;
        d.bias = false;
        expect_exact_8bit<std::uint8_t, std::int32_t>(d, 5);
      }
    }
  }
}

/// The symmetric case that frameworks quantise to, with views; a layer of one type takes no x of the other.
TEST(Linear, EightBitViewsHaveTheTypeOfThePlan) {
  const auto plan = nn::linear::plan({.rows = 1, .in = 2, .out = 1, .data = type::s8, .y = type::s32, .bias = false});
  ASSERT_TRUE(plan) << plan.error().message();
  const std::int8_t x[2] = {-128, 127}, w[2] = {-128, -1};
  memory weights(plan->weights_bytes()), sums(nn::panels(1) * nn::block_width(1) * 4);
  ASSERT_TRUE(plan->pack_weights(alone, view<const std::int8_t, 2>(w, {2, 1}), layout::plain, weights.as<std::int8_t>(),
                                 sums.as<std::int32_t>()));
  std::int32_t y = 77;
  const float one = 1;
  const nn::quantisation q{nullptr, 0, sums.as<std::int32_t>()};
  const auto forward = [&](const auto& from, const nn::quantisation& with) {
    return plan->forward(alone, from, weights.get(), nullptr, view<std::int32_t, 2>(&y, {1, 1}), nullptr, with);
  };
  const auto unsigned_x = forward(view<const std::uint8_t, 2>(reinterpret_cast<const std::uint8_t*>(x), {1, 2}), q);
  ASSERT_FALSE(unsigned_x);
  EXPECT_EQ(unsigned_x.error().field(), "x");
  const auto scaled = forward(view<const std::int8_t, 2>(x, {1, 2}), {&one, 0, sums.as<std::int32_t>()});
  ASSERT_FALSE(scaled);
  EXPECT_EQ(scaled.error().field(), "scale");
  EXPECT_EQ(y, 77);
  ASSERT_TRUE(forward(view<const std::int8_t, 2>(x, {1, 2}), q));
  EXPECT_EQ(y, 128 * 128 - 127);
}

}  // namespace
}  // namespace brgemm
