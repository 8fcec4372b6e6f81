// The guard pages themselves: what lies inside can be used, one byte outside ends the program.
#include "support/guarded_memory.hpp"

#include <gtest/gtest.h>

namespace brgemm_test {
namespace {

TEST(GuardedMemory, InsideIsUsable) {
  const guarded_memory memory(10000);
  for (const guard side : {guard::before, guard::after}) {
    volatile std::byte* const p = memory.place(100, side);
    for (int i = 0; i < 100; ++i) p[i] = std::byte{1};
  }
}

TEST(GuardedMemoryDeathTest, OneByteOutsideIsSeen) {
  const guarded_memory memory(10000);
  volatile std::byte* const first = memory.place(100, guard::before);
  volatile std::byte* const last = memory.place(100, guard::after);
  EXPECT_DEATH(first[-1] = std::byte{1}, "");
  EXPECT_DEATH(last[100] = std::byte{1}, "");
  EXPECT_DEATH(static_cast<void>(last[100]), "");
}

}  // namespace
}  // namespace brgemm_test
