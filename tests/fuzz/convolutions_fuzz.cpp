// libFuzzer target: see convolutions.hpp. Run with -runs=100000 or -max_total_time=60.
#include "fuzz/convolutions.hpp"
#include "fuzz/one_input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return brgemm_test::fuzz_one_input<brgemm_test::conv_fuzzer>(data, size);
}
