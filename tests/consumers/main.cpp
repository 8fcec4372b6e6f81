// Prints the digest of use().
#include <cstdio>

extern "C" unsigned long long use();

int main() {
  const unsigned long long digest = use();
  std::printf("digest %llx\n", digest);
  return digest != 0 ? 0 : 1;
}
