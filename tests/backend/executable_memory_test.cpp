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
    backend::set_code_memory("");
    start_anew();
  }
  /// So that the next installation opens the memory file and reserves pages anew, by the table of the test.
  static void start_anew() {
    auto& state = backend::code_memory::state;
    state.memory_file.close();
    if (state.memory_file_is_own != nullptr) ::munmap(state.memory_file_is_own, page);
    state.memory_file_is_own = nullptr;
    if (state.next != state.end) ::munmap(state.next, static_cast<std::size_t>(state.end - state.next));
    state.next = state.end = nullptr;
    state.retired_first = state.retired_end = 0;
  }
  static inline const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
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
    EXPECT_EQ(pages->bytes % page, 0u);
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
  deny_memory_file();
  deny_protection();
  expect_runs();
}

/// As Linux 6.12 and later do with proc_mem.force_override=never: the file opens, and what it would force fails.
TEST_F(ExecutableMemory, MemoryFileThatMayNotForceWritesIsPassedOver) {
  static int refused = 0;
  refused = 0;
  current_system_calls.write = [](int fd, const void* data, std::size_t bytes, off_t at) noexcept {
    if (fd == backend::code_memory::state.memory_file.number()) return ++refused, errno = EIO, ssize_t{-1};
    return ::pwrite(fd, data, bytes, at);
  };
  expect_runs();
  deny_protection();
  expect_runs();
  EXPECT_EQ(refused, 2);
}

TEST_F(ExecutableMemory, AUserChoosesTheWays) {
  static std::string taken;  // the calls that show which way it was
  current_system_calls.open_memory = []() noexcept { return taken += 'o', backend::real_system_calls.open_memory(); };
  current_system_calls.protect = [](void* at, std::size_t bytes, int protection) noexcept {
    return taken += 'p', ::mprotect(at, bytes, protection);
  };
  current_system_calls.create_file = []() noexcept { return taken += 'c', backend::real_system_calls.create_file(); };
  for (const auto& [list, calls] : {std::pair("/proc/self/mem", "o"), std::pair("mprotect", "p"),
                                    std::pair("memfd", "c"), std::pair("memfd,mprotect", "p"), std::pair("", "o")}) {
    start_anew();
    taken.clear();
    backend::set_code_memory(list);
    expect_runs();
    EXPECT_EQ(taken, calls) << list;
  }
}

TEST_F(ExecutableMemory, UnknownWaysAndForbiddenOnesAreErrors) {
  backend::set_code_memory("memfd,mmap");
  const auto unknown = backend::install_code(returning(1));
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().code(), errc::invalid_argument);
  EXPECT_EQ(unknown.error().field(), "BRGEMM_CODE_MEMORY");
  backend::set_code_memory("memfd");
  deny_file();
  const auto forbidden = backend::install_code(returning(1));
  ASSERT_FALSE(forbidden);
  EXPECT_EQ(
      forbidden.error().message(),
      "no memory for 4096 bytes of code: /proc/self/mem: not permitted by BRGEMM_CODE_MEMORY; mprotect: not permitted "
      "by BRGEMM_CODE_MEMORY; memfd: EACCES (denied). options.backend or BRGEMM_BACKEND = reference needs none");
}

TEST_F(ExecutableMemory, TheEnvironmentChooses) {
  setenv("BRGEMM_CODE_MEMORY", "memfd", 1);
  backend::code_memory::permitted_ways = 0;  // as before the first kernel
  deny_file();
  EXPECT_FALSE(backend::install_code(returning(1)));
  unsetenv("BRGEMM_CODE_MEMORY");
  backend::code_memory::permitted_ways = 0;
  EXPECT_TRUE(backend::install_code(returning(1)));
}

TEST_F(ExecutableMemory, MemoryFileThatWritesElsewhereIsNoticed) {
  current_system_calls.write = [](int, const void*, std::size_t bytes, off_t) noexcept {
    return static_cast<ssize_t>(bytes);  // and wrote nothing here
  };
  expect_runs();
}

TEST_F(ExecutableMemory, ErrorSaysWhyNoneIsAllowed) {
  current_system_calls.open_memory = []() noexcept { return errno = ENOENT, -1; };
  deny_protection();
  current_system_calls.create_file = []() noexcept { return errno = EPERM, -1; };
  const auto pages = backend::install_code(returning(1));
  ASSERT_FALSE(pages);
  EXPECT_EQ(pages.error().code(), errc::code_memory);
  EXPECT_EQ(pages.error().message(),
            "no memory for 4096 bytes of code: /proc/self/mem: ENOENT (no such file); mprotect: EACCES (denied); "
            "memfd: EPERM (not permitted). options.backend or BRGEMM_BACKEND = reference needs none");
}

/// Makes the n-th of all calls to the system fail, for every n, first with one way after another permitted alone, then
/// with all of them; and sees that nothing is left behind.
TEST_F(ExecutableMemory, FailuresLeakNothing) {
  static int countdown = 0;
  static const auto fails = [] { return --countdown == 0; };
  current_system_calls.map = [](void* at, std::size_t bytes, int protection, int flags, int fd, off_t offset) noexcept {
    return fails() ? (errno = ENOMEM, MAP_FAILED) : counting_map(at, bytes, protection, flags, fd, offset);
  };
  current_system_calls.unmap = counting_unmap;
  current_system_calls.protect = [](void* at, std::size_t bytes, int protection) noexcept {
    return fails() ? deny() : ::mprotect(at, bytes, protection);
  };
  current_system_calls.advise = [](void* at, std::size_t bytes, int advice) noexcept {
    return fails() ? (errno = EINVAL, -1) : ::madvise(at, bytes, advice);
  };
  current_system_calls.open_memory = []() noexcept {
    return fails() ? deny() : backend::real_system_calls.open_memory();
  };
  current_system_calls.create_file = []() noexcept {
    return fails() ? (errno = EMFILE, -1) : backend::real_system_calls.create_file();
  };
  current_system_calls.write = [](int fd, const void* data, std::size_t bytes, off_t at) noexcept {
    return fails() ? (errno = ENOSPC, ssize_t{-1}) : ::pwrite(fd, data, bytes, at);
  };
  // Calls of each way that can fail: map, advise, open, map, write; map, protect; create, write, map. All together
  // never fail.
  for (const auto& [ways, calls] :
       {std::pair("/proc/self/mem", 5), std::pair("mprotect", 2), std::pair("memfd", 3), std::pair("", 0)}) {
    backend::set_code_memory(ways);
    int failed = 0;
    for (int n = 1; n <= 8; ++n) {
      start_anew();
      const std::size_t files = open_files();
      countdown = n;
      mapped_bytes = 0;
      const auto pages = backend::install_code(returning(1));
      countdown = 0;
      if (!pages) {
        ++failed;
        EXPECT_EQ(pages.error().code(), errc::code_memory);
      } else {
        EXPECT_EQ(call(*pages), 1u);
        backend::release_code(*pages, true);
      }
      const auto& state = backend::code_memory::state;
      const std::size_t kept = static_cast<std::size_t>(state.end - state.next) + (state.memory_file_is_own ? page : 0);
      EXPECT_EQ(mapped_bytes, kept) << ways << ", call " << n;
      EXPECT_EQ(open_files(), files + (state.memory_file.is_open() ? 1 : 0)) << ways << ", call " << n;
    }
    EXPECT_EQ(failed, calls) << ways;
  }
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

/// A barrier when pages that held code are handed out again, and only then; one for all that were given back before.
TEST_F(ExecutableMemory, OneBarrierServesAllPagesGivenBackBefore) {
  static int barriers = 0;
  static std::uint8_t* place = nullptr;  // where the next mapping goes
  current_system_calls.barrier = [](int command) noexcept {
    return ++barriers, backend::real_system_calls.barrier(command);
  };
  current_system_calls.map = [](void*, std::size_t bytes, int protection, int flags, int fd, off_t offset) noexcept {
    void* at = place;
    place += bytes;
    return ::mmap(at, bytes, protection, flags | MAP_FIXED, fd, offset);
  };
  constexpr std::size_t room = 64 * 4096;
  auto* const base = static_cast<std::uint8_t*>(::mmap(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  backend::set_code_memory("mprotect");
  const auto install_at = [](std::uint8_t* p) {
    place = p;
    const auto pages = backend::install_code(returning(7));
    EXPECT_TRUE(pages && pages->address == p && call(*pages) == 7);
    return *pages;
  };
  ASSERT_TRUE(backend::code_memory::serialise_cores());  // registers the process
  barriers = 0;
  std::vector<code_pages> all;
  for (int i = 0; i < 8; ++i) all.push_back(install_at(base + 4096 * i));
  EXPECT_EQ(barriers, 0);  // never used before
  for (const auto& pages : all) backend::release_code(pages, true);
  all.clear();
  all.push_back(install_at(base + 4096 * 20));
  EXPECT_EQ(barriers, 0);  // elsewhere
  for (int i = 0; i < 8; ++i) all.push_back(install_at(base + 4096 * i));
  EXPECT_EQ(barriers, 1);  // eight that were given back
  backend::release_code(all.back(), true);
  all.pop_back();
  all.push_back(install_at(base + 4096 * 7));
  EXPECT_EQ(barriers, 2);  // given back since
  ::munmap(base, room);
}

/// Where the barrier is denied after pages were given back, other addresses are found, as often as it takes, and those
/// pages' stay reserved.
TEST_F(ExecutableMemory, PagesGivenBackBeforeTheBarrierWasDeniedAreNotUsedAgain) {
  for (const char* way : {"/proc/self/mem", "mprotect", "memfd"}) {
    current_system_calls.barrier = backend::real_system_calls.barrier;
    start_anew();
    backend::set_code_memory(way);
    std::vector<code_pages> all;
    for (std::uint32_t i = 0; i < 100; ++i) all.push_back(*backend::install_code(returning(i)));
    auto& state = backend::code_memory::state;
    if (state.next != state.end) ::munmap(state.next, static_cast<std::size_t>(state.end - state.next));
    state.next = state.end = nullptr;  // so that way 1 maps pages too
    std::set<std::uint8_t*> held_code;
    for (const auto& pages : all) {
      held_code.insert(pages.address);
      backend::release_code(pages, true);
    }
    current_system_calls.barrier = [](int) noexcept { return errno = EPERM, -1; };
    std::vector<code_pages> later;
    for (std::uint32_t i = 0; i < 200; ++i) {
      const auto pages = backend::install_code(returning(i));
      ASSERT_TRUE(pages) << way << ": " << pages.error().message();
      EXPECT_EQ(call(*pages), i);
      EXPECT_EQ(held_code.count(pages->address), 0u) << way;
      later.push_back(*pages);
    }
    for (const auto& pages : later) backend::release_code(pages, false);
  }
}

/// Where the pages that held code take all addresses below too, nothing is left to try.
TEST_F(ExecutableMemory, ADeniedBarrierIsTheReasonWhereNoOtherAddressesAreLeft) {
  deny_memory_file();
  deny_file();
  auto& state = backend::code_memory::state;
  state.retired_first = 4096;
  state.retired_end = ~std::uintptr_t{0};
  current_system_calls.barrier = [](int) noexcept { return errno = EPERM, -1; };
  const auto refused = backend::install_code(returning(7));
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message().find("mprotect: EPERM"), std::string_view::npos) << refused.error().message();
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

/// A program that closes all files, as daemons do, and then has one of its own under the number.
TEST_F(ExecutableMemory, AFileOfTheProgramIsNeitherWrittenNorClosed) {
  expect_runs();
  const int number = backend::code_memory::state.memory_file.number();
  ASSERT_GE(number, 0);
  const int own = memfd_create("own", 0);
  ASSERT_EQ(dup2(own, number), number);
  backend::code_memory::before_fork();
  const int status = in_child([number] {
    backend::code_memory::after_fork(true);
    return fcntl(number, F_GETFD) >= 0 ? 0 : 1;
  });
  backend::code_memory::after_fork(false);
  EXPECT_EQ(status, 0);
  expect_runs();
  EXPECT_EQ(lseek(own, 0, SEEK_END), 0);  // a page written to at the address of code would make it huge
  EXPECT_NE(backend::code_memory::state.memory_file.number(), number);
  ::close(own);
  ::close(number);
}

TEST_F(ExecutableMemory, AFileThatTheProgramClosedIsOpenedAgain) {
  expect_runs();
  ::close(backend::code_memory::state.memory_file.number());
  current_system_calls.create_file = deny;
  deny_protection();
  expect_runs();
}

/// A child that no handler knows of, which makes kernels after its parent did, at the same addresses.
TEST_F(ExecutableMemory, AChildMadeWithoutHandlersIsIndependent) {
  for (const char* way : {"/proc/self/mem", "mprotect", "memfd"}) {
    backend::set_code_memory(way);
    std::vector<code_pages> all{*backend::install_code(returning(0))};
    int ready[2];
    ASSERT_EQ(pipe(ready), 0);
    const auto child = static_cast<pid_t>(syscall(SYS_fork));
    if (child == 0) {
      char byte = 0;
      if (read(ready[0], &byte, 1) != 1) _exit(1);
      for (std::uint32_t i = 1; i < 20; ++i) {
        const auto own = backend::install_code(returning(100 + i));
        if (!own || call(*own) != 100 + i) _exit(2);
      }
      _exit(call(all[0]) == 0 ? 0 : 3);
    }
    for (std::uint32_t i = 1; i < 20; ++i) all.push_back(*backend::install_code(returning(i)));
    EXPECT_EQ(write(ready[1], "x", 1), 1);
    int status = -1;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0) << way;
    for (std::uint32_t i = 0; i < 20; ++i) EXPECT_EQ(call(all[i]), i) << way;
    for (const auto& pages : all) backend::release_code(pages, true);
    for (const int end : ready) ::close(end);
  }
}

TEST_F(ExecutableMemory, ForkByProtection) {
  fork_is_independent([] { backend::set_code_memory("mprotect"); });
}

TEST_F(ExecutableMemory, ForkByFile) {
  fork_is_independent([] { backend::set_code_memory("memfd"); });
}

}  // namespace
