#!/usr/bin/env bash
# Each case of cases.cpp must fail to compile, with the words that its comment promises; case 0 must compile.
#
#   run.sh SOURCE_DIR COMPILER...
set -euo pipefail
source_dir=$1
shift
cases="$source_dir/tests/compile_fail/cases.cpp"
compile() { "$@" -std=c++20 -fsyntax-only -Wall -Wextra -Werror -I"$source_dir/include" "$cases"; }

compile "$@" -DCASE=0 || { echo "case 0 must compile"; exit 1; }
count=0
# lines of the form:  #elif CASE == 3  // flags: -ffast-math; error: some words
while read -r number flags words; do
  [ "$flags" = none ] && flags=
  # shellcheck disable=SC2086
  if output=$(compile "$@" "-DCASE=$number" $flags 2>&1); then
    echo "case $number compiles, but must not"
    exit 1
  fi
  if ! grep -qE "$words" <<< "$output"; then
    echo "case $number fails without the words '$words':"
    echo "$output"
    exit 1
  fi
  count=$((count + 1))
done < <(sed -nE 's/^#elif CASE == ([0-9]+) +\/\/ flags: ([^;]+); error: (.*)$/\1 \2 \3/p' "$cases")
echo "$count cases fail to compile as they must"
[ "$count" -gt 0 ]
