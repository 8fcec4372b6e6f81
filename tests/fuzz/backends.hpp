// One fuzzed input: bytes draw a desc, data and CPU features to hide; every backend must then have the reference's
// bits.
#pragma once

#include <brgemm/backend/list.hpp>

#include "support/code_runner.hpp"
#include "support/features.hpp"
#include "support/problem.hpp"

namespace brgemm_test {

inline constexpr index fuzz_entries = 3;  // two for each range of rows, if there are any

inline const char* draw_features(entropy& e) {
  return e.pick({"", "", "-bf16", "-vnni", "-bf16,-vnni", "-avx512", "-avx512,-vnni", "-avx512,-f16c", "-avx2"});
}

inline drawn_desc draw_any_desc(entropy& e) {
  const index largest = e.one_in(64) ? 140 : e.one_in(4) ? 40 : 18;
  const shape s{e.between(1, largest), e.between(1, largest), e.between(0, largest)};
  types t = type_combinations[e.between(0, type_combination_count - 1)];
  if (t.a == brgemm::type::s8 && e.one_in(8)) t.b = brgemm::type::u8;
  if (t.a == brgemm::type::u8 && e.one_in(8)) t.b = brgemm::type::u8;
  const auto kind = static_cast<brgemm::batch_kind>(e.between(0, 2));
  const bool depthwise = e.one_in(8);
  drawn_desc drawn = draw_desc(e, s, t, kind, depthwise, !depthwise && e.one_in(8));
  if (t.a == brgemm::type::bf16 && !depthwise && e.one_in(8)) drawn.d.sums = brgemm::order::tile, drawn.d.chains = 1;
  return drawn;
}

/// Overwrites some bytes: what is left is rarely valid, and no backend may stumble over it.
inline desc damage(entropy& e, desc d) {
  auto* const bytes = reinterpret_cast<std::uint8_t*>(&d);
  for (index i = e.between(1, 4); i > 0; --i) {
    const index at = e.between(0, sizeof(desc) - 1);
    bytes[at] = static_cast<std::uint8_t>(e.one_in(2) ? e.between(0, 255) : e.between(0, 3));
  }
  return d;
}

/// What is wrong, empty where nothing is. `compared` counts results that were compared.
class backend_fuzzer {
 public:
  backend_fuzzer() : memory_(2 * brgemm::max_row_ranges, 200 * 200 * 8), emulates_tiles_(show_tiles()) {}

  std::string run(entropy e) {
    hide_features(draw_features(e));
    drawn_desc drawn = draw_any_desc(e);
    with_tiles_ = !emulates_tiles_ || e.one_in(8);  // an emulated instruction takes microseconds
    std::string text = e.one_in(8) ? run_damaged(damage(e, drawn.d)) : run_valid(e, drawn);
    hide_features("");
    return text;
  }
  long compared() const { return compared_; }

 private:
  /// Backends that can do it make it; nothing is called, as the sizes may be anything.
  std::string run_damaged(const desc& d) {
    if (!validate(d)) return {};  // make_kernel asks no backend then
    for (const auto& backend : brgemm::backend::built_in()) {
      if (!backend.runs_here()) continue;
      const bool can = static_cast<bool>(backend.supports(d));
      if (can != static_cast<bool>(runner_.make(backend, d)))
        return std::string(backend.name) + ": supports and make differ";
    }
    return {};
  }

  std::string run_valid(entropy& e, const drawn_desc& drawn) {
    const index ranges = row_ranges(drawn.d);
    const index entries = ranges > 0 ? 2 * ranges : fuzz_entries;
    const problem p = draw_problem(e, drawn, entries);
    const index batch = ranges > 0 ? e.between(0, 2) * ranges : e.between(0, entries);
    const guard side = e.pick({guard::before, guard::after});
    const auto x = place(p, batch, side, memory_);
    if (const auto r = validate(p.d); !r) return text_of(p, batch, side) + ": " + std::string(r.error().message());
    if (const auto r = validate(p.d, x); !r) return text_of(p, batch, side) + ": " + std::string(r.error().message());
    outputs expected;
    for (std::size_t i = brgemm::backend::built_in().size(); i-- > 0;) {  // the last one is the reference
      const auto& backend = brgemm::backend::built_in()[i];
      if (!backend.runs_here() || !backend.supports(p.d)) continue;
      if (backend.name == "amx" && !with_tiles_) continue;
      const auto made = runner_.make(backend, p.d);
      if (!made) return std::string(backend.name) + ": " + std::string(made.error().message());
      reset_outputs(p, x);
      (*made)(x);
      std::string text;
      if (expected.c.empty()) {
        expected = collect(p, x);
        text = touched_gap(p, expected);
      } else {
        text = difference(p, expected, x);
      }
      if (!text.empty()) return std::string(backend.name) + " " + text_of(p, batch, side) + ": " + text;
      ++compared_;
    }
    return {};
  }

  problem_memory memory_;
  code_runner runner_;
  bool emulates_tiles_;
  bool with_tiles_ = true;
  long compared_ = 0;
};

}  // namespace brgemm_test
