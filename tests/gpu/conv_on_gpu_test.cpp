// A convolution's plan for a GPU, end to end on a stand-in for the driver, whose launches run the kernels' text on the
// CPU: the bits of the CPU's plan. And what DLPack's tensors are asked for.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <array>
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
#include "support/problem.hpp"

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

/// Small integers, whose sums are exact in any order, in f32 and bf16.
bytes drawn(entropy& e, type t, index size) {
  bytes x(static_cast<std::size_t>(size));
  draw_elements(e, t, t == type::bf16 ? values::integers : values::unit, x.data(), size / size_of(t));
  return x;
}

/// Both plans' results on the same data; what is not written stays different.
void expect_the_bits_of_the_cpu(const conv_desc& d, const conv_on_gpu& on_gpu) {
  const auto layer = nn::conv::plan(d);
  ASSERT_TRUE(layer) << layer.error().message();
  entropy e(5);
  const bytes x = drawn(e, d.data, layer->x_bytes()), residual = drawn(e, d.y, layer->y_bytes());
  const bytes z = drawn(e, d.data, layer->y_bytes() / size_of(d.y) * size_of(d.data));
  const bytes bias = drawn(e, type::f32, d.out * 4), scale = drawn(e, type::f32, d.out * 4);
  const bytes w = drawn(e, d.data, layer->weights() * size_of(d.data));
  const bytes input_mask = drawn(e, type::u8, layer->input_mask_bytes());
  struct results {
    bytes y, mask, dx, dw, db;
    results(std::byte unwritten, const nn::conv& of)
        : y(static_cast<std::size_t>(of.y_bytes()), unwritten),
          mask(static_cast<std::size_t>(of.mask_bytes()), unwritten),
          dx(static_cast<std::size_t>(of.x_bytes()), unwritten),
          dw(static_cast<std::size_t>(of.weights() * 4), unwritten),
          db(static_cast<std::size_t>(of.description().out * 4), unwritten) {}
  } cpu(std::byte{0xee}, *layer), gpu(std::byte{0x55}, *layer);
  const auto floats = [](const bytes& of) { return reinterpret_cast<float*>(const_cast<std::byte*>(of.data())); };
  const auto operands = [&](results& to) {
    nn::conv_operands with;
    if (d.bias) with.bias = floats(bias);
    if (d.scale) with.scale = floats(scale);
    if (d.residual) with.residual = residual.data();
    if (d.mask) with.mask = to.mask.data();
    return with;
  };
  const void* const masked = d.input_mask ? input_mask.data() : nullptr;
  bytes weights(static_cast<std::size_t>(layer->weights_bytes()));
  bytes transposed(static_cast<std::size_t>(layer->transposed_bytes()));
  bytes workspace(static_cast<std::size_t>(layer->backward_weights_workspace_bytes()) + 64);
  loops::serial one;
  const auto packed =
      d.data == type::bf16
          ? layer->pack_weights(one, reinterpret_cast<const bf16*>(w.data()), nn::conv_weights::out_last,
                                weights.data(), transposed.data())
          : layer->pack_weights(one, floats(w), nn::conv_weights::out_last, weights.data(), transposed.data());
  ASSERT_TRUE(packed) << packed.error().message();
  ASSERT_TRUE(layer->forward(one, d.images, x.data(), weights.data(), operands(cpu), cpu.y.data()));
  ASSERT_TRUE(layer->backward_data(one, d.images, z.data(), transposed.data(), cpu.dx.data(), masked));
  ASSERT_TRUE(layer->backward_weights(one, d.images, x.data(), z.data(), floats(cpu.dw), floats(cpu.db),
                                      layer->backward_weights_workspace_bytes() > 0 ? workspace.data() : nullptr));

  const auto forward = on_gpu.forward(x.data(), w.data(), operands(gpu), gpu.y.data());
  ASSERT_TRUE(forward) << forward.error().message();
  const auto by_data = on_gpu.backward_data(z.data(), w.data(), gpu.dx.data(), masked);
  ASSERT_TRUE(by_data) << by_data.error().message();
  const auto by_weights = on_gpu.backward_weights(x.data(), z.data(), floats(gpu.dw), floats(gpu.db));
  ASSERT_TRUE(by_weights) << by_weights.error().message();
  EXPECT_EQ(cpu.y, gpu.y);
  EXPECT_EQ(cpu.mask, gpu.mask);
  EXPECT_EQ(cpu.dx, gpu.dx);
  EXPECT_EQ(cpu.dw, gpu.dw);
  EXPECT_EQ(cpu.db, gpu.db);
}

constexpr tile small{16, 16, 16, 1}, warps{32, 32, 32, 0};

constexpr desc product_of(type data, type c, layout a, layout b, std::initializer_list<epilogue_op> steps = {}) {
  desc d;
  d.where = place::gpu;
  d.a = d.b = data, d.c = c;
  d.batch = batch_kind::offsets, d.m_extent = extent_kind::at_call;
  d.layout_a = a, d.layout_b = b;
  for (const epilogue_op& o : steps) append(d, o);
  return d;
}
constexpr desc bias_product_of(type data) {
  desc d;
  d.where = place::gpu;
  d.a = d.b = data, d.c = type::f32;
  return d;
}
constexpr auto with_mask = [] {
  return product_of(type::f32, type::f32, layout::plain, layout::plain, {op::bias(), op::relu_mask(0)});
};
constexpr desc masked_forward = with_mask();
constexpr desc masked_by_data =
    product_of(type::f32, type::f32, layout::plain, layout::transposed, {op::multiply_mask(0)});
constexpr desc by_weights_f32 = product_of(type::f32, type::f32, layout::transposed, layout::plain);
constexpr desc by_bias_f32 = bias_product_of(type::f32);

TEST_F(GpuConv, HasTheBitsOfTheCpusPlan) {
  conv_desc d;
  d.images = 2, d.groups = 2, d.in = 144, d.out = 32, d.training = true;
  d.act = nn::activation::relu, d.mask = d.input_mask = true;
  d.axes[1] = {6, 3, 2, 1, 1, 1}, d.axes[2] = {9, 3, 2, 1, 1, 0};
  emulate<masked_forward, small>(*nn::forward_launches(d));
  emulate<masked_by_data, small>(*nn::backward_data_launches(d));
  emulate<by_weights_f32, small>(*nn::backward_weights_launches(d));
  emulate<by_bias_f32, small>(*nn::backward_bias_launches(d));
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

/// Three axes, dilation, and every step of the epilogue but the mask.
TEST_F(GpuConv, HasTheStepsOfTheEpilogue) {
  conv_desc d;
  d.images = 2, d.in = 70, d.out = 12, d.training = true;
  d.scale = d.residual = d.clamp = true, d.lower = -2, d.upper = 3;
  d.axes[0] = {3, 2, 1, 1, 1, 0}, d.axes[1] = {5, 2, 2, 1, 0, 1}, d.axes[2] = {7, 3, 1, 2, 2, 1};
  static constexpr desc forward = product_of(type::f32, type::f32, layout::plain, layout::plain,
                                             {op::scale(axis::column), op::bias(), op::add(0), op::clamp(-2, 3)});
  static constexpr desc by_data = product_of(type::f32, type::f32, layout::plain, layout::transposed);
  emulate<forward, small>(*nn::forward_launches(d));
  emulate<by_data, small>(*nn::backward_data_launches(d));
  emulate<by_weights_f32, small>(*nn::backward_weights_launches(d));
  emulate<by_bias_f32, small>(*nn::backward_bias_launches(d));
  const auto layer = conv_on_gpu::plan(d, here());
  ASSERT_TRUE(layer) << layer.error().message();
  begin();
  expect_the_bits_of_the_cpu(d, *layer);
}

TEST_F(GpuConv, TakesBf16) {
  conv_desc d;
  d.images = 2, d.in = 24, d.out = 16, d.data = d.y = type::bf16, d.training = true;
  d.residual = d.input_mask = true;
  d.axes[1] = {5, 3, 1, 1, 1, 1}, d.axes[2] = {6, 3, 2, 1, 1, 1};
  static constexpr desc forward =
      product_of(type::bf16, type::bf16, layout::plain, layout::plain, {op::bias(), op::add(0, type::bf16)});
  static constexpr desc by_data =
      product_of(type::bf16, type::bf16, layout::plain, layout::transposed, {op::multiply_mask(0)});
  static constexpr desc by_weights = product_of(type::bf16, type::f32, layout::transposed, layout::plain);
  static constexpr desc by_bias = bias_product_of(type::bf16);
  emulate<forward, warps>(*nn::forward_launches(d));
  emulate<by_data, warps>(*nn::backward_data_launches(d));
  emulate<by_weights, warps>(*nn::backward_weights_launches(d));
  emulate<by_bias, warps>(*nn::backward_bias_launches(d));
  const auto layer = conv_on_gpu::plan(d, here());
  ASSERT_TRUE(layer) << layer.error().message();
  begin();
  expect_the_bits_of_the_cpu(d, *layer);
}

/// Rows of a fully connected layer are one launch of few blocks; so are the pixels of all images.
TEST_F(GpuConv, IsAFullyConnectedLayerWithoutAxes) {
  for (const index pixels : {1, 6}) {
    conv_desc d;
    d.images = 70, d.in = 40, d.out = 24, d.training = true;
    d.axes[2] = {.in = pixels};
    d.act = nn::activation::relu, d.mask = d.input_mask = true;
    const auto forward = nn::forward_launches(d);
    ASSERT_TRUE(forward);
    ASSERT_EQ(forward->launches.size(), 1u);
    EXPECT_EQ(forward->outputs.size(), static_cast<std::size_t>((70 * pixels + 63) / 64));
    EXPECT_EQ(forward->pairs.size(), 1u);
    emulate<masked_forward, tile{32, 32, 16, 2}>(*forward);
    emulate<masked_by_data, small>(*nn::backward_data_launches(d));
    emulate<by_weights_f32, small>(*nn::backward_weights_launches(d));
    emulate<by_bias_f32, small>(*nn::backward_bias_launches(d));
    const auto layer = conv_on_gpu::plan(d, here());
    ASSERT_TRUE(layer) << layer.error().message();
    begin();
    expect_the_bits_of_the_cpu(d, *layer);
  }
}

TEST_F(GpuConv, SaysWhatIsWrong) {
  conv_desc d;
  d.in = d.out = 12;
  d.axes[2] = {9, 3, 1, 1, 1, 1};
  d.mask = true, d.act = nn::activation::relu;
  expect_error(conv_on_gpu::plan(d, here()), errc::unsupported, "mask", {"12", "multiple of 8"});
  d.mask = false, d.sums = order::pair;
  expect_error(conv_on_gpu::plan(d, here()), errc::unsupported, "sums", {"pair", "f32"});
  d.sums = order::machine;
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

#if !__has_include(<dlpack/dlpack.h>)
TEST(Dlpack, GivesAddressesOfRightTensorsAlone) { GTEST_SKIP() << "no dlpack/dlpack.h"; }
#else
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
  std::int64_t none[] = {2, 0}, strides_of_none[] = {1, 1};  // as PyTorch has them
  t.ndim = 2, t.shape = none, t.strides = strides_of_none, t.byte_offset = 0;
  EXPECT_EQ(*cuda::address_of(t, type::f32, std::array<index, 2>{2, 0}, 1), nullptr);
  t.byte_offset = 8;
  EXPECT_EQ(*cuda::address_of(t, type::f32, std::array<index, 2>{2, 0}, 1), nullptr);
  t = right, t.ndim = 2, t.shape = none, none[1] = -1;
  expect_error(cuda::address_of(t, type::f32, std::array<index, 2>{2, -1}, 1), errc::invalid_argument, "shape", {"-1"});
  constexpr index half = index{1} << 32;
  std::int64_t many[] = {half, half}, no_gaps[] = {half, 1};
  t.shape = many, t.strides = no_gaps;
  expect_error(cuda::address_of(t, type::f32, std::array<index, 2>{half, half}, 1), errc::invalid_argument, "shape",
               {"2^63 - 1"});
}
#endif

}  // namespace
}  // namespace brgemm_test
