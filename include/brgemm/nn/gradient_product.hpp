// The loop nest of the gradient of weights. A plan: kernels are made once, a call only computes addresses.
#pragma once

#include <array>
#include <cstring>

#include "../loops/row_product.hpp"
#include "storage.hpp"

namespace brgemm::inline abi_0::detail {

/// The A of column sums: a row of ones.
template <class T>
constexpr std::array<T, nn::block_rows> make_ones(T one) noexcept {
  std::array<T, nn::block_rows> row{};
  row.fill(one);
  return row;
}
inline constexpr auto ones_f32 = make_ones(1.0f);
inline constexpr auto ones_bf16 = make_ones(to_bf16(1.0f));

/// dW (in, out) = x^T (in, rows) * dz (rows, out) and db (out) = column sums of dz, in f32, from x and dz in blocks.
/// dW in panels (ceil(out/w), in, w), as the parameters are. Each sum goes over the rows in ascending order.
/// Their blocks are those of blocked_tiling or column_tiling, in bf16 changed inside: a block of x is transposed, (w,
/// 64); one of dz has its rows in pairs, (32, w, 2), a missing last row of either being zero. Of pieces (split.hpp) a
/// block of x is (w, 2, pieces, 32), one of dz (2, pieces, 16, w, 2); what a chunk of 32 rows lacks is zero. db then
/// sums the pieces of each chunk, small ones first.
class gradient_product {
 public:
  struct arithmetic {
    type data = type::f32;
    math compute = math::f32;
    order sums = order::machine;
  };
  /// At most `rows` rows. Block (r, c) of x and of dz is where `x` and `z` say.
  static result<gradient_product> make(index rows, index in, index out, const arithmetic& of, const nn::tiling& x,
                                       const nn::tiling& z, const options& how) noexcept {
    const math compute = of.compute;
    gradient_product p;
    p.in_ = in;
    p.out_ = out;
    p.data_ = of.data;
    p.compute_ = compute;
    p.sums_order_ = of.sums;
    p.x_ = x;
    p.z_ = z;
    if (compute != math::f32) {
      if (auto r = p.list_pieces(rows); !r) return r.error();
    }
    const index dw_bytes = nn::panels(out) * in * p.z_.ld * size_of(type::f32);
    p.streams_ = largest_cache_bytes() > 0 && dw_bytes > largest_cache_bytes();
    for (int part = 0; part < 3; ++part) {
      for (const bool full_n : {false, true}) {
        const index n = full_n ? p.z_.ld : out % p.z_.ld;
        if (n == 0 || n > out || (part > 0 && compute != math::f32)) continue;
        if (auto r = make_into(p.sums_[part][full_n], p.sum_desc(part, n), how); !r) return r.error();
        for (const bool full_m : {false, true}) {
          const index m = full_m ? p.x_.ld : in % p.x_.ld;
          if (m == 0 || m > in) continue;
          const desc d = p.kernel_desc(part, m, n);
          kernel& product = p.kernels_[part][full_m][full_n];
          if (auto r = make_into(product, d, how); !r) return r.error();
          if (!p.streams_) continue;
          if (auto r = make_streaming_into(p.streaming_[part][full_m][full_n], product, d, how); !r) return r.error();
        }
      }
    }
    return p;
  }

  /// `db` may be null.
  void operator()(loops::executor_ref threads, index rows, const void* x, const void* dz, float* dw,
                  float* db) const noexcept {
    // dW larger than the caches goes past them where it is written once.
    const bool streams = streams_ && one_part(rows) &&
                         reinterpret_cast<std::uintptr_t>(dw) % static_cast<std::uintptr_t>(streaming_alignment) == 0;
    const auto& kernels = streams ? streaming_ : kernels_;
    const void* const ones = data_ == type::f32 ? static_cast<const void*>(&ones_f32) : &ones_bf16;
    const auto tile = [&](tile_scope& tiles, index panel, index block) {
      const bool full_n = (panel + 1) * z_.ld <= out_;
      const bool full_m = (block + 1) * x_.ld <= in_;
      const index element = compute_ == math::f32 ? size_of(data_) : size_of(type::bf16);
      const char* const first_x = static_cast<const char*>(x) + block * x_.column_step * element;
      const char* const first_z = static_cast<const char*>(dz) + panel * z_.column_step * element;
      float* const c = dw + (panel * in_ + block * x_.ld) * z_.ld;
      const auto sum_of_z = [full_n, this](int part) { return &sums_[part][full_n]; };
      const auto product = [full_m, full_n, &kernels](int part) { return &kernels[part][full_m][full_n]; };
      float* const sums = block == 0 && db != nullptr ? db + panel * z_.ld : nullptr;
      if (compute_ == math::f32) {
        if (sums != nullptr) sum_rows(tiles, rows, sum_of_z, ones, false, first_z, sums);
        sum_rows(tiles, rows, product, first_x, true, first_z, c);
      } else {
        if (sums != nullptr) sum_pieces(tiles, rows, *sum_of_z(0), sums_list_, ones_bf16.data(), first_z, sums);
        sum_pieces(tiles, rows, *product(0), products_, first_x, first_z, c);
      }
      if (!full_n) clear_beyond(c, full_m ? x_.ld : in_ % x_.ld);
    };
    // What is split between the threads, the larger of x and dz, is read by one of them; the other by all.
    if (in_ > out_ && !streams) {
      loops::parallel_for<tile_scope>(threads, {nn::panels(in_), nn::panels(out_)},
                                      [&](tile_scope& tiles, index block, index panel) { tile(tiles, panel, block); });
    } else {
      loops::parallel_for<tile_scope>(threads, {nn::panels(out_), nn::panels(in_)}, tile);
    }
  }

 private:
  gradient_product() = default;

  // Rows go in entries of 64, what is left in entries of 8, then one by one (bf16: in pairs).
  index entry_rows(int part) const noexcept { return part == 0 ? nn::block_rows : part == 1 ? 8 : k_group_of(data_); }

  bool one_part(index rows) const noexcept {
    if (compute_ != math::f32) return true;
    return rows % nn::block_rows == 0 || (rows < nn::block_rows && rows % 8 == 0) || rows < 8;
  }

  template <class Kernel>
  void sum_rows(tile_scope& tiles, index rows, Kernel&& kernel_of, const void* x, bool x_moves, const char* z,
                float* c) const noexcept {
    index done = 0;
    for (int part = 0; part < 3; ++part) {
      const index entry = entry_rows(part);
      arguments call;
      call.batch = part < 2 ? (rows - done) / entry : (rows - done + entry - 1) / entry;
      if (call.batch == 0) continue;
      call.beta = done == 0 ? 0 : 1;  // C is not read before it is written
      call.a = static_cast<const char*>(x) + (x_moves ? x_row(done) * size_of(data_) : 0);
      call.b = z + (done / nn::block_rows * z_.row_step + done % nn::block_rows * z_.ld) * size_of(data_);
      call.c = c;
      tiles.call(*kernel_of(part), call);
      done += call.batch * entry;
    }
  }

  /// Of pieces: where they lie in a column of blocks of x and of dz.
  struct piece_list {
    std::unique_ptr<offset_pair[]> pairs;
    index of_chunk = 0;
  };
  static void sum_pieces(tile_scope& tiles, index rows, const kernel& sum, const piece_list& list, const void* x,
                         const void* z, float* c) noexcept {
    arguments call;
    call.batch = chunks_of(rows) * list.of_chunk;
    call.pairs = list.pairs.get();
    call.a = x;
    call.b = z;
    call.c = c;
    tiles.call(sum, call);
  }

  /// Two chunks of rows in each block. For db the same ones meet each piece of dz.
  result<void> list_pieces(index rows) noexcept {
    static constexpr pair_of_pieces of_z[] = {{0, 2}, {0, 1}, {0, 0}};
    const index pieces = pieces_of(compute_);
    const index chunk = split_chunk * pieces;
    const auto z_at = [&](index i) { return i / 2 * z_.row_step + i % 2 * chunk * z_.ld; };
    const auto list = [&](piece_list& to, std::span<const pair_of_pieces> pairs, auto&& x_at) -> result<void> {
      auto made = list_products(pairs, chunks_of(rows), split_chunk, split_chunk * z_.ld, x_at, z_at);
      if (!made) return made.error();
      to = {std::move(*made), static_cast<index>(pairs.size())};
      return {};
    };
    const auto x_at = [&](index i) { return i / 2 * x_.row_step + i % 2 * chunk; };
    if (auto r = list(products_, products_of(compute_), x_at); !r) return r;
    return list(sums_list_, std::span(of_z).last(static_cast<std::size_t>(pieces)), [](index) { return index{0}; });
  }

  /// The columns of the last panel that are no outputs.
  void clear_beyond(float* c, index rows) const noexcept {
    const index n = out_ % z_.ld;
    for (index r = 0; r < rows; ++r) {
      std::memset(c + r * z_.ld + n, 0, static_cast<std::size_t>(z_.ld - n) * sizeof(float));
    }
  }

  /// Offset of row r in a column of blocks of x.
  index x_row(index r) const noexcept {
    const index in_block = r % nn::block_rows;
    return r / nn::block_rows * x_.row_step + (data_ == type::f32 ? in_block * x_.ld : in_block);
  }

  desc common_desc(int part, index n) const noexcept {
    const bool f32 = data_ == type::f32 && compute_ == math::f32;
    desc d;
    d.n = n;
    d.ldb = z_.ld;
    d.ldc = z_.ld;
    d.a = d.b = f32 ? type::f32 : type::bf16;
    d.layout_b = f32 ? layout::plain : layout::interleaved;
    if (compute_ != math::f32) {
      d.k = split_chunk;
      d.batch = batch_kind::offsets;
      d.sums = order::tile;
      return d;
    }
    d.sums = sums_order_;
    d.k = entry_rows(part);
    d.stride_b = part == 0 ? z_.row_step : d.k * z_.ld;
    d.beta = part == 0 ? beta_kind::zero : beta_kind::at_call;
    return d;
  }
  desc kernel_desc(int part, index m, index n) const noexcept {
    desc d = common_desc(part, n);
    d.m = m;
    if (compute_ != math::f32) {
      d.lda = nn::block_rows * pieces_of(compute_);
      return d;
    }
    const bool f32 = data_ == type::f32;
    d.layout_a = f32 ? layout::transposed : layout::plain;
    d.lda = f32 ? x_.ld : nn::block_rows;
    d.stride_a = part == 0 ? x_.row_step : f32 ? d.k * x_.ld : d.k;
    return d;
  }
  desc sum_desc(int part, index n) const noexcept {
    desc d = common_desc(part, n);
    d.lda = d.k;
    return d;
  }

  index in_ = 0;
  index out_ = 0;
  type data_ = type::f32;
  math compute_ = math::f32;
  order sums_order_ = order::machine;
  nn::tiling x_;
  nn::tiling z_;
  piece_list products_;
  piece_list sums_list_;
  bool streams_ = false;
  kernel kernels_[3][2][2];    ///< [part][full m][full n]; of pieces part 0 alone
  kernel streaming_[3][2][2];  ///< the same, with C written past the caches
  kernel sums_[3][2];          ///< [part][full n]: m = 1, A is ones
};

}  // namespace brgemm::inline abi_0::detail
