#!/usr/bin/env bash
# A network learns pictures: installs what it needs (Debian 12), builds, trains on Fashion-MNIST, tests and draws.
#
#   scripts/demo.sh [options of the program: --network cnn|mlp --threads --type f32|bf16 --backend --epochs --layers
#                    --seed --resume ...]
#
# Results (checkpoint, history.csv, predictions.csv, pictures.png, learning_curve.png) go to the repository's
# demo-output/, or where --output says. Ctrl-C ends it with a checkpoint; scripts/demo.sh --resume goes on to the same bits.
# BUILD_DIR names another build folder than build/demo.
set -euo pipefail
from=$PWD  # paths of the user's are relative to this
cd "$(dirname "$0")/.."
root=$PWD

scripts/install-packages.sh g++ cmake ninja-build libxbyak-dev libcli11-dev zlib1g-dev dataset-fashion-mnist \
  python3-matplotlib python3-numpy

build=$root/build/demo
if [ -n "${BUILD_DIR:-}" ]; then build=$(cd "$from" && realpath -m "$BUILD_DIR"); fi
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBRGEMM_TESTS=OFF -DBRGEMM_BENCHMARKS=OFF \
  -DBRGEMM_EXAMPLES=ON > /dev/null
cmake --build "$build" --target fashion_mnist

# Where the results go, for the drawing.
output=
data=/usr/share/datasets/fashion-mnist
previous=
for argument in "$@"; do
  case "$argument" in
    -h | --help) exec "$build/examples/fashion_mnist/fashion_mnist" --help ;;
    --output=*) output=${argument#*=} ;;
    --data=*) data=${argument#*=} ;;
  esac
  case "$previous" in
    --output) output=$argument ;;
    --data) data=$argument ;;
  esac
  previous=$argument
done

options=("$@")
if [ -z "$output" ]; then
  output=$root/demo-output
  options+=(--output "$output")
fi
cd "$from"

# Threads that wait sleep: with them spinning, other work on the same cores would slow the training tenfold.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

# Ctrl-C is the program's to handle; it then exits with 130 and so does this script.
trap : INT
"$build/examples/fashion_mnist/fashion_mnist" "${options[@]}"
/usr/bin/python3 "$root/examples/fashion_mnist/plot.py" "$output" "$data"
