// Memory for code: each of the three ways, what the system shows of it, failures, fork.
#include "brgemm/backend/executable_memory.hpp"

#include <dirent.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <set>
#include <string>
#include <vector>

namespace {

using namespace brgemm;
using backend::code_pages;
using backend::current_system_calls;
using backend::system_calls;

/// `mov eax, value; ret`
std::vector<std::uint8_t> returning(std::uint32_t value) {
  std::vector<std::uint8_t> code{0xb8, 0, 0, 0, 0, 0xc3};
  std::memcpy(code.data() + 1, &value, 4);
  return code;
}

std::uint32_t call(const code_pages& pages) {
  return reinterpret_cast<std::uint32_t (*)()>(reinterpret_cast<std::uintptr_t>(pages.address))();
}

/// The protection that the system shows for an address, "r-xp".
std::string protection_of(const void* p) {
  std::FILE* maps = std::fopen("/proc/self/maps", "r");
  const auto at = reinterpret_cast<std::uintptr_t>(p);
  std::uintptr_t first = 0, end = 0;
  char flags[5] = "";
  std::string found;
  char line[512];
  while (std::fgets(line, sizeof line, maps) != nullptr) {
    if (std::sscanf(line, "%zx-%zx %4s", &first, &end, flags) == 3 && first <= at && at < end) found = flags;
  }
  std::fclose(maps);
  return found;
}

std::size_t open_files() {
  std::size_t count = 0;
  DIR* folder = opendir("/proc/self/fd");
  while (readdir(folder) != nullptr) ++count;
  closedir(folder);
  return count;
}

// Counts what is taken and not given back, through the table itself.
std::size_t mapped_bytes = 0;
void* counting_map(void* at, std::size_t bytes, int protection, int flags, int fd, off_t offset) noexcept {
  void* p = ::mmap(at, bytes, protection, flags, fd, offset);
  if (p != MAP_FAILED && (flags & MAP_FIXED) == 0) mapped_bytes += bytes;
  return p;
}
int counting_unmap(void* at, std::size_t bytes) noexcept {
  mapped_bytes -= bytes;
  return ::munmap(at, bytes);
}
int deny() noexcept {
  errno = EACCES;
  return -1;
}

class ExecutableMemory : public testing::Test {
 protected:
  void SetUp() override { start_anew(); }
  void TearDown() override {
    current_system_calls = backend::real_system_calls;
    start_anew();
  }
  /// So that the next installation opens the memory file and reserves pages anew, by the table of the test.
  static void start_anew() {
    auto& state = backend::code_memory::state;
    if (state.memory_file >= 0) ::close(state.memory_file);
    state.memory_file = -1;
    if (state.next != state.end) ::munmap(state.next, static_cast<std::size_t>(state.end - state.next));
    state.next = state.end = nullptr;
  }
  static void deny_memory_file() { current_system_calls.open_memory = deny; }
  static void deny_protection() {
    current_system_calls.protect = [](void*, std::size_t, int) noexcept { return deny(); };
  }
  static void deny_file() { current_system_calls.create_file = deny; }

  static void expect_runs() {
    const auto pages = backend::install_code(returning(4711));
    ASSERT_TRUE(pages) << pages.error().message();
    EXPECT_EQ(call(*pages), 4711u);
    EXPECT_EQ(protection_of(pages->address), "r-xp");
    EXPECT_EQ(pages->bytes % static_cast<std::size_t>(sysconf(_SC_PAGESIZE)), 0u);
    backend::release_code(*pages, true);
  }
};

TEST_F(ExecutableMemory, RunsByMemoryFile) {
  current_system_calls.create_file = deny;
  expect_runs();
}

TEST_F(ExecutableMemory, RunsByProtection) {
  deny_memory_file();
  deny_file();
  expect_runs();
}

TEST_F(ExecutableMemory, RunsByFileWhereProtectionIsDenied) {
  deny_protection();
  expect_runs();
}

TEST_F(ExecutableMemory, MemoryFileThatWritesElsewhereIsNoticed) {
  current_system_calls.write = [](int, const void*, std::size_t bytes, off_t) noexcept {
    return static_cast<ssize_t>(bytes);  // and wrote nothing here
  };
  expect_runs();
}

TEST_F(ExecutableMemory, ErrorSaysWhyNoneIsAllowed) {
  deny_protection();
  current_system_calls.create_file = []() noexcept {
    errno = EPERM;
    return -1;
  };
  const auto pages = backend::install_code(returning(1));
  ASSERT_FALSE(pages);
  EXPECT_EQ(pages.error().code(), errc::code_memory);
  EXPECT_NE(pages.error().message().find("EACCES"), std::string_view::npos) << pages.error().message();
  EXPECT_NE(pages.error().message().find("EPERM"), std::string_view::npos) << pages.error().message();
}

/// Makes the n-th of all calls to the system fail, for every n, and sees that nothing is left behind.
TEST_F(ExecutableMemory, FailuresLeakNothing) {
  static int countdown = 0;
  static const auto fails = [] { return --countdown == 0; };
  deny_memory_file();  // ways 2 and 3 keep nothing between kernels, so all can be counted
  current_system_calls.map = [](void* at, std::size_t bytes, int protection, int flags, int fd, off_t offset) noexcept {
    return fails() ? (errno = ENOMEM, MAP_FAILED) : counting_map(at, bytes, protection, flags, fd, offset);
  };
  current_system_calls.unmap = counting_unmap;
  current_system_calls.protect = [](void*, std::size_t, int) noexcept {
    --countdown;
    return deny();
  };
  current_system_calls.create_file = []() noexcept {
    return fails() ? (errno = EMFILE, -1) : backend::real_system_calls.create_file();
  };
  current_system_calls.write = [](int fd, const void* data, std::size_t bytes, off_t at) noexcept {
    return fails() ? (errno = ENOSPC, ssize_t{-1}) : ::pwrite(fd, data, bytes, at);
  };
  int failed = 0;
  const std::size_t files = open_files();
  for (int n = 1; n <= 8; ++n) {
    countdown = n;
    mapped_bytes = 0;
    const auto pages = backend::install_code(returning(1));
    if (!pages) {
      ++failed;
      EXPECT_EQ(pages.error().code(), errc::code_memory);
    } else {
      EXPECT_EQ(mapped_bytes, pages->bytes);
      backend::release_code(*pages, true);
    }
    EXPECT_EQ(mapped_bytes, 0u) << "call " << n;
    EXPECT_EQ(open_files(), files) << "call " << n;
  }
  EXPECT_EQ(failed, 3);  // create_file, write, the last map; the first map and protect have a way round them
}

TEST_F(ExecutableMemory, PagesOfFailedWaysAreGivenBack) {
  current_system_calls.map = counting_map;
  current_system_calls.unmap = counting_unmap;
  current_system_calls.write = [](int, const void*, std::size_t, off_t) noexcept -> ssize_t {
    errno = EIO;
    return -1;
  };
  current_system_calls.create_file = deny;
  mapped_bytes = 0;
  for (int i = 0; i < 1000; ++i) {
    const auto pages = backend::install_code(returning(1));
    ASSERT_TRUE(pages);
    backend::release_code(*pages, true);
  }
  EXPECT_LE(static_cast<std::ptrdiff_t>(mapped_bytes), 256 * 1024);  // what is reserved and untouched
}

TEST_F(ExecutableMemory, AddressesAreNotUsedAgainWithoutABarrier) {
  deny_memory_file();
  std::set<std::uint8_t*> seen;
  for (std::uint32_t i = 0; i < 100; ++i) {
    const auto pages = backend::install_code(returning(i));
    ASSERT_TRUE(pages);
    EXPECT_EQ(call(*pages), i);
    EXPECT_TRUE(seen.insert(pages->address).second);
    backend::release_code(*pages, false);
    EXPECT_EQ(protection_of(pages->address), "---p");
  }
}

TEST_F(ExecutableMemory, ReusedAddressesRunTheNewCode) {
  for (std::uint32_t i = 0; i < 1000; ++i) {
    const auto pages = backend::install_code(returning(i));
    ASSERT_TRUE(pages);
    ASSERT_EQ(call(*pages), i);
    backend::release_code(*pages, true);
  }
}

/// Runs `child` in a fork and returns its exit status.
template <class F>
int in_child(F child) {
  const pid_t pid = fork();
  if (pid == 0) _exit(child());
  int status = -1;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + status;
}

/// The cache calls these around fork; here there is no cache.
template <class F>
void fork_is_independent(F prepare) {
  prepare();
  const auto before = backend::install_code(returning(1));
  ASSERT_TRUE(before);
  backend::code_memory::before_fork();
  const int status = in_child([&] {
    backend::code_memory::after_fork(true);
    if (call(*before) != 1) return 1;
    const auto own = backend::install_code(returning(2));  // may have the address of the parent's next
    if (!own || call(*own) != 2) return 2;
    backend::release_code(*before, true);
    for (std::uint32_t i = 0; i < 200; ++i) {
      const auto more = backend::install_code(returning(i));
      if (!more || call(*more) != i) return 3;
    }
    return call(*own) == 2 ? 0 : 4;
  });
  backend::code_memory::after_fork(false);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(call(*before), 1u);
  const auto after = backend::install_code(returning(3));
  ASSERT_TRUE(after);
  EXPECT_EQ(call(*after), 3u);
  EXPECT_EQ(call(*before), 1u);
  backend::release_code(*before, true);
  backend::release_code(*after, true);
}

TEST_F(ExecutableMemory, ForkByMemoryFile) {
  fork_is_independent([] {});
}

TEST_F(ExecutableMemory, AChildDoesNotWriteToItsParentsMemory) {
  const auto before = backend::install_code(returning(1));
  ASSERT_TRUE(before);
  const std::uint8_t* next = backend::code_memory::state.next;  // where both will write, each to its own
  backend::code_memory::before_fork();
  const int status = in_child([&] {
    backend::code_memory::after_fork(true);
    const auto own = backend::install_code(returning(2));
    return own && own->address == next ? 0 : 1;
  });
  backend::code_memory::after_fork(false);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(next[0], 0);
  backend::release_code(*before, true);
}

TEST_F(ExecutableMemory, ForkByProtection) { fork_is_independent(deny_memory_file); }
TEST_F(ExecutableMemory, ForkByFile) { fork_is_independent(deny_protection); }

}  // namespace
