// Convolutions of 3 x 3 taps with stride 1 by Winograd's minimal filtering: fewer products, and less exact ones.
//
// A tile of T x T outputs is Y = A^T ((G g G^T) * (B^T d B)) A with d the (T + 2) x (T + 2) inputs that it sees, g the
// taps, * element by element, summed over the channels: (T + 2)^2 products in place of 9 T^2. For each of the (T + 2)^2
// points the sum over channels is a matrix product, its rows being tiles. (Lavin and Gray, Fast Algorithms for
// Convolutional Neural Networks, 2015.)
#pragma once

#include "conv_pass.hpp"

namespace brgemm::inline abi_0::detail {

/// One axis of the transforms for tiles of T outputs. B and A have powers of two and sums only, so that neither the
/// compiler's contraction to fused operations nor the vectors' width changes a bit of finite results.
template <int T>
struct winograd_axis;

template <>
struct winograd_axis<2> {
  static constexpr double filter[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
  template <class V>
  static BRGEMM_ALWAYS_INLINE void input(const V (&d)[4], V (&v)[4]) noexcept {
    v[0] = d[0] - d[2], v[1] = d[1] + d[2], v[2] = d[2] - d[1], v[3] = d[1] - d[3];
  }
  template <class V>
  static BRGEMM_ALWAYS_INLINE void output(const V (&m)[4], V (&y)[2]) noexcept {
    y[0] = m[0] + m[1] + m[2], y[1] = m[1] - m[2] - m[3];
  }
};

template <>
struct winograd_axis<4> {
  static constexpr double filter[6][3] = {{1.0 / 4, 0, 0},
                                          {-1.0 / 6, -1.0 / 6, -1.0 / 6},
                                          {-1.0 / 6, 1.0 / 6, -1.0 / 6},
                                          {1.0 / 24, 1.0 / 12, 1.0 / 6},
                                          {1.0 / 24, -1.0 / 12, 1.0 / 6},
                                          {0, 0, 1}};
  template <class V>
  static BRGEMM_ALWAYS_INLINE void input(const V (&d)[6], V (&v)[6]) noexcept {
    v[0] = 4 * (d[0] - d[2]) + (d[4] - d[2]);
    const V even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1];
    v[1] = even + odd, v[2] = even - odd;
    const V sum = d[4] - d[2], twice = 2 * (d[3] - d[1]);
    v[3] = sum + twice, v[4] = sum - twice;
    v[5] = 4 * (d[1] - d[3]) + (d[5] - d[3]);
  }
  template <class V>
  static BRGEMM_ALWAYS_INLINE void output(const V (&m)[6], V (&y)[4]) noexcept {
    const V p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], s = m[3] - m[4];
    y[0] = m[0] + p + r, y[1] = q + 2 * s, y[2] = p + 4 * r, y[3] = q + 8 * s + m[5];
  }
};

/// Forward of one group over height and width. Each thread goes over blocks of tiles: inputs to points, a product for
/// each point and panel of outputs, points to outputs, the epilogue.
class winograd {
 public:
  static result<winograd> make(index images, const conv_pass_desc& d, int tile, const options& how) noexcept {
    winograd w;
    w.d_ = d;
    w.tile_ = tile;
    w.width_ = nn::block_width(d.out);
    const index bytes = w.points() * (d.in + d.out) * 4;
    w.block_ = std::clamp<index>(cached_bytes / bytes, 16, 64);
    w.most_blocks_ = w.blocks_of(images);
    if (auto r = w.plan_kernels(how); !r) return r.error();
    return w;
  }

  index packed_bytes() const noexcept { return points() * panels() * d_.in * width_ * 4; }
  /// For so many threads or fewer.
  index workspace_bytes(int threads) const noexcept { return std::min<index>(most_blocks_, threads) * slot() * 4; }

  /// Weights (points, panels, in, width) from weight(in, tap, out), the transform in double, by fused operations that
  /// no flag of the compiler changes.
  template <class Weight>
  void pack(loops::executor_ref threads, const Weight& weight, float* packed) const noexcept {
    tile_ == 2 ? pack_filters<2>(threads, weight, packed) : pack_filters<4>(threads, weight, packed);
  }

  void operator()(loops::executor_ref threads, index images, const float* x, const float* packed, float* y,
                  void* const (&operands)[max_epilogue], float* workspace) const noexcept {
    const index tiles = images * tiles_along(1) * tiles_along(2);
    const index blocks = blocks_of(images);
    if (blocks < threads.threads()) return share_blocks(threads, tiles, x, packed, y, operands, workspace);
    const index parts = threads.threads();
    loops::parallel_for(threads, {parts}, [&](index part) {
      float* const v = workspace + part * slot();
      float* const m = v + points() * block_ * d_.in;
      for (index b = blocks * part / parts; b < blocks * (part + 1) / parts; ++b) {
        const index first = tiles * b / blocks;
        const index count = tiles * (b + 1) / blocks - first;
        load_tiles(first, 0, count, x, v);
        for (index i = 0; i < points() * panels(); ++i) multiply(i, count, v, packed, m);
        store_tiles(first, 0, count, m, y);
        finish(first, count, y, operands);
      }
    });
  }

 private:
  static constexpr index cached_bytes = 512 << 10;  ///< of points of a block, in and out
  static constexpr index lanes = 16;
  using vector = float __attribute__((vector_size(64), aligned(4)));

  struct place {
    index image, row, column;  ///< of tiles
  };

  winograd() = default;

  const conv_axis& axis(int i) const noexcept { return d_.geometry.axes[i]; }
  index points() const noexcept { return (tile_ + 2) * (tile_ + 2); }
  index panels() const noexcept { return (d_.out + width_ - 1) / width_; }
  index slot() const noexcept { return points() * block_ * (d_.in + d_.out); }
  index tiles_along(int i) const noexcept { return (axis(i).out() + tile_ - 1) / tile_; }
  index blocks_of(index images) const noexcept {
    return (images * tiles_along(1) * tiles_along(2) + block_ - 1) / block_;
  }
  place place_of(index tile) const noexcept {
    const index column = tile % tiles_along(2);
    const index row = tile / tiles_along(2);
    return {row / tiles_along(1), row % tiles_along(1), column};
  }
  // Vectors pass by reference: by value they would change the ABI where the compiler has no AVX-512.
  static BRGEMM_ALWAYS_INLINE void load(const float* from, index count, vector& v) noexcept {
    if (count == lanes) {
      std::memcpy(&v, from, sizeof v);
    } else {
      v = vector{};
      std::memcpy(&v, from, static_cast<std::size_t>(count) * 4);
    }
  }
  static BRGEMM_ALWAYS_INLINE void store(const vector& v, float* to, index count) noexcept {
    if (count == lanes) {
      std::memcpy(to, &v, sizeof v);
    } else {
      std::memcpy(to, &v, static_cast<std::size_t>(count) * 4);
    }
  }

  template <int T, class Weight>
  void pack_filters(loops::executor_ref threads, const Weight& weight, float* packed) const noexcept {
    constexpr int n = T + 2;
    const auto& g = winograd_axis<T>::filter;
    loops::parallel_for(threads, {d_.out}, [&](index k) {
      for (index c = 0; c < d_.in; ++c) {
        double half[n][3] = {};
        for (int i = 0; i < n; ++i) {
          for (int r = 0; r < 3; ++r) {
            for (int s = 0; s < 3; ++s) {
              half[i][s] = __builtin_fma(g[i][r], static_cast<double>(weight(c, r * 3 + s, k)), half[i][s]);
            }
          }
        }
        for (int i = 0; i < n; ++i) {
          for (int j = 0; j < n; ++j) {
            const double u =
                __builtin_fma(half[i][0], g[j][0], __builtin_fma(half[i][1], g[j][1], half[i][2] * g[j][2]));
            const index panel = (i * n + j) * panels() + k / width_;
            packed[(panel * d_.in + c) * width_ + k % width_] = static_cast<float>(u);
          }
        }
      }
    });
  }

  /// Fewer blocks than threads: all of them do each block together, the products by points and panels.
  void share_blocks(loops::executor_ref threads, index tiles, const float* x, const float* packed, float* y,
                    void* const (&operands)[max_epilogue], float* workspace) const noexcept {
    float* const m = workspace + points() * block_ * d_.in;
    for (index first = 0; first < tiles; first += block_) {
      const index count = std::min(block_, tiles - first);
      const index parts = std::min<index>(count, threads.threads());
      loops::parallel_for(threads, {parts}, [&](index part) {
        load_tiles(first, count * part / parts, count * (part + 1) / parts, x, workspace);
      });
      loops::parallel_for(threads, {points() * panels()}, [&](index i) { multiply(i, count, workspace, packed, m); });
      loops::parallel_for(threads, {parts}, [&](index part) {
        const index begin = count * part / parts;
        const index end = count * (part + 1) / parts;
        store_tiles(first, begin, end, m, y);
        finish(first + begin, end - begin, y, operands);
      });
    }
  }

  void load_tiles(index first, index begin, index end, const float* x, float* v) const noexcept {
    widest_vectors([&]() BRGEMM_ALWAYS_INLINE {
      tile_ == 2 ? load_tiles_of<2>(first, begin, end, x, v) : load_tiles_of<4>(first, begin, end, x, v);
    });
  }
  void store_tiles(index first, index begin, index end, const float* m, float* y) const noexcept {
    widest_vectors([&]() BRGEMM_ALWAYS_INLINE {
      tile_ == 2 ? store_tiles_of<2>(first, begin, end, m, y) : store_tiles_of<4>(first, begin, end, m, y);
    });
  }

  /// B^T d B of the tiles from `begin` to `end` - 1 of the block that begins with `first`: v (points, block, in).
  /// Inputs beyond the edges are 0.
  template <int T>
  BRGEMM_ALWAYS_INLINE void load_tiles_of(index first, index begin, index end, const float* x,
                                          float* v) const noexcept {
    constexpr int n = T + 2;
    for (index t = begin; t < end; ++t) {
      const place p = place_of(first + t);
      const index top = p.row * T - axis(1).pad_before;
      const index left = p.column * T - axis(2).pad_before;
      const float* const image = x + p.image * d_.geometry.image_in();
      for (index c = 0; c < d_.in; c += lanes) {
        const index here = std::min(d_.in - c, lanes);
        vector rows[n][n];  // d B, transposed
        for (int i = 0; i < n; ++i) {
          vector d[n], turned[n];
          for (int j = 0; j < n; ++j) {
            const index h = top + i, w = left + j;
            const bool inside = h >= 0 && h < axis(1).in && w >= 0 && w < axis(2).in;
            if (inside) {
              load(image + h * d_.geometry.step_in(1) + w * d_.geometry.step_in(2) + c, here, d[j]);
            } else {
              d[j] = vector{};
            }
          }
          winograd_axis<T>::input(d, turned);
          for (int j = 0; j < n; ++j) rows[j][i] = turned[j];
        }
        for (int j = 0; j < n; ++j) {
          vector column[n];
          winograd_axis<T>::input(rows[j], column);
          for (int i = 0; i < n; ++i) store(column[i], v + ((i * n + j) * block_ + t) * d_.in + c, here);
        }
      }
    }
  }

  /// One point and panel of outputs.
  void multiply(index i, index count, const float* v, const float* packed, float* m) const noexcept {
    const index point = i / panels();
    const index panel = i % panels();
    arguments call;
    call.a = v + point * block_ * d_.in;
    call.b = packed + i * d_.in * width_;
    call.c = m + point * block_ * d_.out + panel * width_;
    call.batch = 1;
    call.m = count;
    products_[(panel + 1) * width_ <= d_.out](call);
  }

  /// A^T m A, without what lies beyond the edges of y.
  template <int T>
  BRGEMM_ALWAYS_INLINE void store_tiles_of(index first, index begin, index end, const float* m,
                                           float* y) const noexcept {
    constexpr int n = T + 2;
    for (index t = begin; t < end; ++t) {
      const place p = place_of(first + t);
      float* const corner = y + p.image * d_.geometry.image_out() + p.row * T * d_.geometry.step_out(1) +
                            p.column * T * d_.geometry.step_out(2);
      const index height = std::min<index>(T, axis(1).out() - p.row * T);
      const index width = std::min<index>(T, axis(2).out() - p.column * T);
      for (index k = 0; k < d_.out; k += lanes) {
        const index here = std::min(d_.out - k, lanes);
        vector rows[T][n];  // m A, transposed
        for (int i = 0; i < n; ++i) {
          vector of_m[n], turned[T];
          for (int j = 0; j < n; ++j) load(m + ((i * n + j) * block_ + t) * d_.out + k, here, of_m[j]);
          winograd_axis<T>::output(of_m, turned);
          for (int j = 0; j < T; ++j) rows[j][i] = turned[j];
        }
        for (int j = 0; j < width; ++j) {
          vector column[T];
          winograd_axis<T>::output(rows[j], column);
          for (int i = 0; i < height; ++i) {
            store(column[i], corner + i * d_.geometry.step_out(1) + j * d_.geometry.step_out(2) + k, here);
          }
        }
      }
    }
  }

  /// The epilogue, row by row of y of the tiles that lie beside each other.
  void finish(index first, index count, float* y, void* const (&operands)[max_epilogue]) const noexcept {
    if (d_.steps == 0) return;
    for (index t = first, next = first; t < first + count; t = next) {
      const place p = place_of(t);
      next = std::min(first + count, t - p.column + tiles_along(2));
      const index columns = std::min((p.column + next - t) * tile_, axis(2).out()) - p.column * tile_;
      for (index h = p.row * tile_; h < std::min((p.row + 1) * tile_, axis(1).out()); ++h) {
        const index at = h * d_.geometry.step_out(1) + p.column * tile_ * d_.geometry.step_out(2);
        for (index panel = 0; panel < panels(); ++panel) {
          arguments call;
          call.c = y + p.image * d_.geometry.image_out() + at + panel * width_;
          call.m = columns;
          d_.place_operands(operands, p.image, at, panel * width_, call);
          steps_[(panel + 1) * width_ <= d_.out](call);
        }
      }
    }
  }

  result<void> plan_kernels(const options& how) noexcept {
    for (const bool full : {false, true}) {
      desc d;
      d.n = full ? width_ : d_.out % width_;
      if (d.n == 0 || d.n > d_.out) continue;
      d.m_extent = extent_kind::at_call;
      d.m = block_;
      d.k = d.lda = d_.in;
      d.ldb = width_;
      d.ldc = d_.out;
      if (auto r = make_into(products_[full], d, how); !r) return r;
      if (d_.steps == 0) continue;
      d.k = 0, d.lda = 1;
      d.m = block_ * tile_;
      d.ldc = d_.geometry.out.pixel();
      d.beta = beta_kind::one;
      d_.append_steps(d, d_.geometry.out.pixel());
      if (auto r = make_into(steps_[full], d, how); !r) return r;
    }
    return {};
  }

  conv_pass_desc d_;
  int tile_ = 2;
  index width_ = 0;  ///< of a panel
  index block_ = 0;  ///< tiles, at most
  index most_blocks_ = 0;
  kernel products_[2];  ///< [full panel]
  kernel steps_[2];
};

}  // namespace brgemm::inline abi_0::detail
