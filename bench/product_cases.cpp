// Products of plain matrices of f32, C (m,n) = A (m,k) * B (k,n), B prepared outside the timing:
//   product MATH M N K THREADS               f32, bf16x3 or bf16x2; of pieces also with A's pieces given
// The ceiling is that of the instruction that is used; of pieces it does six (three) products for one.
#include <brgemm/loops/gemm.hpp>
#include <memory>
#include <optional>

#include "cases.hpp"
#include "operands.hpp"

namespace bench {
namespace {

namespace loops = brgemm::loops;

struct product {
  brgemm::math compute;
  std::int64_t m, n, k;
  int threads;
  bool pieces_given;
};

// Ours and its memory. B is (n,k), as the peers' layers have their weights.
struct planned_product {
  loops::gemm plan;
  loops::openmp executor;
  loops::executor_ref threads;
  buffer a, b, c, packed, workspace;

  planned_product(const product& p, loops::gemm planned, loops::openmp pool)
      : plan(std::move(planned)),
        executor(pool),
        threads(executor),
        a(p.m * p.k * 4),
        b(p.n * p.k * 4),
        c(p.m * p.n * 4),
        packed(plan.packed_b_bytes()),
        workspace(plan.workspace_bytes()) {
    fill(a, brgemm::type::f32, p.m * p.k, 1);
    fill(b, brgemm::type::f32, p.n * p.k, 2);
  }
  brgemm::result<void> pack(const product& p) const {
    return plan.pack_b(threads, brgemm::view<const float, 2>(b.as<float>(), {p.n, p.k}), brgemm::layout::transposed,
                       packed.data());
  }
  brgemm::result<void> run(const product& p) const {
    if (p.pieces_given) return plan.multiply_pieces(threads, p.m, workspace.data(), packed.data(), c.data());
    void* const pieces = plan.workspace_bytes() > 0 ? workspace.data() : nullptr;
    return plan(threads, p.m, a.data(), packed.data(), c.data(), pieces);
  }
};

void run_product(benchmark::State& state, const product& p, const settings& s) {
  for ([[maybe_unused]] auto _ : state) {
    auto plan = loops::gemm::plan({.m = p.m, .n = p.n, .k = p.k, .compute = p.compute});
    if (!plan) return state.SkipWithError(plan.error().message().data());
    const auto pool = loops::openmp::make(p.threads);
    if (!pool) return state.SkipWithError(pool.error().message().data());
    const planned_product ours(p, *std::move(plan), *pool);
    if (auto r = ours.pack(p); !r) return state.SkipWithError(r.error().message().data());
    product whole = p;
    whole.pieces_given = false;
    if (auto r = ours.run(whole); !r) return state.SkipWithError(r.error().message().data());

    const ceiling limit = ceiling_of(p.compute == brgemm::math::f32 ? peer_type::f32 : peer_type::bf16);
    std::vector<contestant> contestants = {on_threads(limit, p.threads), {"ours", [&](std::int64_t times) {
                                                                            for (std::int64_t i = 0; i < times; ++i) {
                                                                              (void)ours.run(p);
                                                                            }
                                                                          }}};
    const buffer theirs(p.m * p.n * 4);
    std::vector<std::unique_ptr<peer_task>> tasks;
    const peer_linear problem{peer_type::f32, peer_pass::forward, p.m,          p.k, p.n, p.threads, 1,
                              ours.a.data(),  ours.b.data(),      theirs.data()};
    const double tolerance = p.compute == brgemm::math::bf16x2 ? 1e-3 : 1e-4;
    add_peers(
        state, s,
        [&](const peer_api& peer, char* reason, std::size_t size) { return peer.make_linear(problem, reason, size); },
        [&] { return agrees(ours.c, theirs, brgemm::type::f32, p.m * p.n, tolerance); }, tasks, contestants);
    effort e = s.layers;
    e.sample_seconds = std::max(e.sample_seconds, p.threads > 1 ? 8e-3 : 2e-3);
    if (p.threads > 1) e.settled = true;
    const double work = 2.0 * static_cast<double>(p.m * p.n * p.k);
    report(state, contestants, interleave(contestants, e), work, limit.operations * p.threads / products_of(p.compute));
  }
}

}  // namespace

brgemm::math math_of(const std::string& word) {
  return word == "bf16x3" ? brgemm::math::bf16x3 : word == "bf16x2" ? brgemm::math::bf16x2 : brgemm::math::f32;
}

double products_of(brgemm::math how) {
  return how == brgemm::math::f32 ? 1 : static_cast<double>(brgemm::detail::products_of(how).size());
}

bool add_product(const problem& p, const settings& s) {
  if (p.words[0] != "product") return false;
  product shape{math_of(p.words[1]), p.number(2), p.number(3), p.number(4), static_cast<int>(p.number(5)), false};
  const std::string name =
      "product/" + p.words[1] + "/" + p.words[2] + "x" + p.words[3] + "x" + p.words[4] + "/threads" + p.words[5];
  add_case(s, name, [shape, &s](benchmark::State& state) { run_product(state, shape, s); });
  if (shape.compute == brgemm::math::f32) return true;
  shape.pieces_given = true;
  add_case(s, name + "/pieces_given", [shape, &s](benchmark::State& state) { run_product(state, shape, s); });
  return true;
}

}  // namespace bench
