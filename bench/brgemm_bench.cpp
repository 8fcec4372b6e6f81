// The benchmark driver: reads problem files, loads the peers, and runs every case on Google Benchmark.
// Each case measures ours, its peers and its ceiling interleaved; see measure.hpp for how and accept.py for targets.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "cases.hpp"
#include "peers/loader.hpp"

namespace {

// One line a case on stderr: where the run is; the figures go to --benchmark_out.
class progress final : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      if (run.run_type != Run::RT_Iteration) continue;
      std::fprintf(stderr, "%s%s%s\n", run.benchmark_name().c_str(), run.error_occurred ? ": " : "",
                   run.error_message.c_str());
      errors_ += run.error_occurred ? 1 : 0;
    }
  }
  int errors() const { return errors_; }

 private:
  int errors_ = 0;
};

void register_all(const std::vector<std::string>& files, const bench::settings& settings) {
  for (const std::string& file : files) {
    for (const bench::problem& p : bench::read_problems(file)) {
      if (!bench::add_gemm(p, settings) && !bench::add_call(p, settings) && !bench::add_linear(p, settings) &&
          !bench::add_product(p, settings) && !bench::add_conv(p, settings) && !bench::add_winograd(p, settings) &&
          !bench::add_train(p, settings) && !bench::add_bandwidth(p, settings)) {
        throw std::logic_error("nothing measures problems of the kind " + p.words[0]);
      }
    }
  }
}

}  // namespace

// Exit status: 1 where a case failed and --strict was given, or the run itself failed; 2 for bad options and problem
// files.
int main(int argc, char** argv) try {
  benchmark::Initialize(&argc, argv);  // takes --benchmark_* out of the arguments
  bench::settings settings;
  std::vector<std::string> files;
  std::string peers = (std::filesystem::path(argv[0]).parent_path() / "peers").string();
  CLI::App app(
      "Measures brgemm, its peers and the machine's ceilings, interleaved. --benchmark_* go to Google Benchmark.");
  app.add_option("problems", files, "Problem files (bench/problems/*.txt)")->required()->check(CLI::ExistingFile);
  app.add_option("--peers", peers, "Folder with the peers' modules")->capture_default_str();
  app.add_option("--rounds", settings.kernels.rounds, "Rounds a case")->capture_default_str();
  double sample_us = 300;
  app.add_option("--sample-us", sample_us, "Microseconds a contestant runs in one round")->capture_default_str();
  std::string only;
  app.add_option("--only", only, "File with the names of the cases to run, one a line")->check(CLI::ExistingFile);
  bool strict = false;
  app.add_flag("--strict", strict, "End with 1 where a case could not be measured");
  bool list_peers = false;
  app.add_flag("--list-peers", list_peers, "Print the peers that load, and end");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  if (settings.kernels.rounds < 1 || !(sample_us > 0 && sample_us <= 1e7)) {
    std::fprintf(stderr, "--rounds must be 1 or more, --sample-us above 0 and at most 10,000,000\n");
    return 2;
  }

  settings.kernels.sample_seconds = sample_us * 1e-6;
  settings.layers = settings.kernels;
  settings.layers.rounds = std::max(3, settings.kernels.rounds * 2 / 3);  // their samples are longer
  std::ifstream names(only);
  for (std::string name; std::getline(names, name);) settings.only.insert(name);
  // OpenBLAS's idle threads look for work for 2^26 cycles before they sleep, on the cores that others are measured on;
  // 2^16 cycles last from one call to the next (docs of OpenBLAS: runtime variables).
  setenv("OPENBLAS_THREAD_TIMEOUT", "16", 0);
  settings.peers = bench::load_peers(peers, bench::has_tiles());
  if (list_peers) {
    for (const auto* peer : settings.peers) std::printf("%s\n", peer->name);
    return 0;
  }
  std::string peer_names;
  for (const auto* peer : settings.peers) peer_names += (peer_names.empty() ? "" : ", ") + std::string(peer->name);
  benchmark::AddCustomContext("peers", peer_names);
  register_all(files, settings);
  progress reporter;
  const std::size_t count = benchmark::RunSpecifiedBenchmarks(&reporter);
  benchmark::Shutdown();
  if (count == 0) {
    std::fprintf(stderr, "no case is named by --only or --benchmark_filter\n");
    return 2;
  }
  return strict && reporter.errors() > 0 ? 1 : 0;
} catch (const bench::bad_problem& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 2;
} catch (const std::exception& e) {
  std::fprintf(stderr, "brgemm_bench: %s\n", e.what());
  return 1;
}
