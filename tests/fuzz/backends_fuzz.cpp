// libFuzzer target: see backends.hpp. Run with -runs=1000000 or -max_total_time=60.
#include "fuzz/backends.hpp"
#include "fuzz/one_input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return brgemm_test::fuzz_one_input<brgemm_test::backend_fuzzer>(data, size);
}
