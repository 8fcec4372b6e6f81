// Ceilings by themselves, for the roofline:
//   bandwidth BYTES THREADS      reading so many bytes again and again
//   peak TYPE THREADS            register-only loop of a type
#include "cases.hpp"
#include "operands.hpp"

namespace bench {
namespace {

void run_bandwidth(benchmark::State& state, std::int64_t bytes, int threads, const settings& s) {
  for ([[maybe_unused]] auto _ : state) {
    const std::int64_t most = std::max(bytes, threads * read_bandwidth::granule);
    const buffer data(most);
    const read_bandwidth read(data.data(), most, threads);
    effort e = s.kernels;
    e.sample_seconds = std::max(e.sample_seconds, 2e-3);
    const auto seconds = interleave({{"ceiling", [&read](std::int64_t times) { read(0, times); }}}, e);
    state.counters["bytes"] = read.bytes();
    state.counters["bytes per second"] = read.bytes() / median(seconds[0]);
    state.SetIterationTime(median(seconds[0]));
  }
}

void run_peak(benchmark::State& state, peer_type type, int threads, const settings& s) {
  for ([[maybe_unused]] auto _ : state) {
    const ceiling limit = ceiling_of(type);
    const auto seconds = interleave({on_threads(limit, threads)}, s.kernels);
    state.counters["operations per second"] = threads * limit.operations / median(seconds[0]);
    state.SetLabel(limit.name);
    state.SetIterationTime(median(seconds[0]));
  }
}

}  // namespace

bool add_bandwidth(const problem& p, const settings& s) {
  if (p.words[0] != "bandwidth" && p.words[0] != "peak") return false;
  const int threads = static_cast<int>(p.number(2));
  const std::string name = p.words[0] + "/" + p.words[1] + "/threads" + p.words[2];
  if (p.words[0] == "bandwidth") {
    const std::int64_t bytes = p.number(1);
    add_case(s, name, [=, &s](benchmark::State& state) { run_bandwidth(state, bytes, threads, s); });
    return true;
  }
  const std::pair<const char*, peer_type> types[] = {
      {"f32", peer_type::f32}, {"f64", peer_type::f64}, {"bf16", peer_type::bf16}, {"u8s8", peer_type::u8s8}};
  for (const auto& [text, type] : types) {
    if (p.words[1] != text) continue;
    add_case(s, name, [type = type, threads, &s](benchmark::State& state) { run_peak(state, type, threads, s); });
    return true;
  }
  return false;
}

}  // namespace bench
