// On a GPU: drawn descs and sizes against the reference of the CPU, for equal bits; and the same bits at every run.
// Skipped, with the reason, where there is none.
#include <gtest/gtest.h>

#include "brgemm/backend/cuda.hpp"
#include "support/device_memory.hpp"
#include "support/gpu_problem.hpp"

namespace brgemm_test {
namespace {

constexpr index entries = 5;

/// Empty where there is a device, or a driver that fails, which is no reason to skip.
std::string why_no_device() {
  const auto count = brgemm::cuda::device_count();
  if (!count) return count.error().code() == brgemm::errc::unsupported ? std::string(count.error().message()) : "";
  return *count == 0 ? "there is no device" : "";
}

void check(entropy& e, const drawn_desc& drawn, device_memory& gpu, const problem_memory& cpu) {
  desc d = drawn.d;
  const bool tensor_cores = brgemm::cuda::by_tensor_cores(d);
  const values v = tensor_cores ? values::integers : e.pick({values::unit, values::special});
  problem p = draw_problem(e, drawn, entries, v);
  if (tensor_cores && d.alpha == brgemm::alpha_kind::one) p.alpha = 1;
  const index batch = e.between(0, entries);
  SCOPED_TRACE(text_of(p, batch, guard::after));
  const auto reference = reference_of(d);
  ASSERT_TRUE(reference) << reference.error().message();
  const brgemm::arguments on_cpu = place(p, batch, guard::after, cpu);
  ASSERT_TRUE(reference->call(on_cpu));
  const outputs expected = collect(p, on_cpu);

  const auto kernel = brgemm::cuda::make_kernel(d);
  ASSERT_TRUE(kernel) << kernel.error().message();
  gpu.clear();
  const brgemm::cuda::arguments x = place(p, batch, gpu);
  const std::vector<std::byte> before = gpu.bytes;
  std::vector<std::byte> first;
  for (int run = 0; run < 3; ++run) {
    gpu.bytes = before;
    ASSERT_TRUE(gpu.send());
    const auto called = kernel->call(x);
    ASSERT_TRUE(called) << called.error().message();
    ASSERT_TRUE(gpu.fetch());
    if (run == 0) first = gpu.bytes;
    ASSERT_EQ(first, gpu.bytes) << "another run, other bits";
  }
  ASSERT_EQ(difference(p, expected, results_of(p, x, gpu)), "");
}

class GpuDevice : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = why_no_device(); !why.empty()) GTEST_SKIP() << why;
    gpu_ = std::make_unique<device_memory>(std::size_t{64} << 20);
    ASSERT_TRUE(*gpu_);
  }
  std::unique_ptr<device_memory> gpu_;
};

TEST_F(GpuDevice, HasTheBitsOfTheReferenceOnDrawnDescs) {
  const problem_memory cpu(entries, std::size_t{4} << 20);
  for (int i = 0; i < 300; ++i) {
    entropy e(static_cast<std::uint64_t>(i));
    const auto size = [&e] { return e.pick<index>({1, 7, 16, 33, 64, 96, 127, 128, 200, 256}); };
    const shape s{size(), size(), e.one_in(10) ? 0 : size()};
    const drawn_desc x = draw_desc_for_gpu(e, i, s);
    check(e, x, *gpu_, cpu);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace brgemm_test
