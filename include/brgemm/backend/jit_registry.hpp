// Tells debuggers and profilers about generated code, where BRGEMM_JIT_PROFILE asks for it; otherwise it costs nothing.
//
//   BRGEMM_JIT_PROFILE=gdb       the GDB JIT interface: an ELF object in memory with a symbol and unwind information
//   BRGEMM_JIT_PROFILE=perf      /tmp/perf-PID.map: `perf report` finds the names
//   BRGEMM_JIT_PROFILE=jitdump   jit-PID.dump in $JITDUMPDIR, else /tmp: code too, for `perf record -k 1`, `perf inject
//   -j`
//
// Several may be given, separated by commas. A name in the file of a process and the code it stands for stay there when
// the kernel is evicted; perf takes the later line where addresses were used again.
#pragma once

#include <elf.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <initializer_list>
#include <iterator>
#include <mutex>
#include <span>

#include "executable_memory.hpp"

// The names that GDB looks for. Weak, so that one definition serves the process where the linker can see to it, and
// another JIT compiler's definition may be that one: the list is shared then.
extern "C" {
struct brgemm_jit_code_entry {
  brgemm_jit_code_entry* next;
  brgemm_jit_code_entry* previous;
  const void* object;
  std::uint64_t object_bytes;
};
struct brgemm_jit_descriptor {
  std::uint32_t version;
  std::uint32_t action;  // 0 nothing, 1 registered, 2 unregistered
  brgemm_jit_code_entry* relevant;
  brgemm_jit_code_entry* first;
};
[[gnu::weak, gnu::noinline, gnu::used, gnu::visibility("default")]] void __jit_debug_register_code() {
  __asm__ volatile("" ::: "memory");
}
[[gnu::weak, gnu::used, gnu::visibility("default")]] brgemm_jit_descriptor __jit_debug_descriptor = {1, 0, nullptr,
                                                                                                     nullptr};
}

namespace brgemm::inline abi_0::backend::jit_registry {

inline constexpr int to_gdb = 1;
inline constexpr int to_perf_map = 2;
inline constexpr int to_jitdump = 4;
inline constexpr int unknown_word = 8;

/// Call frame information: how to find the caller, and its registers, from any instruction of a kernel. Kernels begin
/// with `endbr64; push rbp; mov rbp, rsp` and the pushes of what else they save, keep rbp, and end with `vzeroupper`,
/// a load of each register that they saved, `leave; ret`; the functions that they call lie behind that.
struct [[gnu::packed]] frame_section {
  std::uint32_t cie_length = 20;
  std::uint32_t cie_id = 0;
  // Version 1, no augmentation, units 1 and -8, rip; cfa = rsp + 8; rip at cfa - 8.
  std::uint8_t cie[16] = {1, 0, 1, 0x78, 16, 0x0c, 7, 8, 0x90, 1};
  std::uint32_t fde_length = 68;
  std::uint32_t to_cie = 28;  // back from here to the beginning
  std::uint64_t code = 0;
  std::uint64_t bytes = 0;
  std::uint8_t fde[48] = {};
  std::uint32_t end = 0;
};

/// Where the kernel's own `ret` is, at which its frame is gone; the size where there is none.
inline std::size_t return_of(std::span<const std::uint8_t> code, std::size_t saved) noexcept {
  constexpr std::uint8_t vzeroupper[] = {0xc5, 0xf8, 0x77};
  constexpr std::uint8_t leave = 0xc9;
  constexpr std::uint8_t pop_rbp = 0x5d;
  constexpr std::uint8_t ret = 0xc3;
  const std::size_t to_leave = sizeof vzeroupper + 4 * saved;  // `mov r, [rbp - x]` has four bytes
  for (std::size_t at = 0; at + to_leave + 2 <= code.size(); ++at) {
    const bool here = std::memcmp(&code[at], vzeroupper, sizeof vzeroupper) == 0;
    if (here && code[at + to_leave] == leave && code[at + to_leave + 1] == ret) return at + to_leave + 1;
  }
  const std::size_t last = code.size() - 1;
  return code[last] == ret && (code[last - 1] == pop_rbp || code[last - 1] == leave) ? last : code.size();
}

inline void describe_frame(frame_section& f, std::span<const std::uint8_t> code) noexcept {
  constexpr std::uint8_t prologue[] = {0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x48, 0x89, 0xe5};
  f.code = static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(code.data()));
  f.bytes = code.size();
  if (code.size() < sizeof prologue || std::memcmp(code.data(), prologue, sizeof prologue) != 0) return;
  std::uint8_t* rule = f.fde;
  const auto put = [&rule](std::initializer_list<std::uint8_t> bytes) {
    rule = std::copy(bytes.begin(), bytes.end(), rule);
  };
  put({0x45, 0x0e, 16, 0x86, 2});  // +5: cfa = rsp + 16, rbp at cfa - 16
  put({0x43, 0x0d, 6});            // +3: cfa = rbp + 16
  std::size_t at = sizeof prologue;
  std::uint8_t saved[5] = {};  // rbx, r12 .. r15, by DWARF's numbers
  std::uint8_t count = 0;
  while (at + 2 <= code.size() && count < std::size(saved)) {
    const bool high = code[at] == 0x41 && code[at + 1] >= 0x54 && code[at + 1] <= 0x57;
    if (!high && code[at] != 0x53) break;
    saved[count] = static_cast<std::uint8_t>(high ? code[at + 1] - 0x54 + 12 : 3);
    put({static_cast<std::uint8_t>(high ? 0x42 : 0x41), static_cast<std::uint8_t>(0x80 | saved[count]),
         static_cast<std::uint8_t>(3 + count)});  // + its length: at cfa - 8 * (3 + count)
    ++count;
    at += high ? 2 : 1;
  }
  const std::size_t end = return_of(code, count);
  if (end == code.size()) return;
  const std::size_t further = end - at;
  put({0x0a, 0x04});  // remember; + four bytes
  for (int shift = 0; shift < 32; shift += 8) put({static_cast<std::uint8_t>(further >> shift)});
  put({0x0c, 7, 8, 0xc6});  // cfa = rsp + 8, rbp as the caller left it, like the others
  for (std::uint8_t i = 0; i < count; ++i) put({static_cast<std::uint8_t>(0xc0 | saved[i])});
  put({0x41, 0x0b});  // +1: as remembered
}

/// The ELF object of one kernel; its text is where the kernel is.
struct object_file {
  static constexpr char section_names[] = "\0.text\0.eh_frame\0.symtab\0.strtab\0.shstrtab";

  Elf64_Ehdr header;
  Elf64_Shdr sections[6];
  Elf64_Sym symbols[2];
  frame_section frame;
  char names[sizeof section_names];
  char strings[512];
};

struct registration {
  registration* next = nullptr;
  std::span<const std::uint8_t> code;
  brgemm_jit_code_entry entry{};
  brgemm_jit_descriptor* list = nullptr;  // that the entry is in, and the function that GDB watches for it: shared
  void (*tell)() = nullptr;               // objects can have their own of both, and one evicts what another registered
  object_file object;
};

struct shared_state {
  std::mutex lock;
  registration* first = nullptr;
  pid_t process = 0;     // that the files and these flags are of
  bool has_map = false;  // begun; what is there is not left from an earlier process
  bool has_dump = false;
  kept_file map_file;
  kept_file dump_file;
  void* dump_marker = nullptr;  // perf learns of the dump by a mapping of it
  std::uint64_t dumped = 0;
};
inline constinit shared_state state;
/// Around GDB's list, which shared objects share also where they were built with hidden visibility and have a state
/// each. Taken while the state's lock is held, so nobody is in it at a fork.
[[gnu::visibility("default")]] inline constinit std::mutex list_lock;
inline constinit std::atomic<int> targets{-1};  // -1: the environment was not read yet

inline int parse(std::string_view list) noexcept {
  int bits = 0;
  while (!list.empty()) {
    const auto end = list.find(',');
    const std::string_view word = list.substr(0, end);
    list = end == std::string_view::npos ? std::string_view{} : list.substr(end + 1);
    bits |= word == "gdb" ? to_gdb : word == "perf" ? to_perf_map : word == "jitdump" ? to_jitdump : unknown_word;
  }
  return bits;
}

/// What is asked for; the environment is read once.
inline int wanted() noexcept {
  int bits = targets.load(std::memory_order_relaxed);
  if (bits < 0) {
    const char* list = std::getenv("BRGEMM_JIT_PROFILE");
    const int from_environment = parse(list != nullptr ? list : "");
    if (targets.compare_exchange_strong(bits, from_environment, std::memory_order_relaxed)) {
      bits = from_environment;  // else set_targets was quicker, and stands
    }
  }
  return bits;
}

// GDB ----------------------------------------------------------------------------------------------------------------

inline Elf64_Shdr section(Elf64_Word name, Elf64_Word kind, Elf64_Xword flags, Elf64_Off at,
                          Elf64_Xword bytes) noexcept {
  Elf64_Shdr s{};
  s.sh_name = name;
  s.sh_type = kind;
  s.sh_flags = flags;
  s.sh_offset = at;
  s.sh_size = bytes;
  s.sh_addralign = 8;
  return s;
}

inline void fill_header(Elf64_Ehdr& h) noexcept {
  h = {};
  std::memcpy(h.e_ident, ELFMAG, SELFMAG);
  h.e_ident[EI_CLASS] = ELFCLASS64;
  h.e_ident[EI_DATA] = ELFDATA2LSB;
  h.e_ident[EI_VERSION] = EV_CURRENT;
  h.e_type = ET_EXEC;  // addresses are final
  h.e_machine = EM_X86_64;
  h.e_version = EV_CURRENT;
  h.e_shoff = offsetof(object_file, sections);
  h.e_ehsize = sizeof(Elf64_Ehdr);
  h.e_shentsize = sizeof(Elf64_Shdr);
  h.e_shnum = 6;
  h.e_shstrndx = 5;
}

inline void fill_object(object_file& o, std::span<const std::uint8_t> code, const char* name) noexcept {
  const auto address = static_cast<Elf64_Addr>(reinterpret_cast<std::uintptr_t>(code.data()));
  fill_header(o.header);
  std::memcpy(o.names, object_file::section_names, sizeof o.names);
  o.strings[0] = '\0';
  std::snprintf(o.strings + 1, sizeof o.strings - 1, "%s", name);
  o.frame = frame_section{};
  describe_frame(o.frame, code);
  o.symbols[0] = {};
  o.symbols[1] = {1, ELF64_ST_INFO(STB_GLOBAL, STT_FUNC), STV_DEFAULT, 1, address, code.size()};
  o.sections[0] = {};
  o.sections[1] = section(1, SHT_NOBITS, SHF_ALLOC | SHF_EXECINSTR, 0, code.size());
  o.sections[1].sh_addr = address;
  o.sections[2] = section(7, SHT_PROGBITS, SHF_ALLOC, offsetof(object_file, frame), sizeof(frame_section));
  o.sections[2].sh_addr = static_cast<Elf64_Addr>(reinterpret_cast<std::uintptr_t>(&o.frame));
  o.sections[3] = section(17, SHT_SYMTAB, 0, offsetof(object_file, symbols), sizeof o.symbols);
  o.sections[3].sh_link = 4;
  o.sections[3].sh_info = 1;
  o.sections[3].sh_entsize = sizeof(Elf64_Sym);
  o.sections[4] = section(25, SHT_STRTAB, 0, offsetof(object_file, strings), sizeof o.strings);
  o.sections[5] = section(33, SHT_STRTAB, 0, offsetof(object_file, names), sizeof o.names);
}

inline void tell_gdb(registration& r) noexcept {
  const std::lock_guard guard(list_lock);
  r.list = &__jit_debug_descriptor;
  r.tell = __jit_debug_register_code;
  brgemm_jit_descriptor& list = *r.list;
  r.entry = {list.first, nullptr, &r.object, sizeof r.object};
  if (list.first != nullptr) list.first->previous = &r.entry;
  list.first = &r.entry;
  list.relevant = &r.entry;
  list.action = 1;
  r.tell();
}

inline void take_from_gdb(registration& r) noexcept {
  const std::lock_guard guard(list_lock);
  brgemm_jit_descriptor& list = *r.list;
  (r.entry.previous != nullptr ? r.entry.previous->next : list.first) = r.entry.next;
  if (r.entry.next != nullptr) r.entry.next->previous = r.entry.previous;
  list.relevant = &r.entry;
  list.action = 2;
  r.tell();
}

// Files of perf ------------------------------------------------------------------------------------------------------

/// Opens a file that belongs to this process id. Who holds its lock is alive: then it is another shared object of this
/// process with this code of its own, and both append; else a file that is there is left from an earlier process,
/// unless it was begun here and the program has closed it since.
inline bool open_own_file(kept_file& file, bool& begun, const char* path) noexcept {
  const int fd = ::open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd >= 0 && ::flock(fd, LOCK_EX | LOCK_NB) == 0 && !begun) static_cast<void>(!::ftruncate(fd, 0));
  if (fd >= 0) ::flock(fd, LOCK_SH | LOCK_NB);
  if (!file.keep(fd)) return false;
  return begun = true;
}

inline std::uint64_t now() noexcept {
  std::timespec t{};
  ::clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000'000u + static_cast<std::uint64_t>(t.tv_nsec);
}

inline bool write_map_line(std::span<const std::uint8_t> code, const char* name) noexcept {
  char line[600];
  std::snprintf(line, sizeof line, "/tmp/perf-%d.map", static_cast<int>(::getpid()));
  if (!state.map_file.is_open() && !open_own_file(state.map_file, state.has_map, line)) return false;
  const int length =
      std::snprintf(line, sizeof line, "%llx %zx %s\n",
                    static_cast<unsigned long long>(reinterpret_cast<std::uintptr_t>(code.data())), code.size(), name);
  return ::write(state.map_file.number(), line, static_cast<std::size_t>(length)) == length;
}

struct dump_header {
  std::uint32_t magic = 0x4A695444;
  std::uint32_t version = 1;
  std::uint32_t bytes = 40;
  std::uint32_t machine = EM_X86_64;
  std::uint32_t pad = 0;
  std::uint32_t pid = static_cast<std::uint32_t>(::getpid());
  std::uint64_t time = now();
  std::uint64_t flags = 0;
};

struct dump_record {
  std::uint32_t id = 0;  // code load
  std::uint32_t bytes = 0;
  std::uint64_t time = now();
  std::uint32_t pid = static_cast<std::uint32_t>(::getpid());
  std::uint32_t thread = static_cast<std::uint32_t>(::syscall(SYS_gettid));
  std::uint64_t address = 0;
  std::uint64_t code_address = 0;
  std::uint64_t code_bytes = 0;
  std::uint64_t number = 0;
};

inline bool open_dump() noexcept {
  const char* folder = std::getenv("JITDUMPDIR");
  char path[512];
  std::snprintf(path, sizeof path, "%s/jit-%d.dump", folder != nullptr ? folder : "/tmp", static_cast<int>(::getpid()));
  if (!open_own_file(state.dump_file, state.has_dump, path)) return false;
  const int fd = state.dump_file.number();
  const dump_header header;
  if (::lseek(fd, 0, SEEK_END) == 0 && ::write(fd, &header, sizeof header) != static_cast<ssize_t>(sizeof header)) {
    state.dump_file.close();
    return false;
  }
  if (state.dump_marker == nullptr) {
    state.dump_marker = ::mmap(nullptr, code_memory::whole_pages(1), PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
  }
  return true;
}

inline bool write_dump(std::span<const std::uint8_t> code, const char* name) noexcept {
  if (!state.dump_file.is_open() && !open_dump()) return false;
  const std::size_t name_bytes = std::strlen(name) + 1;
  dump_record record;
  record.bytes = static_cast<std::uint32_t>(sizeof record + name_bytes + code.size());
  record.address = record.code_address = reinterpret_cast<std::uintptr_t>(code.data());
  record.code_bytes = code.size();
  record.number = state.dumped++;
  const auto put = [](const void* data, std::size_t bytes) {
    return ::write(state.dump_file.number(), data, bytes) == static_cast<ssize_t>(bytes);
  };
  return put(&record, sizeof record) && put(name, name_bytes) && put(code.data(), code.size());
}

inline result<void> write_files(int to, std::span<const std::uint8_t> code, const char* name) noexcept {
  if ((to & to_perf_map) != 0 && !write_map_line(code, name)) {
    return error(errc::invalid_argument, "BRGEMM_JIT_PROFILE", "perf: cannot write /tmp/perf-%d.map: %s",
                 static_cast<int>(::getpid()), code_memory::reason(errno));
  }
  if ((to & to_jitdump) != 0 && !write_dump(code, name)) {
    return error(errc::invalid_argument, "BRGEMM_JIT_PROFILE", "jitdump: cannot write jit-%d.dump: %s",
                 static_cast<int>(::getpid()), code_memory::reason(errno));
  }
  return {};
}

/// A child's files have its own process id, and begin with the kernels that it inherited, however it was made.
inline void begin_files_of_this_process_locked() noexcept {
  if (state.process == ::getpid()) return;
  state.process = ::getpid();
  for (kept_file* file : {&state.map_file, &state.dump_file}) file->close();
  state.has_map = state.has_dump = false;
  state.dump_marker = nullptr;  // its mapping, if there is one, is of the parent's file
  for (const registration* r = state.first; r != nullptr; r = r->next) {
    static_cast<void>(write_files(wanted(), r->code, r->object.strings + 1));
  }
}

// ------------------------------------------------------------------------------------------------------------------

[[gnu::noinline, gnu::cold]] inline result<void> tell(int to, std::span<const std::uint8_t> code,
                                                      const char* name) noexcept {
  if ((to & unknown_word) != 0) {
    return error(errc::invalid_argument, "BRGEMM_JIT_PROFILE",
                 "BRGEMM_JIT_PROFILE takes gdb, perf and jitdump, with commas");
  }
  void* memory = current_system_calls.allocate(sizeof(registration));
  if (memory == nullptr) {
    return error(errc::out_of_memory, "memory", "no %zu bytes to register a kernel for debuggers",
                 sizeof(registration));
  }
  auto* r = new (memory) registration;
  r->code = code;
  fill_object(r->object, code, name);
  std::lock_guard guard(state.lock);
  begin_files_of_this_process_locked();
  if (auto written = write_files(to, code, name); !written) {
    current_system_calls.free(memory);
    return written;
  }
  r->next = state.first;
  state.first = r;
  if ((to & to_gdb) != 0) tell_gdb(*r);
  return {};
}

[[gnu::noinline, gnu::cold]] inline void forget(const std::uint8_t* code) noexcept {
  std::lock_guard guard(state.lock);
  registration** link = &state.first;
  while (*link != nullptr && (*link)->code.data() != code) link = &(*link)->next;
  registration* r = *link;
  if (r == nullptr) return;
  *link = r->next;
  if (r->entry.object != nullptr) take_from_gdb(*r);
  current_system_calls.free(r);
}

/// Announces a kernel that was installed, if the environment asks for it. Errors: invalid_argument where a file of perf
/// cannot be written or the variable has an unknown word; out_of_memory. Thread-safe.
inline result<void> add(std::span<const std::uint8_t> code, const char* name) noexcept {
  const int to = wanted();
  return to == 0 ? result<void>() : tell(to, code, name);
}

/// Memory that `add` takes.
inline std::size_t bytes_for_each() noexcept { return wanted() != 0 ? sizeof(registration) : 0; }

/// Takes back what `add` announced, before the code goes away. Thread-safe.
inline void remove(const std::uint8_t* code) noexcept {
  if (code != nullptr && wanted() != 0) forget(code);
}

/// Around fork.
inline void before_fork() noexcept { state.lock.lock(); }
inline void after_fork(bool child) noexcept {
  if (child) begin_files_of_this_process_locked();
  state.lock.unlock();
}

/// For tests: stands in the place of BRGEMM_JIT_PROFILE from now on.
inline void set_targets(std::string_view list) noexcept { targets.store(parse(list), std::memory_order_relaxed); }

}  // namespace brgemm::inline abi_0::backend::jit_registry
