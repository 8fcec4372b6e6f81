// libFuzzer target: see convolutions.hpp. Run with -runs=100000 or -max_total_time=60.
#include <cstdio>
#include <cstdlib>

#include "fuzz/convolutions.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static brgemm_test::conv_fuzzer fuzzer;
  const std::string text = fuzzer.run(brgemm_test::entropy(data, size));
  if (!text.empty()) {
    std::fprintf(stderr, "%s\n", text.c_str());
    std::abort();
  }
  return 0;
}
