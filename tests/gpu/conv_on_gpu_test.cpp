// A convolution's plan for a GPU, end to end on a stand-in for the driver, whose launches run the kernels' text on the
// CPU: the bits of the CPU's plan. And what DLPack's tensors are asked for.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <brgemm/backend/dlpack.hpp>
#include <brgemm/nn/conv_on_gpu.hpp>
#include <filesystem>

#if __has_include(<dlpack/dlpack.h>)
#include <dlpack/dlpack.h>
#endif

#include "compiler.hpp"
#include "support/entropy.hpp"
#include "support/expect_error.hpp"
#include "support/fake_cuda_driver.hpp"
#include "support/gpu_emulator.hpp"

namespace brgemm_test {
namespace {

using namespace brgemm;
using brgemm::index;
using cuda::tile;
using nn::conv_desc;
using nn::conv_on_gpu;

fake_cuda_driver& driver() {
  void* const library = dlopen(std::getenv("BRGEMM_CUDA_DRIVER"), RTLD_NOW);
  void* const found = library == nullptr ? nullptr : dlsym(library, "brgemm_fake_cuda_driver");
  if (found == nullptr) std::abort();  // another driver: not what is tested here
  return reinterpret_cast<fake_cuda_driver_of>(found)();
}

class GpuConv : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto there = cuda::check_compiler({9, 0}); !there) GTEST_SKIP() << there.error().message();
    folder_ = (std::filesystem::temp_directory_path() / "brgemm_conv_XXXXXX").string();
    ASSERT_NE(mkdtemp(folder_.data()), nullptr);
  }
  void TearDown() override {
    driver().run = {};
    if (!folder_.empty()) std::filesystem::remove_all(folder_);
  }
  cuda::options here() const { return {.device = 0, .cache_folder = folder_}; }

  /// What the function of a product's kernel runs from now on: the text for D and T.
  template <desc D, tile T>
  void emulate(const nn::conv_launches& pass) {
    for (const auto& l : pass.launches) {
      ASSERT_EQ(cuda::specialised(l.product), cuda::specialised(D));
      ASSERT_EQ(cuda::choose_tile(l.product), T);
      const auto kernel = cuda::make_kernel(l.product, here());
      ASSERT_TRUE(kernel) << kernel.error().message();
      driver().run = [this](CUfunction f, unsigned, const void*) { probed_ = f; };
      alignas(16) std::byte some[16] = {};
      cuda::arguments x;
      x.a = x.b = x.pairs = some, x.c = some, x.m = 1;
      for (void*& operand : x.operand) operand = some;
      const auto called = kernel->call(x);
      ASSERT_TRUE(called) << called.error().message();
      texts_[probed_] = [](unsigned blocks, const void* parameter) {
        gpu::block threads(threads_of(T));
        const auto& call = *static_cast<const cuda::launch*>(parameter);
        for (unsigned i = 0; i < blocks; ++i)
          threads.run(i, [&] { cuda::batch_reduce<cuda::specialised(D), T>(call); });
      };
    }
  }
  /// Launches run from now on.
  void begin() {
    driver().run = [this](CUfunction f, unsigned blocks, const void* parameter) {
      ASSERT_TRUE(texts_.contains(f)) << "a kernel that the test does not know";
      texts_.at(f)(blocks, parameter);
    };
  }

 private:
  std::string folder_;
  CUfunction probed_ = nullptr;
  std::map<CUfunction, void (*)(unsigned, const void*)> texts_;
};

constexpr desc product_of(layout a, layout b) {
  desc d;
  d.where = place::gpu;
  d.batch = batch_kind::offsets, d.m_extent = extent_kind::at_call;
  d.layout_a = a, d.layout_b = b;
  return d;
}

std::vector<float> drawn(entropy& e, index bytes) {
  std::vector<float> x(static_cast<std::size_t>(bytes) / 4);
  for (float& f : x) f = static_cast<float>(e.between(-1000, 1000)) / 999;
  return x;
}

/// Both plans' results on the same data.
void expect_the_bits_of_the_cpu(const conv_desc& d, const conv_on_gpu& on_gpu) {
  const auto layer = nn::conv::plan(d);
  ASSERT_TRUE(layer) << layer.error().message();
  entropy e(5);
  const auto x = drawn(e, layer->x_bytes()), z = drawn(e, layer->y_bytes()), bias = drawn(e, d.out * 4);
  const auto w = drawn(e, layer->weights() * 4);
  std::vector<std::uint8_t> input_mask(static_cast<std::size_t>(layer->input_mask_bytes()));
  for (std::uint8_t& byte : input_mask) byte = static_cast<std::uint8_t>(e.between(0, 255));
  std::vector<float> weights(static_cast<std::size_t>(layer->weights_bytes()) / 4);
  std::vector<float> transposed(static_cast<std::size_t>(layer->transposed_bytes()) / 4);
  struct results {
    std::vector<float> y, dx, dw, db;
    std::vector<std::uint8_t> mask;
  } cpu, gpu;
  for (results* r : {&cpu, &gpu}) {
    r->y.resize(z.size()), r->dx.resize(x.size()), r->dw.resize(w.size()), r->db.resize(bias.size());
    r->mask.resize(static_cast<std::size_t>(layer->mask_bytes()));
  }
  const void* const masked = d.input_mask ? input_mask.data() : nullptr;
  void* const cpu_mask = d.mask ? cpu.mask.data() : nullptr;
  void* const gpu_mask = d.mask ? gpu.mask.data() : nullptr;
  loops::serial one;
  ASSERT_TRUE(layer->pack_weights(one, w.data(), nn::conv_weights::out_last, weights.data(), transposed.data()));
  ASSERT_TRUE(
      layer->forward(one, d.images, x.data(), weights.data(), {.bias = bias.data(), .mask = cpu_mask}, cpu.y.data()));
  ASSERT_TRUE(layer->backward_data(one, d.images, z.data(), transposed.data(), cpu.dx.data(), masked));
  ASSERT_EQ(layer->backward_weights_workspace_bytes(), 0);
  ASSERT_TRUE(layer->backward_weights(one, d.images, x.data(), z.data(), cpu.dw.data(), cpu.db.data()));

  const auto forward = on_gpu.forward(x.data(), w.data(), {.bias = bias.data(), .mask = gpu_mask}, gpu.y.data());
  ASSERT_TRUE(forward) << forward.error().message();
  const auto by_data = on_gpu.backward_data(z.data(), w.data(), gpu.dx.data(), masked);
  ASSERT_TRUE(by_data) << by_data.error().message();
  const auto by_weights = on_gpu.backward_weights(x.data(), z.data(), gpu.dw.data(), gpu.db.data());
  ASSERT_TRUE(by_weights) << by_weights.error().message();
  EXPECT_EQ(cpu.y, gpu.y);
  EXPECT_EQ(cpu.mask, gpu.mask);
  EXPECT_EQ(cpu.dx, gpu.dx);
  EXPECT_EQ(cpu.dw, gpu.dw);
  EXPECT_EQ(cpu.db, gpu.db);
}

constexpr desc forward_of_layer = [] {
  desc d = product_of(layout::plain, layout::plain);
  append(d, op::bias());
  append(d, op::relu_mask(0));
  return d;
}();
constexpr desc by_data_of_layer = [] {
  desc d = product_of(layout::plain, layout::transposed);
  append(d, op::multiply_mask(0));
  return d;
}();
constexpr desc by_bias_of_layer = [] {
  desc d;
  d.where = place::gpu;
  return d;
}();

conv_desc masked_layer() {
  conv_desc d;
  d.images = 2, d.groups = 2, d.in = 144, d.out = 32, d.training = true;
  d.act = nn::activation::relu, d.mask = d.input_mask = true;
  d.axes[1] = {6, 3, 2, 1, 1, 1}, d.axes[2] = {9, 3, 2, 1, 1, 0};
  return d;
}

TEST_F(GpuConv, HasTheBitsOfTheCpusPlan) {
  const conv_desc d = masked_layer();
  emulate<forward_of_layer, tile{16, 16, 16, 1}>(*nn::forward_launches(d));
  emulate<by_data_of_layer, tile{16, 16, 16, 1}>(*nn::backward_data_launches(d));
  emulate<product_of(layout::transposed, layout::plain), tile{16, 16, 16, 1}>(*nn::backward_weights_launches(d));
  emulate<by_bias_of_layer, tile{16, 16, 16, 1}>(*nn::backward_bias_launches(d));
  const std::size_t before = driver().memory.size();
  {
    const auto layer = conv_on_gpu::plan(d, here());
    ASSERT_TRUE(layer) << layer.error().message();
    EXPECT_EQ(driver().memory.size(), before + 9);  // two lists a pass, and ones
    begin();
    expect_the_bits_of_the_cpu(d, *layer);
    const conv_on_gpu copy = *layer;
  }
  EXPECT_EQ(driver().memory.size(), before);
}

/// Rows of a fully connected layer are one launch of few blocks.
TEST_F(GpuConv, IsAFullyConnectedLayerWithoutAxes) {
  conv_desc d;
  d.images = 70, d.in = 40, d.out = 24, d.training = true;
  d.act = nn::activation::relu, d.mask = d.input_mask = true;
  const auto forward = nn::forward_launches(d);
  ASSERT_TRUE(forward);
  ASSERT_EQ(forward->launches.size(), 1u);
  EXPECT_EQ(forward->outputs.size(), 2u);
  EXPECT_EQ(forward->pairs.size(), 1u);
  emulate<forward_of_layer, tile{32, 32, 16, 2}>(*forward);
  emulate<by_data_of_layer, tile{16, 16, 16, 1}>(*nn::backward_data_launches(d));
  emulate<product_of(layout::transposed, layout::plain), tile{16, 16, 16, 1}>(*nn::backward_weights_launches(d));
  emulate<by_bias_of_layer, tile{16, 16, 16, 1}>(*nn::backward_bias_launches(d));
  const auto layer = conv_on_gpu::plan(d, here());
  ASSERT_TRUE(layer) << layer.error().message();
  begin();
  expect_the_bits_of_the_cpu(d, *layer);
}

TEST_F(GpuConv, SaysWhatIsWrong) {
  conv_desc d;
  d.in = d.out = 12;
  d.axes[2] = {9, 3, 1, 1, 1, 1};
  d.mask = true, d.act = nn::activation::relu;
  expect_error(conv_on_gpu::plan(d, here()), errc::unsupported, "mask", {"12 channels", "multiple of 8"});
  d.mask = false;
  const auto layer = conv_on_gpu::plan(d, here());
  ASSERT_TRUE(layer) << layer.error().message();
  std::vector<float> x(9 * 12), w(3 * 12 * 12), y(9 * 12), b(12);
  expect_error(layer->forward(nullptr, w.data(), {.bias = b.data()}, y.data()), errc::invalid_argument, "x", {"432"});
  expect_error(layer->forward(x.data(), w.data(), {}, y.data()), errc::invalid_argument, "bias", {"48"});
  expect_error(layer->forward(x.data(), w.data(), {.bias = b.data()}, w.data() + 5), errc::invalid_argument, "y",
               {"overlaps w"});
  expect_error(layer->forward(x.data(), w.data(), {.bias = b.data(), .zero_x = 3}, y.data()), errc::invalid_argument,
               "zero_x", {"3"});
  expect_error(layer->backward_data(y.data(), w.data(), x.data()), errc::invalid_argument, "training", {"true"});
  expect_error(layer->backward_weights(x.data(), y.data(), w.data(), nullptr), errc::invalid_argument, "training",
               {"true"});
  driver().answer_to_copy = CUDA_ERROR_ILLEGAL_ADDRESS;
  expect_error(conv_on_gpu::plan(d, here()), errc::device, "device", {"cuMemcpyHtoD", "an illegal address"});
  driver().answer_to_copy = CUDA_SUCCESS;
}

#if __has_include(<dlpack/dlpack.h>)
TEST(Dlpack, GivesAddressesOfRightTensorsAlone) {
  static_assert(kDLCUDA == cuda::dlpack_cuda && kDLCUDAManaged == cuda::dlpack_cuda_managed);
  static_assert(kDLInt == cuda::dlpack_type_of(type::s8).code && kDLUInt == cuda::dlpack_type_of(type::u8).code);
  static_assert(kDLFloat == cuda::dlpack_type_of(type::f16).code && kDLBfloat == cuda::dlpack_type_of(type::bf16).code);
  static_assert(cuda::dlpack_type_of(type::tf32).bits == 32 && cuda::dlpack_type_of(type::f64).bits == 64);
  float data[24];
  std::int64_t shape[] = {2, 1, 12}, strides[] = {12, 77, 1};
  DLTensor right = {};
  right.data = data, right.device = {kDLCUDA, 1}, right.ndim = 3, right.dtype = {kDLFloat, 32, 1};
  right.shape = shape, right.byte_offset = 8;
  const index wanted[] = {2, 1, 12};
  const auto address = [&](const DLTensor& t, type element = type::f32) {
    return cuda::address_of(t, element, wanted, 1);
  };
  EXPECT_EQ(*address(right), static_cast<void*>(data + 2));
  DLTensor t = right;
  t.strides = strides;  // that of an extent of 1 is nobody's business
  EXPECT_EQ(*address(t), static_cast<void*>(data + 2));
  strides[0] = 13;
  expect_error(address(t), errc::invalid_argument, "strides", {"strides[0]", "13", "12"});
  t = right, t.device = {kDLCUDAManaged, 0};
  EXPECT_TRUE(address(t));
  t.device = {kDLCUDA, 0};
  expect_error(address(t), errc::invalid_argument, "device", {"(2,0)", "(2,1)"});
  t.device = {kDLCPU, 1};
  expect_error(address(t), errc::invalid_argument, "device", {"(1,1)"});
  expect_error(address(right, type::bf16), errc::invalid_argument, "dtype", {"(2,32,1)", "(4,16,1)"});
  t = right, t.dtype.lanes = 4;
  expect_error(address(t), errc::invalid_argument, "dtype", {"(2,32,4)"});
  t = right, t.ndim = 2;
  expect_error(address(t), errc::invalid_argument, "shape", {"2", "3"});
  shape[2] = 11;
  expect_error(address(right), errc::invalid_argument, "shape", {"shape[2]", "11", "12"});
  shape[2] = 12, t = right, t.data = nullptr;
  expect_error(address(t), errc::invalid_argument, "data", {"null"});
}
#endif

}  // namespace
}  // namespace brgemm_test
