// What debuggers and profilers are told: the GDB JIT interface (with gdb itself where it is installed), perf's files.
#include "brgemm/backend/jit_registry.hpp"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unwind.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "kernel/fake_backend.hpp"
#include "support/features.hpp"

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
    for (auto* file : {&registry::state.map_file, &registry::state.dump_file}) file->close();
    registry::state.process = 0;  // the next begin anew
  }
  static std::string dump_path() { return "/tmp/jit-" + std::to_string(getpid()) + ".dump"; }
  static result<kernel> make() { return make_kernel(fake::problem(42), {.backend = "fake"}); }

  /// `make_child` is fork, by whatever way.
  void expect_own_map_of_child(pid_t (*make_child)()) {
    registry::set_targets("perf");
    const auto k = make();
    ASSERT_TRUE(k);
    const pid_t child = make_child();
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
};

TEST_F(JitRegistry, TellsNobodyUnlessAsked) {
  registry::set_targets("");
  ASSERT_TRUE(make());
  EXPECT_EQ(__jit_debug_descriptor.first, nullptr);
  EXPECT_NE(access(map_path().c_str(), F_OK), 0);
}

/// The environment is long, so that it is still being read when the other thread sets something else.
TEST_F(JitRegistry, WhatATestSetsStandsThoughTheEnvironmentIsBeingRead) {
  std::string list = "perf";
  for (int i = 0; i < 100'000; ++i) list += ",perf";
  setenv("BRGEMM_JIT_PROFILE", list.c_str(), 1);
  int overwritten = 0;
  for (int round = 0; round < 20; ++round) {
    registry::targets = -1;  // as before the first kernel
    std::atomic<bool> reading{false};
    std::thread reader([&reading] {
      reading = true;
      static_cast<void>(registry::wanted());
    });
    while (!reading) std::this_thread::yield();
    registry::set_targets("gdb");
    reader.join();
    overwritten += registry::wanted() != registry::to_gdb ? 1 : 0;
  }
  unsetenv("BRGEMM_JIT_PROFILE");
  EXPECT_EQ(overwritten, 0);
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
  expect_own_map_of_child([] { return fork(); });
}

/// Made without handlers: it must see by itself that the file is not its own.
TEST_F(JitRegistry, AChildMadeWithoutHandlersHasItsOwnMap) {
  expect_own_map_of_child([] { return static_cast<pid_t>(syscall(SYS_fork)); });
}

/// A program that closes all files, as daemons do, and then has its own under these numbers.
TEST_F(JitRegistry, FilesOfTheProgramAreNotWritten) {
  registry::set_targets("perf,jitdump");
  const auto k = make();
  ASSERT_TRUE(k);
  const std::size_t dumped = contents(dump_path()).size();
  const int numbers[] = {registry::state.map_file.number(), registry::state.dump_file.number()};
  const int own = memfd_create("own", 0);
  for (const int number : numbers) ASSERT_EQ(dup2(own, number), number);
  const auto other = make_kernel(fake::problem(43), {.backend = "fake"});
  ASSERT_TRUE(other);
  EXPECT_EQ(lseek(own, 0, SEEK_END), 0);
  EXPECT_EQ(contents(map_path()), map_line(*k) + map_line(*other));
  EXPECT_EQ(contents(dump_path()).size(), 2 * dumped - sizeof(registry::dump_header));
  ::close(own);
  for (const int number : numbers) ::close(number);
}

TEST_F(JitRegistry, AStaleFileIsEmptiedAndAnotherCopysIsNot) {
  { std::ofstream(map_path()) << "left by an earlier process\n"; }
  registry::set_targets("perf");
  const auto k = make();
  ASSERT_TRUE(k);
  EXPECT_EQ(contents(map_path()), map_line(*k));
  backend::kept_file copy;
  bool begun = false;  // as another shared object's registry would
  EXPECT_TRUE(registry::open_own_file(copy, begun, map_path().c_str()));
  EXPECT_EQ(contents(map_path()), map_line(*k));
  copy.close();
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

/// What the unwinder says of a kernel's caller at each of its instructions, against what was there on entry.
struct stepped {
  std::uintptr_t first = 0;  // the kernel's code
  std::uintptr_t end = 0;
  greg_t entry[NGREG] = {};
  long steps = 0;
  long wrong = 0;
  std::uintptr_t wrong_at = 0;
  std::set<std::uintptr_t>* seen = nullptr;
};
stepped walk;

/// The frame behind the kernel's: its address, its stack pointer and the registers that a function must keep.
_Unwind_Reason_Code look_at_frame(_Unwind_Context* context, void* state) {
  auto& frames = *static_cast<int*>(state);  // 0: not yet at the kernel; 1: the kernel was the last
  const std::uintptr_t at = _Unwind_GetIP(context);
  if (frames == 0) {
    frames = at >= walk.first && at < walk.end ? 1 : 0;
    return _URC_NO_REASON;
  }
  const auto stack = static_cast<std::uintptr_t>(walk.entry[REG_RSP]);
  bool right = at == *reinterpret_cast<const std::uintptr_t*>(stack) && _Unwind_GetCFA(context) == stack + 8;
  constexpr std::pair<int, int> kept[] = {{3, REG_RBX},  {6, REG_RBP},  {12, REG_R12},
                                          {13, REG_R13}, {14, REG_R14}, {15, REG_R15}};
  for (const auto& [dwarf, in_context] : kept) {
    right = right && _Unwind_GetGR(context, dwarf) == static_cast<std::uintptr_t>(walk.entry[in_context]);
  }
  frames = right ? 2 : 3;
  return _URC_END_OF_STACK;
}

void on_step(int, siginfo_t*, void* context) {
  const auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const auto at = static_cast<std::uintptr_t>(registers[REG_RIP]);
  if (at < walk.first || at >= walk.end) return;
  if (at == walk.first) std::copy(std::begin(registers), std::end(registers), walk.entry);
  ++walk.steps;
  walk.seen->insert(at);
  int frames = 0;
  _Unwind_Backtrace(look_at_frame, &frames);
  if (frames == 2) return;
  ++walk.wrong;
  walk.wrong_at = at - walk.first;
}

extern "C" void __register_frame(void*);  // libgcc: unwind information of generated code
extern "C" void __deregister_frame(void*);

/// Runs a kernel one instruction at a time, and unwinds from each of them.
void step_through(const kernel& k, const arguments& x) {
  const auto& code = kernel_access::record_of(k);
  walk = {};
  walk.first = reinterpret_cast<std::uintptr_t>(code.pages.address);
  walk.end = walk.first + code.program.code_bytes;
  std::set<std::uintptr_t> seen;
  walk.seen = &seen;
  ASSERT_NE(__jit_debug_descriptor.first, nullptr);
  auto* object = static_cast<registry::object_file*>(const_cast<void*>(__jit_debug_descriptor.first->object));
  ASSERT_EQ(object->frame.code, walk.first);
  ASSERT_EQ(object->frame.bytes, code.program.code_bytes);
  __register_frame(&object->frame);
  struct sigaction action {};
  struct sigaction before {};
  action.sa_sigaction = on_step;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGTRAP, &action, &before);
  __asm__ volatile("sub $128, %%rsp\n pushfq\n orl $0x100, (%%rsp)\n popfq\n add $128, %%rsp" ::: "memory", "cc");
  k(x);
  __asm__ volatile("sub $128, %%rsp\n pushfq\n andl $~0x100, (%%rsp)\n popfq\n add $128, %%rsp" ::: "memory", "cc");
  sigaction(SIGTRAP, &before, nullptr);
  __deregister_frame(&object->frame);
  EXPECT_GT(walk.steps, 20);
  EXPECT_EQ(walk.wrong, 0) << "of " << walk.steps << " steps, the last at +" << walk.wrong_at << " of "
                           << k.name().c_str();
  const auto has_return = std::any_of(
      seen.begin(), seen.end(), [](std::uintptr_t at) { return *reinterpret_cast<const std::uint8_t*>(at) == 0xc3; });
  EXPECT_TRUE(has_return);
}

/// Real kernels: with and without registers to save, with functions behind the kernel's own `ret`.
TEST_F(JitRegistry, UnwindsFromEveryInstructionOfRealKernels) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "sanitizers take the signals";
#endif
  registry::set_targets("gdb");
  brgemm_test::show_tiles();
  std::vector<float> a(64 * 64, 0.5f), b(64 * 64, 0.25f), c(64 * 64);
  arguments x;
  x.a = a.data(), x.b = b.data(), x.c = c.data(), x.batch = 1;
  x.lda = x.ldb = x.ldc = 64;
  std::set<std::size_t> saved;  // how many registers kernels saved
  int kernels = 0;
  for (const backend::entry& e : backend::built_in()) {
    if (!e.runs_here() || e.name == "reference") continue;
    for (int kind = 0; kind < 4; ++kind) {
      for (brgemm::index m : {1, 7, 14, 20}) {
        desc d;
        if (e.name == "amx") d.a = d.b = type::bf16, d.layout_b = layout::interleaved, d.sums = order::tile;
        d.m = m, d.n = 19, d.k = 5;
        d.lda = d.ldb = d.ldc = 64;
        if (kind >= 1) d.ldc = at_call;
        if (kind >= 2) d.lda = d.ldb = at_call;
        if (kind == 3) append(append(d, op::gelu_erf()), op::tanh());
        const auto k = make_kernel(d, {.backend = e.name});
        ASSERT_TRUE(k) << k.error().message();
        step_through(*k, x);
        std::size_t pushes = 0;
        const std::uint8_t* at = kernel_access::record_of(*k).pages.address + 8;
        for (; *at == 0x53 || (*at == 0x41 && (at[1] & 0xf8) == 0x50); at += *at == 0x53 ? 1 : 2) ++pushes;
        saved.insert(pushes);
        ++kernels;
      }
    }
    clear_code_cache();
  }
  if (kernels == 0) GTEST_SKIP() << "no generated code on this machine";
  EXPECT_TRUE(saved.contains(0));
  EXPECT_GE(*saved.rbegin(), 3u);
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
  const std::string command = std::string("gdb -nx -batch -ex run -ex bt -ex 'stepi 3' ") +
                              "-ex 'echo at ret' -ex bt -ex kill --args '" + self.data() +
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
  const auto at_ret = output.find("at ret");  // with the frame gone: pop r12; pop rbx; pop rbp
  ASSERT_NE(at_ret, std::string::npos) << output;
  EXPECT_LT(output.find(name_of_42, at_ret), output.find("caller_of_the_kernel", at_ret)) << output;
  EXPECT_LT(output.find("caller_of_the_kernel", at_ret), output.find("DISABLED_Trap", at_ret)) << output;
}

}  // namespace
