#!/usr/bin/env bash
# Installs what the benchmark needs (Debian, and PyPI into a virtual environment), builds it, and runs a suite.
#
#   scripts/bench.sh primitive|conv|conv_more|tiles|train [--libxsmm PATH] [--onednn PATH] [accept.py's options]
#
#   primitive       kernels, handles and layers against LIBXSMM, oneDNN, OpenBLAS and BLIS: at most 25 minutes on two
#                   cores, with --quick at most 3
#   conv            ResNet-50's convolutions in three directions against oneDNN
#   conv_more       depthwise, grouped and other networks' layers against oneDNN; Winograd's algorithm against direct
#   tiles           kernels and layers on AMX tiles, where the CPU has them; the suites above leave them out
#   train           the demo's training steps against PyTorch, which it installs (PyPI's wheel: 5 GB with its libraries)
#   --libxsmm PATH  measure a LIBXSMM 2.x too: a folder with include/ and lib/ (or LIBXSMM_ROOT)
#   --onednn PATH   measure another oneDNN too, as PyPI's onednn-devel installs it into a virtual environment: a folder
#                   with include/ and lib/ (or ONEDNN_ROOT)
#   --python PATH   an interpreter that has torch; nothing is installed for the suite train then
#
# BUILD_DIR names another build folder than build/release. bench/accept.py --help lists its options.
set -euo pipefail
from=$PWD  # paths of the user's are relative to this
cd "$(dirname "$0")/.."
root=$PWD

usage() { sed -n '2,18s/^# \{0,1\}//p' scripts/bench.sh; }
path() { (cd "$from" && realpath -ms "$1"); }
suite="${1:-}"
case "$suite" in
  primitive | conv | conv_more | tiles | train) shift ;;
  -h | --help) usage; exit 0 ;;
  *) usage >&2; exit 2 ;;
esac
libxsmm="${LIBXSMM_ROOT:+$(path "$LIBXSMM_ROOT")}"
onednn="${ONEDNN_ROOT:+$(path "$ONEDNN_ROOT")}"
options=()
plot=no
torch_python=""
while [ $# -gt 0 ]; do
  case "$1" in
    --libxsmm=* | --onednn=* | --python=*) set -- "${1%%=*}" "${1#*=}" "${@:2}"; continue ;;
    --libxsmm) libxsmm="$(path "${2:?--libxsmm needs a path}")"; shift ;;
    --onednn) onednn="$(path "${2:?--onednn needs a path}")"; shift ;;
    --python) torch_python="$(path "${2:?--python needs a path}")"; shift ;;
    --plot | --plot=*) plot=yes; options+=("$1") ;;
    *) options+=("$1") ;;
  esac
  shift
done

# libgtest-dev and zlib1g-dev because the preset has the tests and examples, which are not built here.
scripts/install-packages.sh g++ cmake ninja-build python3-venv libxbyak-dev libbenchmark-dev libcli11-dev \
  libxsmm-dev libdnnl-dev libopenblas-dev libblis-dev libtbb-dev libgtest-dev zlib1g-dev

build_dir="$root/build/release"
if [ -n "${BUILD_DIR:-}" ]; then build_dir="$(path "$BUILD_DIR")"; fi
cmake --preset release -B "$build_dir" -DBRGEMM_BENCH_LIBXSMM="$libxsmm" -DBRGEMM_BENCH_ONEDNN="$onednn" >/dev/null
cmake --build "$build_dir" --target brgemm_bench brgemm_bench_peers

# matplotlib and torch live in an environment of their own beside the build.
environment="$build_dir/bench-python"
python="$environment/bin/python"
[ -x "$python" ] || python3 -m venv "$environment"
if [ "$plot" = yes ]; then "$python" -m pip install --quiet matplotlib; fi
if [ "$suite" = train ] && [ -z "$torch_python" ]; then
  "$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet torch numpy
fi

# PyPI's oneDNN runs on an OpenCL device for the CPU that lies beside it and has to be named, once for each of the two
# OpenCL loaders that can be there.
if [ -n "$onednn" ] && [ -e "$onednn/lib/libintelocl.so" ]; then
  export OCL_ICD_FILENAMES="$onednn/lib/libintelocl.so" OCL_ICD_VENDORS="$onednn/lib/libintelocl.so"
fi
export ONEDNN_VERBOSE="${ONEDNN_VERBOSE:-none}"
cd "$from"
exec "$python" "$root/bench/accept.py" "$suite" --bench "$build_dir/bench/brgemm_bench" \
  --python "${torch_python:-$python}" "${options[@]}"
