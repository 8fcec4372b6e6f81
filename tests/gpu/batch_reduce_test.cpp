// The kernels for the GPU, run on the CPU, thread by thread, on drawn descs and between inaccessible pages: the bits of
// the reference. Tensor cores are stood in for by an fma a term; the sums that they are given here are exact, or (not
// bf16) in the order of the stand-in.
#include <gtest/gtest.h>

#include "support/gpu_emulator.hpp"
#include "support/gpu_problem.hpp"
#include "support/problem.hpp"

namespace brgemm_test {
namespace {

using brgemm::type;
using brgemm::cuda::tile;

constexpr int samples = 88;  // four of all types
constexpr index entries = 5;

constexpr drawn_desc sample_of(int sample) {
  entropy e(static_cast<std::uint64_t>(sample) + 1);
  return draw_desc_for_gpu(e, sample, {9, 9, 9});
}

constexpr tile tile_of(int sample) {
  const desc d = sample_of(sample).d;
  const int turn = sample / static_cast<int>(type_combination_count + std::size(types_of_gpu));  // of the types
  if (brgemm::cuda::by_tensor_cores(d)) {
    const int k = d.a == type::tf32 ? 16 : 32;
    return turn % 2 == 0 ? tile{64, 64, k, 0} : tile{32, 32, k, 0};
  }
  if (d.chains > 1 || accumulator_of(d) == type::f64) {
    return turn % 2 == 0 ? tile{32, 32, 16, 2} : tile{16, 16, 16, 1};
  }
  return turn % 3 == 0 ? tile{64, 64, 16, 4} : turn % 3 == 1 ? tile{32, 32, 16, 2} : tile{16, 16, 16, 1};
}

/// The desc of the sample with other sizes.
drawn_desc resized(entropy& e, drawn_desc x, const shape& s) {
  desc& d = x.d;
  d.m = x.m = s.m, d.n = s.n, d.k = s.k;
  if (d.m_extent == brgemm::extent_kind::at_call) d.m += e.between(0, 40);
  draw_leading_dimensions(e, x);
  d.prefetch = 0;
  d.write_c = brgemm::write_kind::cached;
  draw_strides(e, x);
  for (int i = 0; i < d.epilogue_size; ++i) {
    brgemm::epilogue_op& o = d.epilogue[i];
    if (!brgemm::detail::is_mask(o.kind) && !brgemm::detail::is_matrix(o.kind)) continue;
    const auto ld = draw_leading_dimension(e, brgemm::detail::storage_of_operand(d, o, d.m).columns);
    o.ld = ld.in_desc, x.operand_ld[i] = ld.in_call;
  }
  return x;
}

brgemm::cuda::arguments for_gpu(const brgemm::arguments& x) {
  brgemm::cuda::arguments g;
  g.a = x.a, g.b = x.b, g.c = x.c, g.pairs = x.pairs, g.batch = x.batch, g.m = x.m;
  g.lda = x.lda, g.ldb = x.ldb, g.ldc = x.ldc;
  g.alpha = x.alpha, g.beta = x.beta, g.zero_a = x.zero_a, g.zero_b = x.zero_b, g.column_sums = x.column_sums;
  std::copy(std::begin(x.operand), std::end(x.operand), g.operand);
  std::copy(std::begin(x.operand_ld), std::end(x.operand_ld), g.operand_ld);
  return g;
}

template <desc D, tile T>
gpu::block run_on_emulator(const desc& d, const brgemm::cuda::arguments& x) {
  gpu::block threads(threads_of(T));
  const brgemm::cuda::launch call = make_launch(d, T, x);
  const auto blocks = brgemm::cuda::grid_of(d, T, x);
  EXPECT_TRUE(blocks) << blocks.error().message();
  for (unsigned i = 0; blocks && i < *blocks; ++i) threads.run(i, [&] { brgemm::cuda::batch_reduce<D, T>(call); });
  return threads;
}

template <int Sample>
void check(const problem_memory& memory) {
  constexpr drawn_desc sample = sample_of(Sample);
  constexpr tile T = tile_of(Sample);
  const bool tensor_cores = brgemm::cuda::by_tensor_cores(sample.d);
  entropy e(static_cast<std::uint64_t>(Sample) * 7919);
  for (const shape& s : {shape{1, 1, 1}, shape{e.between(1, 40), e.between(1, 40), e.between(0, 40)},
                         shape{e.between(1, 80), e.between(1, 80), e.between(1, 20)}}) {
    const drawn_desc x = resized(e, sample, s);
    const values v = tensor_cores && x.d.a == type::bf16 ? values::integers : e.pick({values::unit, values::special});
    problem p = draw_problem(e, x, entries, v);
    if (tensor_cores && x.d.alpha == brgemm::alpha_kind::one) p.alpha = 1;
    const index batch = e.between(0, entries);
    const guard side = e.one_in(2) ? guard::before : guard::after;
    SCOPED_TRACE("sample " + std::to_string(Sample) + ": " + text_of(p, batch, side));
    const auto supported = brgemm::cuda::check_supported(x.d);
    ASSERT_TRUE(supported) << supported.error().message();
    const brgemm::arguments on_cpu = place(p, batch, side, memory);
    const auto reference = reference_of(x.d);
    ASSERT_TRUE(reference) << reference.error().message();
    const auto called = reference->call(on_cpu);
    ASSERT_TRUE(called) << called.error().message();
    const outputs expected = collect(p, on_cpu);
    reset_outputs(p, on_cpu);
    const brgemm::cuda::arguments g = for_gpu(on_cpu);
    const auto valid = brgemm::cuda::validate(x.d, g);
    ASSERT_TRUE(valid) << valid.error().message();
    const gpu::block ran = run_on_emulator<brgemm::cuda::specialised(sample.d), T>(x.d, g);
    if (batch * x.d.k > 0) {
      EXPECT_GT(tensor_cores ? ran.warp_products : ran.barriers, 0);
    }
    ASSERT_EQ(difference(p, expected, on_cpu), "");
  }
}

TEST(GpuBatchReduce, HasTheBitsOfTheReferenceOnDrawnDescs) {
  const problem_memory memory(entries, std::size_t{1} << 18);
  int with_tensor_cores = 0;
  [&]<int... I>(std::integer_sequence<int, I...>) {
    ((check<I>(memory), with_tensor_cores += brgemm::cuda::by_tensor_cores(sample_of(I).d)), ...);
  }
  (std::make_integer_sequence<int, samples>());
  EXPECT_GT(with_tensor_cores, samples / 8);
  EXPECT_LT(with_tensor_cores, samples / 2);
}

bytes drawn(type t, index count, values v, std::uint64_t seed) {
  bytes x(static_cast<std::size_t>(count * size_of(t)));
  entropy e(seed);
  draw_elements(e, t, v, x.data(), count);
  return x;
}

/// Sums over the entries and k of a plain B.
void add_column_sums(const desc& d, const std::byte* b, std::int32_t* sums) {
  for (index k = 0; k < d.k; ++k) {
    for (index j = 0; j < d.n; ++j) {
      const auto element = std::to_integer<std::uint8_t>(b[k * d.ldb + j]);
      sums[j] += d.b == type::s8 ? static_cast<std::int8_t>(element) : element;
    }
  }
}

/// Blocks of a larger C, each with a list, a number of rows and vectors of its own; some have no entries, and entries
/// overlap. D's operands: vectors, a mask of 10 bytes a row, matrices of 81 elements a row.
template <desc D, tile T>
void check_blocks() {
  constexpr index rows = 47, columns = 72;
  const bool tensor_cores = brgemm::cuda::by_tensor_cores(D);
  const values v = tensor_cores ? values::integers : values::unit;
  const bytes a = drawn(D.a, 8000, v, 1), b = drawn(D.b, 9000, v, 2), start = drawn(D.c, rows * D.ldc, v, 3);
  bytes operands[brgemm::max_epilogue], expected_operands[brgemm::max_epilogue];
  for (int i = 0; i < D.epilogue_size; ++i) {
    operands[i] = expected_operands[i] =
        drawn(D.epilogue[i].operand, rows * 81 + 500, values::unit, 4 + static_cast<std::uint64_t>(i));
  }
  const auto at = [](const bytes& x, type t, index element) { return x.data() + element * size_of(t); };
  std::vector<brgemm::cuda::output> list;
  std::vector<brgemm::offset_pair> offsets;
  std::vector<brgemm::address_pair> addresses;
  std::vector<std::int32_t> sums;
  for (index row = 0, j = 0; row < rows; row += D.m) {
    for (index column = 0; column < columns; column += D.n, ++j) {
      const auto first = static_cast<index>(offsets.size());
      const brgemm::cuda::output o{3 * j, 2 * j, row, column, 7 * j, first, j % 4, std::min(D.m, rows - row)};
      list.push_back(o);
      sums.resize(sums.size() + static_cast<std::size_t>(D.n));
      for (index i = 0; i < o.batch; ++i) {
        const bool strided = D.batch == brgemm::batch_kind::strides;
        offsets.push_back(strided ? brgemm::offset_pair{(first + i) * D.stride_a, (first + i) * D.stride_b}
                                  : brgemm::offset_pair{31 * i + 5 * j, 200 * i + j});
        addresses.push_back({at(a, D.a, offsets.back().a), at(b, D.b, offsets.back().b)});
        if (brgemm::detail::is_8bit(D.b))
          add_column_sums(D, at(b, D.b, o.b + offsets.back().b), sums.data() + sums.size() - D.n);
      }
    }
  }
  bytes expected = start, c = start;
  desc by_addresses = D;
  by_addresses.batch = brgemm::batch_kind::addresses;
  by_addresses.stride_a = by_addresses.stride_b = 0;
  const auto kernel = reference_of(by_addresses);
  ASSERT_TRUE(kernel) << kernel.error().message();
  for (std::size_t j = 0; j < list.size(); ++j) {
    const brgemm::cuda::output& o = list[j];
    std::vector<brgemm::address_pair> pairs;  // the same entries, each where it is
    for (index i = 0; i < o.batch; ++i) {
      const brgemm::offset_pair& entry = offsets[static_cast<std::size_t>(o.first + i)];
      pairs.push_back({at(a, D.a, o.a + entry.a), at(b, D.b, o.b + entry.b)});
    }
    brgemm::arguments x;
    x.c = expected.data() + (o.row * D.ldc + o.column) * size_of(D.c);
    x.pairs = pairs.data(), x.batch = o.batch, x.m = o.m, x.zero_a = 3, x.zero_b = -2;
    x.column_sums = sums.data() + static_cast<index>(j) * D.n;
    for (int i = 0; i < D.epilogue_size; ++i) {
      const brgemm::epilogue_op& step = D.epilogue[i];
      const index first = brgemm::detail::is_mask(step.kind)     ? o.row * 10 + o.column / 8
                          : brgemm::detail::is_matrix(step.kind) ? o.row * 81 + o.column
                          : step.along == brgemm::axis::column   ? o.vectors + o.column
                          : step.along == brgemm::axis::row      ? o.vectors + o.row
                                                                 : o.vectors;
      x.operand[i] = expected_operands[i].data() + first * size_of(step.operand);
    }
    (*kernel)(x);
  }
  brgemm::cuda::arguments x;
  x.a = a.data(), x.b = b.data(), x.c = c.data(), x.zero_a = 3, x.zero_b = -2, x.column_sums = sums.data();
  x.pairs = D.batch == brgemm::batch_kind::addresses ? static_cast<const void*>(addresses.data()) : offsets.data();
  x.outputs = list.data(), x.count = static_cast<index>(list.size());
  for (int i = 0; i < D.epilogue_size; ++i) x.operand[i] = operands[i].data();
  const auto valid = brgemm::cuda::validate(D, x);
  ASSERT_TRUE(valid) << valid.error().message();
  run_on_emulator<brgemm::cuda::specialised(D), T>(D, x);
  const matrix whole{D.c, {rows, columns, 1}, D.ldc};
  EXPECT_EQ(difference(whole, std::span(expected).first(whole.size()), c.data()), "");
  for (int i = 0; i < D.epilogue_size; ++i) EXPECT_EQ(operands[i], expected_operands[i]) << i;
}

constexpr desc of_blocks(type a, type b, type c, brgemm::batch_kind batch) {
  desc d;
  d.m = 20, d.n = 24, d.k = 7;
  d.lda = 9, d.ldb = 70, d.ldc = 80;
  d.a = a, d.b = b, d.c = c;
  d.batch = batch;
  if (batch == brgemm::batch_kind::strides) d.stride_a = 37, d.stride_b = 110;
  d.m_extent = brgemm::extent_kind::at_call;
  d.where = brgemm::place::gpu;
  return d;
}

TEST(GpuBatchReduce, BlocksHaveListsOfTheirOwn) {
  using brgemm::batch_kind;
  namespace op = brgemm::op;
  constexpr desc by_offsets = [] {
    desc d = of_blocks(type::f32, type::f32, type::f32, batch_kind::offsets);
    d.beta = brgemm::beta_kind::one;
    append(d, op::bias());
    append(d, op::bias(brgemm::axis::row));
    append(d, op::scale());
    append(d, op::relu_mask(10));
    append(d, op::add(81));
    append(d, op::store(81, type::bf16));
    return d;
  }();
  check_blocks<by_offsets, tile{16, 16, 16, 1}>();
  constexpr desc of_bytes = [] {
    desc d = of_blocks(type::u8, type::s8, type::s32, batch_kind::strides);
    d.zero_a = d.zero_b = brgemm::zero_point::at_call;
    return d;
  }();
  check_blocks<of_bytes, tile{32, 32, 16, 2}>();
  constexpr desc by_addresses = [] {
    desc d = of_blocks(type::bf16, type::bf16, type::f32, batch_kind::addresses);
    d.beta = brgemm::beta_kind::one;
    append(d, op::bias());
    append(d, op::multiply_mask(10));
    return d;
  }();
  check_blocks<by_addresses, tile{32, 32, 32, 0}>();
  check_blocks<of_blocks(type::f16, type::f16, type::f16, batch_kind::strides), tile{64, 64, 32, 0}>();
  check_blocks<of_blocks(type::tf32, type::tf32, type::f32, batch_kind::offsets), tile{32, 32, 16, 0}>();
  check_blocks<of_blocks(type::e4m3, type::e5m2, type::e4m3, batch_kind::addresses), tile{32, 32, 32, 0}>();
}

/// Without a term no list is read, as validate allows.
TEST(GpuBatchReduce, WithoutTermsNothingIsRead) {
  constexpr desc D = [] {
    desc d;
    d.m = 2, d.n = 3, d.k = 0;
    d.lda = d.ldb = d.ldc = 3;
    d.batch = brgemm::batch_kind::addresses;
    d.beta = brgemm::beta_kind::one;
    d.where = brgemm::place::gpu;
    append(d, brgemm::op::relu());
    return d;
  }();
  std::vector<float> c = {1, -2, 3, -4, 5, -6};
  brgemm::cuda::arguments x;
  x.c = c.data(), x.batch = 4;
  ASSERT_TRUE(brgemm::cuda::validate(D, x));
  run_on_emulator<brgemm::cuda::specialised(D), tile{16, 16, 16, 1}>(D, x);
  EXPECT_EQ(c, (std::vector<float>{1, 0, 3, 0, 5, 0}));
}

/// -0 + 0 * -1 three times is -0; one product of two zeros that a tile is filled up with would make it +0.
TEST(GpuBatchReduce, WhatFillsTilesUpAddsNoTerm) {
  constexpr desc D = [] {
    desc d;
    d.m = 2, d.n = 3, d.k = 3;
    d.lda = d.ldb = d.ldc = 3;
    d.beta = brgemm::beta_kind::one;
    d.where = brgemm::place::gpu;
    return d;
  }();
  const std::vector<float> a(6), b(9, -1.0f);
  std::vector<float> c(6, -0.0f);
  brgemm::cuda::arguments x;
  x.a = a.data(), x.b = b.data(), x.c = c.data();
  run_on_emulator<brgemm::cuda::specialised(D), tile{16, 16, 16, 1}>(D, x);
  for (const float value : c) EXPECT_TRUE(value == 0 && std::signbit(value));
}

}  // namespace
}  // namespace brgemm_test
