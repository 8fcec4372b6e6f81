// Schedules of a convolution, searched by measurement.
#pragma once

#include <cstring>
#include <locale>
#include <memory>
#include <tuple>

#include "../loops/tune.hpp"
#include "conv.hpp"

namespace brgemm::inline abi_0::nn {

/// What `tune` found, and what each is worth: how many times as quick as the plan's own choice.
struct tuned_conv {
  conv_schedules schedules;
  double forward_speedup = 1;
  double backward_data_speedup = 1;
  double backward_weights_speedup = 1;
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
  desc product;
  product.a = d.data, product.sums = d.sums;
  key << "/sums" << static_cast<int>(machine_order(product)) << "act" << static_cast<int>(d.act) << 'b' << d.bias << 's'
      << d.scale << 'r' << d.residual << 'c' << d.clamp << 'm' << d.mask << 'i' << d.input_mask << "/threads" << threads
      << '/' << plan.backend() << '/' << loops::tuning_machine();
  return key.str();
}

/// Not of `streaming`, whose worth lies with who reads y, or dW, next.
inline std::vector<conv_schedule> candidates() {
  std::vector<conv_schedule> all(1);
  for (const int rows : {28, 48, 128}) all.push_back({.rows = rows});
  for (const int weights : {128, 1024}) all.push_back({.weights = weights});
  for (const int band : {256, 1024, -1}) all.push_back({.band = band});
  for (const int prefetch : {-1, 4}) all.push_back({.prefetch = prefetch});
  return all;
}
inline std::vector<conv_update_schedule> update_candidates(const nn::conv_desc& d) {
  std::vector<conv_update_schedule> all(1);
  if (nn::conv::is_depthwise(d)) return all;
  for (const int pixels : {128, 256, 1024}) all.push_back({.pixels = pixels});
  for (const int band : {128, 2048}) all.push_back({.band = band, .copies = 1});
  if (d.data == type::f32) all.push_back({.copies = 1}), all.push_back({.copies = -1});
  return all;
}

/// What the file keeps of a schedule.
inline auto kept(conv_schedule& s) { return std::tie(s.rows, s.weights, s.band, s.prefetch); }
inline auto kept(conv_update_schedule& s) { return std::tie(s.pixels, s.band, s.copies); }

template <class Schedule>
struct found_schedule {
  Schedule schedule;
  loops::tuned how;
};

/// From the file, or by measurement; then it is kept there. run(i): result<void>.
template <class Schedule, class Run>
result<found_schedule<Schedule>> search(const std::string& file, const std::string& key,
                                        const std::vector<Schedule>& all, const Run& run) {
  found_schedule<Schedule> f;
  Schedule& s = f.schedule;
  f.how.measured = all.size() > 1;
  if (!f.how.measured) return f;
  if (!file.empty()) {
    std::istringstream text(loops::tuning_of(file, key));
    text.imbue(std::locale::classic());
    std::apply([&text](auto&... field) { (text >> ... >> field); }, kept(s));
    if (text >> f.how.speedup) {
      f.how.measured = false;
      if (std::find(all.begin(), all.end(), s) != all.end()) return f;  // else not written by this version
    }
    if (auto r = loops::check_tuning_file(file); !r) return r.error();
  }
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (auto r = run(i); !r) return r.error();
  }
  f.how = loops::quickest(all.size(), [&run](std::size_t i) { static_cast<void>(run(i)); });
  s = all[f.how.candidate];
  if (file.empty()) return f;
  std::ostringstream text;
  text.imbue(std::locale::classic());
  std::apply([&text](const auto&... field) { (text << ... << (std::to_string(field) + ' ')); }, kept(s));
  text << f.how.speedup;
  if (auto r = loops::keep_tuning(file, key, text.str()); !r) return r.error();
  return f;
}

/// Zeros to measure with, which take as long as other finite numbers: pieces of `bytes`, aligned to 64.
class tuning_memory {
 public:
  static result<tuning_memory> make(std::vector<index> bytes) {
    double sum = 0;
    for (const index size : bytes) sum += static_cast<double>(size) + 64;
    if (sum > 0x1p62) return error(errc::out_of_memory, "memory", "no %g bytes to measure with", sum);
    index total = 64;
    for (const index size : bytes) total += (size + 63) / 64 * 64;
    tuning_memory m;
    m.memory_.reset(static_cast<char*>(std::aligned_alloc(64, static_cast<std::size_t>(total))));
    if (!m.memory_) return error(errc::out_of_memory, "memory", "no %ld bytes to measure with", total);
    std::memset(m.memory_.get(), 0, static_cast<std::size_t>(total));
    m.bytes_ = std::move(bytes);
    return m;
  }
  char* piece(std::size_t i) const noexcept {
    char* at = memory_.get();
    for (std::size_t j = 0; j < i; ++j) at += (bytes_[j] + 63) / 64 * 64;
    return at;
  }

 private:
  struct free_aligned {
    void operator()(char* m) const { std::free(m); }
  };
  std::vector<index> bytes_;
  std::unique_ptr<char, free_aligned> memory_;
};

}  // namespace brgemm::inline abi_0::detail

namespace brgemm::inline abi_0::nn {

/// Searches the schedules of the direct forward pass, and with training of backward_data and backward_weights, by
/// running each on memory of its own, some seconds at most for layers of milliseconds. `file`: where winners are looked
/// up and kept, loops::tuning_file() for the user's own; empty: nowhere. It allocates and reads files, unlike calls of
/// a plan; the result is for conv::plan, on this kind of CPU and for so many threads. Errors: what conv::plan says;
/// out_of_memory; "file" where it cannot be written.
inline result<tuned_conv> tune(loops::executor_ref threads, const conv_desc& d, const std::string& file,
                               const options& how = {}) {
  const auto first = conv::plan(d, how);
  if (!first) return first.error();
  conv_desc direct = d;
  direct.algorithm = conv_algorithm::direct;
  const auto of_passes = detail::candidates();
  const auto of_updates = detail::update_candidates(d);
  std::vector<conv> plans;  // number i by candidate i of each
  index workspace_bytes = 0;
  for (std::size_t i = 0; i < std::max(of_passes.size(), of_updates.size()); ++i) {
    const conv_schedule pass = i < of_passes.size() ? of_passes[i] : conv_schedule{};
    auto plan = conv::plan(direct, how, {pass, pass, i < of_updates.size() ? of_updates[i] : conv_update_schedule{}});
    if (!plan) return plan.error();
    workspace_bytes = std::max(workspace_bytes, plan->backward_weights_workspace_bytes());
    plans.push_back(*std::move(plan));
  }
  const conv& p = plans.front();
  enum : std::size_t { x, y, weights, transposed, of_channels, mask, input_mask, residual, gradient, workspace };
  const auto memory = detail::tuning_memory::make(
      {p.x_bytes(), p.y_bytes(), p.weights_bytes(), p.transposed_bytes(), d.out * 8, p.mask_bytes(),
       p.input_mask_bytes(), d.residual ? p.y_bytes() : 0, d.training ? p.weights() * 4 : 0, workspace_bytes});
  if (!memory) return memory.error();
  const auto at = [&memory](std::size_t i) { return memory->piece(i); };
  conv_operands with;
  if (d.bias) with.bias = reinterpret_cast<float*>(at(of_channels));
  if (d.scale) with.scale = reinterpret_cast<float*>(at(of_channels)) + d.out;
  if (d.residual) with.residual = at(residual);
  if (d.mask) with.mask = at(mask);
  tuned_conv t;
  const int count = threads.threads();
  const auto search = [&](const char* pass, const auto& candidates, auto& found, double& speedup,
                          const auto& run) -> result<void> {
    auto winner = detail::search(file, detail::key_of(p, count, pass), candidates, run);
    if (!winner) return winner.error();
    found = winner->schedule, speedup = winner->how.speedup;
    t.measured = t.measured || winner->how.measured;
    return {};
  };
  if (auto r =
          search("forward", of_passes, t.schedules.forward, t.forward_speedup,
                 [&](std::size_t i) { return plans[i].forward(threads, d.images, at(x), at(weights), with, at(y)); });
      !r || !d.training) {
    return r ? result<tuned_conv>(t) : r.error();
  }
  if (auto r = search("backward_data", of_passes, t.schedules.backward_data, t.backward_data_speedup,
                      [&](std::size_t i) {
                        return plans[i].backward_data(threads, d.images, at(y), at(transposed), at(x),
                                                      d.input_mask ? at(input_mask) : nullptr);
                      });
      !r) {
    return r.error();
  }
  if (auto r = search("backward_weights", of_updates, t.schedules.backward_weights, t.backward_weights_speedup,
                      [&](std::size_t i) {
                        const bool uses = plans[i].backward_weights_workspace_bytes() > 0;
                        return plans[i].backward_weights(threads, d.images, at(x), at(y),
                                                         reinterpret_cast<float*>(at(gradient)), nullptr,
                                                         uses ? at(workspace) : nullptr);
                      });
      !r) {
    return r.error();
  }
  return t;
}

}  // namespace brgemm::inline abi_0::nn
