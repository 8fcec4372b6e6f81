#include "brgemm/backend/cuda.hpp"

#include <algorithm>

#include "code_folder.hpp"
#include "compiler.hpp"
#include "driver.hpp"
#include "precompiled.hpp"
#include "recent.hpp"
#include "without_exceptions.hpp"

namespace brgemm::inline abi_0::cuda {

namespace {

/// Code that a device has loaded.
class module_of_device {
 public:
  module_of_device(const driver& d, CUcontext context) noexcept : driver_(d), context_(context) {}
  ~module_of_device() {
    if (module_ == nullptr) return;
    const current_context here(driver_, context_);
    if (here.status() == CUDA_SUCCESS) driver_.unload_module(module_);
  }
  module_of_device(const module_of_device&) = delete;
  module_of_device& operator=(const module_of_device&) = delete;

  result<void> load(const char* code, const char* name) noexcept {
    const current_context here(driver_, context_);
    if (auto r = check(driver_, here.status(), "cuCtxPushCurrent"); !r) return r;
    if (auto r = check(driver_, driver_.load_module(&module_, code), "cuModuleLoadData"); !r) return r;
    if (auto r = check(driver_, driver_.function_of(&function_, module_, name), "cuModuleGetFunction"); !r) return r;
    if (driver_.load_function == nullptr) return {};  // else the first launch might load it, which captures forbid
    return check(driver_, driver_.load_function(function_), "cuFuncLoad");
  }

  result<void> launch(unsigned blocks, int threads, const cuda::launch& call, CUstream on) const noexcept {
    const current_context here(driver_, context_);
    if (auto r = check(driver_, here.status(), "cuCtxPushCurrent"); !r) return r;
    void* parameters[] = {const_cast<cuda::launch*>(&call)};
    const CUresult status =
        driver_.launch(function_, blocks, 1, 1, static_cast<unsigned>(threads), 1, 1, 0, on, parameters, nullptr);
    return check(driver_, status, "cuLaunchKernel");
  }

 private:
  const driver& driver_;
  CUcontext context_;
  CUmodule module_ = nullptr;
  CUfunction function_ = nullptr;
};

using shared_module = std::shared_ptr<const module_of_device>;

/// Never destroyed: the driver may be gone before a process's last destructors.
recent<module_of_device>& modules() {
  static recent<module_of_device>* const all = new recent<module_of_device>(256);
  return *all;
}

template <class T>
std::string bytes_of(const T& x) {
  return {reinterpret_cast<const char*>(&x), sizeof x};
}

/// The code for the desc: the folder's, or compiled and put there.
result<std::vector<char>> code_of(const desc& specialised, const tile& t, capability of, const driver& d,
                                  std::string_view cache_folder) {
  const auto identity = identity_of_compiler(of);
  if (!identity) return identity.error();
  const std::string source = source_of(specialised, t);
  const std::string key = *identity + " driver " + std::to_string(d.version) + '\n' + source;
  const code_folder folder(cache_folder);
  if (auto found = folder.find(key)) return std::move(*found);
  auto made = compile_source(source, of);
  if (!made) return made.error();
  folder.keep(key, made->code);
  return std::move(made->code);
}

/// The code and the tile of a kernel. NVRTC's, or where it is not there what came with the library.
struct chosen_code {
  desc specialised;
  tile of_c;
  int precompiled = -1;
};

result<chosen_code> choose_code(const desc& d, capability of) {
  chosen_code chosen{specialised(d), choose_tile(d), -1};
  const auto compiler = check_compiler(of);
  if (compiler) return chosen;
  chosen.precompiled = precompiled_for(chosen.specialised);
  if (chosen.precompiled < 0 || compiler.error().field() != "nvrtc") return compiler.error();
  chosen.of_c = precompiled(chosen.precompiled).of_c;
  return chosen;
}

result<void> load(module_of_device& into, const chosen_code& chosen, capability of, const driver& d,
                  std::string_view cache_folder) {
  if (chosen.precompiled >= 0) {
    return into.load(precompiled_code().data(), (precompiled_name + std::to_string(chosen.precompiled)).c_str());
  }
  const auto code = code_of(chosen.specialised, chosen.of_c, of, d, cache_folder);
  if (!code) return code.error();
  return into.load(code->data(), entry_name);
}

result<shared_module> module_for(const chosen_code& chosen, capability of, const options& o) {
  const driver& d = **load_driver();
  const std::string key = bytes_of(o.device) + bytes_of(chosen.specialised) + bytes_of(chosen.of_c);
  return modules().find_or_make(key, [&]() -> result<shared_module> {
    const auto context = context_of(d, o.device);
    if (!context) return context.error();
    const auto made = std::make_shared<module_of_device>(d, *context);
    if (auto r = load(*made, chosen, of, d, o.cache_folder); !r) return r.error();
    return shared_module(made);
  });
}

}  // namespace

/// What a handle holds.
class loaded_kernel {
 public:
  desc description;
  tile tile_of_c;
  int device;
  shared_module code;
};

result<void> supports(const desc& d) { return check_supported(d); }

result<kernel> make_kernel(const desc& d, const options& o) {
  if (auto r = check_supported(d); !r) return r.error();
  return without_exceptions<kernel>([&]() -> result<kernel> {
    const auto device = properties_of(o.device);
    if (!device) return device.error();
    const auto chosen = choose_code(d, device->capability);
    if (!chosen) return chosen.error();
    auto code = module_for(*chosen, device->capability, o);
    if (!code) return code.error();
    return kernel(std::make_shared<const loaded_kernel>(loaded_kernel{d, chosen->of_c, o.device, std::move(*code)}));
  });
}

result<std::shared_ptr<const void>> copy_to_device(const void* from, std::size_t bytes, int device) {
  return without_exceptions<std::shared_ptr<const void>>([&]() -> result<std::shared_ptr<const void>> {
    if (auto r = properties_of(device); !r) return r.error();
    const driver& d = **load_driver();
    const auto context = context_of(d, device);
    if (!context) return context.error();
    const current_context here(d, *context);
    if (auto r = check(d, here.status(), "cuCtxPushCurrent"); !r) return r.error();
    CUdeviceptr address = 0;
    if (auto r = check(d, d.allocate(&address, std::max<std::size_t>(bytes, 1)), "cuMemAlloc"); !r) return r.error();
    const std::shared_ptr<const void> copy(reinterpret_cast<const void*>(address), [&d, context](const void* p) {
      const current_context there(d, *context);
      if (there.status() == CUDA_SUCCESS) d.free(reinterpret_cast<CUdeviceptr>(p));
    });
    if (bytes == 0) return copy;
    if (auto r = check(d, d.copy_to_device(address, from, bytes), "cuMemcpyHtoD"); !r) return r.error();
    // From pageable memory a copy may still be on its way when the call returns.
    if (auto r = check(d, d.synchronize(), "cuCtxSynchronize"); !r) return r.error();
    return copy;
  });
}

result<void> kernel::call(const arguments& x, stream on) const noexcept {
  const desc& d = code_->description;
  if (auto r = validate(d, x); !r) return r;
  const auto blocks = grid_of(d, code_->tile_of_c, x);
  if (!blocks) return blocks.error();
  if (*blocks == 0) return {};
  return code_->code->launch(*blocks, threads_of(code_->tile_of_c), make_launch(d, code_->tile_of_c, x),
                             static_cast<CUstream>(on));
}

order kernel::order() const noexcept { return order_of(code_->description); }
const desc& kernel::description() const noexcept { return code_->description; }
int kernel::device() const noexcept { return code_->device; }

}  // namespace brgemm::inline abi_0::cuda
