// The two loop nests under every fully connected layer: rows times packed weights, and the gradient of the weights.
// Both are plans: kernels are made once, a call only computes addresses.
#pragma once

#include <array>
#include <cstring>

#include "../kernel/kernel.hpp"
#include "../loops/parallel_for.hpp"
#include "storage.hpp"

namespace brgemm::inline abi_0::detail {

/// Makes one kernel into `slot`.
inline result<void> make_into(kernel& slot, const desc& d, const options& how) noexcept {
  auto made = make_kernel(d, how);
  if (!made) return made.error();
  slot = std::move(*made);
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
  type a = type::f32;
  type c = type::f32;
  type b = type::f32;
  zero_point zero_a = zero_point::none;
  nn::tiling a_tiles;
  nn::tiling c_tiles;
  int steps = 0;
  tiled_step epilogue[max_epilogue] = {};

  void append(const epilogue_op& op, index row_bytes = 0, index column_bytes = 0) noexcept {
    epilogue[steps++] = {op, row_bytes, column_bytes};
  }
};

/// What a call of row_product reads and writes; operands in the order of the epilogue's steps.
struct row_product_arguments {
  const void* a = nullptr;
  const void* b = nullptr;  ///< panels (ceil(n/w), ceil(k/g), w, g), w = block_width(n), g = k_group_of(a)
  void* c = nullptr;
  void* operands[max_epilogue] = {};
  std::int32_t zero_a = 0;
  const std::int32_t* column_sums = nullptr;  ///< (ceil(n/w) * w)
};

/// Rows times panels of weights. Each element is one chain of the whole k: the same bits for a row alone or in a batch.
class row_product {
 public:
  static result<row_product> make(const row_product_desc& d, const options& how) noexcept {
    row_product p;
    p.d_ = d;
    p.width_ = nn::block_width(d.n);
    p.panel_bytes_ = (d.k + k_group_of(d.a) - 1) / k_group_of(d.a) * k_group_of(d.a) * p.width_ * size_of(d.b);
    const index full_panels = d.n / p.width_;
    const index last = d.n % p.width_;
    for (const bool whole_rows : {true, false}) {
      if (whole_rows && d.rows < nn::block_rows) continue;
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
    loops::parallel_for(threads, {nn::panels(d_.n), nn::row_blocks(rows)}, [&](index panel, index block) {
      const index first = block * nn::block_rows;
      const index here = rows - first < nn::block_rows ? rows - first : nn::block_rows;
      arguments call;
      call.a = static_cast<const char*>(x.a) + block * d_.a_tiles.row_step * size_of(d_.a);
      call.b = static_cast<const char*>(x.b) + panel * panel_bytes_;
      call.c = static_cast<char*>(x.c) + d_.c_tiles.offset(block, panel) * size_of(d_.c);
      call.batch = d_.k / d_.k_entry;
      call.m = here;
      for (int s = 0; s < d_.steps; ++s) {
        const tiled_step& step = d_.epilogue[s];
        if (x.operands[s] == nullptr) continue;
        call.operand[s] = static_cast<char*>(x.operands[s]) + block * step.row_bytes + panel * step.column_bytes;
      }
      call.zero_a = x.zero_a;
      if (x.column_sums != nullptr) call.column_sums = x.column_sums + panel * width_;
      kernels_[here == nn::block_rows][panel < full_panels](call);
    });
  }

  const row_product_desc& description() const noexcept { return d_; }
  index packed_bytes() const noexcept { return panel_bytes_ * nn::panels(d_.n); }
  std::string_view backend() const noexcept { return any().backend(); }

 private:
  row_product() = default;

  desc kernel_desc(bool whole_rows, index n) const noexcept {
    desc k;
    k.m = whole_rows || d_.rows > nn::block_rows ? nn::block_rows : d_.rows;
    k.m_extent = whole_rows ? extent_kind::fixed : extent_kind::at_call;
    k.n = n;
    k.k = d_.k_entry;
    k.lda = d_.a_tiles.ld;
    k.ldb = width_;
    k.ldc = d_.c_tiles.ld;
    k.stride_a = d_.a_tiles.column_step;
    k.stride_b = d_.k_entry * width_;
    k.a = d_.a;
    k.b = d_.b;
    k.c = d_.c;
    k.layout_b = k_group_of(d_.a) > 1 ? layout::interleaved : layout::plain;
    k.zero_a = d_.zero_a;
    for (int s = 0; s < d_.steps; ++s) brgemm::append(k, d_.epilogue[s].op);
    return k;
  }
  const kernel& any() const noexcept { return kernels_[0][0] ? kernels_[0][0] : kernels_[0][1]; }

  row_product_desc d_;
  index width_ = 0;
  index panel_bytes_ = 0;
  kernel kernels_[2][2];  ///< [64 rows][a panel of full width]
};

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
/// dW in panels (ceil(out/w), in, w), as the parameters are. One chain a sum, in ascending order of the rows.
/// Their blocks are those of blocked_tiling or column_tiling, in bf16 changed inside: a block of x is transposed, (w,
/// 64); one of dz has its rows in pairs, (32, w, 2), a missing last row of either being zero.
class gradient_product {
 public:
  /// Block (r, c) of x and of dz is where `x` and `z` say.
  static result<gradient_product> make(index in, index out, type data, const nn::tiling& x, const nn::tiling& z,
                                       const options& how) noexcept {
    gradient_product p;
    p.in_ = in;
    p.out_ = out;
    p.data_ = data;
    p.x_ = x;
    p.z_ = z;
    const index dw_bytes = nn::panels(out) * in * p.z_.ld * size_of(type::f32);
    p.streams_ = largest_cache_bytes() > 0 && dw_bytes > largest_cache_bytes();
    for (int part = 0; part < 3; ++part) {
      for (const bool full_n : {false, true}) {
        const index n = full_n ? p.z_.ld : out % p.z_.ld;
        if (n == 0 || n > out) continue;
        if (auto r = make_into(p.sums_[part][full_n], p.sum_desc(part, n), how); !r) return r.error();
        for (const bool full_m : {false, true}) {
          const index m = full_m ? p.x_.ld : in % p.x_.ld;
          if (m == 0 || m > in) continue;
          desc d = p.kernel_desc(part, m, n);
          if (auto r = make_into(p.kernels_[part][full_m][full_n], d, how); !r) return r.error();
          if (!p.streams_) continue;
          d.write_c = write_kind::streaming;
          if (auto r = make_into(p.streaming_[part][full_m][full_n], d, how); !r) return r.error();
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
    const auto tile = [&](index panel, index block) {
      const bool full_n = (panel + 1) * z_.ld <= out_;
      const bool full_m = (block + 1) * x_.ld <= in_;
      const char* const z = static_cast<const char*>(dz) + panel * z_.column_step * size_of(data_);
      if (block == 0 && db != nullptr) {
        sum_rows(
            rows, [full_n, this](int part) { return &sums_[part][full_n]; }, ones, false, z, db + panel * z_.ld);
      }
      sum_rows(
          rows, [full_m, full_n, &kernels](int part) { return &kernels[part][full_m][full_n]; },
          static_cast<const char*>(x) + block * x_.column_step * size_of(data_), true, z,
          dw + (panel * in_ + block * x_.ld) * z_.ld);
      if (!full_n) clear_beyond(dw + (panel * in_ + block * x_.ld) * z_.ld, full_m ? x_.ld : in_ % x_.ld);
    };
    // What is split between the threads, the larger of x and dz, is read by one of them; the other by all.
    if (in_ > out_ && !streams) {
      loops::parallel_for(threads, {nn::panels(in_), nn::panels(out_)},
                          [&](index block, index panel) { tile(panel, block); });
    } else {
      loops::parallel_for(threads, {nn::panels(out_), nn::panels(in_)}, tile);
    }
  }

 private:
  gradient_product() = default;

  // Rows go in entries of 64, what is left in entries of 8, then one by one (bf16: in pairs).
  index entry_rows(int part) const noexcept { return part == 0 ? nn::block_rows : part == 1 ? 8 : k_group_of(data_); }

  bool one_part(index rows) const noexcept {
    return rows % nn::block_rows == 0 || (rows < nn::block_rows && rows % 8 == 0) || rows < 8;
  }

  template <class Kernel>
  void sum_rows(index rows, Kernel&& kernel_of, const void* x, bool x_moves, const char* z, float* c) const noexcept {
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
      (*kernel_of(part))(call);
      done += call.batch * entry;
    }
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
    desc d;
    d.k = entry_rows(part);
    d.n = n;
    d.ldb = z_.ld;
    d.ldc = z_.ld;
    d.stride_b = part == 0 ? z_.row_step : d.k * z_.ld;
    d.a = d.b = data_;
    d.layout_b = data_ == type::f32 ? layout::plain : layout::interleaved;
    d.beta = part == 0 ? beta_kind::zero : beta_kind::at_call;
    return d;
  }
  desc kernel_desc(int part, index m, index n) const noexcept {
    desc d = common_desc(part, n);
    d.m = m;
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
  nn::tiling x_;
  nn::tiling z_;
  bool streams_ = false;
  kernel kernels_[3][2][2];    ///< [part][full m][full n]
  kernel streaming_[3][2][2];  ///< the same, with C written past the caches
  kernel sums_[3][2];          ///< [part][full n]: m = 1, A is ones
};

}  // namespace brgemm::inline abi_0::detail
