// Every convolution of ResNet-50 in three directions: time, share of what a kernel reaches from L1, and what binds.
//
//   07_layers [--images N] [--threads N] [--data f32|bf16] [--tune FILE] [--csv FILE]      07_layers.py draws the CSV
#include <CLI/CLI.hpp>
#include <algorithm>
#include <brgemm/brgemm.hpp>
#include <brgemm/nn/conv_tune.hpp>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

namespace {

using brgemm::index;
using brgemm::nn::conv;

struct shape {
  index in, out, size, kernel, stride;
};
constexpr shape resnet_50[] = {
    {3, 64, 224, 7, 2},     {64, 256, 56, 1, 1},   {64, 64, 56, 1, 1},   {64, 64, 56, 3, 1},    {256, 64, 56, 1, 1},
    {256, 512, 56, 1, 2},   {256, 128, 56, 1, 2},  {128, 128, 28, 3, 1}, {128, 512, 28, 1, 1},  {512, 128, 28, 1, 1},
    {512, 1024, 28, 1, 2},  {512, 256, 28, 1, 2},  {256, 256, 14, 3, 1}, {256, 1024, 14, 1, 1}, {1024, 256, 14, 1, 1},
    {1024, 2048, 14, 1, 2}, {1024, 512, 14, 1, 2}, {512, 512, 7, 3, 1},  {512, 2048, 7, 1, 1},  {2048, 512, 7, 1, 1}};

constexpr const char* directions[] = {"forward", "backward_data", "backward_weights"};

/// Memory on lines of the caches, with small numbers of both signs: power, and so the clock, depend on what is
/// multiplied.
class buffer {
 public:
  buffer(index bytes, brgemm::type t) : data_(new (std::align_val_t{64}) char[static_cast<std::size_t>(bytes) + 64]) {
    const index size = size_of(t);
    for (index i = 0; i < bytes / size; ++i) {
      const float x = static_cast<float>(i * 7919 % 2003 - 1001) / 1001;
      if (t == brgemm::type::f32) as<float>()[i] = x;
      if (t == brgemm::type::bf16) as<brgemm::bf16>()[i] = brgemm::to_bf16(x);
    }
  }
  template <class T = void>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }

 private:
  struct free_aligned {
    void operator()(char* p) const { operator delete[](p, std::align_val_t{64}); }
  };
  std::unique_ptr<char[], free_aligned> data_;
};

/// The median of nine times of f().
template <class F>
double seconds_of(F f) {
  using clock = std::chrono::steady_clock;
  const auto timed = [&](int times) {
    const auto begin = clock::now();
    for (int i = 0; i < times; ++i) f();
    return std::chrono::duration<double>(clock::now() - begin).count() / times;
  };
  const int times = std::clamp(static_cast<int>(1e-3 / std::max(timed(1), 1e-9)), 1, 100000);
  std::vector<double> samples(9);
  for (double& s : samples) s = timed(times);
  std::nth_element(samples.begin(), samples.begin() + 4, samples.end());
  return samples[4];
}

[[noreturn]] void fail(const brgemm::error& e) {
  std::fprintf(stderr, "%s\n", std::string(e.message()).c_str());
  std::exit(1);
}
template <class T>
T value_of(brgemm::result<T> r) {
  if (!r) fail(r.error());
  return *std::move(r);
}
void succeed(const brgemm::result<void>& r) {
  if (!r) fail(r.error());
}

/// A kernel of `m` rows over a batch whose B takes `bytes`: seconds of a call.
double seconds_of_kernel(index m, index bytes, brgemm::type t) {
  brgemm::desc d;
  d.m = m, d.n = d.k = d.lda = d.ldb = d.ldc = 64;
  d.stride_b = 64 * 64;
  d.a = d.b = t;
  if (t == brgemm::type::bf16) d.layout_b = brgemm::layout::interleaved;
  const buffer a(m * 64 * size_of(t), t), b(bytes, t), c(m * 64 * 4, brgemm::type::f32);
  const brgemm::kernel k = value_of(make_kernel(d));
  const index batch = bytes / (64 * 64 * size_of(t));
  return seconds_of([&] { k({.a = a.as(), .b = b.as(), .c = c.as(), .batch = batch}); });
}

/// Bytes a second at which a kernel of one row reads a B of so many bytes, from whichever cache holds it.
double rate_of(index bytes, brgemm::type t) {
  const index whole = std::max<index>(bytes, 64 << 10) / (32 << 10) * (32 << 10);
  return static_cast<double>(whole) / seconds_of_kernel(1, whole, t);
}

/// What one thread does at most, as far as kernels show.
struct limits {
  double products;  ///< operations a second from L1
  double l2;        ///< bytes a second
  explicit limits(brgemm::type t)
      : products(2.0 * 64 * 64 * 64 / seconds_of_kernel(64, 64 * 64 * size_of(t), t)), l2(rate_of(256 << 10, t)) {}
};

struct layer {
  conv plan;
  brgemm::type data;
  buffer x, y, w, packed, transposed, workspace, dw;

  layer(conv p, const brgemm::loops::executor_ref& threads)
      : plan(std::move(p)),
        data(plan.description().data),
        x(plan.x_bytes(), data),
        y(plan.y_bytes(), data),
        w(plan.weights() * 4, brgemm::type::f32),
        packed(plan.weights_bytes(), data),
        transposed(plan.transposed_bytes(), data),
        workspace(plan.backward_weights_workspace_bytes(), data),
        dw(plan.weights() * 4, brgemm::type::f32) {
    succeed(
        plan.pack_weights(threads, w.as<float>(), brgemm::nn::conv_weights::out_first, packed.as(), transposed.as()));
  }
  index bytes() const { return plan.x_bytes() + plan.y_bytes() + plan.weights() * size_of(data); }
  void run(const brgemm::loops::executor_ref& threads, int direction) const {
    const index images = plan.description().images;
    if (direction == 0) succeed(plan.forward(threads, images, x.as(), packed.as(), nullptr, y.as()));
    if (direction == 1) succeed(plan.backward_data(threads, images, y.as(), transposed.as(), x.as()));
    if (direction == 2) {
      void* const copies = plan.backward_weights_workspace_bytes() > 0 ? workspace.as() : nullptr;
      succeed(plan.backward_weights(threads, images, x.as(), y.as(), dw.as<float>(), nullptr, copies));
    }
  }
};

/// Outputs of an axis that see the same taps, which lie beside each other.
struct run {
  index outputs = 0;
  index taps = 0;
};
std::vector<run> runs_of(const brgemm::nn::conv_axis& a) {
  std::vector<run> runs;
  index last_first = -1;
  for (index o = 0; o < a.out(); ++o) {
    const index begin = o * a.stride - a.pad_before;
    const index first = std::max<index>(-begin, 0), taps = std::min(a.kernel, a.in - begin) - first;
    if (runs.empty() || runs.back().taps != taps || last_first != first) runs.push_back({0, taps});
    last_first = first;
    ++runs.back().outputs;
  }
  return runs;
}

/// Forward, or backward by data: each up to 64 outputs that see the same taps read the weights of these, from L2 where
/// they are more than a part of L1. Where that takes longer than the products, it binds.
double seconds_of_pieces(const brgemm::nn::conv_desc& d, const limits& most) {
  double seconds = 0;
  for (const run& h : runs_of(d.axes[1])) {
    for (const run& w : runs_of(d.axes[2])) {
      const auto outputs = static_cast<double>(h.outputs * w.outputs * d.images);
      const auto weights = static_cast<double>(h.taps * w.taps * d.in * d.out);
      const double products = 2 * outputs * weights / most.products;
      const double pieces = static_cast<double>((h.outputs * w.outputs + 63) / 64 * d.images);
      const double read = pieces * weights * static_cast<double>(size_of(d.data)) / most.l2;
      seconds += weights * static_cast<double>(size_of(d.data)) > (24 << 10) ? std::max(products, read) : products;
    }
  }
  return seconds;
}

/// An update reads x for each tap and 64 of `out`, dz for each tap and 64 of `in`, from L2.
double seconds_of_update(const brgemm::nn::conv_desc& d, double operations, const limits& most) {
  const index pixels = d.images * d.axes[1].out() * d.axes[2].out();
  const index elements =
      pixels * d.axes[1].kernel * d.axes[2].kernel * (d.in * ((d.out + 63) / 64) + d.out * ((d.in + 63) / 64));
  return std::max(operations / most.products, static_cast<double>(elements * size_of(d.data)) / most.l2);
}

struct bound {
  const char* name;
  double seconds;
};
bound bound_of(const layer& l, int direction, const limits& most, double rate, int threads) {
  const brgemm::nn::conv_desc& d = l.plan.description();
  const double operations = l.plan.operations() * static_cast<double>(d.images);
  const double kernels =
      (direction < 2 ? seconds_of_pieces(d, most) : seconds_of_update(d, operations, most)) / threads;
  const double tensors = static_cast<double>(l.bytes()) / rate;
  if (tensors > kernels) return {"tensors", tensors};
  return {kernels > 1.02 * operations / most.products / threads ? "L2" : "products", kernels};
}

}  // namespace

int main(int argc, char** argv) {
  brgemm::index images = 1;
  int threads = 1;
  std::string data = "f32", csv, schedules;
  CLI::App app("ResNet-50's convolutions: time, share of the limit, and what binds");
  app.add_option("--images", images, "images of a call")->check(CLI::Range(1, 1024));
  app.add_option("--threads", threads, "threads")->check(CLI::Range(1, 1024));
  app.add_option("--data", data, "type of tensors")->check(CLI::IsMember({"f32", "bf16"}));
  app.add_option("--csv", csv, "also write the table to this file");
  app.add_option("--tune", schedules, "search schedules first, and keep them in this file");
  CLI11_PARSE(app, argc, argv);

  const brgemm::type t = data == "f32" ? brgemm::type::f32 : brgemm::type::bf16;
  const auto executor = value_of(brgemm::loops::default_executor::make(threads));
  const limits most(t);
  std::ofstream table(csv);
  if (!csv.empty() && !table) return std::fprintf(stderr, "%s cannot be written\n", csv.c_str()), 1;
  table << "layer,direction,seconds,share,binds,bound_share\n";
  std::printf("%s, %d thread(s), %lld image(s): a kernel of 64x64x64 does %.0f GFLOP/s, L2 gives %.0f GB/s\n",
              data.c_str(), threads, static_cast<long long>(images), most.products * 1e-9, most.l2 * 1e-9);
  std::printf("%-28s %-17s %9s %9s %7s  %s\n", "layer", "direction", "us", "GFLOP/s", "share", "binds (limit)");
  for (const shape& s : resnet_50) {
    brgemm::nn::conv_desc d;
    d.images = images, d.in = s.in, d.out = s.out, d.data = d.y = t, d.bias = false, d.training = true;
    d.axes[1] = d.axes[2] = {s.size, s.kernel, s.stride, 1, s.kernel / 2, s.kernel / 2};
    const auto found = schedules.empty() ? brgemm::nn::tuned_conv{} : value_of(tune(executor, d, schedules));
    if (found.forward_speedup > 1) std::printf("forward, tuned: %.2f x\n", found.forward_speedup);
    if (found.backward_data_speedup > 1) std::printf("backward_data, tuned: %.2f x\n", found.backward_data_speedup);
    if (found.backward_weights_speedup > 1) {
      std::printf("backward_weights, tuned: %.2f x\n", found.backward_weights_speedup);
    }
    const layer l(value_of(conv::plan(d, {}, found.schedules)), executor);
    const double operations = l.plan.operations() * static_cast<double>(images);
    const double rate = rate_of(l.bytes(), t);
    for (int direction = 0; direction < 3; ++direction) {
      if (s.in == 3 && direction == 1) continue;  // nobody wants the gradient of pictures
      const double seconds = seconds_of([&] { l.run(executor, direction); });
      const double share = operations / seconds / most.products / threads;
      const bound b = bound_of(l, direction, most, rate, threads);
      const double of_bound = operations / b.seconds / most.products / threads;
      char name[64];
      std::snprintf(name, sizeof name, "%lldx%lld %lld to %lld, %lldx%lld%s", static_cast<long long>(s.size),
                    static_cast<long long>(s.size), static_cast<long long>(s.in), static_cast<long long>(s.out),
                    static_cast<long long>(s.kernel), static_cast<long long>(s.kernel), s.stride == 2 ? " / 2" : "");
      std::printf("%-28s %-17s %9.1f %9.1f %7.3f  %s (%.2f)\n", name, directions[direction], seconds * 1e6,
                  operations / seconds * 1e-9, share, b.name, of_bound);
      table << '"' << name << "\"," << directions[direction] << ',' << seconds << ',' << share << ',' << b.name << ','
            << of_bound << '\n';
    }
  }
  return 0;
}
