#!/usr/bin/env bash
# Paths given to demo.sh and bench.sh are those of the folder that the user is in. Nothing is installed, built or run:
# the programs that the scripts call are replaced by ones that write down how they were called.
#
#   paths_test.sh SOURCES
set -euo pipefail

sources=$1
user=$(realpath "$(mktemp -d)")
trap 'rm -rf "$user"' EXIT
cd "$user"

# called PROGRAM: a line for the folder it runs in, and one for each argument
mkdir -p bin peers/lib build/examples/fashion_mnist build/bench-python/bin
cat > bin/called << 'END'
#!/usr/bin/env bash
{ echo "in $PWD"; printf '%s\n' "$@"; } > "$CALLS/$(basename "$0")"
END
printf '#!/bin/sh\necho installed\n' > bin/dpkg-query
chmod +x bin/*
cp bin/called bin/cmake
cp bin/called build/examples/fashion_mnist/fashion_mnist
cp bin/called build/bench-python/bin/python
export PATH="$user/bin:$PATH" CALLS="$user/calls" BUILD_DIR=build
mkdir calls

expect() {  # FILE LINE...: each stands in it
  local file=$1 line
  shift
  for line in "$@"; do
    grep -qxF -- "$line" "calls/$file" || { echo "no line '$line' in the call of $file:"; cat "calls/$file"; exit 1; }
  done
}

# The drawing that follows the program ends with an error, as there is nothing to draw.
"$sources/scripts/demo.sh" --output out --epochs 1 > log 2>&1 || true
expect fashion_mnist "in $user" --output out --epochs 1
grep -qE "'?out/predictions.csv|No module" log || { cat log; exit 1; }
"$sources/scripts/demo.sh" --output=out > log 2>&1 || true
expect fashion_mnist "in $user" --output=out
"$sources/scripts/demo.sh" --epochs 1 > log 2>&1 || true
expect fashion_mnist --output "$(realpath "$sources")/demo-output"

# cmake is called twice, to configure and to build: the words of the first call are kept.
cat > bin/cmake << 'END'
#!/usr/bin/env bash
[ "$1" = --build ] || printf '%s\n' "$@" > "$CALLS/cmake"
END
for form in "--libxsmm=peers --onednn=peers" "--libxsmm peers --onednn peers"; do
  # shellcheck disable=SC2086  # words apart
  "$sources/scripts/bench.sh" primitive $form --json rows.json --document=page.md > log 2>&1 || { cat log; exit 1; }
  expect cmake "-DBRGEMM_BENCH_LIBXSMM=$user/peers" "-DBRGEMM_BENCH_ONEDNN=$user/peers" "$user/build"
  expect python "in $user" "$(realpath "$sources")/bench/accept.py" primitive "$user/build/bench/brgemm_bench" --json \
    rows.json --document=page.md
done
LIBXSMM_ROOT=peers "$sources/scripts/bench.sh" train --python=bin/called --raw raw.json > log 2>&1 || { cat log; exit 1; }
expect cmake "-DBRGEMM_BENCH_LIBXSMM=$user/peers" "-DBRGEMM_BENCH_ONEDNN="
expect python "in $user" "$user/bin/called" --raw raw.json
echo "paths are the user's"
