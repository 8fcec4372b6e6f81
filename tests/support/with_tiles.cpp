// Linked to every test: BRGEMM_TEST_TILES=1 runs it as on a CPU with AMX, whose instructions are emulated where it has
// none.
#include <cstdlib>

#include "support/features.hpp"

namespace {

bool show() {
  if (std::getenv("BRGEMM_TEST_TILES") == nullptr || !brgemm_test::show_tiles()) return false;
  const char* hidden = std::getenv("BRGEMM_CPU");
  brgemm_test::hide_features(hidden != nullptr ? hidden : "");
  return true;
}
[[maybe_unused]] const bool emulated = show();

}  // namespace
