#!/usr/bin/env bash
# Fuzzes on many cores for a bounded time: campaign.sh BIN_DIR CORPUS_DIR DURATION_S JOBS OUT_DIR
# BIN_DIR holds what build.sh made, CORPUS_DIR the folders scan, repair and flip. Half of the jobs take `scan`, which is slower.
# OUT_DIR gets summary.txt (executions and failures), crashes/, logs/ and corpus.tar.gz. Exit code 1 if an input failed; an input
# that takes 10 s is a failure.
set -euo pipefail
bin=$(realpath "$1") corpus=$(realpath "$2") duration=$3 jobs=$4 out=$(realpath -m "$5")
mkdir -p "$out/crashes" "$out/logs" "$out/corpus"
cp -r "$corpus/scan" "$corpus/repair" "$corpus/flip" "$out/corpus/"
seed=$(date +%s)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT
for ((job = 0; job < jobs; job++)); do
  target=scan length=768
  if ((job % 4 == 2)); then target=repair length=512; fi
  if ((job % 4 == 3)); then target=flip length=512; fi
  # The second limit is for a job that hangs where libFuzzer cannot see it.
  timeout -k 5 $((duration + 30)) "$bin/$target" -max_total_time="$duration" -max_len=$length -timeout=10 \
    -seed=$((seed + job)) -print_final_stats=1 -verbosity=1 -artifact_prefix="$out/crashes/$target-" \
    "$out/corpus/$target" >"$out/logs/$job-$target.log" 2>&1 &
  pids+=($!)
done
failed=0
for pid in "${pids[@]}"; do wait "$pid" || failed=$((failed + 1)); done
pids=()
for target in scan repair flip; do
  cat "$out"/logs/*-$target.log 2>/dev/null | awk -v target=$target -v files="$(ls "$out/corpus/$target" | wc -l)" '
    /^stat::number_of_executed_units/ { sum += $2; jobs++ }
    /^stat::slowest_unit_time_sec/ { if ($2 > slowest) slowest = $2 }
    END { printf "%s: %d executions in %d jobs, slowest input %d s, corpus %d files\n", target, sum, jobs, slowest, files }'
done | tee "$out/summary.txt"
echo "failed jobs: $failed, failing inputs: $(ls "$out/crashes" | wc -l)" | tee -a "$out/summary.txt"
tar -C "$out" -czf "$out/corpus.tar.gz" corpus
rm -r "$out/corpus"
[ "$failed" = 0 ]
