#!/usr/bin/env bash
# Fuzzes for a bounded time: campaign.sh BIN_DIR SECONDS JOBS OUT_DIR [TARGET...]
# BIN_DIR holds what build.sh made: the programs, corpus/ and dict/. Nothing else is needed: no Rust, no network. Without names
# every target gets its share: JOBS run at once, target after target, until each has had SECONDS / targets x JOBS; with more jobs
# than targets, one target runs several times beside itself on one corpus.
# OUT_DIR gets summary.txt (one line a target: executions, failures, slowest input, corpus), crashes/, logs/ and corpus.tar.gz
# (only what adds coverage). A second campaign into the same OUT_DIR goes on from the corpus of the first.
# Exit code 1 if an input failed; an input that takes 10 s (LIMIT, by the clock: more on a busy
# machine) or 2 GB is a failure.
set -euo pipefail
bin=$(realpath "$1") seconds=$2 jobs=$3 out=$(realpath -m "$4")
shift 4
targets=("$@")
if [ ${#targets[@]} = 0 ]; then
  for path in "$bin"/corpus/*/; do targets+=("$(basename "$path")"); done
fi
count=${#targets[@]}
mkdir -p "$out/crashes" "$out/logs" "$out/corpus"
for target in "${targets[@]}"; do
  mkdir -p "$out/corpus/$target"
  cp -rn "$bin/corpus/$target/." "$out/corpus/$target/" 2>/dev/null || true
done
# What earlier campaigns found.
[ -f "$bin/found.tar.xz" ] && tar -C "$out" -xJf "$bin/found.tar.xz"
[ -f "$out/corpus.tar.gz" ] && tar -C "$out" -xzf "$out/corpus.tar.gz"
declare -A length=([scan]=768 [repair]=512 [flip]=512 [log]=512 [metrics]=1024 [sse]=512 [http]=512 [proc]=512 [windows]=1024
  [journal]=1024 [config]=512 [trace]=768 [mix]=768 [wire]=512)
seed=$(date +%s)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT

# One job: target, number, seconds.
job() {
  local target=$1 dict=()
  [ -f "$bin/dict/$target" ] && dict=(-dict="$bin/dict/$target")
  # The second limit is for a job that hangs where libFuzzer cannot see it.
  exec timeout -k 5 $(($3 + 60)) nice -n 19 "$bin/$target" -max_total_time="$3" -max_len="${length[$target]:-512}" -timeout="${LIMIT:-10}" \
    -rss_limit_mb=2048 -report_slow_units=999 -seed=$((seed + $2)) -print_final_stats=1 -verbosity=1 "${dict[@]}" -reload=30 \
    -artifact_prefix="$out/crashes/$target-" "$out/corpus/$target" >"$out/logs/$seed-$2-$target.log" 2>&1
}

failed=0
# As many runs as fill the time: each takes a share of it.
runs=$((count > jobs ? count : jobs))
share=$((seconds * jobs / runs))
running=0
for ((run = 0; run < runs; run++)); do
  if ((running == jobs)); then
    wait -n || failed=$((failed + 1))
    running=$((running - 1))
  fi
  (job "${targets[run % count]}" $run $share) &
  pids+=($!)
  running=$((running + 1))
done
while ((running > 0)); do
  wait -n || failed=$((failed + 1))
  running=$((running - 1))
done
pids=()
for target in "${targets[@]}"; do
  # What adds nothing is thrown away.
  mkdir "$out/corpus/$target.small"
  nice -n 19 "$bin/$target" -merge=1 -timeout="${LIMIT:-10}" -rss_limit_mb=2048 -artifact_prefix="$out/crashes/$target-" \
    "$out/corpus/$target.small" "$out/corpus/$target" >"$out/logs/$seed-merge-$target.log" 2>&1 || true
  if [ -n "$(ls "$out/corpus/$target.small")" ]; then
    rm -r "$out/corpus/$target"
    mv "$out/corpus/$target.small" "$out/corpus/$target"
  else
    rm -r "$out/corpus/$target.small"
  fi
  crashes=$(find "$out/crashes" -name "$target-*" | wc -l)
  cat "$out"/logs/*-"$target".log | awk -v target="$target" -v files="$(ls "$out/corpus/$target" | wc -l)" \
    -v bytes="$(du -sb "$out/corpus/$target" | cut -f1)" -v crashes="$crashes" '
    /^stat::number_of_executed_units/ { sum += $2; jobs++ }
    /^stat::slowest_unit_time_sec/ { if ($2 > slowest) slowest = $2 }
    END { printf "%-8s %12d executions in %d jobs, %d failing inputs, slowest %d s, corpus %d files %d bytes\n",
      target, sum, jobs, crashes, slowest, files, bytes }'
done | tee "$out/summary.txt"
echo "failed jobs: $failed, failing inputs: $(ls "$out/crashes" | wc -l)" | tee -a "$out/summary.txt"
tar -C "$out" -czf "$out/corpus.tar.gz" corpus
rm -r "$out/corpus"
[ "$failed" = 0 ]
