// On a GPU: drawn descs and sizes against the reference of the CPU, for equal bits; and the same bits at every run.
// Skipped, with the reason, where there is none.
#include <gtest/gtest.h>

#include "brgemm/backend/cuda.hpp"
#include "brgemm/nn/conv_on_gpu.hpp"
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

/// All passes of a layer with padding, strides and groups, in f32.
TEST_F(GpuDevice, AConvolutionHasTheBitsOfTheCpus) {
  brgemm::nn::conv_desc d;
  d.images = 5, d.groups = 2, d.in = 144, d.out = 32, d.training = true;
  d.axes[1] = {14, 3, 2, 1, 1, 1}, d.axes[2] = {29, 3, 2, 1, 1, 0};
  const auto layer = brgemm::nn::conv::plan(d);
  const auto on_gpu = brgemm::nn::conv_on_gpu::plan(d);
  ASSERT_TRUE(layer) << layer.error().message();
  ASSERT_TRUE(on_gpu) << on_gpu.error().message();
  entropy e(7);
  const auto drawn = [&e](index size) {
    bytes x(static_cast<std::size_t>(size));
    draw_elements(e, brgemm::type::f32, values::unit, x.data(), size / 4);
    return x;
  };
  const bytes x = drawn(layer->x_bytes()), z = drawn(layer->y_bytes()), w = drawn(layer->weights() * 4);
  const bytes bias = drawn(d.out * 4);
  bytes weights(static_cast<std::size_t>(layer->weights_bytes()));
  bytes transposed(static_cast<std::size_t>(layer->transposed_bytes()));
  bytes y(z.size()), dx(x.size()), dw(w.size()), db(bias.size());
  const auto floats = [](const bytes& of) { return reinterpret_cast<float*>(const_cast<std::byte*>(of.data())); };
  brgemm::loops::serial one;
  ASSERT_TRUE(
      layer->pack_weights(one, floats(w), brgemm::nn::conv_weights::out_last, weights.data(), transposed.data()));
  ASSERT_TRUE(layer->forward(one, d.images, x.data(), weights.data(), floats(bias), y.data()));
  ASSERT_TRUE(layer->backward_data(one, d.images, z.data(), transposed.data(), dx.data()));
  ASSERT_TRUE(layer->backward_weights(one, d.images, x.data(), z.data(), floats(dw), floats(db)));
  gpu_->clear();
  const auto put = [this](const bytes& of) { return gpu_->put(of.data(), of.size()); };
  const auto room_for = [&put](const bytes& of) { return put(bytes(of.size(), std::byte{0xff})); };
  std::byte *const gpu_x = put(x), *const gpu_z = put(z), *const gpu_w = put(w), *const gpu_bias = put(bias);
  std::byte *const gpu_y = room_for(y), *const gpu_dx = room_for(dx);
  std::byte *const gpu_dw = room_for(dw), *const gpu_db = room_for(db);
  const auto as_floats = [](std::byte* at) { return reinterpret_cast<float*>(at); };
  ASSERT_TRUE(gpu_->send());
  ASSERT_TRUE(on_gpu->forward(gpu_x, gpu_w, {.bias = as_floats(gpu_bias)}, gpu_y));
  ASSERT_TRUE(on_gpu->backward_data(gpu_z, gpu_w, gpu_dx));
  ASSERT_TRUE(on_gpu->backward_weights(gpu_x, gpu_z, as_floats(gpu_dw), as_floats(gpu_db)));
  ASSERT_TRUE(gpu_->fetch());
  const auto same = [this](const bytes& on_cpu, const std::byte* at) {
    return std::memcmp(on_cpu.data(), gpu_->on_host(at), on_cpu.size()) == 0;
  };
  EXPECT_TRUE(same(y, gpu_y));
  EXPECT_TRUE(same(dx, gpu_dx));
  EXPECT_TRUE(same(dw, gpu_dw));
  EXPECT_TRUE(same(db, gpu_db));
}

}  // namespace
}  // namespace brgemm_test
