#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: builds brgemm::cuda and its tests, checks the kernels on the device, and looks for
# wrong accesses and races with compute-sanitizer where it is installed. Figures of speed: not yet.
#
#   bench/gpu.sh [options of CMake, as -DCMAKE_PREFIX_PATH=...]
#
# Needs the CUDA Toolkit, CMake, Ninja, a C++20 compiler, Xbyak's headers and GoogleTest. BUILD_DIR names another build
# folder than build/gpu.
set -euo pipefail
from=$PWD
cd "$(dirname "$0")/.."
case "${1:-}" in -h | --help) sed -n '2,8s/^# \{0,1\}//p' bench/gpu.sh; exit 0 ;; esac

build_dir="build/gpu"
if [ -n "${BUILD_DIR:-}" ]; then build_dir="$(cd "$from" && realpath -m "$BUILD_DIR")"; fi
tests=(gpu.batch_reduce gpu.plan gpu.recent gpu.code_folder gpu.compiler gpu.machine_code gpu.driver gpu.cuda
       gpu.conv_on_gpu gpu.device)
cmake -G Ninja -B "$build_dir" -DCMAKE_BUILD_TYPE=Release -DBRGEMM_CUDA=ON -DBRGEMM_BENCHMARKS=OFF \
      -DBRGEMM_EXAMPLES=OFF -DBRGEMM_TEST_CONSUMERS=OFF "$@" > /dev/null
cmake --build "$build_dir" --target "${tests[@]}"
ctest --test-dir "$build_dir" --output-on-failure --no-tests=error -R '^gpu\.'

if "$build_dir/tests/gpu.device" | grep -q SKIPPED; then
  echo "no GPU here: gpu.device was skipped" >&2
  exit 1
fi
if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 1 "$build_dir/tests/gpu.device"
  done
else
  echo "compute-sanitizer is not here: accesses and races were not looked at"
fi
