// Schedules of a convolution, searched by measurement.
#pragma once

#include <cstring>
#include <locale>
#include <memory>

#include "../loops/tune.hpp"
#include "conv.hpp"

namespace brgemm::inline abi_0::nn {

/// What `tune` found, and what each is worth: how many times as quick as the plan's own choice.
struct tuned_conv {
  conv_schedules schedules;
  double forward_speedup = 1;
  double backward_data_speedup = 1;
  bool measured = false;  ///< false: all of it was in the file
};

}  // namespace brgemm::inline abi_0::nn

namespace brgemm::inline abi_0::detail {

/// The problem, the backend that does it, and the machine, in one word.
inline std::string key_of(const nn::conv& plan, int threads, const char* pass) {
  const nn::conv_desc& d = plan.description();
  std::ostringstream key;
  key.imbue(std::locale::classic());
  key << "conv/" << pass << '/' << name_of(d.data) << '/' << name_of(d.y) << '/' << d.images << '/' << d.in << '/'
      << d.out << '/' << d.groups << "/blocks" << d.x_block << '/' << d.y_block << (d.transposed ? "/transposed" : "");
  for (const conv_axis& a : d.axes) {
    key << '/' << a.in << 'k' << a.kernel << 's' << a.stride << 'd' << a.dilation << 'p' << a.pad_before << 'p'
        << a.pad_after;
  }
  key << "/sums" << static_cast<int>(d.sums) << "act" << static_cast<int>(d.act) << 'b' << d.bias << 's' << d.scale
      << 'r' << d.residual << 'c' << d.clamp << 'm' << d.mask << 'i' << d.input_mask << "/threads" << threads << '/'
      << plan.backend() << '/' << loops::tuning_machine();
  return key.str();
}

/// Not of `streaming`, whose worth lies with who reads y next.
inline std::vector<conv_schedule> candidates() {
  std::vector<conv_schedule> all(1);
  for (const int rows : {28, 48, 128}) all.push_back({.rows = rows});
  for (const int weights : {128, 1024}) all.push_back({.weights = weights});
  for (const int band : {256, 1024, -1}) all.push_back({.band = band});
  for (const int prefetch : {-1, 4}) all.push_back({.prefetch = prefetch});
  return all;
}

struct found_schedule {
  conv_schedule schedule;
  loops::tuned how;
};

/// From the file, or by measurement; then it is kept there. run(i): result<void>.
template <class Run>
result<found_schedule> search(const std::string& file, const std::string& key, const std::vector<conv_schedule>& all,
                              const Run& run) {
  found_schedule f;
  conv_schedule& s = f.schedule;
  if (!file.empty()) {
    std::istringstream kept(loops::tuning_of(file, key));
    kept.imbue(std::locale::classic());
    if (kept >> s.rows >> s.weights >> s.band >> s.prefetch >> f.how.speedup) {
      f.how.measured = false;
      if (std::find(all.begin(), all.end(), s) != all.end()) return f;  // else not written by this version
    }
    if (auto r = loops::check_tuning_file(file); !r) return r.error();
  }
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (auto r = run(i); !r) return r.error();
  }
  f.how = loops::quickest(all.size(), [&run](std::size_t i) { static_cast<void>(run(i)); });
  f.schedule = all[f.how.candidate];
  if (file.empty()) return f;
  std::ostringstream text;
  text.imbue(std::locale::classic());
  text << s.rows << ' ' << s.weights << ' ' << s.band << ' ' << s.prefetch << ' ' << f.how.speedup;
  if (auto r = loops::keep_tuning(file, key, text.str()); !r) return r.error();
  return f;
}

}  // namespace brgemm::inline abi_0::detail

namespace brgemm::inline abi_0::nn {

/// Searches the schedules of the direct forward pass, and with training of backward_data, by running each on memory of
/// its own, some seconds at most for layers of milliseconds. `file`: where winners are looked up and kept,
/// loops::tuning_file() for the user's own; empty: nowhere. It allocates and reads files, unlike calls of a plan; the
/// result is for conv::plan, on this kind of CPU and for so many threads. Errors: what conv::plan says; out_of_memory;
/// "file" where it cannot be written.
inline result<tuned_conv> tune(loops::executor_ref threads, const conv_desc& d, const std::string& file,
                               const options& how = {}) {
  const auto first = conv::plan(d, how);
  if (!first) return first.error();
  conv_desc direct = d;
  direct.algorithm = conv_algorithm::direct;
  const std::vector<conv_schedule> all = detail::candidates();
  std::vector<conv> plans;
  for (const conv_schedule& s : all) {
    auto plan = conv::plan(direct, how, {s, s});
    if (!plan) return plan.error();
    plans.push_back(*std::move(plan));
  }
  const conv& p = plans.front();
  const index w_bytes = p.weights_bytes(), t_bytes = p.transposed_bytes(), y_bytes = p.y_bytes();
  const index sizes[] = {p.x_bytes(),
                         y_bytes,
                         w_bytes,
                         t_bytes,
                         d.out * 8,
                         p.mask_bytes(),
                         p.input_mask_bytes(),
                         d.residual ? y_bytes : 0};
  double bytes = 0;
  for (const index size : sizes) bytes += static_cast<double>(size) + 64;
  if (bytes > 0x1p62) return error(errc::out_of_memory, "memory", "no %g bytes to measure with", bytes);
  index total = 0;
  for (const index size : sizes) total += (size + 63) / 64 * 64;
  struct free_aligned {
    void operator()(char* m) const { std::free(m); }
  };
  const std::unique_ptr<char, free_aligned> memory(
      static_cast<char*>(std::aligned_alloc(64, static_cast<std::size_t>(total + 64) / 64 * 64)));
  if (!memory) return error(errc::out_of_memory, "memory", "no %ld bytes to measure with", total);
  std::memset(memory.get(), 0, static_cast<std::size_t>(total));  // zeros take as long as other finite numbers
  char* at[std::size(sizes)];
  char* next = memory.get();
  for (std::size_t i = 0; i < std::size(sizes); ++i) at[i] = next, next += (sizes[i] + 63) / 64 * 64;
  conv_operands with;
  if (d.bias) with.bias = reinterpret_cast<float*>(at[4]);
  if (d.scale) with.scale = reinterpret_cast<float*>(at[4]) + d.out;
  if (d.residual) with.residual = at[7];
  if (d.mask) with.mask = at[5];
  tuned_conv t;
  const int count = threads.threads();
  const auto forward = detail::search(file, detail::key_of(p, count, "forward"), all, [&](std::size_t i) {
    return plans[i].forward(threads, d.images, at[0], at[2], with, at[1]);
  });
  if (!forward) return forward.error();
  t.schedules.forward = forward->schedule, t.forward_speedup = forward->how.speedup;
  t.measured = forward->how.measured;
  if (!d.training) return t;
  const auto backward = detail::search(file, detail::key_of(p, count, "backward_data"), all, [&](std::size_t i) {
    return plans[i].backward_data(threads, d.images, at[1], at[3], at[0], d.input_mask ? at[6] : nullptr);
  });
  if (!backward) return backward.error();
  t.schedules.backward_data = backward->schedule, t.backward_data_speedup = backward->how.speedup;
  t.measured = t.measured || backward->how.measured;
  return t;
}

}  // namespace brgemm::inline abi_0::nn
