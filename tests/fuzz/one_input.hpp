// What a libFuzzer target does with one input.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

#include "support/entropy.hpp"

namespace brgemm_test {

/// Fuzzer::run says what is wrong; then the program ends, so that libFuzzer keeps the input.
template <class Fuzzer>
int fuzz_one_input(const std::uint8_t* data, std::size_t size) {
  static Fuzzer fuzzer;
  const std::string text = fuzzer.run(entropy(data, size));
  if (text.empty()) return 0;
  std::fprintf(stderr, "%s\n", text.c_str());
  std::abort();
}

}  // namespace brgemm_test
