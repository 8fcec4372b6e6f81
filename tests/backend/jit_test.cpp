// What the exhaustive grid does not see of generated code: its first and last instructions, the state it leaves, the
// blocking that is chosen for it, and shapes too large for the grid.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <xmmintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "brgemm/kernel/dump.hpp"
#include "brgemm/kernel/kernel.hpp"
#include "support/expect_error.hpp"

namespace {

using namespace brgemm;

desc f32_desc(brgemm::index m, brgemm::index n, brgemm::index k) {
  desc d;
  d.m = m, d.n = n, d.k = k;
  d.lda = std::max<brgemm::index>(k, 1), d.ldb = n, d.ldc = n;
  d.stride_a = m * k, d.stride_b = k * n;
  return d;
}

/// The backends that run here and generate code for vectors; tiles have tests of their own.
std::vector<const backend::entry*> generating() {
  std::vector<const backend::entry*> all;
  for (const backend::entry& e : backend::built_in()) {
    if (e.name != "reference" && e.name != "amx" && e.runs_here()) all.push_back(&e);
  }
  return all;
}

std::vector<float> random_floats(std::size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::vector<float> v(count);
  for (float& x : v) x = static_cast<float>(static_cast<int>(generator() % 2001) - 1000) / 256;
  return v;
}

/// Runs d by this backend and by the reference, both from the same C, and compares bits. `operand_is_c`: step 0's
/// operand.
void expect_equal_bits(const desc& d, std::string_view name, brgemm::index batch, bool operand_is_c = false,
                       double beta = 0.5) {
  const auto a = random_floats(static_cast<std::size_t>(std::max(d.m * d.k, d.stride_a * batch)), 1);
  const auto b = random_floats(static_cast<std::size_t>(std::max(d.k * d.n, d.stride_b * batch)), 2);
  const auto start = random_floats(static_cast<std::size_t>(d.m * d.ldc), 3);
  const auto bias = random_floats(static_cast<std::size_t>(d.n), 4);
  std::vector<float> result[2];
  for (int i = 0; i < 2; ++i) {
    const auto kernel = make_kernel(d, {.backend = i == 0 ? "reference" : name});
    ASSERT_TRUE(kernel) << kernel.error().message();
    result[i] = start;
    arguments x;
    x.a = a.data(), x.b = b.data(), x.c = result[i].data();
    x.batch = batch;
    x.beta = beta;
    x.operand[0] = operand_is_c ? static_cast<void*>(result[i].data()) : const_cast<float*>(bias.data());
    const auto called = kernel->call(x);
    ASSERT_TRUE(called) << called.error().message();
  }
  EXPECT_EQ(0, std::memcmp(result[0].data(), result[1].data(), start.size() * sizeof(float)))
      << name << " " << d.m << "x" << d.n << "x" << d.k;
}

constexpr std::uint8_t code_begins[] = {0xf3, 0x0f, 0x1e, 0xfa,
                                        0x55, 0x48, 0x89, 0xe5};  // endbr64; push rbp; mov rbp, rsp

/// vzeroupper; mov r, [rbp - place] for each register that is pushed where the kernel begins; leave; ret.
std::vector<std::uint8_t> ending_of(std::span<const std::uint8_t> code) {
  std::vector<std::uint8_t> ending = {0xc5, 0xf8, 0x77};
  std::uint8_t place = 0;
  for (std::size_t at = sizeof code_begins; at + 1 < code.size(); ++at) {
    const bool is_rbx = code[at] == 0x53;
    const bool is_r12_to_r15 = code[at] == 0x41 && code[at + 1] >= 0x54 && code[at + 1] <= 0x57;
    if (!is_rbx && !is_r12_to_r15) break;
    if (is_r12_to_r15) ++at;
    const auto number = static_cast<std::uint8_t>(code[at] - 0x50);
    place = static_cast<std::uint8_t>(place - 8);
    for (const int byte : {is_rbx ? 0x48 : 0x4c, 0x8b, 0x45 + 8 * number, int{place}}) {
      ending.push_back(static_cast<std::uint8_t>(byte));
    }
  }
  ending.push_back(0xc9);
  ending.push_back(0xc3);
  return ending;
}

/// Where the main body of the code ends, after its last `leave; ret`; each of them must end as `ending_of` says. (A ret
/// without leave would not return, and the grid runs them all.) Counts them.
std::size_t end_of_body(std::span<const std::uint8_t> code, int& exits) {
  const auto ending = ending_of(code);
  std::size_t end = 0;
  for (std::size_t at = 2; at <= code.size(); ++at) {
    if (code[at - 2] != 0xc9 || code[at - 1] != 0xc3) continue;
    ++exits;
    end = at;
    EXPECT_TRUE(at >= ending.size() && std::equal(ending.begin(), ending.end(), code.data() + at - ending.size()))
        << "exit " << exits << ", at byte " << at << " of " << code.size();
  }
  return end;
}

TEST(Jit, CodeBeginsAndEndsAsTheUnwindTablesSay) {
  desc none = f32_desc(64, 64, 64), one = none, most = none, rows = none, streamed = none, tail = f32_desc(3, 37, 19);
  one.lda = at_call;
  most.lda = most.ldb = most.ldc = at_call;
  rows.m_extent = extent_kind::at_call;
  streamed.write_c = write_kind::streaming;
  desc bytes = f32_desc(13, 64, 64);
  bytes.a = type::u8, bytes.b = type::s8, bytes.c = type::s32;
  bytes.lda = bytes.ldb = bytes.ldc = at_call;
  bytes.zero_b = zero_point::at_call;
  const bool adds_bytes = cpu().has(feature::avx_vnni);  // else by instructions that take constants
  desc activated = most;
  append(activated, op::gelu_erf());
  const struct {
    desc d;
    bool ends_there;  ///< no constants and no functions behind the body
    int exits;        ///< at least
  } cases[] = {{none, true, 1},     {one, true, 1},   {most, true, 1},        {rows, true, 3},
               {streamed, true, 1}, {tail, false, 1}, {bytes, adds_bytes, 1}, {activated, false, 1}};
  for (const backend::entry* e : generating()) {
    std::set<std::size_t> lengths;
    for (const auto& c : cases) {
      const auto kernel = make_kernel(c.d, {.backend = e->name});
      ASSERT_TRUE(kernel) << kernel.error().message();
      SCOPED_TRACE(std::string(e->name) + " " + kernel->name().c_str());
      const auto dumped = dump(*kernel);
      ASSERT_TRUE(dumped);
      const auto code = dumped->code();
      ASSERT_GT(code.size(), sizeof code_begins);
      EXPECT_EQ(0, std::memcmp(code.data(), code_begins, sizeof code_begins));
      lengths.insert(ending_of(code).size());
      int exits = 0;
      const std::size_t end = end_of_body(code, exits);
      EXPECT_GE(exits, c.exits);
      const auto is_zero = [](std::uint8_t byte) { return byte == 0; };
      const bool padded =
          code.size() - end < 32 && std::all_of(code.begin() + static_cast<std::ptrdiff_t>(end), code.end(), is_zero);
      EXPECT_TRUE(padded || !c.ends_there) << "only zeros follow the body";
    }
    EXPECT_GE(lengths.size(), 3u) << "kernels with no, few and many registers to load";
  }
}

TEST(Jit, TheParagraphHasBoundAndPrediction) {
  for (const backend::entry* e : generating()) {
    const auto kernel = make_kernel(f32_desc(64, 20, 64), {.backend = e->name});
    ASSERT_TRUE(kernel);
    const auto dumped = dump(*kernel);
    ASSERT_TRUE(dumped);
    const std::string text(dumped->text());
    double bound = 0;
    double predicted = 0;
    ASSERT_NE(text.find("bound "), std::string::npos) << text;
    ASSERT_EQ(1, std::sscanf(text.c_str() + text.find("bound "), "bound %lf cycles", &bound)) << text;
    ASSERT_EQ(1, std::sscanf(text.c_str() + text.find("predicted "), "predicted %lf cycles", &predicted)) << text;
    EXPECT_GT(bound, 16 * 64 * 20 * 64 / 32.0 / 2);  // no more than two products of 16 columns a cycle
    EXPECT_GE(predicted, bound);
  }
}

/// Whether the code has these bytes in a row; -1 stands for any byte.
bool contains(const kernel_dump& code, std::initializer_list<int> bytes) {
  const auto all = code.code();
  return std::search(all.begin(), all.end(), bytes.begin(), bytes.end(),
                     [](std::uint8_t x, int wanted) { return wanted < 0 || x == wanted; }) != all.end();
}

// Of each 4 rows of B one, all of its lines; the paragraph says so where it is so.
TEST(Jit, WhatLiesBeyondBIsPrefetched) {
  for (const backend::entry* e : generating()) {
    for (const brgemm::index m : {4, 7, 13}) {
      for (const brgemm::index n : {16, 64}) {
        for (const auto change : {+[](desc&) {}, +[](desc& d) { d.ldb = at_call; },
                                  +[](desc& d) { d.layout_b = layout::transposed, d.ldb = d.k; }}) {
          desc d = f32_desc(m, n, 64);
          d.prefetch = 4;
          change(d);
          const auto made = make_kernel(d, {.backend = e->name});
          ASSERT_TRUE(made) << made.error().message();
          const auto dumped = dump(*made);
          ASSERT_TRUE(dumped);
          const auto code = dumped->code();
          std::set<brgemm::index> bytes;  // from rdx + rbx
          for (std::size_t i = 0; i + 8 <= code.size(); ++i) {
            if (code[i] != 0x0f || code[i + 1] != 0x18 || code[i + 3] != 0x1a) continue;
            std::int32_t far = 0;
            std::memcpy(&far, &code[i + 4], 4);
            if (code[i + 2] == 0x14) bytes.insert(0);
            if (code[i + 2] == 0x54) bytes.insert(static_cast<std::int8_t>(code[i + 4]));
            if (code[i + 2] == 0x94) bytes.insert(far);
          }
          const bool follows = d.layout_b == layout::plain && d.ldb != at_call;
          EXPECT_EQ(dumped->text().find("beyond B") != std::string_view::npos, follows);
          EXPECT_EQ(bytes.contains(0), follows) << e->name << ' ' << made->name().c_str();
          const brgemm::index row = n * 4;
          if (n == 64 && m == 13) {  // add rbx, a row: blocks of rows fetch different ones
            EXPECT_EQ(contains(*dumped, {0x48, 0x81, 0xc3, 0x00, 0x01, 0x00, 0x00}), follows) << e->name;
          }
          for (const brgemm::index at : bytes) EXPECT_TRUE(at % 64 == 0 && at / row % 4 == 0) << at;
        }
      }
    }
  }
}

// Rows of A that are k, with them those of B, and rows of C that are not read first, where they are a KiB apart.
TEST(Jit, FarRowsArePrefetched) {
  struct {
    brgemm::index k, lda, ldb, ldc;
    beta_kind beta;
    bool a, b, c;
  } const cases[] = {{64, 256, 64, 64, beta_kind::zero, true, false, false},
                     {64, 64, 256, 64, beta_kind::zero, false, true, false},
                     {63, 256, 256, 64, beta_kind::zero, false, false, false},
                     {64, 255, 255, 255, beta_kind::zero, false, false, false},
                     {64, at_call, at_call, at_call, beta_kind::zero, false, false, false},
                     {64, 64, 64, 256, beta_kind::zero, false, false, true},
                     {3, 64, 64, 256, beta_kind::at_call, false, false, true},
                     {64, 64, 64, 256, beta_kind::one, false, false, false}};
  for (const backend::entry* e : generating()) {
    for (const auto& c : cases) {
      desc d = f32_desc(48, 64, c.k);
      d.layout_a = layout::transposed;
      d.lda = c.lda, d.ldb = c.ldb, d.ldc = c.ldc, d.beta = c.beta;
      const auto made = make_kernel(d, {.backend = e->name});
      ASSERT_TRUE(made) << made.error().message();
      const auto code = dump(*made);
      ASSERT_TRUE(code);
      EXPECT_EQ(contains(*code, {0x0f, 0x18}), c.a || c.b || c.c)
          << e->name << ' ' << made->name().c_str();  // prefetcht0
      // from rax, A, and rdx, B, 16 rows of 1024 bytes further
      EXPECT_EQ(contains(*code, {0x0f, 0x18, 0x88, 0x00, 0x40, 0x00, 0x00}), c.a) << e->name;
      EXPECT_EQ(contains(*code, {0x0f, 0x18, 0x8a, 0x00, 0x40, 0x00, 0x00}), c.b) << e->name;
      EXPECT_EQ(code->text().find("A is prefetched") != std::string_view::npos, c.a) << made->name().c_str();
      EXPECT_EQ(code->text().find("Far rows of B") != std::string_view::npos, c.b) << made->name().c_str();
      EXPECT_EQ(code->text().find("C is prefetched") != std::string_view::npos, c.c) << made->name().c_str();
    }
    for (const double beta : {0.0, -0.0, 2.0}) {
      for (const brgemm::index k : {3, 64}) {
        desc d = f32_desc(48, 64, k);
        d.ldc = 256, d.beta = beta_kind::at_call;
        for (const brgemm::index batch : {0, 1, 7, 8, 9}) expect_equal_bits(d, e->name, batch, false, beta);
      }
    }
    const desc row = f32_desc(1, 256, 64);  // a single row follows no other
    desc turned = f32_desc(48, 64, 64);     // tiles of B take four steps at once
    turned.layout_a = turned.layout_b = layout::transposed, turned.lda = 256;
    for (const desc& d : {row, turned}) {
      const auto code = dump(*make_kernel(d, {.backend = e->name}));
      ASSERT_TRUE(code);
      EXPECT_EQ(code->text().find("A is prefetched"), std::string_view::npos);
      EXPECT_EQ(code->text().find("C is prefetched"), std::string_view::npos);
    }
  }
}

// Bits do not tell whether C went past the caches, or B was prefetched: the code does.
TEST(Jit, StreamingAndPrefetchesAreInTheCode) {
  for (const backend::entry* e : generating()) {
    const bool wide = e->name == "avx512";
    for (const auto& [c, streaming] : {std::pair{type::f32, false}, std::pair{type::f32, true},
                                       std::pair{type::bf16, false}, std::pair{type::bf16, true}}) {
      desc d = f32_desc(3, 64, 5);
      if (c == type::bf16) d.a = d.b = d.c = c;
      if (streaming) d.write_c = write_kind::streaming;
      const auto made = make_kernel(d, {.backend = e->name});
      ASSERT_TRUE(made) << made.error().message();
      const auto code = dump(*made);
      ASSERT_TRUE(code);
      const bool vmovntps = contains(*code, {0x62, -1, 0x7c, -1, 0x2b}) || contains(*code, {0xc5, -1, 0x2b}) ||
                            contains(*code, {0xc4, -1, -1, 0x2b});
      EXPECT_EQ(vmovntps && contains(*code, {0x0f, 0xae, 0xf8}), streaming) << e->name;  // and sfence
      EXPECT_EQ(code->text().find("past the caches") != std::string_view::npos, streaming);
    }
    for (const brgemm::index n : {8, 24, 40}) {  // rows share the last vector
      const auto made = make_kernel(f32_desc(4, n, 512), {.backend = e->name});
      ASSERT_TRUE(made);
      const auto code = dump(*made);
      ASSERT_TRUE(code);
      EXPECT_TRUE(contains(*code, {0x0f, 0x18}) && code->text().find("prefetched") != std::string_view::npos) << n;
    }
    for (const brgemm::index m : {1, 6, 7}) {
      for (const brgemm::index k : {63, 64}) {
        const auto made = make_kernel(f32_desc(m, 64, k), {.backend = e->name});
        ASSERT_TRUE(made);
        const auto code = dump(*made);
        ASSERT_TRUE(code);
        const bool fetched = k == 64 && (m == 1 || (wide && m == 6));              // else B is read again for more rows
        EXPECT_EQ(contains(*code, {0x0f, 0x18}), fetched) << e->name << ' ' << m;  // prefetcht0
        EXPECT_EQ(code->text().find("prefetched") != std::string_view::npos, fetched) << e->name << ' ' << m;
      }
    }
  }
}

TEST(Jit, EveryShapeAndTypeHasABlocking) {
  static constexpr type types[][2] = {{type::f32, type::f32}, {type::f64, type::f64}, {type::bf16, type::bf16},
                                      {type::f16, type::f16}, {type::u8, type::s8},   {type::s8, type::s8},
                                      {type::s8, type::u8},   {type::u8, type::u8}};
  int count = 0;
  for (const char* hidden : {"", "-bf16", "-vnni", "-bf16,-vnni", "-avx512", "-avx512,-vnni", "-avx512,-f16c,-vnni"}) {
    hide_cpu_features(hidden);
    for (const backend::entry* e : generating()) {
      const backend::vector_unit unit{e->name == "avx512", cpu()};
      for (const auto& t : types) {
        for (const layout l : {layout::plain, layout::transposed, layout::interleaved}) {
          for (const brgemm::index m : {1, 2, 7, 30, 31, 64}) {
            for (brgemm::index n = 1; n <= 70; ++n) {
              for (const std::uint8_t chains : {std::uint8_t{1}, std::uint8_t{8}}) {
                for (const op_kind last : {op_kind::none, op_kind::gelu_erf}) {
                  desc d = f32_desc(m, n, 9);
                  d.a = t[0], d.b = t[1];
                  d.c = accumulator_of(t[0]) == type::f64 ? type::f64 : type::f32;
                  d.layout_b = l;
                  d.ldb = l == layout::transposed ? 9 : n;
                  d.chains = chains;
                  if (last != op_kind::none) append(d, op::make(last));
                  if (!validate(d)) continue;
                  ASSERT_TRUE(e->supports(d)) << e->name << " " << name_of(d).c_str();
                  ++count;
                  ASSERT_GT(backend::choose_blocking(d, unit).accumulators(), 0)
                      << e->name << " " << m << "x" << n << " " << name_of(t[0]) << " layout " << static_cast<int>(l);
                }
              }
            }
          }
        }
      }
    }
  }
  hide_cpu_features("");
  std::printf("%d blockings\n", count);
}

/// Calls each(d) with every step after every way to sum: types, layouts of B, chains, order::tile.
template <class Each>
void for_each_step(type a, bool sizes_at_call, bool depthwise, Each each) {
  for (const layout l : {layout::plain, layout::transposed, layout::interleaved}) {
    for (const int chains : {0, 1, 2, 4, 8}) {  // 0: order::tile
      for (int kind = 0; kind < op_kind_count; ++kind) {
        for (const type operand : {a == type::f64 ? type::f64 : type::f32, type::f16, type::u8}) {
          desc d = f32_desc(5, 17, 33);
          d.a = d.b = a;
          d.c = a == type::f64 ? a : type::f32;
          d.layout_b = l;
          d.ldb = d.lda = std::max(d.n, d.k);
          d.chains = static_cast<std::uint8_t>(std::max(chains, 1));
          if (chains == 0) d.sums = order::tile;
          if (sizes_at_call) d.lda = d.ldb = d.ldc = at_call, d.m_extent = extent_kind::at_call;
          if (d.a == type::u8) d.b = type::s8, d.zero_a = d.zero_b = zero_point::at_call;
          if (depthwise) {
            d.layout_a = layout::depthwise, d.zero_b = zero_point::none;
            if (!sizes_at_call) d.lda = d.n;
          }
          epilogue_op o = op::make(static_cast<op_kind>(kind));
          if (brgemm::detail::has_operand(o.kind)) o.operand = operand;
          if (brgemm::detail::is_vector(o.kind)) o.along = axis::row;
          if (brgemm::detail::has_operand(o.kind) && !brgemm::detail::is_vector(o.kind)) o.ld = d.n;
          if (kind != 0) append(d, o);
          if (validate(d)) each(d);
        }
      }
    }
  }
}

// No desc is refused for want of registers, whatever the CPU lacks.
TEST(Jit, EveryWayToSumHasABlockThatFits) {
  const char* sets[] = {"", "-bf16,-vnni", "-avx512", "-avx512,-vnni", "-avx512,-f16c", "-avx512,-f16c,-vnni"};
  int count = 0;
  for (const char* hidden : sets) {
    hide_cpu_features(hidden);
    for (const backend::entry* e : generating()) {
      const backend::vector_unit unit{e->name == "avx512", cpu()};
      for (const type a : {type::f32, type::f64, type::bf16, type::f16, type::u8, type::s8}) {
        for (const bool sizes_at_call : {false, true}) {
          const auto fits = [&](const desc& d) {
            ++count;
            EXPECT_TRUE(e->supports(d)) << e->name << " [" << hidden << "] " << name_of(d).c_str();
            EXPECT_GT(backend::choose_blocking(d, unit).accumulators(), 0)
                << e->name << " [" << hidden << "] " << name_of(d).c_str();
          };
          for (const bool depthwise : {false, true}) for_each_step(a, sizes_at_call, depthwise, fits);
        }
      }
    }
  }
  hide_cpu_features("");
  std::printf("%d descs\n", count);
}

TEST(Jit, GroupsOfEntriesHaveTheBitsOfOnePass) {
  for (const backend::entry* e : generating()) {
    for (const beta_kind beta : {beta_kind::zero, beta_kind::one, beta_kind::at_call}) {
      desc d = f32_desc(120, 150, 130);
      d.beta = beta;
      append(d, op::bias());
      append(d, op::gelu_tanh());
      if (e->name == "avx512") {
        const backend::vector_unit unit{true, cpu()};
        ASSERT_GT(backend::choose_blocking(d, unit).group, 0);  // this test is about groups
      }
      for (const brgemm::index batch : {0, 1, 5, 16, 17}) expect_equal_bits(d, e->name, batch);
    }
  }
}

// The register for the order of pairs is taken only where one is left.
TEST(Jit, AllRowsBesideRowsOfBInPairs) {
  for (const brgemm::index m : {29, 30}) {
    desc d = f32_desc(m, 16, 64);
    d.a = d.b = type::bf16;
    d.sums = order::pair;
    d.batch = batch_kind::offsets;
    d.stride_a = d.stride_b = 0;
    d.rows[0] = {0, 3};
    for (const backend::entry* e : generating()) {
      if (e->name != "avx512" || !cpu().has(feature::avx512_bf16)) continue;
      ASSERT_TRUE(e->supports(d)) << m;
      EXPECT_EQ(backend::choose_blocking(d, backend::vector_unit{true, cpu()}).permutes_pairs, m == 29);
      std::vector<bf16> a, b;
      for (const float x : random_floats(static_cast<std::size_t>(m * 64), 1)) a.push_back(to_bf16(x));
      for (const float x : random_floats(std::size_t{64} * 16, 2)) b.push_back(to_bf16(x));
      const offset_pair pairs[2] = {};
      std::vector<float> c[2];
      for (int i = 0; i < 2; ++i) {
        c[i].resize(static_cast<std::size_t>(m * 16));
        const auto kernel = make_kernel(d, {.backend = i == 0 ? "reference" : e->name});
        ASSERT_TRUE(kernel);
        (*kernel)({.a = a.data(), .b = b.data(), .c = c[i].data(), .pairs = pairs, .batch = 2});
      }
      EXPECT_EQ(c[0], c[1]) << m;
    }
  }
}

TEST(Jit, GroupsOfEntriesWithRowsOfBInPairs) {
  desc d = f32_desc(128, 128, 130);
  d.a = d.b = type::bf16;
  d.sums = order::pair;
  const brgemm::index batch = 20;
  std::vector<bf16> a, b;
  for (const float x : random_floats(static_cast<std::size_t>(d.stride_a * batch), 1)) a.push_back(to_bf16(x));
  for (const float x : random_floats(static_cast<std::size_t>(d.stride_b * batch), 2)) b.push_back(to_bf16(x));
  const auto by = [&](std::string_view name) {
    std::vector<float> c(static_cast<std::size_t>(d.m * d.n));
    const auto kernel = make_kernel(d, {.backend = name});
    EXPECT_TRUE(kernel) << kernel.error().message();
    (*kernel)({.a = a.data(), .b = b.data(), .c = c.data(), .batch = batch});
    return c;
  };
  for (const backend::entry* e : generating()) {
    if (e->name == "avx512" && cpu().has(feature::avx512_bf16)) {
      const auto how = backend::choose_blocking(d, backend::vector_unit{true, cpu()});
      ASSERT_TRUE(how.group > 0 && how.permutes_pairs);
    }
    if (!e->supports(d)) continue;  // tiles have another order
    EXPECT_EQ(by(e->name), by("reference")) << e->name;
  }
}

TEST(Jit, FewRowsWithAndWithoutPrefetches) {
  for (const backend::entry* e : generating()) {
    for (const brgemm::index k : {64, 100, 300}) {  // two entries of 64x64, one of 100x64 and none of 300x64 fit L1
      for (const brgemm::index batch : {0, 1, 2, 3, 9}) {
        for (const brgemm::index m : {1, 2, 6}) expect_equal_bits(f32_desc(m, 64, k), e->name, batch);
      }
    }
  }
}

TEST(Jit, RowsAtTheCallHaveTheBitsOfFixedOnes) {
  for (const backend::entry* e : generating()) {
    for (const brgemm::index n : {5, 20, 64, 150}) {
      for (const brgemm::index k : {9, 130}) {  // 150 columns and 130 k: in groups of entries
        desc d = f32_desc(100, n, k);
        append(d, op::bias());
        d.m_extent = extent_kind::at_call;
        const auto a = random_floats(static_cast<std::size_t>(d.stride_a * 17), 1);
        const auto b = random_floats(static_cast<std::size_t>(d.stride_b * 17), 2);
        const auto bias = random_floats(static_cast<std::size_t>(n), 3);
        std::vector<float> c[2];
        for (int i = 0; i < 2; ++i) {
          const auto kernel = make_kernel(d, {.backend = i == 0 ? "reference" : e->name});
          ASSERT_TRUE(kernel) << kernel.error().message();
          arguments x;
          x.a = a.data(), x.b = b.data();
          x.operand[0] = const_cast<float*>(bias.data());
          for (x.m = 0; x.m <= d.m; ++x.m) {
            std::vector<float> rows(static_cast<std::size_t>(d.m * n), 7);  // those after m stay
            x.c = rows.data();
            x.batch = x.m % 2 == 0 ? 1 : 17;
            (*kernel)(x);
            c[i].insert(c[i].end(), rows.begin(), rows.end());
          }
        }
        EXPECT_EQ(0, std::memcmp(c[0].data(), c[1].data(), c[0].size() * sizeof(float))) << e->name << " " << n;
      }
    }
  }
}

TEST(Jit, AStepMayReadWhatCWas) {
  for (const backend::entry* e : generating()) {
    for (const brgemm::index n : {4, 20, 150}) {
      const desc d = f32_desc(120, n, 130);
      for (int kind = 1; kind < op_kind_count; ++kind) {
        if (!detail::is_read_matrix(static_cast<op_kind>(kind))) continue;
        desc with_step = d;
        append(with_step, op::make(static_cast<op_kind>(kind), type::f32, axis::none, d.ldc));
        expect_equal_bits(with_step, e->name, 16, true);
      }
    }
  }
}

TEST(Jit, TheRoundingStateIsLeftAsItWas) {
  hide_cpu_features("-bf16");  // these kernels flush subnormals while they sum
  for (const backend::entry* e : generating()) {
    desc d = f32_desc(5, 17, 6);
    d.a = d.b = type::bf16;
    const auto kernel = make_kernel(d, {.backend = e->name});
    ASSERT_TRUE(kernel);
    std::vector<bf16> a(5 * 6), b(6 * 17);
    std::vector<float> c(5 * 17);
    arguments x;
    x.a = a.data(), x.b = b.data(), x.c = c.data();
    const unsigned before = _mm_getcsr();
    (*kernel)(x);
    EXPECT_EQ(_mm_getcsr() & ~0x3fu, before & ~0x3fu);
  }
  hide_cpu_features("");
}

TEST(Jit, LongSumsAndFarMatrices) {
  for (const backend::entry* e : generating()) {
    expect_equal_bits(f32_desc(3, 5, 100'000), e->name, 1);  // many steps
    expect_equal_bits(f32_desc(5000, 3, 2), e->name, 2);     // many blocks of rows
    expect_equal_bits(f32_desc(2, 5000, 3), e->name, 2);     // many blocks of columns
    desc back = f32_desc(9, 33, 21);
    back.stride_a = 0;  // the same A for every B
    expect_equal_bits(back, e->name, 3);
  }
}

TEST(Jit, GroupsOfSignedBytes) {
  for (const backend::entry* e : generating()) {
    desc d = f32_desc(130, 140, 260);
    d.a = d.b = type::s8;
    d.c = type::s32;
    std::vector<std::int8_t> a(static_cast<std::size_t>(d.stride_a * 9)), b(static_cast<std::size_t>(d.stride_b * 9));
    std::mt19937 generator(7);
    for (std::int8_t& x : a) x = static_cast<std::int8_t>(generator());
    for (std::int8_t& x : b) x = static_cast<std::int8_t>(generator());
    std::vector<std::int32_t> c[2];
    for (int i = 0; i < 2; ++i) {
      c[i].resize(static_cast<std::size_t>(d.m * d.n));
      const auto kernel = make_kernel(d, {.backend = i == 0 ? "reference" : e->name});
      ASSERT_TRUE(kernel) << kernel.error().message();
      arguments x;
      x.a = a.data(), x.b = b.data(), x.c = c[i].data();
      x.batch = 9;
      (*kernel)(x);
    }
    EXPECT_EQ(c[0], c[1]) << e->name;
  }
}

TEST(Jit, ManyActivationsAreCalledNotRefused) {
  for (const backend::entry* e : generating()) {
    desc d = f32_desc(334, 333, 5);
    d.m_extent = extent_kind::at_call;
    for (int i = 0; i < max_epilogue; ++i) append(d, op::sigmoid());
    ASSERT_TRUE(e->supports(d));
    const auto kernel = make_kernel(d, {.backend = e->name});
    EXPECT_TRUE(kernel) << kernel.error().message();
  }
}

/// Long epilogues: where blocks of the usual size would be too long, they get smaller.
TEST(Jit, LongEpiloguesAreNotRefused) {
  for (const char* hidden : {"", "-bf16"}) {
    hide_cpu_features(hidden);
    for (const backend::entry* e : generating()) {
      for (const extent_kind m : {extent_kind::fixed, extent_kind::at_call}) {
        desc d = f32_desc(59, 345, 16);
        d.m_extent = m;
        for (int i = 0; i < max_epilogue; ++i) append(d, op::store(345, type::bf16));
        ASSERT_TRUE(e->supports(d));
        const auto kernel = make_kernel(d, {.backend = e->name});
        ASSERT_TRUE(kernel) << e->name << hidden << kernel.error().message();
        EXPECT_TRUE(dump(*kernel));
      }
    }
  }
  hide_cpu_features("");
}

/// Sizes at the end of their range are divided without overflow; their C cannot exist.
TEST(Jit, LargestSizesAreDivided) {
  constexpr brgemm::index largest = std::numeric_limits<brgemm::index>::max();
  for (const backend::entry* e : generating()) {
    for (const auto& [m, n] : {std::pair(brgemm::index{1}, largest), std::pair(largest, brgemm::index{1})}) {
      desc d;
      d.m = m, d.n = n, d.k = 0;
      d.a = type::u8, d.b = type::s8, d.c = type::u8;
      d.lda = 1, d.ldb = d.ldc = n;
      d.stride_a = d.stride_b = 0;
      d.layout_b = layout::plain;
      const auto kernel = make_kernel(d, {.backend = e->name});
      ASSERT_TRUE(kernel) << kernel.error().message();
      EXPECT_EQ(dump(*kernel)->text().find('-'), std::string_view::npos) << dump(*kernel)->text();
    }
  }
}

TEST(Jit, RegistersAreSavedWhereTheUnwindTablesLook) {
  for (const backend::entry* e : generating()) {
    desc d = f32_desc(64, 64, 64);
    d.lda = d.ldb = d.ldc = at_call;
    const auto kernel = make_kernel(d, {.backend = e->name});
    ASSERT_TRUE(kernel);
    const auto dumped = dump(*kernel);
    ASSERT_TRUE(dumped);
    const std::uint8_t* next = dumped->code().data() + 8;  // push r12, r13, r14 or r15
    EXPECT_TRUE(next[0] == 0x41 && next[1] >= 0x54 && next[1] <= 0x57) << e->name;
  }
}

/// Rows of A are `far` elements apart: only the pages that are touched exist.
void expect_far_rows(brgemm::index m, brgemm::index far) {
  const auto bytes = static_cast<std::size_t>(4 * (m * far + 64));
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) GTEST_SKIP() << "no " << bytes << " bytes of addresses";
  auto* a = static_cast<float*>(memory);
  const desc near = f32_desc(m, 20, 3);
  desc d = near;
  d.lda = far;
  const auto rows = random_floats(static_cast<std::size_t>(m * 3), 5);
  for (brgemm::index r = 0; r < m; ++r) {
    std::memcpy(a + r * far, &rows[static_cast<std::size_t>(3 * r)], 3 * sizeof(float));
  }
  const auto b = random_floats(3 * 20, 6);
  std::vector<float> expected(static_cast<std::size_t>(m * 20));
  arguments x;
  x.b = b.data();
  x.a = rows.data(), x.c = expected.data();
  const auto plain = make_kernel(near, {.backend = "reference"});
  ASSERT_TRUE(plain);
  (*plain)(x);
  for (const backend::entry* e : generating()) {
    std::vector<float> c(expected.size());
    x.a = a, x.c = c.data();
    const auto kernel = make_kernel(d, {.backend = e->name});
    ASSERT_TRUE(kernel) << kernel.error().message();
    (*kernel)(x);
    EXPECT_EQ(c, expected) << e->name << " m=" << m << " lda=" << far;
  }
  ::munmap(memory, bytes);
}

TEST(Jit, TypesOfTheGpuAreRefused) {
  for (const type t : {type::e4m3, type::e5m2, type::tf32}) {
    desc d = f32_desc(3, 4, 5);
    d.a = d.b = t;
    EXPECT_TRUE(make_kernel(d, {.backend = "reference"}));
    for (const backend::entry* e : generating()) {
      brgemm_test::expect_error(e->supports(d), errc::unsupported, "a", {std::string(name_of(t)), "reference"});
    }
  }
}

TEST(Jit, LeadingDimensionsBeyondAnInstructionsDisplacement) {
  expect_far_rows(8, brgemm::index{1} << 28);
  expect_far_rows(24, 16776191);  // where constants end
  expect_far_rows(24, 16776192);
  expect_far_rows(40, 16776191);  // the offset of the last row needs more than 31 bits
}

}  // namespace
