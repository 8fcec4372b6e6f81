// Loads shared objects that carry the headers, calls them, unloads them, again and again and in another order.
#include <dlfcn.h>

#include <cstdio>

int main(int count, char** paths) {
  unsigned long long first = 0;
  for (int round = 0; round < 4; ++round) {
    void* handles[8] = {};
    for (int i = 1; i < count; ++i) {
      handles[i] = dlopen(paths[round % 2 == 0 ? i : count - i], RTLD_NOW | RTLD_LOCAL);
      if (handles[i] == nullptr) return std::printf("%s\n", dlerror()), 1;
      const auto use = reinterpret_cast<unsigned long long (*)()>(dlsym(handles[i], "use"));
      const unsigned long long digest = use();
      if (digest == 0 || (first != 0 && digest != first)) return std::printf("digest %llx\n", digest), 1;
      first = digest;
    }
    for (int i = 1; i < count; ++i) {
      if (dlclose(handles[round < 2 ? i : count - i]) != 0) return 1;
    }
  }
  std::printf("digest %llx\n", first);
  return 0;
}
