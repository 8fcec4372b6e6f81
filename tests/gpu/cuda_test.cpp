// brgemm::cuda as a user meets it: on a machine without a GPU errors that say so, on one with a GPU the bits of the
// reference.
#include "brgemm/backend/cuda.hpp"

#include <gtest/gtest.h>

#include "brgemm/kernel/kernel.hpp"
#include "support/expect_error.hpp"

namespace brgemm {
namespace {

using brgemm_test::expect_error;

desc of_f32() {
  desc d;
  d.m = d.n = d.k = d.lda = d.ldb = d.ldc = 64;
  d.where = place::gpu;
  return d;
}

TEST(Cuda, WithoutADeviceEverythingSaysSo) {
  const auto count = cuda::device_count();
  if (count && *count > 0) GTEST_SKIP() << "there is a device";
  if (!count && count.error().code() != errc::unsupported) GTEST_SKIP() << count.error().message();
  expect_error(count, errc::unsupported, "device", {"drive"});
  expect_error(cuda::properties_of(0), errc::unsupported, "device", {"drive"});
  expect_error(cuda::make_kernel(of_f32()), errc::unsupported, "device", {"drive"});
  desc d = of_f32();
  d.ldb = 63;  // what is wrong everywhere comes first
  expect_error(cuda::make_kernel(d), errc::invalid_argument, "ldb", {"63", "64"});
  EXPECT_FALSE(cuda::kernel());
}

TEST(Cuda, TheCpuRefusesItsDescs) {
  expect_error(make_kernel(of_f32()), errc::unsupported, "where", {"cuda::make_kernel"});
  EXPECT_TRUE(cuda::supports(of_f32()));
  desc d = of_f32();
  d.where = place::cpu;
  expect_error(cuda::make_kernel(d), errc::invalid_argument, "where", {"where is 0"});
}

}  // namespace
}  // namespace brgemm
