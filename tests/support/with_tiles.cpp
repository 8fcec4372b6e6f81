// Linked to every test: BRGEMM_TEST_TILES=1 runs it as on a CPU with AMX, whose instructions are emulated where it has
// none.
#include <cstdio>
#include <cstdlib>

#include "support/features.hpp"

namespace {

bool show() {
  if (std::getenv("BRGEMM_TEST_TILES") == nullptr) return false;
  const bool emulated = brgemm_test::show_tiles();
  const bool has = brgemm::cpu().has(brgemm::feature::amx_bf16);
  std::printf("[tiles] %s\n", emulated ? "emulated" : has ? "the CPU's own" : "none: no AVX-512 on this CPU");
  return emulated;
}
[[maybe_unused]] const bool emulated = show();

}  // namespace
