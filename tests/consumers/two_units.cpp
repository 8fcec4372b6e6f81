// Two translation units with different flags in one program.
#include <cstdio>

extern "C" unsigned long long use();
extern "C" unsigned long long use_with_other_flags();

int main() {
  const unsigned long long one = use(), other = use_with_other_flags();
  std::printf("digest %llx and %llx\n", one, other);
  return one != 0 && one == other ? 0 : 1;
}
