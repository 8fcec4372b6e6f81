// The face of a peer library. Each peer is a module of its own, loaded with RTLD_LOCAL | RTLD_DEEPBIND, so that two
// libraries which both export cblas_sgemm stand beside each other in one process.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bench {

enum class peer_type : std::int32_t { f32, f64, bf16, u8s8 };
enum class peer_pass : std::int32_t { forward, backward_data, backward_weights };

/// C = sum_i A_i * B_i (beta 0), row-major, entries of the batch one behind the other: A (batch,m,k), C (m,n),
/// B (batch,k,n) for f32 and f64, (batch, ceil(k/g), n, g) with g = 2 for bf16 (C f32) and g = 4 for u8s8 (C s32).
struct peer_gemm {
  peer_type type;
  std::int64_t m, n, k, batch;
  const void* a;
  const void* b;
  void* c;
};

/// One pass of a fully connected layer without bias, all matrices plain row-major and of the same type:
/// x (rows,in), w (out,in), y (rows,out); forward writes y, backward_data writes x, backward_weights writes w, always
/// f32; of u8s8 (forward only) x is u8, w s8, y u8, the sums times `scale`. A peer may keep its own copy of any of them
/// in the layout it likes best; what it reads is copied in `make`.
struct peer_linear {
  peer_type type;
  peer_pass pass;
  std::int64_t rows, in, out;
  std::int32_t threads;
  float scale;
  void* x;
  void* w;
  void* y;
};

/// One pass of a convolution over height and width, without bias: x (images,height,width,in), w (out, in/groups,
/// kernel_h, kernel_w), y (images, ..., out), plain and of the same type; of u8s8 y is u8, the sums times `scale`.
/// Padding is the same on both sides. What is written and read is as in peer_linear.
struct peer_conv {
  peer_type type;
  peer_pass pass;
  std::int64_t images, in, out, groups;
  std::int64_t size[2], kernel[2], stride[2], pad[2];
  std::int32_t threads;
  float scale;
  void* x;
  void* w;
  void* y;
};

/// A problem made ready: `run` does it `times` times.
struct peer_task {
  virtual ~peer_task() = default;
  virtual void run(std::int64_t times) = 0;
  /// Brings the result of the last run to the caller's matrix, where the peer keeps it in a layout of its own.
  virtual void deliver() {}
};

/// `make_*` return nullptr and write a reason where the library cannot do the problem.
struct peer_api {
  const char* name;  ///< with the version: "LIBXSMM 1.17"
  peer_task* (*make_gemm)(const peer_gemm&, char* reason, std::size_t size);
  peer_task* (*make_linear)(const peer_linear&, char* reason, std::size_t size);
  peer_task* (*make_conv)(const peer_conv&, char* reason, std::size_t size);
};

}  // namespace bench

/// The one symbol that a peer's module exports. `tiles`: ours uses AMX, so the peer may too; else it stays at AVX-512.
extern "C" [[gnu::visibility("default")]] const bench::peer_api* brgemm_bench_peer(bool tiles);
