// What debuggers and profilers are told: the GDB JIT interface (with gdb itself where it is installed), perf's files.
#include "brgemm/backend/jit_registry.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

#include "kernel/fake_backend.hpp"

namespace {

using namespace brgemm;
namespace registry = backend::jit_registry;

constexpr char name_of_42[] = "brgemm_f32_42x1x1_strd_b0_by0and0";

/// The kernel of a debugger's test: `push rbx; push r12`, both set to 0, then a breakpoint instruction.
result<backend::program> make_trap(const desc&, std::span<std::uint8_t> buffer) noexcept {
  constexpr std::uint8_t code[] = {0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x48, 0x89, 0xe5, 0x53, 0x41, 0x54,
                                   0x31, 0xdb, 0x4d, 0x31, 0xe4, 0xcc, 0x41, 0x5c, 0x5b, 0x5d, 0xc3};
  std::memcpy(buffer.data(), code, sizeof code);
  return backend::program{.code_bytes = sizeof code};
}
constexpr backend::entry trap{"trap", fake::runs_here, fake::supports, make_trap, fake::explain};

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string map_path(pid_t pid = getpid()) { return "/tmp/perf-" + std::to_string(pid) + ".map"; }

std::string map_line(const kernel& k) {
  char line[640];
  const auto& code = kernel_access::record_of(k);
  std::snprintf(line, sizeof line, "%zx %zx %s\n", reinterpret_cast<std::size_t>(code.pages.address),
                code.program.code_bytes, k.name().c_str());
  return line;
}

class JitRegistry : public testing::Test {
 protected:
  void SetUp() override {
    fake::register_all();
    static_cast<void>(backend::register_backend(trap));
    clear_code_cache();
  }
  void TearDown() override {
    clear_code_cache();
    registry::set_targets("");
    close_files();
    std::remove(map_path().c_str());
    std::remove(dump_path().c_str());
  }
  static void close_files() {
    for (int* file : {&registry::state.map_file, &registry::state.dump_file}) {
      if (*file >= 0) ::close(*file);
      *file = -1;
    }
  }
  static std::string dump_path() { return "/tmp/jit-" + std::to_string(getpid()) + ".dump"; }
  static result<kernel> make() { return make_kernel(fake::problem(42), {.backend = "fake"}); }
};

TEST_F(JitRegistry, TellsNobodyUnlessAsked) {
  registry::set_targets("");
  ASSERT_TRUE(make());
  EXPECT_EQ(__jit_debug_descriptor.first, nullptr);
  EXPECT_NE(access(map_path().c_str(), F_OK), 0);
}

TEST_F(JitRegistry, GdbListHoldsAnObjectPerKernel) {
  registry::set_targets("gdb");
  {
    const auto k = make();
    ASSERT_TRUE(k);
    const auto* entry = __jit_debug_descriptor.first;
    ASSERT_NE(entry, nullptr);
    EXPECT_EQ(entry, __jit_debug_descriptor.relevant);
    EXPECT_EQ(__jit_debug_descriptor.action, 1u);
    const auto& object = *static_cast<const registry::object_file*>(entry->object);
    EXPECT_EQ(std::memcmp(object.header.e_ident, ELFMAG, SELFMAG), 0);
    EXPECT_STREQ(object.strings + object.symbols[1].st_name, name_of_42);
    const auto code = kernel_access::record_of(*k).pages.address;
    EXPECT_EQ(object.symbols[1].st_value, reinterpret_cast<std::uintptr_t>(code));
    const auto second = make_kernel(fake::problem(43), {.backend = "fake"});
    EXPECT_EQ(__jit_debug_descriptor.first->next, entry);
  }
  clear_code_cache();
  EXPECT_EQ(__jit_debug_descriptor.first, nullptr);
  EXPECT_EQ(__jit_debug_descriptor.action, 2u);
}

TEST_F(JitRegistry, PerfMapNamesKernels) {
  registry::set_targets("perf");
  const auto k = make();
  ASSERT_TRUE(k);
  EXPECT_EQ(contents(map_path()), map_line(*k));
  EXPECT_NE(contents(map_path()).find(name_of_42), std::string::npos);
}

TEST_F(JitRegistry, AForksChildHasItsOwnMap) {
  registry::set_targets("perf");
  const auto k = make();
  ASSERT_TRUE(k);
  const pid_t child = fork();
  if (child == 0) {
    const auto other = make_kernel(fake::problem(43), {.backend = "fake"});
    _exit(other && contents(map_path()) == map_line(*k) + map_line(*other) ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  std::remove(map_path(child).c_str());
  EXPECT_EQ(status, 0);
  EXPECT_EQ(contents(map_path()), map_line(*k));
}

TEST_F(JitRegistry, AStaleFileIsEmptiedAndAnotherCopysIsNot) {
  { std::ofstream(map_path()) << "left by an earlier process\n"; }
  registry::set_targets("perf");
  const auto k = make();
  ASSERT_TRUE(k);
  EXPECT_EQ(contents(map_path()), map_line(*k));
  const int copy = registry::open_own_file(map_path().c_str());  // as another shared object's registry would
  EXPECT_EQ(contents(map_path()), map_line(*k));
  ::close(copy);
}

TEST_F(JitRegistry, JitdumpHasCodeAndName) {
  registry::set_targets("jitdump");
  const auto k = make();
  ASSERT_TRUE(k);
  const std::string dump = contents(dump_path());
  registry::dump_header header;
  registry::dump_record record;
  ASSERT_EQ(dump.size(), sizeof header + sizeof record + sizeof name_of_42 + 20);
  std::memcpy(&header, dump.data(), sizeof header);
  std::memcpy(&record, dump.data() + sizeof header, sizeof record);
  EXPECT_EQ(header.magic, 0x4A695444u);
  EXPECT_EQ(header.bytes, sizeof header);
  EXPECT_EQ(record.bytes, dump.size() - sizeof header);
  EXPECT_EQ(record.code_bytes, 20u);
  EXPECT_STREQ(dump.data() + sizeof header + sizeof record, name_of_42);
  const auto code = kernel_access::record_of(*k).pages.address;
  EXPECT_EQ(record.address, reinterpret_cast<std::uintptr_t>(code));
  EXPECT_EQ(std::memcmp(dump.data() + dump.size() - 20, code, 20), 0);
}

TEST_F(JitRegistry, UnknownWordsAndUnwritableFilesAreErrors) {
  registry::set_targets("gdb,vtune");
  const auto unknown = make();
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().code(), errc::invalid_argument);
  EXPECT_EQ(unknown.error().field(), "BRGEMM_JIT_PROFILE");
  registry::set_targets("jitdump");
  setenv("JITDUMPDIR", "/proc/nonexistent", 1);
  const auto unwritable = make();
  unsetenv("JITDUMPDIR");
  ASSERT_FALSE(unwritable);
  EXPECT_NE(unwritable.error().message().find("ENOENT"), std::string_view::npos) << unwritable.error().message();
  EXPECT_EQ(code_cache_stats().kernels, 0u);
}

[[gnu::noinline]] void caller_of_the_kernel(const kernel& k) {
  k(arguments{});
  __asm__ volatile("");
}

/// Run under gdb by the next test.
TEST_F(JitRegistry, DISABLED_Trap) {
  registry::set_targets("gdb");
  const auto k = make_kernel(fake::problem(42), {.backend = "trap"});
  ASSERT_TRUE(k);
  caller_of_the_kernel(*k);
}

TEST_F(JitRegistry, GdbShowsTheNameAndUnwinds) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "sanitizers and gdb do not go together";
#endif
  if (std::system("gdb --version >/dev/null 2>&1") != 0) GTEST_SKIP() << "gdb is not installed";
  std::array<char, 4096> self{};
  ASSERT_GT(readlink("/proc/self/exe", self.data(), self.size() - 1), 0);
  const std::string command = std::string("gdb -nx -batch -ex run -ex bt ") + "-ex kill --args '" + self.data() +
                              "' --gtest_also_run_disabled_tests --gtest_filter=JitRegistry.DISABLED_Trap 2>&1";
  std::FILE* pipe = popen(command.c_str(), "r");
  ASSERT_NE(pipe, nullptr);
  std::string output;
  std::array<char, 1024> part{};
  while (std::fgets(part.data(), part.size(), pipe) != nullptr) output += part.data();
  pclose(pipe);
  if (output.find("SIGTRAP") == std::string::npos) GTEST_SKIP() << "gdb cannot run programs here:\n" << output;
  const auto innermost = output.find("#0 ");
  ASSERT_NE(innermost, std::string::npos) << output;
  const auto at_name = output.find(name_of_42, innermost);
  const auto at_caller = output.find("caller_of_the_kernel", innermost);
  EXPECT_LT(at_name, at_caller) << output;
  EXPECT_NE(at_caller, std::string::npos) << output;
  EXPECT_NE(output.find("main (", at_caller), std::string::npos) << output;
}

}  // namespace
