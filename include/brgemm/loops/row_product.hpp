// The loop nest under every matrix product and every fully connected layer: rows times packed columns. A plan: kernels
// are made once, a call only computes addresses.
#pragma once

#include <cstring>
#include <memory>

#include "../kernel/kernel.hpp"
#include "../kernel/pack.hpp"
#include "../kernel/tile_scope.hpp"
#include "blocks.hpp"
#include "parallel_for.hpp"
#include "split.hpp"

namespace brgemm::inline abi_0::detail {

/// Makes one kernel into `slot`.
inline result<void> make_into(kernel& slot, const desc& d, const options& how) noexcept {
  auto made = make_kernel(d, how);
  if (!made) return made.error();
  slot = std::move(*made);
  return {};
}

/// Makes `slot` write C past the caches, as `cached` does into them; where the backend has no such stores, it is that
/// one.
inline result<void> make_streaming_into(kernel& slot, const kernel& cached, desc d, const options& how) noexcept {
  d.write_c = write_kind::streaming;
  auto made = make_into(slot, d, how);
  if (made || made.error().code() != errc::unsupported) return made;
  slot = cached;
  return {};
}

/// One step of an epilogue, and where its operand's part for a block of C begins (bytes; 0 for what all blocks share).
struct tiled_step {
  epilogue_op op;
  index row_bytes = 0;
  index column_bytes = 0;
};

/// C (rows, n) = epilogue(A (rows, k) * B (k, n)).
struct row_product_desc {
  index rows = 1;  ///< the most rows of a call
  index n = 1;
  index k = 1;
  index k_entry = 1;  ///< k of one batch entry: k itself, or a block of A, which divides k
  math compute =
      math::f32;  ///< else A and B are pieces of f32 (split.hpp), and a and b are bf16; k_entry does not count
  order sums = order::machine;  ///< of pieces always order::tile
  beta_kind beta = beta_kind::zero;
  type a = type::f32;
  type c = type::f32;
  type b = type::f32;
  zero_point zero_a = zero_point::none;
  loops::tiling a_tiles;
  loops::tiling c_tiles;
  int steps = 0;
  tiled_step epilogue[max_epilogue] = {};

  void append(const epilogue_op& op, index row_bytes = 0, index column_bytes = 0) noexcept {
    epilogue[steps++] = {op, row_bytes, column_bytes};
  }
};

/// All of B to the panels of row_product, zero beyond n; column_sums (ceil(n/w) * w) or null. `b.to` begins the first.
inline void pack_panels(loops::executor_ref threads, const packing& b, std::int32_t* column_sums) noexcept {
  const index width = loops::block_width(b.columns);
  const index group = k_group_of(b.element);
  const index panel_bytes = (b.rows + group - 1) / group * group * width * size_of(b.element);
  loops::parallel_for(threads, {loops::panels(b.columns)}, [&](index panel) {
    const index column = panel * width;
    packing p = b;
    p.columns = b.columns - column < width ? b.columns - column : width;
    p.from = static_cast<const char*>(b.from) +
             (b.stored == layout::transposed ? column * b.ld_from : column) * size_of(b.element);
    p.to = static_cast<char*>(b.to) + panel * panel_bytes;
    p.ld_to = width;
    std::memset(p.to, 0, static_cast<std::size_t>(panel_bytes));
    std::int32_t* const panel_sums = column_sums != nullptr ? column_sums + column : nullptr;
    if (panel_sums != nullptr) std::memset(panel_sums, 0, static_cast<std::size_t>(width) * sizeof(std::int32_t));
    brgemm::pack_b(p, panel_sums);
  });
}

/// The batch of products of pieces: for each chunk of k, whose pieces begin where `a_at` and `b_at` say (elements), one
/// entry for each pair, in their order.
template <class A, class B>
result<std::unique_ptr<offset_pair[]>> list_products(std::span<const pair_of_pieces> pairs, index chunks,
                                                     index piece_of_a, index piece_of_b, A&& a_at, B&& b_at) noexcept {
  const std::size_t count = static_cast<std::size_t>(chunks) * pairs.size();
  std::unique_ptr<offset_pair[]> list(new (std::nothrow) offset_pair[count]);
  if (!list) return error(errc::out_of_memory, "compute", "no memory for a list of %zu products of pieces", count);
  offset_pair* next = list.get();
  for (index chunk = 0; chunk < chunks; ++chunk) {
    for (const pair_of_pieces& p : pairs) *next++ = {a_at(chunk) + p.a * piece_of_a, b_at(chunk) + p.b * piece_of_b};
  }
  return list;
}

/// What a call of row_product reads and writes; operands in the order of the epilogue's steps.
struct row_product_arguments {
  const void* a = nullptr;
  const void* b =
      nullptr;  ///< panels (ceil(n/w), ceil(k/g), w, g), w = block_width(n), g = k_group_of(a); or of pieces
  void* c = nullptr;
  void* operands[max_epilogue] = {};
  std::int32_t zero_a = 0;
  const std::int32_t* column_sums = nullptr;  ///< (ceil(n/w) * w)
};

/// Rows times panels of weights. Each element is one sum over the whole k: the same bits for a row alone or in a batch.
class row_product {
 public:
  static result<row_product> make(const row_product_desc& d, const options& how) noexcept {
    row_product p;
    p.d_ = d;
    p.width_ = loops::block_width(d.n);
    p.panel_bytes_ = (d.k + k_group_of(d.a) - 1) / k_group_of(d.a) * k_group_of(d.a) * p.width_ * size_of(d.b);
    p.entries_ = d.k / d.k_entry;
    if (d.compute != math::f32) {
      p.panel_bytes_ = split_elements(d.k, d.compute) * p.width_ * size_of(d.b);
      if (auto r = p.list_pieces(); !r) return r.error();
    }
    const index full_panels = d.n / p.width_;
    const index last = d.n % p.width_;
    for (const bool whole_rows : {true, false}) {
      if (whole_rows && d.rows < loops::block_rows) continue;
      if (full_panels > 0) {
        if (auto r = make_into(p.kernels_[whole_rows][1], p.kernel_desc(whole_rows, p.width_), how); !r) {
          return r.error();
        }
      }
      if (last > 0) {
        if (auto r = make_into(p.kernels_[whole_rows][0], p.kernel_desc(whole_rows, last), how); !r) return r.error();
      }
    }
    return p;
  }

  /// One task a block of 64 rows and a panel; neighbouring tasks share the panel, which then stays in L2.
  void operator()(loops::executor_ref threads, index rows, const row_product_arguments& x) const noexcept {
    const index full_panels = d_.n / width_;
    const auto product = [&](tile_scope& tiles, index panel, index block) {
      const index first = block * loops::block_rows;
      const index here = rows - first < loops::block_rows ? rows - first : loops::block_rows;
      arguments call;
      if (entries_ > 0) {
        call.a = static_cast<const char*>(x.a) + block * d_.a_tiles.row_step * size_of(d_.a);
        call.b = static_cast<const char*>(x.b) + panel * panel_bytes_;
      }
      call.c = static_cast<char*>(x.c) + d_.c_tiles.offset(block, panel) * size_of(d_.c);
      call.batch = entries_;
      call.pairs = products_.get();
      call.m = here;
      for (int s = 0; s < d_.steps; ++s) {
        const tiled_step& step = d_.epilogue[s];
        if (x.operands[s] == nullptr) continue;
        call.operand[s] = static_cast<char*>(x.operands[s]) + block * step.row_bytes + panel * step.column_bytes;
      }
      call.zero_a = x.zero_a;
      if (x.column_sums != nullptr) call.column_sums = x.column_sums + panel * width_;
      tiles.call(kernels_[here == loops::block_rows][panel < full_panels], call);
    };
    loops::parallel_for<tile_scope>(threads, {loops::panels(d_.n), loops::row_blocks(rows)}, product);
  }

  const row_product_desc& description() const noexcept { return d_; }
  index packed_bytes() const noexcept { return panel_bytes_ * loops::panels(d_.n); }
  std::string_view backend() const noexcept { return any().backend(); }
  brgemm::order order() const noexcept { return any().order(); }

 private:
  row_product() = default;

  desc kernel_desc(bool whole_rows, index n) const noexcept {
    desc k;
    k.m = whole_rows || d_.rows > loops::block_rows ? loops::block_rows : d_.rows;
    k.m_extent = whole_rows ? extent_kind::fixed : extent_kind::at_call;
    k.n = n;
    k.k = d_.compute == math::f32 ? d_.k_entry : split_chunk;
    k.lda = d_.a_tiles.ld;
    k.ldb = width_;
    k.ldc = d_.c_tiles.ld;
    if (d_.compute == math::f32) {
      k.sums = d_.sums;
      k.stride_a = d_.a_tiles.column_step;
      k.stride_b = d_.k_entry * width_;
    } else {
      k.batch = batch_kind::offsets;
      k.sums = order::tile;
    }
    k.beta = d_.beta;
    k.a = d_.a;
    k.b = d_.b;
    k.c = d_.c;
    k.layout_b = k_group_of(d_.a) > 1 ? layout::interleaved : layout::plain;
    k.zero_a = d_.zero_a;
    for (int s = 0; s < d_.steps; ++s) brgemm::append(k, d_.epilogue[s].op);
    return k;
  }
  result<void> list_pieces() noexcept {
    const index chunk = split_chunk * pieces_of(d_.compute);
    auto list = detail::list_products(
        products_of(d_.compute), chunks_of(d_.k), split_chunk, split_chunk * width_, [&](index i) { return i * chunk; },
        [&](index i) { return i * chunk * width_; });
    if (!list) return list.error();
    products_ = std::move(*list);
    entries_ = chunks_of(d_.k) * static_cast<index>(products_of(d_.compute).size());
    return {};
  }

  const kernel& any() const noexcept { return kernels_[0][0] ? kernels_[0][0] : kernels_[0][1]; }

  row_product_desc d_;
  index width_ = 0;
  index panel_bytes_ = 0;
  index entries_ = 0;
  std::unique_ptr<offset_pair[]> products_;  ///< of pieces: where they lie in a row of A and in a panel of B
  kernel kernels_[2][2];                     ///< [64 rows][a panel of full width]
};

}  // namespace brgemm::inline abi_0::detail
