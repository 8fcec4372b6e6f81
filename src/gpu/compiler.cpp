#include "compiler.hpp"

#include <nvrtc.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>

#include "device_text.hpp"
#include "driver.hpp"
#include "shared_library.hpp"
#include "without_exceptions.hpp"

namespace brgemm::inline abi_0::cuda {

namespace {

struct nvrtc {
  decltype(&nvrtcVersion) version;
  decltype(&nvrtcCreateProgram) create;
  decltype(&nvrtcDestroyProgram) destroy;
  decltype(&nvrtcCompileProgram) compile;
  decltype(&nvrtcGetProgramLogSize) log_size;
  decltype(&nvrtcGetProgramLog) log;
  decltype(&nvrtcGetCUBINSize) cubin_size;
  decltype(&nvrtcGetCUBIN) cubin;
  decltype(&nvrtcGetPTXSize) ptx_size;
  decltype(&nvrtcGetPTX) ptx;
  decltype(&nvrtcGetNumSupportedArchs) architecture_count;
  decltype(&nvrtcGetSupportedArchs) architectures;
  decltype(&nvrtcGetErrorString) words;
};

result<nvrtc> functions_of(const shared_library& library) {
  if (!library) return error(errc::unsupported, "nvrtc", "CUDA's run-time compiler is not there: %s", library.why());
  nvrtc n = {};
  const bool found = library.find(n.version, "nvrtcVersion") && library.find(n.create, "nvrtcCreateProgram") &&
                     library.find(n.destroy, "nvrtcDestroyProgram") && library.find(n.compile, "nvrtcCompileProgram") &&
                     library.find(n.log_size, "nvrtcGetProgramLogSize") && library.find(n.log, "nvrtcGetProgramLog") &&
                     library.find(n.cubin_size, "nvrtcGetCUBINSize") && library.find(n.cubin, "nvrtcGetCUBIN") &&
                     library.find(n.ptx_size, "nvrtcGetPTXSize") && library.find(n.ptx, "nvrtcGetPTX") &&
                     library.find(n.architecture_count, "nvrtcGetNumSupportedArchs") &&
                     library.find(n.architectures, "nvrtcGetSupportedArchs") &&
                     library.find(n.words, "nvrtcGetErrorString");
  if (!found) return error(errc::unsupported, "nvrtc", "CUDA's run-time compiler lacks a function: %s", dlerror());
  return n;
}

/// The first that is no newer than the driver, which loads no code of a later major version; where there is no driver,
/// the first.
result<nvrtc> find_nvrtc() {
  const char* const named = secure_getenv("BRGEMM_NVRTC");
  if (named != nullptr && *named != '\0') return functions_of(shared_library(named));
  const auto driver = load_driver();
  result<nvrtc> last = error(errc::unsupported, "nvrtc", "CUDA's run-time compiler is not there");
  for (const char* name : {BRGEMM_NVRTC_OF_TOOLKIT, "libnvrtc.so.13", "libnvrtc.so.12"}) {
    if (*name == '\0') continue;
    last = functions_of(shared_library(name));
    int major = 0, minor = 0;
    if (!last || last->version(&major, &minor) != NVRTC_SUCCESS) continue;
    if (!driver || major <= (*driver)->version / 1000) return last;
    last = error(errc::unsupported, "nvrtc", "%s is of version %d.%d, the driver of %d", name, major, minor,
                 (*driver)->version / 1000);
  }
  return last;
}

result<const nvrtc*> load_nvrtc() {
  static const result<nvrtc> loaded = find_nvrtc();
  if (!loaded) return loaded.error();
  return &*loaded;
}

/// What NVRTC is asked for. Machine code, or PTX, which the driver compiles, where the device is newer than NVRTC.
struct target {
  std::string architecture;
  bool is_ptx = false;
};

result<target> target_for(capability of, const nvrtc& n) {
  if (of.major < least_capability.major) {
    return error(errc::unsupported, "capability", "compute capability is %d.%d; %d.%d is the least", of.major, of.minor,
                 least_capability.major, least_capability.minor);
  }
  int count = 0;
  std::vector<int> known;
  if (n.architecture_count(&count) == NVRTC_SUCCESS) known.resize(static_cast<std::size_t>(count));
  if (known.empty() || n.architectures(known.data()) != NVRTC_SUCCESS) {
    return error(errc::device, "nvrtc", "NVRTC does not say which architectures it knows");
  }
  const int wanted = of.major * 10 + of.minor;
  // sm_90a has the warp group's instructions; the suffix is for one architecture alone.
  const std::string suffix = of == capability{9, 0} ? "a" : "";
  if (std::find(known.begin(), known.end(), wanted) != known.end()) {
    return target{"sm_" + std::to_string(wanted) + suffix, false};
  }
  int best = 0;
  for (const int architecture : known) best = architecture < wanted ? std::max(best, architecture) : best;
  if (best < 80)
    return error(errc::unsupported, "capability", "NVRTC knows no architecture from sm_80 to sm_%d", wanted);
  return target{"compute_" + std::to_string(best), true};
}

// Products are joined with sums only where the text says fma.
constexpr const char* compiler_options[] = {"--std=c++20", "--device-as-default-execution-space", "--fmad=false",
                                            "--ptxas-options=-v"};

/// The first line of a log that says error; all of it where none does.
std::string first_error(const std::string& log) {
  const std::size_t at = log.find("error");
  if (at == std::string::npos) return log;
  const std::size_t begin = log.rfind('\n', at) + 1;
  return log.substr(begin, log.find('\n', at) - begin);
}

/// A program, destroyed at the end.
class program_of {
 public:
  program_of(const nvrtc& n, const std::string& source) : nvrtc_(n) {
    status_ = n.create(&program_, source.c_str(), "brgemm.cu", 0, nullptr, nullptr);
  }
  ~program_of() {
    if (status_ == NVRTC_SUCCESS) nvrtc_.destroy(&program_);
  }
  program_of(const program_of&) = delete;
  program_of& operator=(const program_of&) = delete;

  /// NVRTC's status; where it is none, what it wrote is in `out`.
  nvrtcResult compile(const target& to, std::vector<char>& out) {
    if (status_ != NVRTC_SUCCESS) return status_;
    const std::string architecture = "--gpu-architecture=" + to.architecture;
    std::vector<const char*> given(std::begin(compiler_options), std::end(compiler_options));
    given.push_back(architecture.c_str());
    nvrtcResult done = nvrtc_.compile(program_, static_cast<int>(given.size()), given.data());
    std::size_t size = 0;
    if (done == NVRTC_SUCCESS) done = (to.is_ptx ? nvrtc_.ptx_size : nvrtc_.cubin_size)(program_, &size);
    if (done != NVRTC_SUCCESS) return done;
    out.resize(size);
    return (to.is_ptx ? nvrtc_.ptx : nvrtc_.cubin)(program_, out.data());
  }
  std::string log() const {
    std::size_t size = 0;
    if (status_ != NVRTC_SUCCESS || nvrtc_.log_size(program_, &size) != NVRTC_SUCCESS) return {};
    std::string text(size, '\0');
    nvrtc_.log(program_, text.data());
    return text;
  }

 private:
  const nvrtc& nvrtc_;
  nvrtcProgram program_ = nullptr;
  nvrtcResult status_ = NVRTC_SUCCESS;
};

template <class Enumerator>
std::string number(Enumerator e) {
  return std::to_string(static_cast<int>(e));
}
std::string bits_of(f32_bits x) { return "std::bit_cast<f32_bits>(" + std::to_string(x.bits) + "u)"; }

std::string text_of(const epilogue_op& o) {
  return "{.kind = op_kind(" + number(o.kind) + "), .operand = type(" + number(o.operand) + "), .along = axis(" +
         number(o.along) + "), .slope = " + bits_of(o.slope) + ", .lower = " + bits_of(o.lower) +
         ", .upper = " + bits_of(o.upper) + "}";
}

/// A constant expression for a specialised desc.
std::string text_of(const desc& d) {
  std::string text = "desc{.a = type(" + number(d.a) + "), .b = type(" + number(d.b) + "), .c = type(" + number(d.c) +
                     "), .batch = batch_kind(" + number(d.batch) + "), .layout_a = layout(" + number(d.layout_a) +
                     "), .layout_b = layout(" + number(d.layout_b) + "), .beta = beta_kind(" + number(d.beta) +
                     "), .alpha = alpha_kind(" + number(d.alpha) + "), .sums = order(" + number(d.sums) +
                     "), .chains = " + number(d.chains) + ", .m_extent = extent_kind(" + number(d.m_extent) +
                     "), .zero_a = zero_point(" + number(d.zero_a) + "), .zero_b = zero_point(" + number(d.zero_b) +
                     "), .where = place(" + number(d.where) + "), .epilogue_size = " + number(d.epilogue_size);
  if (d.epilogue_size > 0) text += ", .epilogue = {";
  for (int i = 0; i < d.epilogue_size; ++i) text += (i > 0 ? ", " : "") + text_of(d.epilogue[i]);
  return text + (d.epilogue_size > 0 ? "}}" : "}");
}

}  // namespace

std::string source_of(const desc& specialised, const tile& t) {
  std::string text;
  for (const char* header : device_texts) text += header;
  text += "#line 1 \"kernel\"\nusing namespace brgemm;\n";
  text += "extern \"C\" __global__ void __launch_bounds__(" + std::to_string(threads_of(t)) + ", 1) ";
  text += entry_name + std::string("(const __grid_constant__ cuda::launch call) {\n  cuda::batch_reduce<");
  text +=
      text_of(specialised) + ",\n                     cuda::tile{" + std::to_string(t.m) + ", " + std::to_string(t.n);
  text += ", " + std::to_string(t.k) + ", " + std::to_string(t.rows) + "}>(call);\n}\n";
  return text;
}

result<void> check_compiler(capability of) {
  const auto n = load_nvrtc();
  if (!n) return n.error();
  const auto to = target_for(of, **n);
  if (!to) return to.error();
  return {};
}

result<std::string> identity_of_compiler(capability of) {
  const auto n = load_nvrtc();
  if (!n) return n.error();
  const auto to = target_for(of, **n);
  if (!to) return to.error();
  int major = 0, minor = 0;
  (*n)->version(&major, &minor);
  std::string identity = "nvrtc-" + std::to_string(major) + '.' + std::to_string(minor) + ' ' + to->architecture;
  for (const char* option : compiler_options) identity += std::string(" ") + option;
  return identity;
}

result<compiled> compile_source(std::string source, capability of) {
  const auto n = load_nvrtc();
  if (!n) return n.error();
  const auto to = target_for(of, **n);
  if (!to) return to.error();
  compiled made;
  made.source = std::move(source);
  const auto begin = std::chrono::steady_clock::now();
  program_of program(**n, made.source);
  const nvrtcResult status = program.compile(*to, made.code);
  made.milliseconds = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
  made.log = program.log();
  if (status == NVRTC_SUCCESS) return made;
  return error(errc::device, "nvrtc", "%s for %s: %s", (*n)->words(status), to->architecture.c_str(),
               first_error(made.log).c_str());
}

result<compiled> compile(const desc& d, capability of) {
  if (auto r = check_supported(d); !r) return r.error();
  return without_exceptions<compiled>([&] { return compile_source(source_of(specialised(d), choose_tile(d)), of); });
}

}  // namespace brgemm::inline abi_0::cuda
