// The machine code of kernels as NVIDIA's nvdisasm prints it: which instructions multiply, and that nothing lives in
// local memory. Skipped where NVRTC or nvdisasm (BRGEMM_NVDISASM, else in PATH) is not.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>

#include "compiler.hpp"

namespace brgemm::cuda {
namespace {

std::string disassembler() {
  const char* const named = std::getenv("BRGEMM_NVDISASM");
  return named != nullptr && *named != 0 ? named : "nvdisasm";
}

std::string output_of(const std::string& command) {
  std::string text;
  if (FILE* const pipe = ::popen((command + " 2>&1").c_str(), "r"); pipe != nullptr) {
    char part[4096];
    while (const std::size_t size = std::fread(part, 1, sizeof part, pipe)) text.append(part, size);
    if (::pclose(pipe) != 0) text.insert(0, "failed: ");
  }
  return text;
}

/// How often each instruction occurs, with its modifiers: "FFMA", "HMMA.16816.F32.BF16".
std::map<std::string, int> instructions_of(const std::vector<char>& code) {
  char file[] = "/tmp/brgemm-machine-code-XXXXXX";
  const int descriptor = ::mkstemp(file);
  if (descriptor < 0) return {};
  ::close(descriptor);
  std::ofstream(file, std::ios::binary).write(code.data(), static_cast<std::streamsize>(code.size()));
  const std::string text = output_of("'" + disassembler() + "' " + file);
  std::remove(file);
  std::map<std::string, int> found;
  std::istringstream lines(text);
  for (std::string line, address, name; std::getline(lines, line);) {  // "/*0a30*/  @!P0 FFMA R1, R2, R3, R1 ;"
    std::istringstream words(line);
    if (!(words >> address >> name) || !address.starts_with("/*")) continue;
    if (name.front() == '@') words >> name;
    if (std::isupper(static_cast<unsigned char>(name.front())) != 0) ++found[name];
  }
  return found;
}

constexpr int few = 8;  ///< constants are loaded by some of them

struct multiplication {
  type of;
  order sums;
  std::string instruction;                ///< that multiplies
  int least;                              ///< of them: as many as a thread's products in a step of k
  std::vector<std::string> not_expected;  ///< beginnings of those that would sum otherwise
};

TEST(GpuMachineCode, MultipliesByTheRightInstructionsAndSpillsNothing) {
  if (const auto there = check_compiler({8, 0}); !there) GTEST_SKIP() << there.error().message();
  const std::string version = output_of("'" + disassembler() + "' --version");
  if (version.starts_with("failed: ") || version.find("NVIDIA") == std::string::npos) {
    GTEST_SKIP() << "no nvdisasm: " << version.substr(0, version.find('\n'));
  }
  const multiplication all[] = {
      {type::f32, order::machine, "FFMA", 512, {"HMMA", "FMUL"}},
      {type::f64, order::machine, "DFMA", 256, {"DMMA", "DMUL"}},
      {type::f16, order::chain, "FFMA", 512, {"HMMA", "HFMA2", "HMUL2", "FMUL"}},
      {type::f16, order::machine, "HMMA.16816.F32", 16, {"FFMA"}},
      {type::bf16, order::machine, "HMMA.16816.F32.BF16", 16, {"FFMA"}},
      {type::e4m3, order::machine, "HMMA.16816.F32", 16, {"FFMA"}},
      {type::tf32, order::machine, "HMMA.1688.F32.TF32", 16, {"FFMA"}},
      {type::tf32, order::chain, "FFMA", 512, {"HMMA"}},
      {type::s8, order::machine, "IMAD", 512, {"FFMA", "IMMA", "IDP"}},
  };
  for (const multiplication& m : all) {
    for (const capability c : {capability{8, 0}, capability{9, 0}}) {
      desc d;
      d.m = d.n = d.k = d.lda = d.ldb = d.ldc = 64;
      d.where = place::gpu;
      d.a = d.b = m.of, d.c = m.of == type::s8 ? type::s32 : m.of == type::tf32 ? type::f32 : m.of;
      d.sums = m.sums;
      const auto made = compile(d, c);
      ASSERT_TRUE(made) << made.error().message();
      const auto found = instructions_of(made->code);
      const std::string what = std::string(name_of(m.of)) + ", sm_" + std::to_string(c.major) + std::to_string(c.minor);
      const int products = found.contains(m.instruction) ? found.at(m.instruction) : 0;
      EXPECT_GE(products, m.least) << what;
      for (const auto& [name, count] : found) {
        EXPECT_FALSE(name.starts_with("LDL") || name.starts_with("STL")) << what << ": " << name;
        for (const std::string& other : m.not_expected)
          EXPECT_FALSE(name.starts_with(other) && count > few) << what << ": " << name;
      }
      std::printf("%s: %d of %s\n", what.c_str(), products, m.instruction.c_str());
    }
  }
}

}  // namespace
}  // namespace brgemm::cuda
