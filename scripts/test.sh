#!/usr/bin/env bash
# Installs what the tests need (Debian; where the CUDA Toolkit is, nvdisasm from PyPI too), builds and runs them.
#
#   scripts/test.sh [--full] [--preset release|debug|asan|tsan]
#
#   --full    the whole exhaustive set instead of the fixed sample (about ten minutes on two cores)
#   --preset  a preset of CMakePresets.json; the default is release
#
# BUILD_DIR names another build folder than build/<preset>.
set -euo pipefail
from=$PWD
cd "$(dirname "$0")/.."

preset=release
full=OFF
while [ $# -gt 0 ]; do
  case "$1" in
    --full) full=ON ;;
    --preset) preset="${2:?--preset needs a name}"; shift ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' scripts/test.sh; exit 0 ;;
    *) echo "scripts/test.sh: unknown option '$1' (see --help)" >&2; exit 2 ;;
  esac
  shift
done

scripts/install-packages.sh g++ clang cmake ninja-build pkg-config libxbyak-dev libgtest-dev libzip-dev \
  libcli11-dev zlib1g-dev libbenchmark-dev libdnnl-dev libdlpack-dev libxsmm-dev python3 gdb dataset-fashion-mnist

build_dir="build/$preset"
if [ -n "${BUILD_DIR:-}" ]; then build_dir="$(cd "$from" && realpath -m "$BUILD_DIR")"; fi
# What prints the machine code of GPU kernels is not in every CUDA Toolkit, but on PyPI (5 MB). Where it cannot be had,
# gpu.machine_code is skipped, and says so.
options=()
PATH="$PATH:/usr/local/cuda/bin"
if [ "$preset" != tsan ] && command -v nvcc > /dev/null && ! command -v nvdisasm > /dev/null; then
  tools="$PWD/$build_dir/nvdisasm"
  case "$build_dir" in /*) tools="$build_dir/nvdisasm" ;; esac
  if scripts/install-packages.sh python3-venv && python3 -m venv "$tools" &&
    "$tools/bin/python" -m pip install --quiet --retries 1 --timeout 15 nvidia-cuda-nvdisasm; then
    options+=("-DBRGEMM_NVDISASM_FOLDER=$tools")
  else
    echo "scripts/test.sh: no nvdisasm from PyPI" >&2
  fi
fi

target=(--target all)
labels=()
if [ "$preset" = tsan ]; then
  target=(--target threads_tests)
  labels=(-L threads)
fi
cmake --preset "$preset" -B "$build_dir" -DBRGEMM_FULL_GRID="$full" "${options[@]}"
cmake --build "$build_dir" "${target[@]}"
ctest --test-dir "$build_dir" --output-on-failure --no-tests=error -j "$(nproc)" "${labels[@]}"
# How much of the set has run, by backend and feature set; the errors of the activations; which tests were skipped for what
# reason.
awk '/^backend +features hidden / { table = 1 }
     table || /^(grid|fuzz): / || /^\[ ulp \] /
     /^grid: / { table = 0 }
     /: Skipped$/ { getline reason }
     /^\[  SKIPPED \] .* ms\)$/ { print "skipped: " $4 ", " reason }' "$build_dir"/Testing/Temporary/LastTest.log
