// How a generated kernel divides its work: which instruction multiplies, how many rows and vectors of C rest in
// registers, how far k is unrolled. Found by a small search over a cost model; `explain` prints the same figures.
#pragma once

#include <algorithm>

#include "../core/activation.hpp"
#include "../core/arguments.hpp"
#include "../core/cpu.hpp"

namespace brgemm::inline abi_0::backend {

/// How products are summed into one vector of accumulators.
enum class product : std::uint8_t {
  fma_f32,     ///< vfmadd231ps: f32, and f16 widened
  fma_f64,     ///< vfmadd231pd
  dot_bf16,    ///< vdpbf16ps
  split_bf16,  ///< two vfmadd231ps on the halves of the pairs, with subnormals flushed as vdpbf16ps does
  dot_8bit,    ///< vpdpbusd
  madd_8bit,   ///< two vpmaddwd on the even and odd bytes, exact
};

/// The vector unit that code is generated for.
struct vector_unit {
  bool wide;              ///< 512 bits, 32 registers and masks; else 256 bits and 16 registers
  cpu_features features;  ///< what may be used beyond the base
  constexpr int bytes() const { return wide ? 64 : 32; }
  constexpr int registers() const { return wide ? 32 : 16; }
};

/// `count` blocks of `size` rows or vectors; `masked`: the last vector has a tail.
struct section {
  index count = 0;
  int size = 0;
  bool masked = false;
};

/// The division of one desc's work.
struct blocking {
  product how = product::fma_f32;
  int lanes = 16;  ///< accumulators in a vector
  int tail = 0;    ///< columns in the last vector, 0 if it is full
  int chains = 1;
  int a_registers = 1;  ///< registers of one broadcast of A
  int b_registers = 1;  ///< registers of one vector of B
  /// The broadcasts of a step stay in registers and vectors of B pass by; else the other way round.
  bool hold_a = false;
  bool embed = false;  ///< what passes by is an operand in memory of the multiplying instruction
  int unroll = 1;      ///< steps of k in the loop's body
  index steps = 0;     ///< full groups of k
  int rest = 0;        ///< k left over in the last group
  /// Entries of the batch that go over all of C before the next ones do; 0: all of them.
  index group = 0;
  /// m fixed: blocks of rows[0].size, then of rows[1].size; m at the call: of rows[0].size, then of 8, 4, 2, 1.
  section rows[2];
  section columns[3];
  double cycles = 0;        ///< predicted for one entry of the batch, operands in L1
  double block_cycles = 0;  ///< predicted once a call: start, epilogue, stores
  double bound = 0;         ///< of one entry: what multiplying units, loads and latency leave with the best division
  int accumulators() const { return rows[0].size * columns[0].size * chains; }
};

namespace detail {

/// Does B arrive in vectors that the instruction can take from memory as they are?
constexpr bool b_is_direct(const desc& d) {
  return k_group_of(d) == 1 ? d.b != type::f16 && d.layout_b == layout::plain : d.layout_b == layout::interleaved;
}

inline product choose_product(const desc& d, const vector_unit& unit) {
  switch (d.a) {
    case type::f64: return product::fma_f64;
    case type::bf16:
      return unit.wide && unit.features.has(feature::avx512_bf16) ? product::dot_bf16 : product::split_bf16;
    case type::u8:
    case type::s8: {
      const bool dot = unit.features.has(unit.wide ? feature::avx512_vnni : feature::avx_vnni);
      return dot && !(d.a == type::u8 && d.b == type::u8) ? product::dot_8bit : product::madd_8bit;
    }
    default: return product::fma_f32;
  }
}

/// s8 x s8 by vpdpbusd: A + 128 is unsigned; 128 times the sums of B's columns, kept beside C, are subtracted at the
/// end.
constexpr bool shifts_a(const desc& d, product how) {
  return how == product::dot_8bit && d.a == type::s8 && d.b == type::s8;
}

/// Cycles that one product of two vectors occupies a multiplying unit's pair (two units: half a cycle an instruction).
inline double product_cycles(product how, const vector_unit& unit) {
  switch (how) {
    case product::dot_bf16: return unit.features.intel ? 1.0 : 0.5;  // Intel issues vdpbf16ps every second cycle
    case product::split_bf16: return 1.0;
    case product::madd_8bit: return 2.0;
    default: return 0.5;
  }
}

constexpr double product_latency(product how) {
  switch (how) {
    case product::dot_bf16: return 6;
    case product::split_bf16: return 8;
    case product::madd_8bit: return 2;
    default: return 4;
  }
}

/// Registers that the epilogue needs beside the accumulators.
inline int epilogue_registers(const desc& d, const vector_unit& unit) {
  int most = d.epilogue_size > 0 || d.alpha != alpha_kind::one || accumulator_of(d) == type::s32 ? 3 : 1;
  for (int i = 0; i < d.epilogue_size; ++i) {
    const int own = temporaries(d.epilogue[i].kind);
    most = std::max(most, own == 0 ? 0 : 1 + own + (unit.wide ? 0 : 2));
  }
  const bool converts = d.c == type::bf16 && !(unit.wide && unit.features.has(feature::avx512_bf16));
  return std::max(most, converts || d.c == type::f16 ? 4 : 1);
}

/// Cycles of one step of k for a block of `rows` x `vectors`, operands in L1.
inline double step_cycles(const desc& d, const vector_unit& unit, const blocking& b, int rows, int vectors) {
  const double multiplying = rows * vectors * product_cycles(b.how, unit);
  const int b_loads = b_is_direct(d) ? 1 : d.layout_b == layout::plain ? static_cast<int>(k_group_of(d)) : 1;
  const double loads =
      (b.embed ? rows * vectors + (b.hold_a ? rows : vectors * b_loads) : rows + vectors * b_loads) / 2.0;
  const double preparing = (b_is_direct(d) ? 0 : vectors * b_loads * 1.0) + (b.a_registers - 1) * rows * 0.5;
  return std::max({multiplying + preparing * 0.5, loads, product_latency(b.how) / b.chains});
}

inline void divide(index total, index size, section& first, section& second) {
  const index blocks = (total + size - 1) / size;
  const index base = total / blocks;
  first = {total % blocks, static_cast<int>(base + 1)};
  second = {blocks - total % blocks, static_cast<int>(base)};
  if (first.count == 0) first = second, second = {};
}

/// How many registers a block of `rows` x `vectors` leaves free; negative if it does not fit. Chooses the order of a
/// step.
inline int fit(const desc& d, const vector_unit& unit, blocking& b, int rows, int vectors) {
  const bool a_may_pass =
      b.how == product::fma_f32 ? d.a == type::f32 : b.how == product::fma_f64 || (b.how == product::dot_bf16);
  const int accumulators = rows * vectors * b.chains + (shifts_a(d, b.how) ? vectors + 2 : 0);
  const int column_sums = accumulators - rows * vectors * b.chains;
  const int after_sums = unit.registers() - rows * vectors - column_sums - epilogue_registers(d, unit);
  if (d.layout_b == layout::transposed) {  // a tile of B rests in 5 registers; one more for its loads, halves of a step
    if (vectors > 1) return -1;
    b.hold_a = false;
    b.embed = a_may_pass && unit.wide;
    const int loop = 6 + (b.b_registers > 1 ? 2 : 0) + b.a_registers + (b.how == product::madd_8bit ? 1 : 0);
    return std::min(unit.registers() - accumulators - loop, after_sums);
  }
  const int spare = b.how == product::madd_8bit ? 1 : b.b_registers > 1 || !b_is_direct(d) ? 1 : 0;
  b.hold_a = rows * b.a_registers < vectors * b.b_registers;
  const bool b_may_pass = b_is_direct(d) && b.b_registers == 1 && unit.wide && !shifts_a(d, b.how) && d.b != type::u8;
  b.embed = b.hold_a ? rows == 1 && b_may_pass : vectors == 1 && a_may_pass && unit.wide;
  const int held = b.hold_a ? rows * b.a_registers : vectors * b.b_registers;
  const int passing = b.embed ? 0 : b.hold_a ? b.b_registers : b.a_registers;
  const int loop = held + passing + spare;
  return std::min(unit.registers() - accumulators - loop, after_sums);
}

/// Predicted cycles of one batch entry over all blocks, without what is done once a call.
inline double entry_cycles(const desc& d, const vector_unit& unit, blocking& b) {
  const double steps = static_cast<double>(b.steps) + (b.rest != 0 ? 1.5 : 0.0);
  double sum = 0;
  for (const section& r : b.rows) {
    for (const section& c : b.columns) {
      if (r.count == 0 || c.count == 0) continue;
      sum += static_cast<double>(r.count * c.count) * (steps * step_cycles(d, unit, b, r.size, c.size) + 3);
    }
  }
  return sum;
}

inline double once_cycles(const blocking& b) {
  double sum = 12;
  for (const section& r : b.rows) {
    for (const section& c : b.columns) sum += static_cast<double>(r.count * c.count) * (r.size * c.size * 1.0 + 14);
  }
  return sum;
}

inline void divide_columns(index n, index size, blocking& b) {
  const index vectors = (n + b.lanes - 1) / b.lanes;
  divide(vectors, size, b.columns[0], b.columns[1]);
  b.columns[2] = {};
  if (b.tail == 0) return;
  section& last = b.columns[1].count != 0 ? b.columns[1] : b.columns[0];
  if (last.count == 1) {
    last.masked = true;
  } else {
    --last.count;
    section& own = b.columns[1].count != 0 ? b.columns[2] : b.columns[1];
    own = {1, last.size, true};
  }
}

/// Where a batch of 16 would not stay in L2, C is summed in groups of entries that do; in between it rests in memory.
/// Its type must be the accumulator's, so that the bits are those of one pass.
inline index choose_group(const desc& d, const blocking& b) {
  const index bytes = d.m * d.k * size_of(d.a) + d.k * d.n * size_of(d.b);
  const bool one_pass = b.rows[0].count + b.rows[1].count == 1 || b.columns[0].count + b.columns[1].count == 1;
  const bool sums_rest = d.c == accumulator_of(d) && d.alpha == alpha_kind::one && b.chains == 1 &&
                         d.zero_a == zero_point::none && d.zero_b == zero_point::none && d.stride_a != 0 &&
                         d.stride_b != 0;
  constexpr index l2 = 1 << 20;
  if (one_pass || !sums_rest || d.m_extent == extent_kind::at_call || bytes * 16 <= l2 * 3 / 4) return 0;
  return std::max<index>(1, l2 / 2 / bytes);
}

inline int choose_unroll(const desc& d, const blocking& b) {
  if (d.layout_b == layout::transposed) return std::max<int>(b.chains, accumulator_of(d) == type::f64 ? 2 : 4);
  const int products = b.rows[0].size * b.columns[0].size;
  const int wanted = std::max(1, 32 / products);
  int unroll = b.chains;
  while (unroll < wanted && unroll < b.steps) unroll *= 2;
  return std::max(unroll, 1);
}

}  // namespace detail

/// The division with the fewest predicted cycles; of equals the one with fewer rows of code.
inline blocking choose_blocking(const desc& d, const vector_unit& unit) {
  blocking b;
  b.how = detail::choose_product(d, unit);
  const int accumulator_bytes = accumulator_of(d) == type::f64 ? 8 : 4;
  b.lanes = unit.bytes() / accumulator_bytes;
  b.tail = static_cast<int>(d.n % b.lanes);
  b.chains = accumulator_of(d) == type::s32 ? 1 : d.chains;
  const bool split = b.how == product::split_bf16 || b.how == product::madd_8bit;
  b.a_registers = split ? 2 : 1;
  b.b_registers = split ? 2 : 1;
  b.steps = d.k / k_group_of(d);
  b.rest = static_cast<int>(d.k % k_group_of(d));

  const index vectors = (d.n + b.lanes - 1) / b.lanes;
  const int most_rows = d.lda == at_call && d.layout_a == layout::plain ? 15 : 30;
  blocking best;
  double best_cost = 0;
  double best_bound = 0;
  for (int width = 1; width <= std::min<index>(vectors, 30); ++width) {
    for (int height = static_cast<int>(std::min<index>(d.m, most_rows)); height >= 1; --height) {
      if (detail::fit(d, unit, b, height, width) < 0) continue;
      detail::divide(d.m, height, b.rows[0], b.rows[1]);
      if (d.m_extent == extent_kind::at_call)
        b.rows[0] = {d.m / height, height}, b.rows[1] = {d.m % height != 0, static_cast<int>(d.m % height)};
      detail::divide_columns(d.n, width, b);
      b.cycles = detail::entry_cycles(d, unit, b);
      b.block_cycles = detail::once_cycles(b);
      const double cost = b.cycles * 16 + b.block_cycles + 2 * (b.rows[1].count != 0) + 2 * (b.columns[1].count != 0);
      if (best_cost == 0 || cost < best_cost) best = b, best_cost = cost;
      if (best_bound == 0 || b.cycles < best_bound) best_bound = b.cycles;
      if (b.rows[0].size < height) height = b.rows[0].size;  // the same division again
    }
  }
  if (best_cost == 0) return best;  // no block fits: accumulators() is 0
  best.bound = best_bound;
  best.group = detail::choose_group(d, best);
  best.unroll = detail::choose_unroll(d, best);
  return best;
}

}  // namespace brgemm::inline abi_0::backend
