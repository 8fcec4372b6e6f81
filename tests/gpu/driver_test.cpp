// What the library asks of NVIDIA's driver, of which a stand-in keeps account: modules, contexts, launches, errors.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "brgemm/backend/cuda.hpp"
#include "compiler.hpp"
#include "support/expect_error.hpp"
#include "support/fake_cuda_driver.hpp"

namespace brgemm::cuda {
namespace {

using brgemm_test::expect_error;
using brgemm_test::fake_cuda_driver;

fake_cuda_driver& driver() {
  void* const library = dlopen(std::getenv("BRGEMM_CUDA_DRIVER"), RTLD_NOW);
  void* const found = library == nullptr ? nullptr : dlsym(library, "brgemm_fake_cuda_driver");
  if (found == nullptr) std::abort();  // another driver: not what is tested here
  return reinterpret_cast<brgemm_test::fake_cuda_driver_of>(found)();
}

class GpuDriver : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto there = check_compiler({9, 0}); !there && std::getenv("BRGEMM_NVRTC") == nullptr) {
      GTEST_SKIP() << there.error().message();
    }
    folder_ = (std::filesystem::temp_directory_path() / "brgemm_driver_XXXXXX").string();
    ASSERT_NE(mkdtemp(folder_.data()), nullptr);
    driver().parameter_bytes = sizeof(launch);
    driver().answer_to_load = driver().answer_to_launch = CUDA_SUCCESS;
  }
  void TearDown() override {
    if (!folder_.empty()) std::filesystem::remove_all(folder_);
  }
  options here(int device = 0) const { return {.device = device, .cache_folder = folder_}; }
  std::string folder_;
};

desc of_f32(index m = 100) {
  desc d;
  d.m = m, d.n = 70, d.k = 30;
  d.lda = 30, d.ldb = 70, d.ldc = at_call;
  d.stride_a = 7, d.stride_b = 8;
  d.where = place::gpu;
  return d;
}

float memory[4];
arguments of_memory() {
  arguments x;
  x.a = x.b = memory, x.c = memory + 1, x.ldc = 90, x.batch = 3;
  return x;
}

TEST_F(GpuDriver, TellsOfDevices) {
  EXPECT_EQ(*device_count(), 3);
  const auto second = properties_of(1);
  ASSERT_TRUE(second) << second.error().message();
  EXPECT_EQ(second->name, "stand-in 1");
  EXPECT_EQ(second->capability, (capability{9, 0}));
  EXPECT_EQ(second->multiprocessors, 132);
  expect_error(properties_of(3), errc::invalid_argument, "device", {"device is 3", "there are 3"});
  expect_error(make_kernel(of_f32(), here(-1)), errc::invalid_argument, "device", {"device is -1"});
  expect_error(make_kernel(of_f32(), here(2)), errc::unsupported, "capability", {"7.5", "8.0"});
}

TEST_F(GpuDriver, LoadsCodeOnceForAllSizes) {
  const int loads = driver().loads;
  const auto first = make_kernel(of_f32(), here());
  ASSERT_TRUE(first) << first.error().message();
  EXPECT_EQ(driver().loads, loads + 1);
  EXPECT_EQ(driver().function, entry_name);
  EXPECT_EQ(driver().functions_loaded, driver().loads);
  EXPECT_TRUE(make_kernel(of_f32(), here()));
  EXPECT_TRUE(make_kernel(of_f32(99), here()));
  EXPECT_EQ(driver().loads, loads + 1);
  desc other = of_f32();
  append(other, op::relu());
  EXPECT_TRUE(make_kernel(other, here()));
  EXPECT_EQ(driver().loads, loads + 2);
  EXPECT_TRUE(driver().contexts.empty());
  EXPECT_EQ(first->description(), of_f32());
  EXPECT_EQ(first->order(), order::chain);
}

TEST_F(GpuDriver, TakesCodeFromTheFolder) {
  desc d = of_f32();
  append(d, op::leaky_relu(0.25f));
  ASSERT_TRUE(make_kernel(d, here(0)));
  const auto files = [&] { return std::distance(std::filesystem::directory_iterator(folder_), {}); };
  ASSERT_EQ(files(), 1);
  const std::string file = std::filesystem::directory_iterator(folder_)->path().string();
  const auto written = std::filesystem::last_write_time(file);
  const auto begin = std::chrono::steady_clock::now();
  const auto second = make_kernel(d, here(1));  // of the same capability, and nothing loaded yet
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
  ASSERT_TRUE(second) << second.error().message();
  EXPECT_EQ(second->device(), 1);
  EXPECT_EQ(files(), 1);
  EXPECT_EQ(std::filesystem::last_write_time(file), written);
  std::printf("code from the folder: %.2f ms\n", took.count());
}

TEST_F(GpuDriver, LaunchesWhatItIsGivenInTheDevicesContext) {
  const auto k = make_kernel(of_f32(), here(1));
  ASSERT_TRUE(k) << k.error().message();
  int another = 0;
  const auto other_context = reinterpret_cast<CUcontext>(&another);
  driver().contexts = {other_context};
  const int launches = driver().launches;
  int stream = 0;
  const auto called = k->call(of_memory(), &stream);
  ASSERT_TRUE(called) << called.error().message();
  EXPECT_EQ(driver().launches, launches + 1);
  EXPECT_EQ(driver().contexts, std::vector<CUcontext>{other_context});
  EXPECT_EQ(driver().launched_in, driver().loaded_in);
  EXPECT_NE(driver().launched_in, other_context);
  EXPECT_EQ(driver().stream, reinterpret_cast<CUstream>(&stream));
  const tile t = choose_tile(of_f32());
  EXPECT_EQ(driver().threads, static_cast<unsigned>(threads_of(t)));
  EXPECT_EQ(driver().blocks, *grid_of(of_f32(), t, of_memory()));
  launch got = {};
  std::memcpy(&got, driver().parameter.data(), sizeof got);
  EXPECT_EQ(got.x.a, memory);
  EXPECT_EQ(got.x.ldc, 90);
  EXPECT_EQ(got.x.batch, 3);
  EXPECT_EQ(got.m, 100);
  EXPECT_EQ(got.stride_b, 8);
  driver().contexts.clear();

  arguments none = of_memory();
  none.count = 0;
  EXPECT_TRUE(k->call(none));
  arguments wrong = of_memory();
  wrong.ldc = 69;
  expect_error(k->call(wrong), errc::invalid_argument, "ldc", {"69", "70"});
  EXPECT_EQ(driver().launches, launches + 1);
}

TEST_F(GpuDriver, ErrorsHaveTheDriversWords) {
  desc d = of_f32();
  append(d, op::clamp(-1, 1));
  driver().answer_to_load = CUDA_ERROR_OUT_OF_MEMORY;
  expect_error(make_kernel(d, here()), errc::out_of_memory, "device", {"cuModuleLoadData", "error 2"});
  driver().answer_to_load = CUDA_SUCCESS;
  const auto k = make_kernel(d, here());  // the failure was not kept
  ASSERT_TRUE(k) << k.error().message();
  driver().answer_to_launch = CUDA_ERROR_ILLEGAL_ADDRESS;
  expect_error(k->call(of_memory()), errc::device, "device", {"cuLaunchKernel", "error 700", "an illegal address"});
  EXPECT_TRUE(driver().contexts.empty());
}

/// Run by itself, with BRGEMM_NVRTC naming a file that is not there.
TEST_F(GpuDriver, DISABLED_WithoutNvrtcTheLibrarysOwnKernelsRun) {
  desc d = of_f32();
  d.beta = beta_kind::one;
  const auto k = make_kernel(d, here());
  ASSERT_TRUE(k) << k.error().message();
  EXPECT_EQ(driver().code, precompiled_code().data());
  EXPECT_EQ(driver().function, precompiled_name + std::to_string(2));
  ASSERT_TRUE(k->call(of_memory()));
  launch got = {};
  std::memcpy(&got, driver().parameter.data(), sizeof got);
  EXPECT_EQ(got.x.beta, 1);
  append(d, op::relu());
  expect_error(make_kernel(d, here()), errc::unsupported, "nvrtc", {std::getenv("BRGEMM_NVRTC")});
}

}  // namespace
}  // namespace brgemm::cuda
