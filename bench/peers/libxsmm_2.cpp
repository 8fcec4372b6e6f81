// LIBXSMM 2.x: libxsmm_dispatch_brgemm with strides, for one product libxsmm_dispatch_gemm; dispatched once and called
// many times.
#include "libxsmm.hpp"

namespace {

using bench::peer_gemm;
using bench::peer_type;

/// Of AMX the tile configuration, which is loaded before many calls and released after them; else null.
struct configuration {
  libxsmm_tilecfgfunction load = nullptr;
  libxsmm_tilecfgfunction release = nullptr;
};

struct task final : bench::peer_task {
  libxsmm_gemmfunction kernel;
  const configuration tiles;
  const peer_gemm problem;
  task(libxsmm_gemmfunction f, const configuration& c, const peer_gemm& p) : kernel(f), tiles(c), problem(p) {}
  void run(std::int64_t times) override {
    if (tiles.load != nullptr) tiles.load(nullptr);
    unsigned long long count = static_cast<unsigned long long>(problem.batch);
    libxsmm_gemm_param argument = {};
    argument.op.tertiary = &count;
    argument.a.primary = const_cast<void*>(problem.b);
    argument.b.primary = const_cast<void*>(problem.a);
    argument.c.primary = problem.c;
    for (std::int64_t i = 0; i < times; ++i) kernel(&argument);
    if (tiles.release != nullptr) tiles.release(nullptr);
  }
};

struct types {
  libxsmm_datatype a, b, c, sum;  // in LIBXSMM's order of operands
  std::int64_t bytes;             // of an element of A, and of B
};

types types_of(peer_type t) {
  switch (t) {
    case peer_type::f64:
      return {LIBXSMM_DATATYPE_F64, LIBXSMM_DATATYPE_F64, LIBXSMM_DATATYPE_F64, LIBXSMM_DATATYPE_F64, 8};
    case peer_type::bf16:
      return {LIBXSMM_DATATYPE_BF16, LIBXSMM_DATATYPE_BF16, LIBXSMM_DATATYPE_F32, LIBXSMM_DATATYPE_F32, 2};
    case peer_type::u8s8:
      return {LIBXSMM_DATATYPE_I8, LIBXSMM_DATATYPE_U8, LIBXSMM_DATATYPE_I32, LIBXSMM_DATATYPE_I32, 1};
    case peer_type::f32: break;
  }
  return {LIBXSMM_DATATYPE_F32, LIBXSMM_DATATYPE_F32, LIBXSMM_DATATYPE_F32, LIBXSMM_DATATYPE_F32, 4};
}

}  // namespace

bench::peer_task* bench::kernel_of(const peer_gemm& p) {
  const types t = types_of(p.type);
  const auto m = static_cast<libxsmm_blasint>(p.n);
  const auto n = static_cast<libxsmm_blasint>(p.m);
  const auto k = static_cast<libxsmm_blasint>(p.k);
  const libxsmm_gemm_shape shape = libxsmm_create_gemm_shape(m, n, k, m, k, m, t.a, t.b, t.c, t.sum);
  auto flags = static_cast<libxsmm_bitfield>(
      LIBXSMM_GEMM_FLAG_BETA_0 | (group_of(p.type) > 1 ? LIBXSMM_GEMM_FLAG_VNNI_A : LIBXSMM_GEMM_FLAG_NONE));
  configuration tiles;
  if (group_of(p.type) > 1 && libxsmm_get_target_archid() >= LIBXSMM_X86_AVX512_SPR) {
    constexpr libxsmm_bitfield stays = LIBXSMM_GEMM_FLAG_NO_RESET_TILECONFIG;
    constexpr libxsmm_bitfield is_there = LIBXSMM_GEMM_FLAG_NO_SETUP_TILECONFIG;
    tiles.load = libxsmm_dispatch_tilecfg_gemm(shape, flags | stays);
    tiles.release = libxsmm_dispatch_tilecfg_gemm(shape, flags | is_there);
    flags |= stays | is_there;
  }
  const libxsmm_gemm_batch_reduce_config batch = libxsmm_create_gemm_batch_reduce_config(
      LIBXSMM_GEMM_BATCH_REDUCE_STRIDE, static_cast<libxsmm_blasint>(p.k * p.n * t.bytes),
      static_cast<libxsmm_blasint>(p.m * p.k * t.bytes), 0);
  const libxsmm_gemmfunction kernel = p.batch == 1
                                          ? libxsmm_dispatch_gemm(shape, flags, LIBXSMM_GEMM_PREFETCH_NONE)
                                          : libxsmm_dispatch_brgemm(shape, flags, LIBXSMM_GEMM_PREFETCH_NONE, batch);
  return kernel == nullptr ? nullptr : new task(kernel, tiles, p);
}
