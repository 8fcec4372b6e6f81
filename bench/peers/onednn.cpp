// oneDNN 2.x and 3.x. Convolutions: with format `any` for every tensor. Layers: inner_product with format `any` for
// every matrix, and matmul with format `any` for the weights; reorders stay outside the timing, and the quicker of the
// two is the peer. Batch-reduce kernels: the brgemm ukernel API, where the version has it. Threads: OpenMP, or an arena
// of oneTBB where the library runs on that.
#include <oneapi/dnnl/dnnl_config.h>
#include <oneapi/dnnl/dnnl_version.h>

#include <oneapi/dnnl/dnnl.hpp>
#ifdef DNNL_EXPERIMENTAL_UKERNEL
#include <oneapi/dnnl/dnnl_ukernel.hpp>
#endif
#if DNNL_CPU_THREADING_RUNTIME == DNNL_RUNTIME_TBB
#include <tbb/task_arena.h>
#else
#include <omp.h>
#endif

#include <chrono>
#include <cstdio>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "peer.hpp"

namespace {

using bench::peer_conv;
using bench::peer_gemm;
using bench::peer_linear;
using bench::peer_pass;
using bench::peer_type;
using dnnl::memory;
using tag = memory::format_tag;

const dnnl::engine& cpu() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

// Runs a function with a number of threads.
class thread_limit {
 public:
  explicit thread_limit(int threads)
#if DNNL_CPU_THREADING_RUNTIME == DNNL_RUNTIME_TBB
      : arena_(threads) {
  }
  template <class F>
  void operator()(F&& f) {
    arena_.execute(std::forward<F>(f));
  }

 private:
  tbb::task_arena arena_;
#else
      : threads_(threads) {
  }
  template <class F>
  void operator()(F&& f) {
    omp_set_num_threads(threads_);
    f();
  }

 private:
  int threads_;
#endif
};

memory::data_type type_of(peer_type t) {
  return t == peer_type::bf16 ? memory::data_type::bf16 : memory::data_type::f32;
}

// A matrix of the caller in plain layout, and the same in the layout that the primitive chose.
struct operand {
  memory user;
  memory own;
};

struct primitive_task final : bench::peer_task {
  thread_limit limit;
  dnnl::stream stream{cpu()};
  dnnl::primitive primitive;
  std::unordered_map<int, memory> arguments;
  operand result;

  explicit primitive_task(int threads) : limit(threads) {}

  // Takes matrices in, in the layouts that the primitive descriptor asks for.
  void bind(int argument, const memory::desc& plain, const memory::desc& chosen, void* data, bool read) {
    memory user(plain, cpu(), data);
    memory own(chosen, cpu());
    if (read) {
      dnnl::reorder(user, own).execute(stream, user, own);
      stream.wait();
    }
    arguments.insert({argument, own});
    if (!read) result = {user, own};
  }
  // Of u8s8: the factor that scaled_by leaves to the call.
  void bind_scale([[maybe_unused]] float scale) {
#if DNNL_VERSION_MAJOR >= 3
    const memory::desc one({1}, memory::data_type::f32, tag::a);
    bind(DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS, one, one, &scale, true);
#endif
  }
  void deliver() override {
    dnnl::reorder(result.own, result.user).execute(stream, result.own, result.user);
    stream.wait();
  }
  void run(std::int64_t times) override {
    limit([&] {
      for (std::int64_t i = 0; i < times; ++i) {
        primitive.execute(stream, arguments);
        stream.wait();
      }
    });
  }
};

struct shapes {
  memory::desc x, w, y;
};

shapes shapes_of(const peer_linear& p, tag order) {
  const bool is_8bit = p.type == peer_type::u8s8;
  const auto t = is_8bit ? memory::data_type::u8 : type_of(p.type);
  const auto weights = is_8bit                                 ? memory::data_type::s8
                       : p.pass == peer_pass::backward_weights ? memory::data_type::f32
                                                               : t;
  return {memory::desc({p.rows, p.in}, t, order), memory::desc({p.out, p.in}, weights, order),
          memory::desc({p.rows, p.out}, t, order)};
}

#if DNNL_VERSION_MAJOR >= 3
// y = scale * sums; the factor is an argument.
dnnl::primitive_attr scaled_by(float) {
  dnnl::primitive_attr a;
  a.set_scales_mask(DNNL_ARG_WEIGHTS, 0);
  return a;
}
memory::data_type data_type_of(const memory::desc& d) { return d.get_data_type(); }
auto forward_of(const shapes& s, dnnl::prop_kind kind, const dnnl::primitive_attr& attributes = {}) {
  return dnnl::inner_product_forward::primitive_desc(cpu(), kind, s.x, s.w, s.y, attributes);
}
auto backward_data_of(const shapes& s) {
  return dnnl::inner_product_backward_data::primitive_desc(cpu(), s.x, s.w, s.y,
                                                           forward_of(s, dnnl::prop_kind::forward_training));
}
auto backward_weights_of(const shapes& s, const shapes& hint) {
  return dnnl::inner_product_backward_weights::primitive_desc(cpu(), s.x, s.w, s.y,
                                                              forward_of(hint, dnnl::prop_kind::forward_training));
}
auto matmul_of(const memory::desc& a, const memory::desc& b, const memory::desc& c,
               const dnnl::primitive_attr& attributes) {
  return dnnl::matmul::primitive_desc(cpu(), a, b, c, attributes);
}
#else
// y = scale * sums
dnnl::primitive_attr scaled_by(float scale) {
  dnnl::primitive_attr a;
  a.set_output_scales(0, {scale});
  return a;
}
memory::data_type data_type_of(const memory::desc& d) { return d.data_type(); }
auto forward_of(const shapes& s, dnnl::prop_kind kind, const dnnl::primitive_attr& attributes = {}) {
  return dnnl::inner_product_forward::primitive_desc({kind, s.x, s.w, s.y}, attributes, cpu());
}
auto backward_data_of(const shapes& s) {
  return dnnl::inner_product_backward_data::primitive_desc({s.x, s.w, s.y}, cpu(),
                                                           forward_of(s, dnnl::prop_kind::forward_training));
}
auto backward_weights_of(const shapes& s, const shapes& hint) {
  return dnnl::inner_product_backward_weights::primitive_desc({s.x, s.w, s.y}, cpu(),
                                                              forward_of(hint, dnnl::prop_kind::forward_training));
}
auto matmul_of(const memory::desc& a, const memory::desc& b, const memory::desc& c,
               const dnnl::primitive_attr& attributes) {
  return dnnl::matmul::primitive_desc({a, b, c}, attributes, cpu());
}
#endif

template <class Problem>
dnnl::primitive_attr attributes_of(const Problem& p) {
  return p.type == peer_type::u8s8 ? scaled_by(p.scale) : dnnl::primitive_attr();
}

std::unique_ptr<primitive_task> inner_product(const peer_linear& p) {
  auto made = std::make_unique<primitive_task>(p.threads);
  const shapes plain = shapes_of(p, tag::ab);
  const shapes any = shapes_of(p, tag::any);
  made->limit([&] {
    if (p.pass == peer_pass::forward) {
      const auto pd = forward_of(any, dnnl::prop_kind::forward_inference, attributes_of(p));
      made->bind(DNNL_ARG_SRC, plain.x, pd.src_desc(), p.x, true);
      made->bind(DNNL_ARG_WEIGHTS, plain.w, pd.weights_desc(), p.w, true);
      made->bind(DNNL_ARG_DST, plain.y, pd.dst_desc(), p.y, false);
      if (p.type == peer_type::u8s8) made->bind_scale(p.scale);
      made->primitive = dnnl::inner_product_forward(pd);
    } else if (p.pass == peer_pass::backward_data) {
      const auto pd = backward_data_of(any);
      made->bind(DNNL_ARG_DIFF_SRC, plain.x, pd.diff_src_desc(), p.x, false);
      made->bind(DNNL_ARG_WEIGHTS, plain.w, pd.weights_desc(), p.w, true);
      made->bind(DNNL_ARG_DIFF_DST, plain.y, pd.diff_dst_desc(), p.y, true);
      made->primitive = dnnl::inner_product_backward_data(pd);
    } else {
      peer_linear forward = p;
      forward.pass = peer_pass::forward;
      const auto pd = backward_weights_of(any, shapes_of(forward, tag::any));
      made->bind(DNNL_ARG_SRC, plain.x, pd.src_desc(), p.x, true);
      made->bind(DNNL_ARG_DIFF_WEIGHTS, plain.w, pd.diff_weights_desc(), p.w, false);
      made->bind(DNNL_ARG_DIFF_DST, plain.y, pd.diff_dst_desc(), p.y, true);
      made->primitive = dnnl::inner_product_backward_weights(pd);
    }
  });
  return made;
}

// Each pass as one product a * b = c; the weights, where they are an input, in the layout that matmul likes best.
std::unique_ptr<primitive_task> matrix_product(const peer_linear& p) {
  auto made = std::make_unique<primitive_task>(p.threads);
  const shapes types = shapes_of(p, tag::ab);
  const auto plain = [](const memory::desc& type, std::int64_t rows, std::int64_t columns, tag order) {
    return memory::desc({rows, columns}, data_type_of(type), order);
  };
  memory::desc a, b, c, b_any;
  void* data[3] = {};
  if (p.pass == peer_pass::forward) {  // x (rows,in) * w' (in,out)
    a = types.x, b = plain(types.w, p.in, p.out, tag::ba), c = types.y;
    b_any = plain(types.w, p.in, p.out, tag::any);
    data[0] = p.x, data[1] = p.w, data[2] = p.y;
  } else if (p.pass == peer_pass::backward_data) {  // dy (rows,out) * w (out,in)
    a = types.y, b = types.w, c = types.x;
    b_any = plain(types.w, p.out, p.in, tag::any);
    data[0] = p.y, data[1] = p.w, data[2] = p.x;
  } else {  // dy' (out,rows) * x (rows,in)
    a = plain(types.y, p.out, p.rows, tag::ba), b = types.x, c = types.w;
    b_any = b;
    data[0] = p.y, data[1] = p.x, data[2] = p.w;
  }
  made->limit([&] {
    const auto pd = matmul_of(a, b_any, c, attributes_of(p));
    made->bind(DNNL_ARG_SRC, a, pd.src_desc(), data[0], true);
    made->bind(DNNL_ARG_WEIGHTS, b, pd.weights_desc(), data[1], true);
    made->bind(DNNL_ARG_DST, c, pd.dst_desc(), data[2], false);
    if (p.type == peer_type::u8s8) made->bind_scale(p.scale);
    made->primitive = dnnl::matmul(pd);
  });
  return made;
}

double seconds_of(bench::peer_task& task) {
  task.run(1);
  double best = 1e30;
  for (int i = 0; i < 3; ++i) {
    const auto start = std::chrono::steady_clock::now();
    task.run(1);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    best = taken.count() < best ? taken.count() : best;
  }
  return best;
}

bench::peer_task* make_linear(const peer_linear& p, char* reason, std::size_t size) {
  std::unique_ptr<primitive_task> best;
  for (const auto make : {inner_product, matrix_product}) {
    try {
      auto made = make(p);
      if (best == nullptr || seconds_of(*made) < seconds_of(*best)) best = std::move(made);
    } catch (const std::exception& e) {
      std::snprintf(reason, size, "%s", e.what());
    }
  }
  return best.release();
}

struct conv_shapes {
  memory::desc x, w, y;
};

// Everything in its plain layout (`plain`), or in whichever the primitive likes best.
conv_shapes shapes_of(const peer_conv& p, bool plain, memory::data_type weights) {
  const auto t = p.type == peer_type::u8s8 ? memory::data_type::u8 : type_of(p.type);
  memory::dims y = {p.images, p.out, 0, 0};
  for (int i = 0; i < 2; ++i) y[2 + i] = (p.size[i] + 2 * p.pad[i] - p.kernel[i]) / p.stride[i] + 1;
  memory::dims w = {p.out, p.in, p.kernel[0], p.kernel[1]};
  if (p.groups > 1) w = {p.groups, p.out / p.groups, p.in / p.groups, p.kernel[0], p.kernel[1]};
  const tag order = plain ? tag::nhwc : tag::any;
  const tag weights_order = !plain ? tag::any : p.groups > 1 ? tag::goihw : tag::oihw;
  return {{{p.images, p.in, p.size[0], p.size[1]}, t, order}, {w, weights, weights_order}, {y, t, order}};
}

// What descriptors of convolutions have besides their tensors.
struct conv_geometry {
  memory::dims strides, pad;
  explicit conv_geometry(const peer_conv& p) : strides(p.stride, p.stride + 2), pad(p.pad, p.pad + 2) {}
};

constexpr auto direct = dnnl::algorithm::convolution_direct;
#if DNNL_VERSION_MAJOR >= 3
auto forward_of(const conv_shapes& s, const conv_geometry& g, dnnl::prop_kind kind,
                const dnnl::primitive_attr& attributes = {}) {
  return dnnl::convolution_forward::primitive_desc(cpu(), kind, direct, s.x, s.w, s.y, g.strides, g.pad, g.pad,
                                                   attributes);
}
auto backward_data_of(const conv_shapes& s, const conv_geometry& g) {
  return dnnl::convolution_backward_data::primitive_desc(cpu(), direct, s.x, s.w, s.y, g.strides, g.pad, g.pad,
                                                         forward_of(s, g, dnnl::prop_kind::forward_training));
}
auto backward_weights_of(const conv_shapes& s, const conv_shapes& hint, const conv_geometry& g) {
  return dnnl::convolution_backward_weights::primitive_desc(cpu(), direct, s.x, s.w, s.y, g.strides, g.pad, g.pad,
                                                            forward_of(hint, g, dnnl::prop_kind::forward_training));
}
#else
auto forward_of(const conv_shapes& s, const conv_geometry& g, dnnl::prop_kind kind,
                const dnnl::primitive_attr& attributes = {}) {
  return dnnl::convolution_forward::primitive_desc({kind, direct, s.x, s.w, s.y, g.strides, g.pad, g.pad}, attributes,
                                                   cpu());
}
auto backward_data_of(const conv_shapes& s, const conv_geometry& g) {
  return dnnl::convolution_backward_data::primitive_desc({direct, s.x, s.w, s.y, g.strides, g.pad, g.pad}, cpu(),
                                                         forward_of(s, g, dnnl::prop_kind::forward_training));
}
auto backward_weights_of(const conv_shapes& s, const conv_shapes& hint, const conv_geometry& g) {
  return dnnl::convolution_backward_weights::primitive_desc({direct, s.x, s.w, s.y, g.strides, g.pad, g.pad}, cpu(),
                                                            forward_of(hint, g, dnnl::prop_kind::forward_training));
}
#endif

bench::peer_task* make_conv(const peer_conv& p, char* reason, std::size_t size) try {
  auto made = std::make_unique<primitive_task>(p.threads);
  const auto t = type_of(p.type);
  const bool is_8bit = p.type == peer_type::u8s8;
  const auto weights = is_8bit                                 ? memory::data_type::s8
                       : p.pass == peer_pass::backward_weights ? memory::data_type::f32
                                                               : t;
  const conv_shapes plain = shapes_of(p, true, weights);
  const conv_shapes any = shapes_of(p, false, weights);
  const conv_geometry geometry(p);
  made->limit([&] {
    if (p.pass == peer_pass::forward) {
      const auto pd = forward_of(any, geometry, dnnl::prop_kind::forward_inference, attributes_of(p));
      made->bind(DNNL_ARG_SRC, plain.x, pd.src_desc(), p.x, true);
      made->bind(DNNL_ARG_WEIGHTS, plain.w, pd.weights_desc(), p.w, true);
      made->bind(DNNL_ARG_DST, plain.y, pd.dst_desc(), p.y, false);
      if (is_8bit) made->bind_scale(p.scale);
      made->primitive = dnnl::convolution_forward(pd);
    } else if (p.pass == peer_pass::backward_data) {
      const auto pd = backward_data_of(any, geometry);
      made->bind(DNNL_ARG_DIFF_SRC, plain.x, pd.diff_src_desc(), p.x, false);
      made->bind(DNNL_ARG_WEIGHTS, plain.w, pd.weights_desc(), p.w, true);
      made->bind(DNNL_ARG_DIFF_DST, plain.y, pd.diff_dst_desc(), p.y, true);
      made->primitive = dnnl::convolution_backward_data(pd);
    } else {
      const auto pd = backward_weights_of(any, shapes_of(p, false, t), geometry);
      made->bind(DNNL_ARG_SRC, plain.x, pd.src_desc(), p.x, true);
      made->bind(DNNL_ARG_DIFF_WEIGHTS, plain.w, pd.diff_weights_desc(), p.w, false);
      made->bind(DNNL_ARG_DIFF_DST, plain.y, pd.diff_dst_desc(), p.y, true);
      made->primitive = dnnl::convolution_backward_weights(pd);
    }
  });
  return made.release();
} catch (const std::exception& e) {
  std::snprintf(reason, size, "%s", e.what());
  return nullptr;
}

#ifdef DNNL_EXPERIMENTAL_UKERNEL
struct ukernel_task final : bench::peer_task {
  dnnl::ukernel::brgemm kernel;
  std::vector<std::pair<memory::dim, memory::dim>> offsets;
  std::vector<std::uint8_t> scratch;
  peer_gemm problem;
  void run(std::int64_t times) override {
    kernel.set_hw_context();
    for (std::int64_t i = 0; i < times; ++i) {
      kernel.execute(problem.a, problem.b, offsets, problem.c, scratch.data());
    }
    dnnl::ukernel::brgemm::release_hw_context();
  }
};

std::unique_ptr<ukernel_task> make_ukernel(const peer_gemm& p) {
  using dt = memory::data_type;
  struct row {
    dt a, b, c;
    std::int64_t bytes, group;
  };
  const row t = p.type == peer_type::bf16   ? row{dt::bf16, dt::bf16, dt::f32, 2, 2}
                : p.type == peer_type::u8s8 ? row{dt::u8, dt::s8, dt::s32, 1, 4}
                                            : row{dt::f32, dt::f32, dt::f32, 4, 1};
  const auto pack = dnnl::ukernel::brgemm::get_B_pack_type(t.a, t.b);
  const bool ours = t.group == 1 ? pack == dnnl::ukernel::pack_type::no_trans
                                 : pack == dnnl::ukernel::pack_type::pack32 && p.n % 16 == 0 && p.n <= 64;
  if (p.type == peer_type::f64 || !ours || p.k % t.group != 0) return nullptr;
  auto made = std::make_unique<ukernel_task>();
  made->problem = p;
  made->kernel = dnnl::ukernel::brgemm(p.m, p.n, p.k, p.batch, p.k, p.n, p.n, t.a, t.b, t.c, true);
  if (!made->kernel) return nullptr;
  made->kernel.set_add_C(false);
  if (!made->kernel.finalize()) return nullptr;
  made->kernel.generate();
  made->scratch.resize(made->kernel.get_scratchpad_size() + 1);
  for (std::int64_t i = 0; i < p.batch; ++i) {  // offsets count bytes
    made->offsets.emplace_back(i * p.m * p.k * t.bytes, i * p.k * p.n * t.bytes);
  }
  return made;
}
#endif

bench::peer_task* make_gemm([[maybe_unused]] const peer_gemm& p, char* reason, std::size_t size) {
#ifdef DNNL_EXPERIMENTAL_UKERNEL
  try {
    if (auto made = make_ukernel(p)) return made.release();
    std::snprintf(reason, size, "the brgemm ukernel does not take this type or layout");
  } catch (const std::exception& e) {
    std::snprintf(reason, size, "%s", e.what());
  }
#else
  std::snprintf(reason, size, "this build of oneDNN has no ukernel API");
#endif
  return nullptr;
}

}  // namespace

extern "C" const bench::peer_api* brgemm_bench_peer(bool tiles) try {
  if (!tiles) dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx512_core_bf16);
  static char name[48];
  const dnnl_version_t* v = dnnl_version();
  std::snprintf(name, sizeof name, "oneDNN %d.%d", v->major, v->minor);
  static const bench::peer_api api{name, make_gemm, make_linear, make_conv};
  cpu();
  return &api;
} catch (...) {
  return nullptr;
}
