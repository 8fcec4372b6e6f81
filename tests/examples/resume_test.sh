#!/usr/bin/env bash
# The demonstration interrupted again and again, and resumed with other numbers of threads, ends with the same bits as a
# run that nobody interrupted; and its accuracy is that of a network that learned.
#
#   resume_test.sh PROGRAM [folder of the pictures]     exit status 77: skipped, no pictures
set -euo pipefail

program=$1
data=${2:-/usr/share/datasets/fashion-mnist}
if [ ! -e "$data/train-images-idx3-ubyte.gz" ]; then
  echo "skipped: no pictures in $data (Debian: dataset-fashion-mnist)"
  exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export OMP_WAIT_POLICY=passive  # threads that wait should not keep other tests from running

while read -r -a what; do
  least=${what[0]}
  what=("${what[@]:1}")
  options=("${what[@]}" --data "$data")
  "$program" "${options[@]}" --threads 1 --output "$folder/whole" | tee "$folder/log"
  accuracy=$(sed -n 's/^\([0-9]*\)\.[0-9]* % of 10000 test pictures right.*/\1/p' "$folder/log")
  [ "$accuracy" -ge "$least" ] || { echo "accuracy is $accuracy %"; exit 1; }

  interruptions=0
  resume=()
  delay=0.1
  for try in $(seq 100); do
    : > "$folder/log"  # what the run before said must not pass for this one's
    "$program" "${options[@]}" --threads $((try % 4 + 1)) --output "$folder/parts" "${resume[@]}" > "$folder/log" &
    child=$!
    # At first wait until it trains; a child that is interrupted while it still reads pictures has nothing to save.
    until grep -q '^\(cnn \)\?784-' "$folder/log" || ! kill -0 $child 2> /dev/null; do sleep 0.01; done
    if [ "$try" -gt 10 ]; then delay=3; fi  # a slow program (sanitizers) must come to its end too
    sleep $delay
    kill -INT $child 2> /dev/null || true
    status=0
    wait $child || status=$?
    if [ "$status" -eq 0 ]; then
      [ "$interruptions" -eq 0 ] || break
      delay=0  # it ended before it was interrupted: once more from the start, and sooner
      rm -r "$folder/parts"
      continue
    fi
    [ "$status" -eq 130 ] || { echo "exit status $status"; cat "$folder/log"; exit 1; }
    interruptions=$((interruptions + 1))
    resume=(--resume)
  done
  [ "$status" -eq 0 ] && [ "$interruptions" -ge 1 ] || { echo "$interruptions interruptions, status $status"; exit 1; }
  cmp "$folder/whole/checkpoint" "$folder/parts/checkpoint"
  cmp "$folder/whole/history.csv" "$folder/parts/history.csv"
  cmp "$folder/whole/predictions.csv" "$folder/parts/predictions.csv"
  echo "${what[*]}: the same bits after $interruptions interruptions"
  rm -r "$folder/whole" "$folder/parts"
done << 'EOF'  # least accuracy in per cent, options
84 --network mlp --type f32 --epochs 8 --layers 48,32
84 --network mlp --type bf16 --epochs 8 --layers 48,32
75 --network cnn --type f32 --epochs 1 --layers 8,16 --batch 64
75 --network cnn --type bf16 --epochs 1 --layers 8,16 --batch 64
EOF
