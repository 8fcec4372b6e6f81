// How a generated kernel divides its work: which instruction multiplies, how many rows and vectors of C rest in
// registers, how far k is unrolled. Found by a small search over a cost model; `explain` prints the same figures.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>

#include "../core/activation.hpp"
#include "../core/arguments.hpp"
#include "../core/cpu.hpp"

namespace brgemm::inline abi_0::backend {

/// How products are summed into one vector of accumulators.
enum class product : std::uint8_t {
  fma_f32,     ///< vfmadd231ps: f32, and f16 widened
  fma_f64,     ///< vfmadd231pd
  dot_bf16,    ///< vdpbf16ps
  split_bf16,  ///< two vfmadd231ps on the halves of the pairs, with subnormals flushed as vdpbf16ps does; order::tile
  dot_8bit,    ///< vpdpbusd
  madd_8bit,   ///< two vpmaddwd on the even and odd bytes, exact
  mul_8bit,    ///< vpmulld and vpaddd: 8-bit types of layout::depthwise
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
  int limit = 30;       ///< of vectors in a block; see choose_blocking
  bool tile = false;    ///< order::tile: even and odd elements of a chunk of k are summed apart, then added to the sum
  int a_registers = 1;  ///< registers of one broadcast of A
  int b_registers = 1;  ///< registers of one vector of B
  /// The broadcasts of a step stay in registers and vectors of B pass by; else the other way round.
  bool hold_a = false;
  bool embed = false;           ///< what passes by is an operand in memory of the multiplying instruction
  bool permutes_pairs = false;  ///< bf16, B stored (k,n): pairs are one permutation of two rows, whose order is held
  bool tight = false;           ///< B stored (n,k): registers are few, so a turned tile moves together
  int pack = 1;         ///< rows that share a vector in the last column, where that has at most lanes / pack columns
  double accesses = 1;  ///< to the first cache that a vector of B takes: one more where it crosses into a line
  double accesses_tail = 1;    ///< the same of the tail's
  double accesses_shared = 1;  ///< and where rows share it
  int unroll = 1;              ///< steps of k in the loop's body
  index steps = 0;             ///< full groups of k
  int rest = 0;                ///< k left over in the last group
  /// Entries of the batch that go over all of C before the next ones do; 0: all of them.
  index group = 0;
  /// Blocks of rows[0].size, then of rows[1].size. m at the call: no block is higher than rows[0].size.
  section rows[2];
  index few = 0;  ///< m at the call: so many rows, or fewer, are divided as a kernel of that fixed m divides them
  section columns[3];
  bool prefetch = false;    ///< one block of rows: B, each line of which is read once, is prefetched if it exceeds L1
  double cycles = 0;        ///< predicted for one entry of the batch, operands in L1
  double block_cycles = 0;  ///< predicted once a call: start, epilogue, stores
  double bound = 0;  ///< of one entry: what multiplying units, loads and latency leave with the best of those tried
  int sums() const { return tile ? 3 : chains; }  ///< vectors of sums for each vector of C
  int accumulators() const { return rows[0].size * columns[0].size * sums(); }
};

namespace detail {

/// Does B arrive in vectors that the instruction can take from memory as they are?
constexpr bool b_is_direct(const desc& d) {
  return k_group_of(d) == 1 ? d.b != type::f16 && d.layout_b == layout::plain : d.layout_b == layout::interleaved;
}

inline product choose_product(const desc& d, const vector_unit& unit) {
  if (is_depthwise(d.layout_a)) {
    return accumulator_of(d) == type::s32   ? product::mul_8bit
           : accumulator_of(d) == type::f64 ? product::fma_f64
                                            : product::fma_f32;
  }
  switch (d.a) {
    case type::f64: return product::fma_f64;
    case type::bf16:
      return machine_order(d) != order::tile && unit.wide && unit.features.has(feature::avx512_bf16)
                 ? product::dot_bf16
                 : product::split_bf16;
    case type::u8:
    case type::s8: {
      const bool dot = unit.features.has(unit.wide ? feature::avx512_vnni : feature::avx_vnni);
      return dot && !(d.a == type::u8 && d.b == type::u8) ? product::dot_8bit : product::madd_8bit;
    }
    default: return product::fma_f32;
  }
}

constexpr bool rows_of_c_are_rows_of_a(const desc& d) {
  return d.layout_a == layout::plain || is_depthwise(d.layout_a);
}
/// Bytes of what lda counts.
constexpr index lane_of_a(const desc& d) {
  return size_of(d.a) * (d.layout_a == layout::interleaved ? k_group_of(d) : 1);
}

/// Whether `times` leading dimensions reach further than a displacement of 32 bits; they then stand in a register.
constexpr bool needs_register(index ld, index bytes, index times) {
  return ld == at_call || ld >= ((index{1} << 31) / times - 4096) / bytes;
}
/// A step reaches 32 rows of A stored (m,k), 64 where they are k or groups of k, or k are added to them; depthwise with
/// lines and steps 32 rows of C and 32 steps, or as many as there are.
inline bool lda_needs_register(const desc& d) {
  if (d.line == 0 && d.k_step == 1) return needs_register(d.lda, lane_of_a(d), d.layout_a == layout::plain ? 32 : 64);
  const index of_c = std::min(brgemm::detail::row_of_a(d, std::min<index>(d.m, 32) - 1), index{1} << 31);
  const index of_k = std::min<index>(d.k, 32) * d.k_step;
  return d.lda >= ((index{1} << 31) - 4096) / (of_c + of_k + 1) / lane_of_a(d);
}
/// Bytes of what ldb counts.
constexpr index lane_of_b(const desc& d) {
  return size_of(d.b) * (d.layout_b == layout::interleaved ? k_group_of(d) : 1);
}
constexpr bool ldb_needs_register(const desc& d) {
  return needs_register(d.ldb, lane_of_b(d), d.layout_b == layout::transposed ? 16 : 64 * k_group_of(d));
}
/// Whether desc::prefetch is followed: rows of B are at constant distances.
constexpr bool prefetches(const desc& d) {
  return d.prefetch != 0 && d.layout_b != layout::transposed && !is_depthwise(d.layout_a) && !ldb_needs_register(d);
}
/// Where a block has no more rows, each line of B is read once.
inline constexpr index few_rows = 6;
/// Bytes: rows so far apart are beyond the CPU's own prefetching.
inline constexpr index far_rows = 1024;
/// Steps from rows of A stored (k,m), and of B, to those that are prefetched with them.
inline constexpr int prefetched_steps = 16;
constexpr bool follow_each_other(const desc& d) {
  return d.layout_a == layout::transposed && d.layout_b == layout::plain && k_group_of(d) == 1 &&
         d.k >= 4 * prefetched_steps;
}
constexpr bool prefetches_rows_of_a(const desc& d) {
  return follow_each_other(d) && !lda_needs_register(d) && d.lda * size_of(d.a) >= far_rows;
}
constexpr bool prefetches_rows_of_b(const desc& d) {
  return follow_each_other(d) && d.m > few_rows && !ldb_needs_register(d) && d.ldb * size_of(d.b) >= far_rows;
}
/// Whether C comes to the sums at their end; else they start from it.
constexpr bool adds_c_last(const desc& d) { return d.alpha == alpha_kind::at_call || brgemm::detail::becomes_f32(d); }
/// Whether the lines of a block of C are prefetched before its sums, where these do not start from C.
constexpr bool prefetches_c(const desc& d) {
  return (d.beta != beta_kind::one || adds_c_last(d)) && d.write_c == write_kind::cached && d.m > 1 && d.k > 0 &&
         !needs_register(d.ldc, size_of(d.c), 32) && d.ldc * size_of(d.c) >= far_rows;
}
/// Rows of C are rows of A, whose leading dimension is in a register: three base registers reach 17 rows.
constexpr bool has_few_bases(const desc& d) { return rows_of_c_are_rows_of_a(d) && lda_needs_register(d); }

/// s8 x s8 by vpdpbusd: A + 128 is unsigned; 128 times the sums of B's columns, kept beside C, are subtracted at the
/// end.
constexpr bool shifts_a(const desc& d, product how) {
  return how == product::dot_8bit && d.a == type::s8 && d.b == type::s8;
}

/// Pairs in a chunk of k of order::tile.
inline constexpr int steps_of_chunk = 16;

/// Cycles that one product of two vectors occupies a multiplying unit's pair (two units: half a cycle an instruction).
inline double product_cycles(product how, const vector_unit& unit) {
  switch (how) {
    case product::dot_bf16: return unit.features.intel ? 1.0 : 0.5;  // Intel issues vdpbf16ps every second cycle
    case product::split_bf16: return 1.0;
    case product::madd_8bit: return 2.0;
    case product::mul_8bit: return 1.0;
    default: return 0.5;
  }
}

constexpr double product_latency(product how) {
  switch (how) {
    case product::dot_bf16: return 6;
    case product::split_bf16: return 8;
    case product::madd_8bit: return 2;
    case product::mul_8bit: return 1;
    default: return 4;
  }
}

/// AVX2 without F16C, and something of f16.
inline bool emulates_f16(const desc& d, const vector_unit& unit) {
  if (unit.wide || unit.features.has(feature::f16c)) return false;
  bool any = d.a == type::f16 || d.c == type::f16;
  for (int i = 0; i < d.epilogue_size; ++i) any = any || d.epilogue[i].operand == type::f16;
  return any;
}

/// Registers that the epilogue needs beside the accumulators.
inline int epilogue_registers(const desc& d, const vector_unit& unit) {
  int most = d.epilogue_size > 0 || d.alpha != alpha_kind::one || accumulator_of(d) == type::s32 ? 3 : 1;
  for (int i = 0; i < d.epilogue_size; ++i) {
    const int own = temporaries(d.epilogue[i].kind);
    most = std::max(most, own == 0 ? 0 : 1 + own + (unit.wide ? 0 : 2));
    if (d.epilogue[i].kind == op_kind::store) most = std::max(most, 4);
  }
  const bool converts = d.c == type::bf16 && !(unit.wide && unit.features.has(feature::avx512_bf16));
  return std::max(most, converts || d.c == type::f16 ? 4 : 1);
}

/// What one step of a block asks of the core. Of its four vector pipes two multiply and two move lanes, one of them the
/// same: products and moves of lanes together have three. Blends may take any of the four and count as 3/4 of an
/// operation. Loads: two a cycle; where each is a product's broadcast 1.8 were measured.
struct step_cost {
  double products = 0;
  double operations = 0;
  double loads = 0;
  double loads_a_cycle = 2;
  double latency = 0;
  double bound() const { return std::max({products, operations / 3, loads / 2, latency}); }
  double predicted() const { return std::max(throughput(), latency) + idle() + hidden(); }
  double throughput() const { return std::max({products, operations / 3, loads / loads_a_cycle}); }
  /// With just as many sums as a latency needs, a product that is late once is late ever after. Measured with 5 to 16
  /// sums: up to 0.15 of the latency, less the further the two are apart.
  double idle() const { return 0.15 * std::max(0.0, latency - 2 * std::abs(throughput() - latency)); }
  /// A little for what should hide behind the rest, so that of equals the one with less of it is chosen.
  double hidden() const { return 0.005 * (operations + loads); }
};

/// What share of the loads of `bytes` bytes, one in each row of B, cross into another line of cache, which takes a
/// second access (masked lanes count). Leading dimension and stride place the rows; the first is taken to start a line.
constexpr double crossing_share(const desc& d, int bytes) {
  constexpr index line = 64;
  const index row = size_of(d.b) * (d.layout_b == layout::interleaved ? k_group_of(d) : 1);
  index apart = line;
  if (d.ldb != at_call && d.k > k_group_of(d)) apart = std::gcd(apart, d.ldb % line * row);
  if (d.batch == batch_kind::strides) apart = std::gcd(apart, d.stride_b % line * size_of(d.b));
  index crossing = 0;
  for (index place = 0; place < line; place += apart) crossing += place + bytes > line;
  return static_cast<double>(crossing * apart) / line;
}

/// Loads of one row of B in a block, the second accesses among them. `shared`: rows share the last vector.
inline double loads_of_b_row(const blocking& b, const section& columns, bool shared) {
  const double last = shared ? b.accesses_shared : b.accesses_tail;
  return (columns.size - columns.masked) * b.accesses + columns.masked * last;
}

/// What loads_of_b_row counts for a whole vector and for a tail.
inline void count_accesses(const desc& d, const vector_unit& unit, blocking& b) {
  const int tail_bytes = b.tail * unit.bytes() / b.lanes;
  const int narrow = !unit.wide || tail_bytes > 32 ? unit.bytes() : tail_bytes > 16 ? 32 : tail_bytes > 8 ? 16 : 8;
  b.accesses = 1 + crossing_share(d, unit.bytes());
  b.accesses_tail = 1 + crossing_share(d, narrow);
  b.accesses_shared = 1 + crossing_share(d, std::max(narrow, 16));
}

inline int packed_rows(const blocking& b, int rows, const section& columns) {
  return columns.masked && rows > 1 ? b.pack : 1;
}

/// Whether a block of one vector a row loads 16 bytes of a row of A at once, for four steps: all rows where they are
/// packed, else every fourth one. See jit_steps.hpp.
inline bool reads_by_four(const desc& d, const vector_unit& unit, const blocking& b, int rows, const section& columns) {
  if (columns.size != 1 || d.layout_a != layout::plain || row_ranges(d) != 0) return false;
  if (packed_rows(b, rows, columns) > 1) return true;
  return unit.wide && b.embed && !b.hold_a && b.chains == 1 && rows >= 8 && b_is_direct(d) &&
         (b.how == product::fma_f32 || b.how == product::dot_bf16);
}

inline step_cost cost_of_packed_step(const vector_unit& unit, const blocking& b, int rows, const section& columns,
                                     bool by_four) {
  step_cost cost;
  const int groups = (rows + b.pack - 1) / b.pack;
  const int whole = rows * (columns.size - 1);
  cost.latency = product_latency(b.how);
  cost.products = (whole + groups) * product_cycles(b.how, unit);
  cost.operations = whole + groups + (by_four ? groups + (rows - groups) / 3.0 : 0.75 * (rows - groups));
  cost.loads = (by_four ? rows / 4.0 : rows) + loads_of_b_row(b, columns, true);
  return cost;
}

/// layout::depthwise: how many steps go together, for which each vector of A that they share is loaded once.
inline int depthwise_window(const desc& d, const vector_unit& unit, const blocking& b, int rows, int vectors) {
  const bool constant = !lda_needs_register(d) && !needs_register(d.ldb, size_of(d.b), 64);
  if (!is_depthwise(d.layout_a) || rows == 1 || !constant || b.how == product::mul_8bit) return 1;
  if (emulates_f16(d, unit)) return 1;
  const int free = unit.registers() - rows * vectors;
  return static_cast<int>(std::clamp<index>(std::min<index>(b.steps, free - 1), 1, 4));
}

/// layout::depthwise: rows of A that `rows` of C read in so many steps.
inline index rows_read(const desc& d, int rows, int steps) {
  const index line = d.line > 1 && d.line < d.m ? d.line : rows;
  const index apart = d.line == 1 ? d.line_step : 1;
  const index spread = (line - 1) * apart + (steps - 1) * index{d.k_step};
  return rows / line * std::min<index>(line * steps, spread / std::gcd(apart, index{d.k_step}) + 1);
}

/// layout::depthwise: each product has its own vector of A, which steps that go together share.
inline step_cost cost_of_depthwise_step(const desc& d, const vector_unit& unit, const blocking& b, int rows,
                                        int vectors) {
  step_cost cost;
  const int together = depthwise_window(d, unit, b, rows, vectors);
  const double of_a = vectors * static_cast<double>(rows_read(d, rows, together)) / together;
  cost.latency = product_latency(b.how);
  cost.products = rows * vectors * product_cycles(b.how, unit);
  cost.operations = cost.products * 2 + (size_of(d.a) < 4 ? of_a : 0);  // those that are narrow are widened
  cost.loads = of_a + vectors;
  return cost;
}

inline step_cost cost_of_step(const desc& d, const vector_unit& unit, const blocking& b, int rows,
                              const section& columns, bool by_four) {
  if (is_depthwise(d.layout_a)) return cost_of_depthwise_step(d, unit, b, rows, columns.size);
  if (packed_rows(b, rows, columns) > 1) return cost_of_packed_step(unit, b, rows, columns, by_four);
  step_cost cost;
  const int vectors = columns.size;
  const bool turned = d.layout_b == layout::transposed;
  const int b_loads = turned ? 4 : d.layout_b == layout::plain ? static_cast<int>(k_group_of(d)) : 1;
  const double preparing = b_is_direct(d) ? 0 : turned ? 6 : vectors * (b.permutes_pairs ? 2 : 2 * b_loads - 1);
  cost.latency = product_latency(b.how) / (b.tile ? 2 : b.chains);
  cost.products = rows * vectors * product_cycles(b.how, unit);
  cost.operations = cost.products * 2 + preparing + (b.a_registers - 1) * rows + (b.b_registers - 1) * vectors +
                    (d.a == type::f16 ? rows : 0) + (shifts_a(d, b.how) ? rows + vectors : 0) +
                    (by_four ? rows / 4.0 : 0) + (b.tile ? rows * vectors * 4.0 / steps_of_chunk : 0);
  cost.loads =
      (by_four ? rows * 13 / 16.0 : rows) + (b_is_direct(d) ? loads_of_b_row(b, columns, false) : vectors * b_loads);
  if (b.embed && !b.hold_a) cost.loads_a_cycle = 1.8;
  return cost;
}

/// Of one entry of the batch.
struct entry_cycles {
  double bound = 0;
  double predicted = 0;
  void add(double times, const step_cost& s) {
    bound += times * s.bound();
    predicted += times * s.predicted();
  }
};

inline entry_cycles cycles_of_entry(const desc& d, const vector_unit& unit, const blocking& b, int rows,
                                    const section& columns) {
  entry_cycles sum;
  const bool by_four = reads_by_four(d, unit, b, rows, columns);
  const auto fours = by_four ? static_cast<double>(b.steps - b.steps % 4) : 0.0;
  const double steps = static_cast<double>(b.steps) + (b.rest != 0 ? 1.5 : 0.0) - fours;
  if (fours > 0) sum.add(fours, cost_of_step(d, unit, b, rows, columns, true));
  if (steps > 0) sum.add(steps, cost_of_step(d, unit, b, rows, columns, false));
  return sum;
}

inline void divide(index total, index size, section& first, section& second) {
  const index blocks = (total - 1) / size + 1;
  const index base = total / blocks;
  first = {total % blocks, static_cast<int>(base + 1)};
  second = {blocks - total % blocks, static_cast<int>(base)};
  if (first.count == 0) first = second, second = {};
}

/// Registers that every step of a block leaves alone: sums of B's columns and two constants; two for f16 by integers.
inline int registers_beside(const desc& d, const vector_unit& unit, const blocking& b, int vectors) {
  return shifts_a(d, b.how) ? vectors + 2 : emulates_f16(d, unit) ? 2 : 0;
}

/// Whether a broadcast of A can be the multiplying instruction's operand in memory; whether a vector of B can.
inline bool a_may_pass(const desc& d, const vector_unit& unit, const blocking& b) {
  if (!unit.wide) return false;
  return b.how == product::fma_f32 ? d.a == type::f32 : b.how == product::fma_f64 || b.how == product::dot_bf16;
}
inline bool b_may_pass(const desc& d, const vector_unit& unit, const blocking& b) {
  return unit.wide && b_is_direct(d) && b.b_registers == 1 && !shifts_a(d, b.how) && d.b != type::u8;
}

/// Rows share the last vector: the registers that are left of a block; negative if it does not fit.
inline int fit_packed(const desc& d, const vector_unit& unit, blocking& b, int rows, int vectors) {
  b.hold_a = true;  // where a last row is alone
  b.embed = true;
  const int sums = rows * (vectors - 1) + (rows + b.pack - 1) / b.pack;
  const int in_a_step = vectors == 1 ? std::max(6, 1 + b.pack) : vectors + b.pack;
  const int at_the_end = epilogue_registers(d, unit);
  return unit.registers() - std::max(sums + std::max(in_a_step, at_the_end), rows + at_the_end);
}

/// B stored (n,k): a tile of B rests in 5 registers; one more for its loads, then halves of a step.
inline int fit_transposed(const desc& d, const vector_unit& unit, blocking& b, int rows) {
  b.hold_a = false;
  b.embed = a_may_pass(d, unit, b);
  const int beside = registers_beside(d, unit, b, 1);
  const int beside_tile = (b.b_registers > 1 ? 2 : 0) + b.a_registers + (b.how == product::madd_8bit ? 1 : 0);
  const int at_the_end = rows + beside + epilogue_registers(d, unit);
  const int in_a_step = b.tight ? std::max(6, 4 + beside_tile) : 6 + beside_tile;
  const int converting =
      b.tight && d.a != type::f16 ? 0 : beside;  // the epilogue's f16 has the other chains' registers
  return unit.registers() - std::max(rows * b.sums() + converting + in_a_step, at_the_end);
}

/// Vectors of B are held, those of A pass.
inline int fit_depthwise(const desc& d, const vector_unit& unit, blocking& b, int rows, int vectors) {
  b.hold_a = false;
  b.embed = unit.wide && (d.a == type::f32 || d.a == type::f64);
  const int in_a_step = vectors + (b.embed ? 0 : 1);
  return unit.registers() - registers_beside(d, unit, b, vectors) - rows * vectors -
         std::max(in_a_step, epilogue_registers(d, unit));
}

/// How many registers a block of `rows` leaves free; negative if it does not fit. Chooses the order of a step.
inline int fit(const desc& d, const vector_unit& unit, blocking& b, int rows, const section& columns) {
  const int vectors = columns.size;
  if (is_depthwise(d.layout_a)) return fit_depthwise(d, unit, b, rows, vectors);
  if (packed_rows(b, rows, columns) > 1) return fit_packed(d, unit, b, rows, vectors);
  if (d.layout_b == layout::transposed) return vectors > 1 ? -1 : fit_transposed(d, unit, b, rows);
  b.hold_a = rows * b.a_registers < vectors * b.b_registers;
  b.embed = b.hold_a ? rows == 1 && b_may_pass(d, unit, b) : vectors == 1 && a_may_pass(d, unit, b);
  const int held = b.hold_a ? rows * b.a_registers : vectors * b.b_registers;
  const int passing = b.embed ? 0 : b.hold_a ? b.b_registers : b.a_registers;
  const int spare = b.how == product::madd_8bit || b.b_registers > 1 || !b_is_direct(d) ? 1 : 0;
  const int in_a_step =
      reads_by_four(d, unit, b, rows, columns) ? 6 : held + passing + spare + (b.permutes_pairs ? 1 : 0);
  const int at_the_end = rows * vectors + epilogue_registers(d, unit);
  return unit.registers() - registers_beside(d, unit, b, vectors) -
         std::max(rows * vectors * b.sums() + in_a_step, at_the_end);
}

/// Whether every block of the division fits. The order of a step is that of the largest block.
inline bool fits(const desc& d, const vector_unit& unit, blocking& b) {
  for (int i = 2; i >= 0; --i) {
    if (b.columns[i].count != 0 && fit(d, unit, b, b.rows[0].size, b.columns[i]) < 0) return false;
  }
  return true;
}

/// Calls each(count, rows, columns) for each kind of block, `count` of them.
template <class Each>
inline void for_blocks(const blocking& b, Each each) {
  for (const section& r : b.rows) {
    for (const section& c : b.columns) {
      if (r.count != 0 && c.count != 0) each(static_cast<double>(r.count * c.count), r.size, c);
    }
  }
}

/// Once a call: stores, and what the next block cannot hide. C is best written line after line: several columns of
/// blocks each go through all of its rows.
inline double once_cycles(const desc& d, const blocking& b) {
  const auto columns = static_cast<double>(b.columns[0].count + b.columns[1].count + b.columns[2].count);
  double cycles = 10 + 0.3 * (columns - 1) * static_cast<double>(d.m);
  for_blocks(b, [&](double count, int rows, const section& c) { cycles += count * (4 + 0.25 * rows * c.size); });
  return cycles;
}

inline void divide_columns(index n, index size, blocking& b) {
  const index vectors = (n - 1) / b.lanes + 1;
  divide(vectors, size, b.columns[0], b.columns[1]);
  b.columns[2] = {};
  if (b.lanes == 4 && vectors > size && size == 2) {  // only a last block may have one vector: see width_for_masks
    b.columns[0] = {vectors / 2, 2};
    b.columns[1] = {vectors % 2, 1};
  }
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

/// m at the call: whole blocks stand for all rows, because m may be any; what is left over is divided at the call.
inline void divide_rows(const desc& d, int height, blocking& b) {
  if (d.m_extent == extent_kind::fixed) return divide(d.m, height, b.rows[0], b.rows[1]);
  b.rows[0] = {d.m / height, height};
  b.rows[1] = {};
}

/// m at the call: each height has code of its own, so the more code a vector of C takes, by its loads, its products or
/// its epilogue, the fewer heights.
inline int most_rows_at_call(const desc& d, const blocking& b) {
  return b.b_registers > 1 || b.sums() > 1 || !b_is_direct(d) || d.epilogue_size > 1 ? 8 : 24;
}

/// AVX2 has 4 columns of f64 in a vector, and a byte of a bit matrix has 8: blocks then have two vectors, or, where
/// registers hold no two, one, which begins at half a byte every other time. 0: any number.
inline index width_for_masks(const desc& d, const vector_unit& unit) {
  if (unit.wide || accumulator_of(d) != type::f64) return 0;
  for (int i = 0; i < d.epilogue_size; ++i) {
    if (d.epilogue[i].kind != op_kind::relu_mask && d.epilogue[i].kind != op_kind::multiply_mask) continue;
    return d.layout_b == layout::transposed || d.chains == 8 ? 1 : 2;
  }
  return 0;
}

/// Whether C may hold sums that are not finished: its type is the accumulator's, and no step of the epilogue may read
/// what C was before (a matrix that is read may be C itself).
inline bool sums_may_rest_in_c(const desc& d) {
  for (int i = 0; i < d.epilogue_size; ++i) {
    if (brgemm::detail::is_read_matrix(d.epilogue[i].kind)) return false;
  }
  return d.c == accumulator_of(d) && d.alpha == alpha_kind::one && d.zero_a == zero_point::none &&
         d.zero_b == zero_point::none;
}

/// Where a batch of 16 would not stay in L2, C is summed in groups of entries that do; in between it rests in memory.
inline index choose_group(const desc& d, const blocking& b) {
  if (d.write_c == write_kind::streaming || is_depthwise(d.layout_a)) return 0;  // C is to be written once
  const index blocks_of_rows = b.rows[0].count + b.rows[1].count;
  const index blocks_of_columns = b.columns[0].count + b.columns[1].count;
  if (blocks_of_rows == 1 || blocks_of_columns == 1 || b.sums() > 1) return 0;
  if (!sums_may_rest_in_c(d) || shifts_a(d, b.how)) return 0;
  constexpr double l2 = 1 << 20;
  const double bytes =
      static_cast<double>(d.k) * (static_cast<double>(d.m * size_of(d.a)) + static_cast<double>(d.n * size_of(d.b)));
  if (bytes * 16 <= l2 * 3 / 4) return 0;
  return std::max<index>(1, static_cast<index>(l2 / 2 / bytes));
}

/// As few steps as keep the loop's own instructions small beside them: prefetchers follow one load instruction by the
/// distance between its addresses, so the same instruction should read B again soon (1x64x64 from L2: unrolled by 8 it
/// took 8,300 cycles, by 1 or 2 it takes 4,950).
inline int choose_unroll(const desc& d, const blocking& b) {
  if (d.layout_b == layout::transposed) return std::max<int>(b.chains, accumulator_of(d) == type::f64 ? 2 : 4);
  const int products = b.rows[0].size * b.columns[0].size;
  if (b.steps * products <= 32 && b.steps > 0 && !b.tile)
    return std::max<int>(b.chains, static_cast<int>(b.steps + b.chains - 1) / b.chains * b.chains);
  int unroll = b.chains;
  while (unroll * products < 8) unroll *= 2;
  while (prefetches(d) && unroll < d.prefetch) unroll *= 2;  // with one step of the loop's body
  return unroll;
}

/// What all divisions of a desc share.
inline blocking undivided(const desc& d, const vector_unit& unit) {
  blocking b;
  b.how = choose_product(d, unit);
  b.lanes = unit.bytes() / (accumulator_of(d) == type::f64 ? 8 : 4);
  b.tail = static_cast<int>(d.n % b.lanes);
  b.chains = accumulator_of(d) == type::s32 ? 1 : d.chains;
  b.tile = machine_order(d) == order::tile;
  const bool split = b.how == product::split_bf16 || b.how == product::madd_8bit;
  b.a_registers = split ? 2 : 1;
  b.b_registers = split ? 2 : 1;
  b.permutes_pairs = unit.wide && b.how == product::dot_bf16 && d.layout_b == layout::plain && d.n >= b.lanes;
  b.steps = d.k / k_group_of(d);
  b.rest = static_cast<int>(d.k % k_group_of(d));
  b.tight =
      !unit.wide && d.layout_b == layout::transposed && b.chains == 8 && (b.b_registers > 1 || emulates_f16(d, unit));
  count_accesses(d, unit, b);
  return b;
}

/// The most rows that may share a vector in the last column.
inline int most_packed(const desc& d, const vector_unit& unit, const blocking& b) {
  const bool packs = unit.wide && b.lanes == 16 && b.chains == 1 && b_is_direct(d) && b.b_registers == 1 &&
                     !shifts_a(d, b.how) && b.tail != 0 && d.m > 1 && row_ranges(d) == 0 && d.b != type::u8 &&
                     !is_depthwise(d.layout_a);
  return !packs || b.tail > 8 ? 1 : b.tail > 4 ? 2 : 4;
}

/// The cheapest of the divisions tried so far. The bound is the least of all, whichever is the cheapest.
struct cheapest {
  blocking division;
  double cost = 0;
  double bound = 0;
};

inline void weigh(const desc& d, const vector_unit& unit, blocking& b, cheapest& best) {
  entry_cycles sum;
  for_blocks(b, [&](double count, int rows, const section& c) {
    const entry_cycles block = cycles_of_entry(d, unit, b, rows, c);
    sum.bound += count * block.bound;
    sum.predicted += count * block.predicted;
  });
  const auto whole = static_cast<double>(b.rows[0].count * b.rows[0].size);
  const double rows = d.m_extent == extent_kind::fixed ? 1 : static_cast<double>(d.m) / whole;
  b.cycles = sum.predicted * rows;
  b.block_cycles = once_cycles(d, b) * rows;
  const double cost = b.cycles * 16 + b.block_cycles + 4 * (b.rows[1].count != 0) + 4 * (b.columns[1].count != 0);
  if (best.cost == 0 || cost < best.cost) best.division = b, best.cost = cost;
  if (best.bound == 0 || sum.bound * rows < best.bound) best.bound = sum.bound * rows;
}

/// Whether one block has all rows of C: entries add to some of them, or those of A are not as far apart everywhere.
constexpr bool has_all_rows(const desc& d) { return row_ranges(d) != 0 || (d.line > 1 && d.line < d.m); }

/// Tries blocks of `width` vectors, the highest first: lower ones only load B more often.
inline void try_heights(const desc& d, const vector_unit& unit, blocking& b, int width, int most_rows, cheapest& best) {
  divide_columns(d.n, width, b);
  int tried = 0;
  for (int height = std::min(most_rows, 30 / std::max(1, width - 1)); height >= 1 && tried < 4; --height) {
    if (b.limit < 30 && d.m_extent == extent_kind::fixed && height * width > b.limit) continue;
    divide_rows(d, height, b);
    if (has_all_rows(d) && b.rows[0].size != d.m) break;
    if (!fits(d, unit, b)) continue;
    weigh(d, unit, b, best);
    ++tried;
    height = std::min(height, b.rows[0].size);  // in between the division is the same
  }
}

}  // namespace detail

namespace detail {
/// The cheapest of all divisions of C; cost 0 if none fits the registers.
inline cheapest search_divisions(const desc& d, const vector_unit& unit, blocking b) {
  const index vectors = (d.n - 1) / b.lanes + 1;
  const index width = width_for_masks(d, unit);
  const int rows_at_call = std::min(b.limit, most_rows_at_call(d, b));
  cheapest best;
  for (b.pack = most_packed(d, unit, b); b.pack >= 1; b.pack /= 2) {
    int highest = has_few_bases(d) ? 17 : 30;
    if (d.m_extent == extent_kind::at_call) highest = std::min(highest, rows_at_call * b.pack);
    const int most_rows = static_cast<int>(std::min<index>(d.m, highest));
    for (int columns = 1; columns <= std::min<index>(vectors, 30); ++columns) {
      if (width != 0 && columns != std::min(vectors, width)) continue;
      try_heights(d, unit, b, columns, most_rows, best);
    }
  }
  return best;
}
}  // namespace detail

/// The division with the fewest predicted cycles; of equals the one with fewer rows of code. Blocks have at most
/// `limit` vectors; m at the call: so many rows, or groups of rows that share a vector. A test shows that blocks of
/// some size always fit; if none did, accumulators() would be 0.
inline blocking choose_blocking(const desc& d, const vector_unit& unit, int limit = 30) {
  blocking b = detail::undivided(d, unit);
  b.limit = limit;
  const int rows_at_call = std::min(limit, detail::most_rows_at_call(d, b));
  detail::cheapest best = detail::search_divisions(d, unit, b);
  if (b.permutes_pairs) {  // their order takes a register, which larger blocks may be worth more
    b.permutes_pairs = false;
    const detail::cheapest without = detail::search_divisions(d, unit, b);
    if (best.cost == 0 || (without.cost != 0 && without.cost < best.cost)) best = without;
  }
  b = best.division;
  if (best.cost == 0) return b;
  b.bound = best.bound;
  if (d.m_extent == extent_kind::at_call) {
    b.few = std::min<index>(d.m, std::max(b.rows[0].size, rows_at_call * 2 / 3));
  }
  b.group = detail::choose_group(d, b);
  // A layer with a few rows reads its weights once: with prefetches as fast as L3 and memory give them. What may stay
  // in L1 would only be loaded more often: B of few entries (jit_generator.hpp) and small B.
  b.prefetch = d.m_extent == extent_kind::fixed && b.rows[0].count == 1 && b.rows[1].count == 0 &&
               d.m <= detail::few_rows && detail::b_is_direct(d) && !is_depthwise(d.layout_a) && d.k * d.n >= 4096;
  b.unroll = detail::choose_unroll(d, b);
  return b;
}

}  // namespace brgemm::inline abi_0::backend
