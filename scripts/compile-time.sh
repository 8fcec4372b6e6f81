#!/usr/bin/env bash
# Prints how many seconds compilers take for a file that includes the umbrella header, for one that also makes and calls
# kernels (examples/01_brgemm.cpp), and for one that trains a network (examples/04_mlp.cpp): the lesser of two
# compilations. Needs libxbyak-dev and the compilers named.
#
#   scripts/compile-time.sh [COMPILER...]    default: g++, and clang++ where it is installed
set -euo pipefail
cd "$(dirname "$0")/.."

compilers=("$@")
if [ ${#compilers[@]} -eq 0 ]; then
  compilers=(g++)
  if command -v clang++ > /dev/null; then compilers+=(clang++); fi
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
printf '#include <brgemm/brgemm.hpp>\nint main() {}\n' > "$work/umbrella.cpp"

seconds() {  # the compiler's line
  local least=999 taken TIMEFORMAT=%R
  for _ in 1 2; do
    taken=$({ time "$@"; } 2>&1)
    least=$(printf '%s\n%s\n' "$least" "$taken" | sort -g | head -n 1)
  done
  echo "$least"
}

printf '%-24s %-4s %12s %14s %14s\n' compiler "" "includes it" "calls kernels" "trains an mlp"
for compiler in "${compilers[@]}"; do
  for level in -O0 -O2; do
    line=("$compiler" -std=c++20 "$level" -Iinclude -o "$work/object" -c)
    printf '%-24s %-4s %10s s %12s s %12s s\n' "$compiler $("$compiler" -dumpfullversion -dumpversion)" "$level" \
      "$(seconds "${line[@]}" "$work/umbrella.cpp")" "$(seconds "${line[@]}" examples/01_brgemm.cpp)" \
      "$(seconds "${line[@]}" examples/04_mlp.cpp)"
  done
done
