// Loads two shared objects of which each has a list for GDB of its own, while they share the cache: what one of them
// registered and the other evicts must be gone from the list that it was in. Run with BRGEMM_JIT_PROFILE=gdb.
#include <dlfcn.h>

#include <cstdio>

#include "gdb_list.hpp"

namespace {

struct plugin {
  void* handle;
  bool (*make)(int);
  void (*clear)();
  const list* entries;

  explicit plugin(const char* path) : handle(dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
    make = reinterpret_cast<bool (*)(int)>(dlsym(handle, "make"));
    clear = reinterpret_cast<void (*)()>(dlsym(handle, "clear"));
    entries = static_cast<const list*>(reinterpret_cast<const void* (*)()>(dlsym(handle, "descriptor"))());
  }
  int listed() const {
    int count = 0;
    for (const entry* e = entries->first; e != nullptr && count < 100; e = e->next) ++count;
    return count;
  }
};

}  // namespace

int main(int, char** paths) {
  plugin one(paths[1]);
  plugin two(paths[2]);
  const auto listed = [&](int by_one, int by_two, const char* when) {
    std::printf("%s: %d and %d\n", when, one.listed(), two.listed());
    return one.listed() == by_one && two.listed() == by_two;
  };
  if (one.entries == two.entries) return std::printf("they share the list\n"), 1;
  bool right = one.make(1) && one.make(2) && two.make(3);
  right &= listed(2, 1, "made");
  two.clear();
  right &= listed(0, 0, "cleared by the other");
  right &= one.make(4) && two.make(5);
  right &= dlclose(one.handle) == 0;
  two.clear();
  right &= listed(0, 0, "cleared after dlclose");
  return right ? 0 : 1;
}
