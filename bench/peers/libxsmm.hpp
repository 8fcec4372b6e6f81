// What the modules of LIBXSMM 1.x and 2.x share: each of them defines kernel_of only. LIBXSMM is column-major: our
// row-major C = A * B is its C' = B' * A', so the operands change places.
#pragma once

#include <libxsmm.h>

#include <cstdio>

#include "peer.hpp"

namespace bench {

/// Groups of k that B is interleaved in: see peer_gemm.
inline std::int64_t group_of(peer_type t) { return t == peer_type::bf16 ? 2 : t == peer_type::u8s8 ? 4 : 1; }

/// The kernel of one version of LIBXSMM, strides between the entries, or for a batch of 1 without them; nullptr where
/// it has none. k is a multiple of group_of(type).
peer_task* kernel_of(const peer_gemm& p);

inline peer_task* make_gemm(const peer_gemm& p, char* reason, std::size_t size) {
  // Of other k A would have to be padded; the suite has no such case.
  peer_task* const made = p.k % group_of(p.type) == 0 ? kernel_of(p) : nullptr;
  if (made == nullptr) std::snprintf(reason, size, "LIBXSMM has no kernel for this shape and type");
  return made;
}

inline peer_task* make_linear(const peer_linear&, char* reason, std::size_t size) {
  std::snprintf(reason, size, "a kernel library, not a layer library");
  return nullptr;
}

inline peer_task* make_conv(const peer_conv&, char* reason, std::size_t size) {
  std::snprintf(reason, size, "a kernel library, not a layer library");
  return nullptr;
}

}  // namespace bench

extern "C" const bench::peer_api* brgemm_bench_peer(bool tiles) {
  libxsmm_init();
  if (!tiles && libxsmm_get_target_archid() > LIBXSMM_X86_AVX512_CPX) libxsmm_set_target_archid(LIBXSMM_X86_AVX512_CPX);
  static const bench::peer_api api{"LIBXSMM " LIBXSMM_CONFIG_VERSION, bench::make_gemm, bench::make_linear,
                                   bench::make_conv};
  return &api;
}
