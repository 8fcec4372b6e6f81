// How a kernel on AMX tiles divides its work: which tiles hold C, A and B, and in which order products use them. Found
// by a small search over a cost model; `explain` prints the same figures.
//
// C is divided into at most 2 x 2 areas, each of blocks of equal size, so that an area needs one tile configuration. 56
// rows are one area as 2 x 28, and two as 48 and 8. A block rests in tiles while all entries of the batch pass.
#pragma once

#include <algorithm>
#include <iterator>

#include "backend.hpp"
#include "jit_blocking.hpp"

namespace brgemm::inline abi_0::backend {

inline constexpr int tile_count = 8;
inline constexpr int tile_rows = 16;
inline constexpr int tile_bytes = 64;  ///< of a row

/// `count` blocks beside each other, of `tiles` tiles; all tiles have 16 rows or columns but the last, which has
/// `last`.
struct strip {
  index count = 0;
  int tiles = 0;
  int last = tile_rows;
  constexpr int size(int i) const { return i == tiles - 1 ? last : tile_rows; }
  constexpr int total() const { return (tiles - 1) * tile_rows + last; }
};

/// What one row of A's tile and the rows of B's tile hold of k.
struct tile_depth {
  int k = 0;      ///< elements, 0: there is none
  int bytes = 0;  ///< of a row of A, a multiple of 4
  constexpr int rows_of_b() const { return bytes / 4; }
};

/// Which tile is what in the blocks of one area. C's tiles come first, row after row.
struct tile_assignment {
  struct operands {
    std::int8_t a[3] = {};
    std::int8_t b[4] = {};
    bool holds_a = false;  ///< all rows of A have a tile of their own
    bool holds_b = false;
  };
  operands of[2];  ///< of whole chunks of k, of the last one
  std::uint8_t rows[tile_count] = {};
  std::uint8_t row_bytes[tile_count] = {};
  int used = 0;  ///< more than tile_count: it does not fit
};

constexpr tile_configuration configuration_of(const tile_assignment& tiles) {
  tile_configuration c{{1}};
  for (int i = 0; i < tiles.used; ++i) {
    c.words[2 + i / 4] |= std::uint64_t{tiles.row_bytes[i]} << (16 * (i % 4));
    c.words[6] |= std::uint64_t{tiles.rows[i]} << (8 * i);
  }
  return c;
}

/// The division of one desc's work.
struct tile_blocking {
  tile_depth depth[2];  ///< of a whole chunk of k, of the last one
  index chunks = 0;     ///< whole ones
  strip rows[2];        ///< m at the call: one tile a block, as many blocks as it takes, then what is left
  strip columns[2];
  bool direct = false;        ///< tiles are stored to C; else to the stack, and vectors do the rest
  int most_rows_of_part = 8;  ///< that vectors finish at once
  double cycles = 0;          ///< predicted for one entry of the batch, operands in L1
  double block_cycles = 0;    ///< predicted once a call: configurations and stores
  double stores = 0;          ///< of tiles, and what vectors do with them
  double bound = 0;           ///< products of one entry
  double loads = 0;           ///< of tiles from L1, one entry
  double bytes = 0;           ///< of A and B that the blocks read, one entry
  int areas() const {
    return ((rows[0].count != 0) + (rows[1].count != 0)) * ((columns[0].count != 0) + (columns[1].count != 0));
  }
  int most_rows() const { return std::max(rows[0].total(), rows[1].count != 0 ? rows[1].total() : 0); }
  int most_columns() const { return std::max(columns[0].tiles, columns[1].count != 0 ? columns[1].tiles : 0); }
};

namespace detail {

/// Cycles of a product and of a load from L1, by the rows of A's or of the loaded tile: 16 and 10 cycles for 16 and 8
/// rows, also in a chain into one tile; two lines a cycle. Storing a tile takes 16, loading a configuration and
/// releasing it about 210; L2 gives 38 bytes a cycle. Measured on Sapphire Rapids, but by no benchmark of ours yet.
constexpr double tile_product_cycles(int rows) { return 4 + 0.75 * rows; }
constexpr double tile_load_cycles(int rows) { return 0.5 * rows; }
inline constexpr double tile_store_cycles = 16;
inline constexpr double tile_configuration_cycles = 210;
inline constexpr double l2_bytes_a_cycle = 38;

/// m at the call: whole blocks of 16 rows, and one of what is left.
constexpr void divide_rows_at_call(index most, strip (&to)[2]) {
  const strip left{1, 1, static_cast<int>(std::min<index>(most, tile_rows - 1))};
  to[0] = most >= tile_rows ? strip{most / tile_rows, 1, tile_rows} : left;
  to[1] = most >= tile_rows ? left : strip{};
}

/// Whole blocks of `tiles` tiles, then one block of what is left.
constexpr void divide_into_strips(index total, int tiles, strip (&to)[2]) {
  const index whole = total / (tiles * tile_rows);
  const auto left = static_cast<int>(total % (tiles * tile_rows));
  const strip last{left != 0 ? 1 : 0, (left + tile_rows - 1) / tile_rows, (left + tile_rows - 1) % tile_rows + 1};
  to[0] = whole != 0 ? strip{whole, tiles, tile_rows} : last;
  to[1] = whole != 0 ? last : strip{};
}

/// As many blocks of up to `tiles` tiles, of equal size; false where it cannot be divided so.
constexpr bool divide_evenly(index total, int tiles, strip (&to)[2]) {
  const index most = tiles * tile_rows;
  const index count = (total + most - 1) / most;
  if (total % count != 0) return false;
  const auto size = static_cast<int>(total / count);
  to[0] = {count, (size + tile_rows - 1) / tile_rows, (size - 1) % tile_rows + 1};
  to[1] = {};
  return true;
}

/// Tiles of equal size share one where there are not enough; B's get their own first, then A's.
constexpr void assign_operands(const tile_depth& depth, const strip& rows, const strip& columns, bool share_a,
                               bool share_b, tile_assignment::operands& o, tile_assignment& all) {
  const auto take = [&all](int tile_height, int bytes) {
    if (all.used < tile_count) {
      all.rows[all.used] = static_cast<std::uint8_t>(tile_height);
      all.row_bytes[all.used] = static_cast<std::uint8_t>(bytes);
    }
    return static_cast<std::int8_t>(all.used++);
  };
  o.holds_a = o.holds_b = true;
  for (int i = 0; i < rows.tiles; ++i) {
    const bool shared = share_a && i > 0 && rows.size(i) == rows.size(i - 1);
    o.a[i] = shared ? o.a[i - 1] : take(rows.size(i), depth.bytes);
    if (shared) o.holds_a = false;
  }
  for (int j = 0; j < columns.tiles; ++j) {
    const bool shared = share_b && j > 0 && columns.size(j) == columns.size(j - 1);
    o.b[j] = shared ? o.b[j - 1] : take(depth.rows_of_b(), 4 * columns.size(j));
    if (shared) o.holds_b = false;
  }
}

constexpr tile_assignment assign_tiles(const tile_depth (&depth)[2], const strip& rows, const strip& columns,
                                       int sharing) {
  tile_assignment all;
  for (int i = 0; i < rows.tiles; ++i) {
    for (int j = 0; j < columns.tiles; ++j, ++all.used) {
      all.rows[std::min(all.used, tile_count - 1)] = static_cast<std::uint8_t>(rows.size(i));
      all.row_bytes[std::min(all.used, tile_count - 1)] = static_cast<std::uint8_t>(4 * columns.size(j));
    }
  }
  for (int kind = 0; kind < 2; ++kind) {
    if (depth[kind].k == 0) continue;
    const int how = kind == 1 && depth[0].k != 0 ? 2 : sharing;  // the last chunk shares first
    assign_operands(depth[kind], rows, columns, how >= 1, how >= 2, all.of[kind], all);
  }
  return all;
}

/// The assignment with the fewest loads that fits; `used` of one that does not fit exceeds tile_count.
constexpr tile_assignment assign_tiles(const tile_depth (&depth)[2], const strip& rows, const strip& columns) {
  tile_assignment all;
  for (int sharing = 0; sharing <= 2; ++sharing) {
    all = assign_tiles(depth, rows, columns, sharing);
    if (all.used <= tile_count) break;
  }
  return all;
}

/// Cycles for the loads of one chunk of k.
constexpr double loads_of_chunk(const tile_depth& depth, const strip& rows, const strip& columns,
                                const tile_assignment::operands& o) {
  const double a = 0.5 * rows.total();
  const double b = tile_load_cycles(depth.rows_of_b()) * columns.tiles;
  return o.holds_a || o.holds_b ? a + b : a + b * rows.tiles;
}

constexpr double products_of_chunk(const strip& rows, const strip& columns) {
  double cycles = 0;
  for (int i = 0; i < rows.tiles; ++i) cycles += tile_product_cycles(rows.size(i)) * columns.tiles;
  return cycles;
}

/// Adds one area to the cost; false where its tiles do not fit.
constexpr bool weigh_area(tile_blocking& b, const strip& rows, const strip& columns) {
  const tile_assignment all = assign_tiles(b.depth, rows, columns);
  if (all.used > tile_count) return false;
  const auto blocks = static_cast<double>(rows.count * columns.count);
  for (int kind = 0; kind < 2; ++kind) {
    if (b.depth[kind].k == 0) continue;
    const double chunks = blocks * (kind == 0 ? static_cast<double>(b.chunks) : 1);
    const double products = products_of_chunk(rows, columns);
    const double loads = loads_of_chunk(b.depth[kind], rows, columns, all.of[kind]);
    b.bound += chunks * products;
    b.loads += chunks * loads;
    b.bytes += chunks * (rows.total() * b.depth[kind].bytes + 4.0 * columns.total() * b.depth[kind].rows_of_b());
    b.cycles += chunks * (std::max(products, loads) + 0.05 * loads);
  }
  const double stores = blocks * rows.tiles * columns.tiles * (b.direct ? 1 : 2.5) * tile_store_cycles;
  b.stores += stores;
  b.block_cycles += tile_configuration_cycles + stores;
  return true;
}

inline bool stores_tiles(const desc& d) {
  return d.c == accumulator_of(d) && d.epilogue_size == 0 && d.alpha == alpha_kind::one &&
         d.zero_a == zero_point::none && d.zero_b == zero_point::none && d.write_c == write_kind::cached;
}

/// C in strips of at most height x width tiles, of rows of equal size where `even`; false where that cannot be, or an
/// area's tiles do not fit. Columns are never even, because vectors that end a block find its tail at n % 16.
inline bool divide(tile_blocking& b, const desc& d, int height, int width, bool even) {
  if (d.m_extent == extent_kind::at_call) {
    if (height > 1 || even) return false;
    divide_rows_at_call(d.m, b.rows);
  } else if (!even) {
    divide_into_strips(d.m, height, b.rows);
  } else if (!divide_evenly(d.m, height, b.rows)) {
    return false;
  }
  divide_into_strips(d.n, width, b.columns);
  for (const strip& r : b.rows) {
    for (const strip& c : b.columns) {
      if (r.count != 0 && c.count != 0 && !weigh_area(b, r, c)) return false;
    }
  }
  return true;
}

}  // namespace detail

/// The division with the fewest predicted cycles for a batch of 16 in L2, where blocks read A and B again and again.
inline tile_blocking choose_tile_blocking(const desc& d) {
  const auto bytes = static_cast<int>(size_of(d.a));
  const index chunk = tile_bytes / bytes;
  const auto rest = static_cast<int>(d.k % chunk);
  tile_blocking none;
  none.chunks = d.k / chunk;
  if (none.chunks != 0) none.depth[0] = {static_cast<int>(chunk), tile_bytes};
  if (rest != 0) none.depth[1] = {rest, (rest * bytes + 3) / 4 * 4};
  none.direct = detail::stores_tiles(d);
  tile_blocking best;
  double least = 0;
  for (int height = 1; height <= 3; ++height) {
    for (int width = 1; width <= 4 && height * width <= 6; ++width) {
      for (const bool even : {false, true}) {
        tile_blocking b = none;
        if (!detail::divide(b, d, height, width, even)) continue;
        const double cost = 16 * std::max(b.cycles, b.bytes / detail::l2_bytes_a_cycle) + b.block_cycles;
        if (least == 0 || cost < least) best = b, least = cost;
      }
    }
  }
  return best;
}

/// The configuration of all blocks of a kernel; zeros where it takes several, or one that a call's m decides.
inline tile_configuration configuration_of(const desc& d, const tile_blocking& b) {
  if (b.areas() != 1 || d.m_extent == extent_kind::at_call) return {};
  return configuration_of(detail::assign_tiles(b.depth, b.rows[0], b.columns[0]));
}

}  // namespace brgemm::inline abi_0::backend
