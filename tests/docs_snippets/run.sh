#!/usr/bin/env bash
# Compiles and runs every ```cpp block of README.md and docs/*.md: a whole program where it has a main, else the body of
# one, with its #include lines moved to the top. Of ```sh blocks: the scripts that they call are there and know their
# options, as their --help says. What a ```cmake block says is what tests/consumers builds.
#
#   run.sh SOURCE_DIR WORK_DIR COMPILER...
set -euo pipefail
source_dir=$1 work_dir=$2
shift 2
rm -rf "$work_dir"
mkdir -p "$work_dir"

extract() {  # page prefix: writes prefix_LINE.txt for every block
  awk -v prefix="$2" '
    /^```cpp$/ { out = sprintf("%s_%d.txt", prefix, NR); printf "" > out; next }
    /^```/     { if (out != "") close(out); out = ""; next }
    out != ""  { print >> out }' "$1"
}
for page in "$source_dir"/README.md "$source_dir"/docs/*.md; do
  [ -e "$page" ] || continue
  extract "$page" "$work_dir/$(basename "$page" .md)"
done

count=0
for block in "$work_dir"/*.txt; do
  [ -e "$block" ] || break
  program=${block%.txt}
  if grep -q 'int main' "$block"; then
    cp "$block" "$program.cpp"
  else
    { grep '^#include' "$block" || true
      echo 'int main() {'
      grep -v '^#include' "$block"
      echo '}'; } > "$program.cpp"
  fi
  echo "snippet $(basename "$program")"
  "$@" -std=c++20 -O1 -Wall -Wextra -Werror -I"$source_dir/include" "$program.cpp" -o "$program" -pthread
  (cd "$work_dir" && "$program")
  count=$((count + 1))
done

while read -r script options; do
  [ -x "$source_dir/$script" ] || { echo "the docs call $script, which cannot be run"; exit 1; }
  for option in $options; do
    case "$option" in
      --*) "$source_dir/$script" --help | grep -q -e "${option%%=*}" ||
        { echo "the docs call $script $option, which --help does not name"; exit 1; } ;;
    esac
  done
done < <(awk '/^```sh$/ { on = 1; next } /^```/ { on = 0 } on && /^(scripts|\.ci)\// { sub(/#.*/, ""); print }' \
  "$source_dir"/README.md "$source_dir"/docs/*.md)
echo "$count snippets compiled and run"
[ "$count" -gt 0 ]
