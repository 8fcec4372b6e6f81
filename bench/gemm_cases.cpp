// Kernels:
//
//   gemm TYPE M N K BATCH                     f32, f64, bf16, u8s8; against the peers
//   hot TYPE M N K BATCH                      one entry again and again, which L1 holds; against the ceiling alone
//   shapes TYPE FILE BATCH                    the shapes of a file, one "M N K" a line, as gemm, k rounded up to what
//                                             the peers need; with dump's cycles
//   epilogue TYPE M N K BATCH STEP,STEP,...   against the plain kernel: bias, relu, gelu_erf, gelu_tanh, requantise
//   at_call TYPE M N K BATCH                  m (of a kernel for up to the next multiple of 64) and the leading
//                                             dimensions given at the call, against the plain kernel
//
// Operands of all entries are distinct and contiguous; every call works on the same ones, so they are as hot as they
// fit.
#include <brgemm/kernel/dump.hpp>
#include <brgemm/kernel/kernel.hpp>
#include <brgemm/kernel/tile_scope.hpp>
#include <cmath>
#include <memory>

#include "cases.hpp"
#include "operands.hpp"

namespace bench {
namespace {

struct gemm {
  peer_type type = peer_type::f32;
  std::int64_t m = 1, n = 1, k = 1, batch = 1;
  std::string steps;     // of the epilogue
  bool at_call = false;  // m and the leading dimensions
  int chains = 1;        // of the sums
  bool hot = false;      // all entries are one
};

struct element_types {
  brgemm::type a, b, c;
};

bool parse_type(const std::string& text, peer_type& t) {
  const std::pair<const char*, peer_type> names[] = {
      {"f32", peer_type::f32}, {"f64", peer_type::f64}, {"bf16", peer_type::bf16}, {"u8s8", peer_type::u8s8}};
  for (const auto& [name, value] : names) {
    if (text == name) return t = value, true;
  }
  return false;
}

element_types types_of(peer_type t) {
  switch (t) {
    case peer_type::f64: return {brgemm::type::f64, brgemm::type::f64, brgemm::type::f64};
    case peer_type::bf16: return {brgemm::type::bf16, brgemm::type::bf16, brgemm::type::f32};
    case peer_type::u8s8: return {brgemm::type::u8, brgemm::type::s8, brgemm::type::s32};
    case peer_type::f32: break;
  }
  return {brgemm::type::f32, brgemm::type::f32, brgemm::type::f32};
}

// `requantise` is what an 8-bit layer does to its sums: a scale a column, a bias (the zero point in it), u8.
void append_step(brgemm::desc& d, const std::string& step) {
  using brgemm::axis;
  if (step == "bias") brgemm::append(d, brgemm::op::bias(axis::column));
  if (step == "relu") brgemm::append(d, brgemm::op::relu());
  if (step == "gelu_erf") brgemm::append(d, brgemm::op::gelu_erf());
  if (step == "gelu_tanh") brgemm::append(d, brgemm::op::gelu_tanh());
  if (step == "requantise") {
    brgemm::append(d, brgemm::op::scale(axis::column));
    brgemm::append(d, brgemm::op::bias(axis::column));
    d.c = brgemm::type::u8;
  }
}

// In whole groups of what an instruction takes.
std::int64_t rows_of_b(const gemm& g) {
  const std::int64_t group = brgemm::k_group_of(types_of(g.type).a);
  return (g.k + group - 1) / group * group;
}

brgemm::desc desc_of(const gemm& g) {
  const element_types t = types_of(g.type);
  brgemm::desc d;
  d.m = g.m, d.n = g.n, d.k = g.k;
  d.lda = g.k, d.ldb = g.n, d.ldc = g.n;
  d.a = t.a, d.b = t.b, d.c = t.c;
  if (brgemm::k_group_of(t.a) > 1) d.layout_b = brgemm::layout::interleaved;
  d.stride_a = g.m * g.k;
  d.stride_b = rows_of_b(g) * g.n;
  if (g.hot) d.stride_a = d.stride_b = 0;
  std::istringstream steps(g.steps);
  for (std::string step; std::getline(steps, step, ',');) append_step(d, step);
  d.chains = static_cast<std::uint8_t>(g.chains);
  if (g.at_call) {
    d.m = (g.m + 63) / 64 * 64;
    d.m_extent = brgemm::extent_kind::at_call;
    d.lda = d.ldb = d.ldc = brgemm::at_call;
  }
  return d;
}

// The operands of a case, and the arguments of ours on them.
struct operands {
  brgemm::desc d;
  buffer a, b, c, vectors;
  brgemm::arguments arguments;

  explicit operands(const gemm& g)
      : d(desc_of(g)),
        a(g.batch * g.m * g.k * brgemm::size_of(d.a)),
        b(g.batch * rows_of_b(g) * g.n * brgemm::size_of(d.b)),
        c(g.m * g.n * 8),
        vectors(g.n * 4) {
    fill(a, d.a, g.batch * g.m * g.k, 1);
    fill(b, d.b, g.batch * rows_of_b(g) * g.n, 2);
    fill(vectors, brgemm::type::f32, g.n, 3);
    arguments.a = a.data(), arguments.b = b.data(), arguments.c = c.data();
    arguments.batch = g.batch;
    arguments.m = g.m;
    arguments.lda = g.k, arguments.ldb = g.n, arguments.ldc = g.n;
    for (void*& operand : arguments.operand) operand = vectors.data();
  }
};

contestant ours_of(const brgemm::kernel& kernel, const brgemm::arguments& arguments, const char* name = "ours") {
  return {name, [kernel, &arguments](std::int64_t times) {
            const brgemm::tile_scope tiles(kernel);
            for (std::int64_t i = 0; i < times; ++i) kernel(arguments);
          }};
}

// "... predicted 812.0 cycles ..." gives 812; 0 where the text does not say.
double cycles_in(std::string_view text, const std::string& word) {
  const auto at = text.find(word + " ");
  return at == std::string_view::npos ? 0
                                      : std::strtod(std::string(text.substr(at + word.size() + 1)).c_str(), nullptr);
}

void add_dump(benchmark::State& state, const brgemm::kernel& kernel) {
  const auto dumped = brgemm::dump(kernel);
  if (!dumped) return;
  state.counters["code bytes"] = static_cast<double>(dumped->code().size());
  const std::string_view text = dumped->text();
  state.counters["predicted cycles"] = cycles_in(text, "predicted");
  state.counters["bound cycles"] = cycles_in(text, "bound");
}

void run_gemm(benchmark::State& state, const gemm& g, const settings& s) {
  for ([[maybe_unused]] auto _ : state) {
    const operands o(g);
    const auto kernel = brgemm::make_kernel(o.d);
    if (!kernel) return state.SkipWithError(kernel.error().message().data());
    (*kernel)(o.arguments);
    const ceiling limit = ceiling_of(g.type);
    std::vector<contestant> contestants = {on_threads(limit, 1), ours_of(*kernel, o.arguments)};
    std::vector<std::unique_ptr<peer_task>> tasks;
    const std::int64_t count = g.m * g.n;
    buffer result(count * 8);
    std::memcpy(result.data(), o.c.data(), static_cast<std::size_t>(count * brgemm::size_of(o.d.c)));
    const peer_gemm problem{g.type, g.m, g.n, g.k, g.batch, o.a.data(), o.b.data(), o.c.data()};
    const auto make = [&](const peer_api& peer, char* reason, std::size_t size) -> peer_task* {
      if (!g.hot) return peer.make_gemm(problem, reason, size);
      std::snprintf(reason, size, "entries lie apart");
      return nullptr;
    };
    add_peers(
        state, s, make, [&] { return agrees(result, o.c, o.d.c, count, g.type == peer_type::u8s8 ? 0 : 1e-4); }, tasks,
        contestants);
    const auto seconds = interleave(contestants, s.kernels);
    const double work = 2.0 * static_cast<double>(g.m * g.n * g.k * g.batch);
    report(state, contestants, seconds, work, limit.operations);
    state.counters["cycles"] = limit.cycles * median_ratio(seconds[1], seconds[0]);  // the loop beside it is the clock
    add_dump(state, *kernel);
  }
}

void run_against_plain(benchmark::State& state, const gemm& g, const settings& s) {
  for ([[maybe_unused]] auto _ : state) {
    gemm plain = g;
    plain.steps.clear();
    plain.at_call = false;
    const operands own_operands(g);
    const operands plain_operands(plain);
    const auto own_kernel = brgemm::make_kernel(own_operands.d);
    if (!own_kernel) return state.SkipWithError(own_kernel.error().message().data());
    const auto plain_kernel = brgemm::make_kernel(plain_operands.d);
    if (!plain_kernel) return state.SkipWithError(plain_kernel.error().message().data());
    const ceiling limit = ceiling_of(g.type);
    const std::vector<contestant> contestants = {on_threads(limit, 1),
                                                 ours_of(*plain_kernel, plain_operands.arguments, "plain kernel"),
                                                 ours_of(*own_kernel, own_operands.arguments)};
    const double work = 2.0 * static_cast<double>(g.m * g.n * g.k * g.batch);
    report(state, contestants, interleave(contestants, s.kernels), work, limit.operations);
  }
}

// What calls outside a scope take more, counted in tile configurations.
void run_unscoped(benchmark::State& state, const gemm& g, const settings& s) {
  for ([[maybe_unused]] auto _ : state) {
    if (!has_tiles()) return state.SkipWithError("this CPU has no tiles, or the system hides them");
    const operands o(g);
    const auto kernel = brgemm::make_kernel(o.d);
    if (!kernel) return state.SkipWithError(kernel.error().message().data());
    if (kernel->backend() != "amx") return state.SkipWithError("not a kernel on tiles");
    const std::vector<contestant> contestants = {{"configuration", configure_tiles},
                                                 ours_of(*kernel, o.arguments, "in a scope"),
                                                 {"ours", [&kernel, &o](std::int64_t times) {
                                                    for (std::int64_t i = 0; i < times; ++i) (*kernel)(o.arguments);
                                                  }}};
    const auto seconds = interleave(contestants, s.kernels);
    report(state, contestants, seconds, 2.0 * static_cast<double>(g.m * g.n * g.k * g.batch), 0);
    std::vector<double> configurations;
    for (std::size_t r = 0; r < seconds[0].size(); ++r) {
      configurations.push_back((seconds[2][r] - seconds[1][r]) / seconds[0][r]);
    }
    state.counters["configurations"] = median(configurations);
  }
}

std::string name_of(const gemm& g, const std::string& type) {
  return type + "/" + std::to_string(g.m) + "x" + std::to_string(g.n) + "x" + std::to_string(g.k) + "/batch" +
         std::to_string(g.batch);
}

void add_shapes(const problem& p, const settings& s) {
  for (const problem& line : read_shapes(p.folder + p.words.at(2))) {
    gemm g{peer_type::f32, line.number(0), line.number(1), line.number(2), p.number(3), "", false};
    parse_type(p.words[1], g.type);
    g.k = rows_of_b(g);
    // Too few sums of vectors to hide their latency: we ask to split them.
    if (g.type == peer_type::f32 && g.m * ((g.n + 15) / 16) < 8) g.chains = 2;
    add_case(s, line.file + "/" + name_of(g, p.words[1]), [g, &s](benchmark::State& state) { run_gemm(state, g, s); });
  }
}

}  // namespace

bool add_gemm(const problem& p, const settings& s) {
  if (p.words[0] == "shapes") return add_shapes(p, s), true;
  const std::string& kind = p.words[0];
  if (kind != "gemm" && kind != "hot" && kind != "epilogue" && kind != "at_call" && kind != "unscoped") return false;
  gemm g{peer_type::f32, p.number(2), p.number(3), p.number(4), p.number(5), "", kind == "at_call"};
  if (!parse_type(p.words.at(1), g.type)) return false;
  if (kind == "epilogue") g.steps = p.words.at(6);
  const std::string name = kind + "/" + name_of(g, p.words[1]) + (g.steps.empty() ? "" : "/" + g.steps);
  g.hot = kind == "hot";
  const auto run = kind == "unscoped" ? run_unscoped : kind == "gemm" || g.hot ? run_gemm : run_against_plain;
  add_case(s, name, [g, run, &s](benchmark::State& state) { run(state, g, s); });
  return true;
}

}  // namespace bench
