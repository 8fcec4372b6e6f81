// Every backend against the reference, bit for bit, over every m, n in 1..33 and k in 0..33 for each type, batch kind
// and batch 0, 1, 2, 7, with every matrix against an inaccessible page before and again after it; then larger shapes.
// What is not enumerated (leading dimensions, layouts, beta, alpha, chains, epilogue, data) is drawn from the case's
// number.
//
//   kernel.grid [--fraction=N] [--case=NUMBER]     one case in N (default 1: all), or that case alone
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <atomic>
#include <brgemm/backend/list.hpp>
#include <charconv>
#include <cstdio>
#include <thread>

#include "support/code_runner.hpp"
#include "support/features.hpp"
#include "support/problem.hpp"

namespace brgemm_test {
namespace {

std::uint64_t fraction = 1;
bool tiles_are_emulated = false;
std::int64_t only_case = -1;

// ---- The set ----

constexpr index small = 33;
constexpr index large_sizes[] = {47, 48, 49, 63, 64, 65, 127, 130};
constexpr index large_k_draws = 20;
constexpr index batches[] = {0, 1, 2, 7};
constexpr index entries = 7;
constexpr index kinds_and_types = 3 * type_combination_count;
constexpr index small_cases = small * small * (1 + small) * kinds_and_types;
constexpr index large_cases = 8 * 8 * large_k_draws * kinds_and_types;
constexpr index case_count = small_cases + large_cases;
constexpr std::size_t largest_matrix = 350 * 350 * 8;

struct grid_case {
  shape s;
  index combination;
  brgemm::batch_kind batch;
};

grid_case case_at(index number, entropy& e) {
  const auto take = [&number](index count) {
    const index digit = number % count;
    number /= count;
    return digit;
  };
  const bool is_small = number < small_cases;
  if (!is_small) number -= small_cases;
  grid_case c;
  c.combination = take(type_combination_count);
  c.batch = static_cast<brgemm::batch_kind>(take(3));
  if (is_small) {
    c.s.m = 1 + take(small);
    c.s.n = 1 + take(small);
    c.s.k = take(1 + small);
  } else {
    c.s.m = large_sizes[take(8)];
    c.s.n = large_sizes[take(8)];
    c.s.k = e.between(0, 300);
    if (e.one_in(4)) c.s.m = e.between(1, small);
    if (e.one_in(4)) c.s.n = e.between(1, small);
  }
  return c;
}

problem problem_of(index number) {
  entropy e(static_cast<std::uint64_t>(number));
  const grid_case c = case_at(number, e);
  return draw_problem(e, draw_desc(e, c.s, type_combinations[c.combination], c.batch), entries);
}

bool is_in_sample(index number) {
  if (only_case >= 0) return number == only_case;
  return mix(static_cast<std::uint64_t>(number) ^ 0x5eed) % fraction == 0;
}

// ---- What runs ----

// `changes`: the backend some of whose code this feature set must change, where the CPU has what is hidden.
struct feature_set {
  const char* hidden;
  const char* changes;
};
constexpr feature_set feature_sets[] = {
    {"", ""},        {"-bf16", "avx512"},           {"-vnni", "avx512"},       {"-bf16,-vnni", "avx512"},
    {"-avx512", ""}, {"-avx512,-avx_vnni", "avx2"}, {"-avx512,-f16c", "avx2"}, {"-avx2", "reference"},
};
constexpr int feature_set_count = std::size(feature_sets);
constexpr int max_backends = 4;

bool cpu_has_all(const char* hidden) {
  for (std::string_view list = hidden; !list.empty();) {
    const std::string_view word = list.substr(0, list.find(','));
    if (brgemm::detail::hide(all_features(), word) == all_features()) return false;
    list.remove_prefix(std::min(word.size() + 1, list.size()));
  }
  return true;
}

struct row {
  std::atomic<std::int64_t> compared{0};     ///< calls whose result was compared
  std::atomic<std::int64_t> same_code{0};    ///< calls left out: byte for byte the code of an earlier feature set,
                                             ///< which is run again only now and then
  std::atomic<std::int64_t> changed{0};      ///< descs whose code differs from that with nothing hidden
  std::atomic<std::int64_t> unsupported{0};  ///< descs that the backend says it does not do
  char reason[256] = {};                     ///< of the first of those
  std::atomic<std::int64_t> by_type[type_combination_count] = {};              ///< of those compared
  std::atomic<std::int64_t> unsupported_by_type[type_combination_count] = {};  ///< of those unsupported
};

/// Written by all workers, read by the parent.
struct shared_state {
  std::atomic<index> next{0};
  std::atomic<std::int64_t> cases{0};
  std::atomic<std::int64_t> by_type[type_combination_count] = {};
  std::atomic<int> failures{0};
  std::atomic<std::uint64_t> emulated{0};  ///< tile instructions
  row rows[max_backends][feature_set_count];
};

/// Where a worker is, for the parent to tell when it dies.
struct position {
  index number = -1, batch = 0;
  guard side = guard::before;
  int backend = -1, features = 0;
};

template <class T>
T* share(std::size_t count = 1) {
  void* const p = ::mmap(nullptr, sizeof(T) * count, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) std::abort();
  return new (p) T[count];
}

std::string words(const position& at) {
  const problem p = problem_of(at.number);
  std::string text = "case " + std::to_string(at.number) + " ";
  if (at.backend >= 0) text += std::string(brgemm::backend::built_in()[static_cast<std::size_t>(at.backend)].name);
  text += std::string(" [") + feature_sets[at.features].hidden + "] ";
  return text + text_of(p, at.batch, at.side);
}

bool multiplies(const brgemm::backend::entry& e, brgemm::type a) {
  return e.name != "amx" || a == brgemm::type::bf16 || brgemm::detail::is_8bit(a);
}

/// All that a backend may say it does not do: kernels read the groups of k of a row of A; pack_a makes them. Tiles read
/// those of B too, and sum bf16 in their order.
bool may_refuse(const brgemm::backend::entry& e, const desc& d) {
  const bool groups_of_a = e.name != "reference" && k_group_of(d) > 1 && d.layout_a == brgemm::layout::transposed;
  const bool not_of_tiles =
      e.name == "amx" && (d.layout_a == brgemm::layout::interleaved || d.layout_b == brgemm::layout::transposed ||
                          (d.a == brgemm::type::bf16 && d.sums != brgemm::order::tile));
  return groups_of_a || not_of_tiles || !multiplies(e, d.a);
}

struct candidate {
  int backend, features;
  runnable run;
};

class worker {
 public:
  worker(shared_state& shared, position& at) : shared_(shared), at_(at), memory_(entries, largest_matrix) {}

  void run() {
    constexpr index chunk = 256;
    for (index first = shared_.next.fetch_add(chunk); first < case_count; first = shared_.next.fetch_add(chunk)) {
      for (index number = first; number < std::min(first + chunk, case_count); ++number) {
        if (is_in_sample(number)) run_case(number);
      }
    }
    shared_.emulated += emulated_tile_instructions();
  }

  void run_case(index number) {
    at_ = {.number = number};
    const problem p = problem_of(number);
    combination_ =
        number < small_cases ? number % type_combination_count : (number - small_cases) % type_combination_count;
    hide_features("");
    const auto& reference = brgemm::backend::built_in().back();
    const auto expected_by = runner_.make(reference, p.d);
    if (!expected_by) return fail(expected_by.error().message());
    std::vector<candidate> candidates = make_candidates(p, *expected_by);
    for (const index batch : batches) {
      outputs expected;
      for (const guard side : {guard::before, guard::after}) {
        at_.batch = batch, at_.side = side, at_.backend = -1;
        const auto x = place(p, batch, side, memory_);
        if (const auto checked = validate(p.d, x); !checked) return fail(checked.error().message());
        if (side == guard::before) {
          (*expected_by)(x);
          expected = collect(p, x);
          if (const auto text = touched_gap(p, expected); !text.empty()) fail(text);
        }
        for (const candidate& c : candidates) compare(p, c, x, expected);
      }
    }
    ++shared_.cases;
    ++shared_.by_type[combination_];
  }

 private:
  void make_for(const problem& p, int backend, int features, const runnable& reference, std::vector<candidate>& all) {
    const auto& entry = brgemm::backend::built_in()[static_cast<std::size_t>(backend)];
    row& r = shared_.rows[backend][features];
    if (!entry.runs_here()) return;
    at_.backend = backend, at_.features = features;
    if (const auto can = entry.supports(p.d); !can) {
      if (!may_refuse(entry, p.d)) return fail(std::string("refused: ").append(can.error().message()));
      ++r.unsupported_by_type[combination_];
      if (++r.unsupported == 1) std::snprintf(r.reason, sizeof r.reason, "%s", can.error().message().data());
      return;
    }
    auto made = runner_.make(entry, p.d);
    if (!made) return fail(made.error().message());
    // Of each row and type the first case is run in any case, by each worker.
    const bool is_first = r.by_type[combination_] == 0;
    const auto is_one_in = [&](std::uint64_t rarity) {
      return is_first || only_case >= 0 || mix(static_cast<std::uint64_t>(at_.number)) % rarity == 0;
    };
    const bool is_reference = made->code_bytes == 0;
    // an emulated instruction takes microseconds
    if (tiles_are_emulated && entry.name == "amx" && !is_one_in(8)) return;
    // the reference is slow: only some cases run it a second time
    if (is_reference && !is_one_in(made->same_code(reference) ? 8 : 32)) return;
    const auto first = std::find_if(all.begin(), all.end(), [&](const candidate& c) { return c.backend == backend; });
    if (first != all.end() && !first->run.same_code(*made)) ++r.changed;
    for (const candidate& c : all) {
      if (c.backend == backend && c.run.same_code(*made) && !is_one_in(64)) {
        r.same_code += 2 * std::ssize(batches);
        return;
      }
    }
    all.push_back({backend, features, std::move(*made)});
  }

  std::vector<candidate> make_candidates(const problem& p, const runnable& reference) {
    std::vector<candidate> all;
    for (int features = 0; features < feature_set_count; ++features) {
      hide_features(feature_sets[features].hidden);
      for (int backend = 0; backend < std::ssize(brgemm::backend::built_in()); ++backend) {
        make_for(p, backend, features, reference, all);
      }
    }
    hide_features("");
    return all;
  }

  void compare(const problem& p, const candidate& c, const brgemm::arguments& x, const outputs& expected) {
    at_.backend = c.backend, at_.features = c.features;
    reset_outputs(p, x);
    c.run(x);
    row& r = shared_.rows[c.backend][c.features];
    ++r.compared;
    ++r.by_type[combination_];
    if (const auto text = difference(p, expected, x); !text.empty()) fail(text);
  }

  void fail(std::string_view text) {
    if (++shared_.failures <= 20) {
      std::printf("FAILED %s: %.*s\n", words(at_).c_str(), static_cast<int>(text.size()), text.data());
      std::fflush(stdout);
    }
  }

  shared_state& shared_;
  position& at_;
  problem_memory memory_;
  code_runner runner_;
  index combination_ = 0;
};

// ---- The test ----

/// Forks `count` workers, so that each may hide CPU features for itself, and waits. A worker that dies is a failure.
void run_workers(int count, shared_state& shared, position* at) {
  std::fflush(stdout);
  std::vector<::pid_t> children;
  for (int i = 0; i < count; ++i) {
    const ::pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      worker(shared, at[i]).run();
      std::fflush(stdout);
      ::_exit(0);
    }
    children.push_back(child);
  }
  for (int i = 0; i < count; ++i) {
    int status = 0;
    ::waitpid(children[static_cast<std::size_t>(i)], &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0)
        << "signal " << (WIFSIGNALED(status) ? WTERMSIG(status) : 0) << " in " << words(at[i]);
  }
}

void print_and_check(const shared_state& shared) {
  std::printf("%-10s %-16s %12s %12s %12s  compared, by types\n", "backend", "features hidden", "compared", "same code",
              "unsupported");
  for (int b = 0; b < std::ssize(brgemm::backend::built_in()); ++b) {
    const auto& entry = brgemm::backend::built_in()[static_cast<std::size_t>(b)];
    for (int f = 0; f < feature_set_count; ++f) {
      const row& r = shared.rows[b][f];
      const auto& [hidden, changes] = feature_sets[f];
      hide_features(hidden);
      const bool runs = entry.runs_here();
      hide_features("");
      if (!runs) {
        if (f == 0) std::printf("%-10s does not run on this CPU\n", entry.name.data());
        continue;
      }
      std::printf("%-10s %-16s %12ld %12ld %12ld ", entry.name.data(), *hidden != 0 ? hidden : "none",
                  r.compared.load(), r.same_code.load(), r.unsupported.load());
      for (const auto& count : r.by_type) std::printf(" %ld", count.load());
      std::printf("%s\n", cpu_has_all(hidden) ? "" : "  (this CPU lacks a feature named)");
      if (*r.reason != 0) std::printf("%27s unsupported: %s\n", "", r.reason);
      if (only_case >= 0) continue;
      for (index t = 0; t < type_combination_count; ++t) {
        const auto& [a, b, c] = type_combinations[t];
        if (!multiplies(entry, a)) continue;
        EXPECT_GT(r.by_type[t], 0) << entry.name << " compared none of " << shared.by_type[t] << " cases of "
                                   << name_of(a) << " x " << name_of(b) << " -> " << name_of(c) << " with " << hidden
                                   << " hidden; it said " << r.unsupported_by_type[t] << " are unsupported";
      }
      if (entry.name == changes && cpu_has_all(hidden)) {
        EXPECT_GT(r.changed, 0) << entry.name << " makes the same code with " << hidden << " hidden";
      }
    }
  }
}

TEST(Grid, EveryBackendHasTheBitsOfTheReference) {
  const int count = only_case >= 0 ? 1 : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  shared_state& shared = *share<shared_state>();
  position* const at = share<position>(static_cast<std::size_t>(count));
  run_workers(count, shared, at);
  print_and_check(shared);
  EXPECT_EQ(shared.failures, 0);
  const std::int64_t cases = shared.cases;
  EXPECT_GT(cases, 0) << "a test of nothing";
  if (tiles_are_emulated) {
    std::printf("amx: one supported case in 8, %llu tile instructions, emulated\n",
                static_cast<unsigned long long>(shared.emulated.load()));
    EXPECT_TRUE(only_case >= 0 || shared.emulated > 0);
  }
  std::printf("grid: %ld of %ld cases (%.2f %%), each with batch 0, 1, 2, 7 and a page before and after; %d failures\n",
              cases, case_count, 100.0 * static_cast<double>(cases) / static_cast<double>(case_count),
              shared.failures.load());
}

bool parse(std::string_view argument, std::string_view name, auto& value) {
  if (!argument.starts_with(name)) return false;
  argument.remove_prefix(name.size());
  const auto [end, problem] = std::from_chars(argument.data(), argument.data() + argument.size(), value);
  return problem == std::errc() && end == argument.data() + argument.size();
}

}  // namespace
}  // namespace brgemm_test

int main(int count, char** values) {
  testing::InitGoogleTest(&count, values);
  for (int i = 1; i < count; ++i) {
    const std::string_view argument = values[i];
    if (brgemm_test::parse(argument, "--fraction=", brgemm_test::fraction) && brgemm_test::fraction > 0) continue;
    if (brgemm_test::parse(argument, "--case=", brgemm_test::only_case) && brgemm_test::only_case >= 0 &&
        brgemm_test::only_case < brgemm_test::case_count) {
      continue;
    }
    std::fprintf(stderr, "'%s' is not --fraction=N, N from 1, or --case=N, N from 0 to %lld\n", values[i],
                 static_cast<long long>(brgemm_test::case_count) - 1);
    return 2;
  }
  brgemm_test::tiles_are_emulated = brgemm_test::show_tiles();
  return RUN_ALL_TESTS();
}
