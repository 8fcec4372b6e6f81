// From a desc to what is generated for it, and from the arguments of a call to those of a launch. Nothing here needs a
// GPU.
#pragma once

#include <algorithm>
#include <limits>

#include "brgemm/core/validate.hpp"
#include "launch.hpp"

namespace brgemm::inline abi_0::cuda {

/// Whether tensor cores sum the products, in their own order: bf16, and f16, tf32 and 8-bit floats where their chain is
/// not asked for.
constexpr bool by_tensor_cores(const desc& d) noexcept {
  const bool either = d.a == type::f16 || d.a == type::tf32 || brgemm::detail::is_8bit_float(d.a);
  return d.a == type::bf16 || (either && d.sums == order::machine && d.chains == 1);
}

/// The order of sums of a kernel for `d`.
constexpr order order_of(const desc& d) noexcept { return by_tensor_cores(d) ? order::foreign : order::chain; }

/// Why there is no kernel for `d`. Errors: those of validate; unsupported with the field.
inline result<void> check_supported(const desc& d) noexcept {
  if (d.where != place::gpu) {
    return error(errc::invalid_argument, "where", "where is %d; kernels of a GPU need place::gpu, which is %d",
                 static_cast<int>(d.where), static_cast<int>(place::gpu));
  }
  desc on_cpu = d;
  on_cpu.where = place::cpu;
  if (auto r = brgemm::validate(on_cpu); !r) return r;
  if (is_depthwise(d.layout_a)) {
    return error(errc::unsupported, "layout_a", "layout_a is %d, depthwise, which no kernel of the GPU has",
                 static_cast<int>(d.layout_a));
  }
  if (const int ranges = row_ranges(d); ranges > 0) {
    return error(errc::unsupported, "rows", "rows has %d ranges; kernels of the GPU sum all rows of every entry",
                 ranges);
  }
  if (d.a == type::bf16 && d.sums != order::machine) {
    return error(errc::unsupported, "sums",
                 "sums is %d, an order of the CPU's bf16 instructions; tensor cores have their own, order::machine",
                 static_cast<int>(d.sums));
  }
  if (d.a == type::bf16 && d.chains != 1) {
    return error(errc::unsupported, "chains", "chains is %d; the order of bf16 sums on tensor cores has none",
                 d.chains);
  }
  return {};
}

/// What a kernel has in it of a supported desc; sizes, strides and leading dimensions come with each launch.
constexpr desc specialised(const desc& d) noexcept {
  desc s;
  s.a = d.a, s.b = d.b, s.c = d.c;
  s.batch = d.batch;
  s.layout_a = d.layout_a, s.layout_b = d.layout_b;
  s.beta = d.beta, s.alpha = d.alpha;
  s.sums = order_of(d);
  s.chains = d.chains;
  s.m_extent = d.m_extent;
  s.zero_a = d.zero_a, s.zero_b = d.zero_b;
  s.where = place::gpu;
  s.epilogue_size = d.epilogue_size;
  for (int i = 0; i < d.epilogue_size; ++i) {
    s.epilogue[i] = d.epilogue[i];
    s.epilogue[i].ld = 0;
  }
  return s;
}

/// The tile that leaves the fewest elements of C to blocks of threads beyond C's edges, of those the largest.
constexpr tile choose_tile(const desc& d) noexcept {
  constexpr tile by_warps[] = {{64, 64, 32, 0}, {32, 32, 32, 0}};
  constexpr tile by_warps_of_words[] = {{64, 64, 16, 0}, {32, 32, 16, 0}};
  constexpr tile by_threads[] = {{64, 64, 16, 4}, {32, 32, 16, 2}, {16, 16, 16, 1}};
  constexpr tile of_chains[] = {{32, 32, 16, 2}, {16, 16, 16, 1}};  // up to eight sums an element
  constexpr tile of_wide_chains[] = {{16, 16, 16, 1}};              // as many, of two registers each
  const auto best = [&d](const auto& tiles) {
    const auto padded = [&d](const tile& t) {
      return brgemm::detail::wide{(d.m - 1) / t.m + 1} * t.m * (brgemm::detail::wide{(d.n - 1) / t.n + 1} * t.n);
    };
    tile found = tiles[0];
    for (const tile& t : tiles) found = padded(t) < padded(found) ? t : found;
    return found;
  };
  if (by_tensor_cores(d)) return d.a == type::tf32 ? best(by_warps_of_words) : best(by_warps);
  const bool is_wide = accumulator_of(d) == type::f64;
  if (is_wide && d.chains > 1) return best(of_wide_chains);
  return is_wide || d.chains > 1 ? best(of_chains) : best(by_threads);
}

/// What is wrong with the arguments of a call; nothing that they point to is read. Errors: invalid_argument.
inline result<void> validate(const desc& d, const arguments& x) noexcept {
  if (x.count < 0) return error(errc::invalid_argument, "count", "count is %ld; it must be at least 0", x.count);
  brgemm::arguments sizes;
  sizes.batch = x.outputs == nullptr ? x.batch : 0;
  sizes.m = x.outputs == nullptr ? x.m : d.m;
  sizes.lda = x.lda, sizes.ldb = x.ldb, sizes.ldc = x.ldc;
  std::copy(std::begin(x.operand_ld), std::end(x.operand_ld), sizes.operand_ld);
  if (auto r = detail::check_extents(d, sizes); !r) return r;
  if (x.outputs == nullptr && x.count > 1) {
    return error(errc::invalid_argument, "outputs",
                 "outputs is null and count is %ld: more than one block needs a list", x.count);
  }
  if (x.count == 0) return {};
  if (auto r = detail::check_pointer("c", x.c, size_of(d.c)); !r) return r;
  const bool reads = d.k > 0 && (x.outputs != nullptr || x.batch > 0);
  if (reads && d.batch != batch_kind::addresses) {
    if (auto r = detail::check_pointer("a", x.a, size_of(d.a)); !r) return r;
    if (auto r = detail::check_pointer("b", x.b, size_of(d.b)); !r) return r;
  }
  if (reads && d.batch != batch_kind::strides) {
    if (auto r = detail::check_pointer("pairs", x.pairs, alignof(offset_pair)); !r) return r;
  }
  if (d.zero_a == zero_point::at_call) {
    if (auto r = detail::check_pointer("column_sums", x.column_sums, 4); !r) return r;
  }
  for (int step = 0; step < d.epilogue_size; ++step) {
    if (!detail::has_operand(d.epilogue[step].kind)) continue;
    if (auto r = detail::check_pointer("operand", x.operand[step], size_of(d.epilogue[step].operand)); !r) {
      return error(errc::invalid_argument, "operand", "operand[%d]: %s", step, r.error().message().data());
    }
  }
  return {};
}

/// What the kernel is given for valid arguments.
inline launch make_launch(const desc& d, const tile& t, const arguments& x) noexcept {
  launch l = {};
  l.x = x;
  l.x.lda = detail::chosen(d.lda, x.lda);
  l.x.ldb = detail::chosen(d.ldb, x.ldb);
  l.x.ldc = detail::chosen(d.ldc, x.ldc);
  if (d.beta != beta_kind::at_call) l.x.beta = d.beta == beta_kind::one ? 1 : 0;
  l.m = d.m, l.n = d.n, l.k = d.k;
  l.stride_a = d.stride_a, l.stride_b = d.stride_b;
  for (int step = 0; step < d.epilogue_size; ++step) {
    l.x.operand_ld[step] = detail::chosen(d.epilogue[step].ld, x.operand_ld[step]);
  }
  l.tiles_m = static_cast<std::int32_t>((d.m - 1) / t.m + 1);
  l.tiles_n = static_cast<std::int32_t>((d.n - 1) / t.n + 1);
  return l;
}

/// Blocks of threads of a launch. Error: invalid_argument where a grid cannot have so many.
inline result<unsigned> grid_of(const desc& d, const tile& t, const arguments& x) noexcept {
  const detail::wide tiles = detail::wide{(d.m - 1) / t.m + 1} * ((d.n - 1) / t.n + 1);
  constexpr index most = std::numeric_limits<std::int32_t>::max();
  if (tiles <= most && tiles * x.count <= most) return static_cast<unsigned>(tiles * x.count);
  return error(errc::invalid_argument, "count", "%ld blocks C of %ld x %ld in tiles of %d x %d are more than %ld tiles",
               x.count, d.m, d.n, t.m, t.n, most);
}

}  // namespace brgemm::inline abi_0::cuda
