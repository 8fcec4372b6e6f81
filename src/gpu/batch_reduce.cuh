// C_j = epilogue(beta * C_j + alpha * sum_i A_i * B_i) for the blocks j of a launch, one tile of C_j a block of
// threads.
//
// The desc is a template argument of which m, n, k, strides and leading dimensions are not read: those come with the
// launch, so that one kernel serves many sizes. Tiles of A and B go through shared memory in steps of k, entry after
// entry. Every element of C has its sum in one thread, its terms in ascending entry and k: the contract's order.
#pragma once

#include "epilogue.cuh"

namespace brgemm::inline abi_0::cuda {

/// The tile of a block of threads: its rows and columns within C_j, and C_j.
struct place_of_tile {
  output of;
  index row, column;
  index m;  // rows of C_j
};

template <desc D, tile T>
__device__ __forceinline__ place_of_tile find_tile(const launch& call) {
  const unsigned tiles = static_cast<unsigned>(call.tiles_m * call.tiles_n);
  const unsigned within = blockIdx.x % tiles;
  place_of_tile at;
  if (call.x.outputs != nullptr) {
    at.of = call.x.outputs[blockIdx.x / tiles];
  } else {
    at.of.batch = call.x.batch;
    at.of.m = call.x.m;
  }
  at.row = static_cast<index>(within / static_cast<unsigned>(call.tiles_n)) * T.m;
  at.column = static_cast<index>(within % static_cast<unsigned>(call.tiles_n)) * T.n;
  at.m = D.m_extent == extent_kind::at_call ? at.of.m : call.m;
  return at;
}

struct entry {
  const void* a;
  const void* b;
};

template <desc D>
__device__ __forceinline__ entry find_entry(const launch& call, const output& of, index i) {
  using A = stored<D.a>;
  using B = stored<D.b>;
  if constexpr (D.batch == batch_kind::addresses) {
    const address_pair pair = static_cast<const address_pair*>(call.x.pairs)[of.first + i];
    return {static_cast<const A*>(pair.a) + of.a, static_cast<const B*>(pair.b) + of.b};
  } else if constexpr (D.batch == batch_kind::offsets) {
    const offset_pair pair = static_cast<const offset_pair*>(call.x.pairs)[of.first + i];
    return {static_cast<const A*>(call.x.a) + of.a + pair.a, static_cast<const B*>(call.x.b) + of.b + pair.b};
  } else {
    return {static_cast<const A*>(call.x.a) + of.a + (of.first + i) * call.stride_a,
            static_cast<const B*>(call.x.b) + of.b + (of.first + i) * call.stride_b};
  }
}

template <desc D>
__device__ __forceinline__ index offset_a(const launch& call, index i, index k) {
  constexpr index group = k_group_of(D);
  if constexpr (D.layout_a == layout::transposed) return k * call.x.lda + i;
  if constexpr (D.layout_a == layout::interleaved) return (k / group * call.x.lda + i) * group + k % group;
  return i * call.x.lda + k;
}

template <desc D>
__device__ __forceinline__ index offset_b(const launch& call, index k, index j) {
  constexpr index group = k_group_of(D);
  if constexpr (D.layout_b == layout::transposed) return j * call.x.ldb + k;
  if constexpr (D.layout_b == layout::interleaved) return (k / group * call.x.ldb + j) * group + k % group;
  return k * call.x.ldb + j;
}

/// Elements i, k of A of the tile from row `row` and k `first` on, by put(i, k, where it lies, whether it exists).
/// Neighbouring threads take neighbours in memory.
template <desc D, tile T, class Put>
__device__ __forceinline__ void each_of_a(const launch& call, const place_of_tile& at, index first, const Put& put) {
  for (int e = static_cast<int>(threadIdx.x); e < T.m * T.k; e += threads_of(T)) {
    const bool rows_first = D.layout_a != layout::plain;
    const int i = rows_first ? e % T.m : e / T.k;
    const int k = rows_first ? e / T.m : e % T.k;
    put(i, k, offset_a<D>(call, at.row + i, first + k), at.row + i < at.m && first + k < call.k);
  }
}

template <desc D, tile T, class Put>
__device__ __forceinline__ void each_of_b(const launch& call, const place_of_tile& at, index first, const Put& put) {
  for (int e = static_cast<int>(threadIdx.x); e < T.n * T.k; e += threads_of(T)) {
    const bool columns_first = D.layout_b != layout::transposed;
    const int j = columns_first ? e % T.n : e / T.k;
    const int k = columns_first ? e / T.n : e % T.k;
    put(k, j, offset_b<D>(call, first + k, at.column + j), at.column + j < call.n && first + k < call.k);
  }
}

/// The 8 columns of C that follow column `j` of the tile, in its row `i`.
template <desc D>
__device__ __forceinline__ run_of_columns run_at(const launch& call, const place_of_tile& at, int i, int j) {
  const index left = at.row + i < at.m ? call.n - at.column - j : 0;
  return {at.of.row + at.row + i, at.of.column + at.column + j, at.of.vectors,
          static_cast<int>(left < 0             ? 0
                           : left < run_columns ? left
                                                : run_columns)};
}

/// sum (a - za)(b - zb) = sum ab - za * column sum of B - zb * row sum of A + terms * za * zb, modulo 2^32.
template <desc D>
__device__ __forceinline__ void subtract_zero_points(const launch& call, const place_of_tile& at,
                                                     const run_of_columns& run, index column, std::uint32_t row_of_a,
                                                     std::uint32_t (&sums)[run_columns]) {
  if constexpr (D.zero_a == zero_point::at_call || D.zero_b == zero_point::at_call) {
    const std::uint32_t za = D.zero_a == zero_point::at_call ? static_cast<std::uint32_t>(call.x.zero_a) : 0;
    const std::uint32_t zb = D.zero_b == zero_point::at_call ? static_cast<std::uint32_t>(call.x.zero_b) : 0;
    const std::uint32_t terms = static_cast<std::uint32_t>(at.of.batch) * static_cast<std::uint32_t>(call.k);
    const index j_of_block = static_cast<index>(blockIdx.x) / (call.tiles_m * call.tiles_n);
#pragma unroll
    for (int j = 0; j < run_columns; ++j) {
      if (j >= run.count) break;
      sums[j] += terms * za * zb - zb * row_of_a;
      if (za != 0) sums[j] -= za * static_cast<std::uint32_t>(call.x.column_sums[j_of_block * call.n + column + j]);
    }
  }
}

/// A run of sums to the end: zero points, alpha and beta where they come last, and the epilogue.
template <desc D, class Sum>
__device__ __forceinline__ void finish_sums(const launch& call, const place_of_tile& at, const run_of_columns& run,
                                            index column, Sum row_of_a, Sum (&sums)[run_columns]) {
  constexpr bool scaled = D.alpha == alpha_kind::at_call;
  if constexpr (accumulator_of(D.a) != type::s32) {
    if constexpr (scaled) {
      Sum start[run_columns];
      load_start<D>(call, run, start);
#pragma unroll
      for (int j = 0; j < run_columns; ++j) {
        sums[j] = multiply_add(static_cast<Sum>(call.x.alpha), sums[j], start[j]);
      }
    }
    finish<D>(call, run, sums);
  } else {
    subtract_zero_points<D>(call, at, run, column, row_of_a, sums);
    if constexpr (D.c == type::s32) {
#pragma unroll
      for (int j = 0; j < run_columns; ++j) {
        if (j < run.count) store<type::s32>(call.x.c, run.row * call.x.ldc + run.column + j, sums[j]);
      }
    } else {
      float x[run_columns], start[run_columns];
      load_start<D>(call, run, start);
#pragma unroll
      for (int j = 0; j < run_columns; ++j) {
        const float exact = __int2float_rn(static_cast<std::int32_t>(sums[j]));
        x[j] = scaled ? multiply_add(static_cast<float>(call.x.alpha), exact, start[j]) : add(start[j], exact);
      }
      finish<D>(call, run, x);
    }
  }
}

/// Products one by one, by fma: f32, f64, f16 widened, 8-bit integers modulo 2^32. The bits of the CPU.
template <desc D, tile T>
__device__ __forceinline__ void sum_by_fma(const launch& call) {
  using sum = sum_type<accumulator_of(D)>;
  constexpr int chains = D.chains;
  constexpr bool scaled = D.alpha == alpha_kind::at_call;
  constexpr bool subtracts_rows = D.zero_b == zero_point::at_call;
  __shared__ sum of_a[T.k][T.m + 1];  // one more: threads that write a row's k in turn hit different banks
  __shared__ sum of_b[T.k][T.n + 1];
  const place_of_tile at = find_tile<D, T>(call);
  if (at.row >= at.m) return;
  const int i0 = static_cast<int>(threadIdx.x) / (T.n / run_columns) * T.rows;
  const int j0 = static_cast<int>(threadIdx.x) % (T.n / run_columns) * run_columns;

  sum sums[chains][T.rows][run_columns] = {};
  sum rows_of_a[T.rows] = {};
  if constexpr (!scaled && !sums_become_f32<D>) {
#pragma unroll
    for (int i = 0; i < T.rows; ++i) load_start<D>(call, run_at<D>(call, at, i0 + i, j0), sums[0][i]);
  }
  for (index e = 0; call.k > 0 && e < at.of.batch; ++e) {
    const entry ab = find_entry<D>(call, at.of, e);
    for (index first = 0; first < call.k; first += T.k) {
      __syncthreads();
      each_of_a<D, T>(call, at, first, [&](int i, int k, index where, bool exists) {
        of_a[k][i] = exists ? load<D.a, sum>(ab.a, where) : sum{0};
      });
      each_of_b<D, T>(call, at, first, [&](int k, int j, index where, bool exists) {
        of_b[k][j] = exists ? load<D.b, sum>(ab.b, where) : sum{0};
      });
      __syncthreads();
      const int count = static_cast<int>(call.k - first < T.k ? call.k - first : T.k);
#pragma unroll
      for (int k = 0; k < T.k; ++k) {
        if (k >= count) break;  // a product of zeros would make -0 a +0
#pragma unroll
        for (int i = 0; i < T.rows; ++i) {
          const sum a = of_a[k][i0 + i];
          if constexpr (subtracts_rows) rows_of_a[i] = add(rows_of_a[i], a);
#pragma unroll
          for (int j = 0; j < run_columns; ++j) {
            sums[k % chains][i][j] = multiply_add(a, of_b[k][j0 + j], sums[k % chains][i][j]);
          }
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < T.rows; ++i) {
    const run_of_columns run = run_at<D>(call, at, i0 + i, j0);
    if (run.count == 0) continue;
#pragma unroll
    for (int step = 1; step < chains; step *= 2) {
#pragma unroll
      for (int chain = 0; chain < chains; chain += 2 * step) {
#pragma unroll
        for (int j = 0; j < run_columns; ++j) sums[chain][i][j] = add(sums[chain][i][j], sums[chain + step][i][j]);
      }
    }
    finish_sums<D>(call, at, run, at.column + j0, rows_of_a[i], sums[0][i]);
  }
}

/// d += a * b on a warp, (16,k) by (k,8), with f32 sums: mma.sync.m16n8k16 for bf16 and f16, m16n8k8 for tf32.
template <type T>
__device__ __forceinline__ void multiply_on_warp(float (&d)[4], const std::uint32_t (&a)[4],
                                                 const std::uint32_t (&b)[2]);

/// Four bytes of one or two elements.
__device__ __forceinline__ std::uint32_t word_at(const void* p) {
  std::uint32_t word;
  memcpy(&word, p, sizeof word);
  return word;
}

/// Products of bf16, f16, tf32 or, as f16, of 8-bit floats by tensor cores, 32 x 32 of C a warp. In the unit's own
/// order of sums, meant to be the same from run to run and for every place in C.
template <desc D, tile T>
__device__ __forceinline__ void sum_by_tensor_cores(const launch& call) {
  constexpr type multiplied = multiplied_as<D.a>;
  using element = decltype(load_bits<D.a>(nullptr, 0));
  constexpr int in_word = 4 / sizeof(element);  // counted in words, the fragments of all types are the same
  constexpr int ld = T.k + 4 * in_word;         // keeps the rows that a warp reads together in different banks
  constexpr int ld_of_c = T.n + 8;
  struct operands {
    element a[T.m * ld];
    element b[T.n * ld];
  };
  union shared_memory {
    operands ab;
    float c[T.m * ld_of_c];
  };
  __shared__ shared_memory shared;
  const place_of_tile at = find_tile<D, T>(call);
  if (at.row >= at.m) return;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int group = static_cast<int>(threadIdx.x) % 32 / 4;
  const int lane = static_cast<int>(threadIdx.x) % 4;
  const int i0 = warp / (T.n / 32) * 32;
  const int j0 = warp % (T.n / 32) * 32;

  float sums[2][4][4] = {};
  for (index e = 0; call.k > 0 && e < at.of.batch; ++e) {
    const entry ab = find_entry<D>(call, at.of, e);
    for (index first = 0; first < call.k; first += T.k) {
      __syncthreads();
      each_of_a<D, T>(call, at, first, [&](int i, int k, index where, bool exists) {
        shared.ab.a[i * ld + k] = exists ? load_bits<D.a>(ab.a, where) : element{0};
      });
      each_of_b<D, T>(call, at, first, [&](int k, int j, index where, bool exists) {
        shared.ab.b[j * ld + k] = exists ? load_bits<D.b>(ab.b, where) : element{0};
      });
      __syncthreads();
#pragma unroll
      for (int k = 0; k < T.k; k += 8 * in_word) {
        std::uint32_t a[2][4], b[4][2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const element* const row = shared.ab.a + (i0 + 16 * i + group) * ld + k + in_word * lane;
          a[i][0] = word_at(row), a[i][1] = word_at(row + 8 * ld), a[i][2] = word_at(row + 4 * in_word);
          a[i][3] = word_at(row + 8 * ld + 4 * in_word);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const element* const column = shared.ab.b + (j0 + 8 * j + group) * ld + k + in_word * lane;
          b[j][0] = word_at(column), b[j][1] = word_at(column + 4 * in_word);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) multiply_on_warp<multiplied>(sums[i][j], a[i], b[j]);
        }
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        shared.c[(i0 + 16 * i + group + e / 2 * 8) * ld_of_c + j0 + 8 * j + 2 * lane + e % 2] = sums[i][j][e];
      }
    }
  }
  __syncthreads();
  for (int r = static_cast<int>(threadIdx.x); r < T.m * T.n / run_columns; r += threads_of(T)) {
    const int i = r / (T.n / run_columns);
    const int j = r % (T.n / run_columns) * run_columns;
    const run_of_columns run = run_at<D>(call, at, i, j);
    if (run.count == 0) continue;
    float x[run_columns], start[run_columns];
    load_start<D>(call, run, start);
#pragma unroll
    for (int c = 0; c < run_columns; ++c) {
      const float sum = shared.c[i * ld_of_c + j + c];
      x[c] = D.alpha == alpha_kind::at_call ? multiply_add(static_cast<float>(call.x.alpha), sum, start[c])
                                            : add(start[c], sum);
    }
    finish<D>(call, run, x);
  }
}

template <desc D, tile T>
__device__ __forceinline__ void batch_reduce(const launch& call) {
  if constexpr (T.rows == 0) {
    sum_by_tensor_cores<D, T>(call);
  } else {
    sum_by_fma<D, T>(call);
  }
}

}  // namespace brgemm::inline abi_0::cuda
