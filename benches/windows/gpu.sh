#!/usr/bin/env bash
# What windows take from vLLM on a GPU: gpu.sh PART OUT, with PY, MODEL, CODE as servers.sh wants them. Each part takes about nine minutes.
set -u
part=$1 out=$2
here=$(cd "$(dirname "$0")" && pwd)
WORK=$(mktemp -d)
ARGS=${ARGS:-"--gpu-memory-utilization 0.1 --kv-cache-memory-bytes 2G"}
. "$here/servers.sh"
trap 'end; rm -rf "$WORK"' EXIT
pairs() {
  local name=$1; shift
  timeout ${LONGEST:-540} "$PY" "$here/pairs.py" "$@" > "$out/$name.json" 2> "$out/$name.err" || true
  [ -s "$out/$name.err" ] || rm -f "$out/$name.err"
}
# Waits for everything in the background but the servers.
comparisons() {
  local jobs
  jobs=$(jobs -p | grep -vxFf <(printf '%s\n' "${pids[@]}"))
  [ -z "$jobs" ] || wait $jobs
}
quick=${QUICK:-}
W=varcas_worker.Worker
if [ "$part" = 1 ]; then
  # Two servers for each budget: one with windows, one without, in turn. A window is some 10 s from the next at 2 and at 5 %.
  budgets=${BUDGETS:-2 5}
  for budget in $budgets; do
    start "a$budget" $((8100 + budget)) $W VARCAS_PROFILE_BUDGET="0.$(printf %02d "$budget")"
    start "b$budget" $((8200 + budget)) $W VARCAS_PROFILE_BUDGET="0.$(printf %02d "$budget")"
  done
  ready $(for budget in $budgets; do echo $((8100 + budget)) $((8200 + budget)); done) || { save "$out"; exit 1; }
  for budget in $budgets; do
    pairs "cross$budget" cross ${quick:-20} ${SECONDS_ON:-9} "http://127.0.0.1:$((8100 + budget))=$WORK/a$budget" "http://127.0.0.1:$((8200 + budget))=$WORK/b$budget" &
  done
  comparisons
elif [ "$part" = 4 ]; then
  # The same as 1 at 5 %, as 3 with CUDA graphs, and the memory over many windows.
  start a5 8105 $W VARCAS_PROFILE_BUDGET=0.05
  start b5 8205 $W VARCAS_PROFILE_BUDGET=0.05
  start soak 8109 $W VARCAS_PROFILE_BUDGET=0.20 VARCAS_WINDOW_STEPS=${SOAK_STEPS:-6}
  ready 8105 8205 8109 || { save "$out"; exit 1; }
  pairs soak soak http://127.0.0.1:8109 "$WORK/soak" ${SOAK:-400} measuring &
  graphs=(-- --no-enforce-eager --compilation-config '{"mode":0,"cudagraph_mode":"FULL_DECODE_ONLY","cudagraph_capture_sizes":[1,2,4,8,16,24,32]}')
  start never 8100 late.Worker "${graphs[@]}"
  start after 8101 late.Worker VARCAS_PROFILE_BUDGET=0.20 TEARDOWN_CUPTI=0 "${graphs[@]}"
  start teardown 8102 late.Worker VARCAS_PROFILE_BUDGET=0.20 "${graphs[@]}"
  if ready 8100 8101 8102; then
    pairs rest rest ${quick:-12} ${SECONDS_ON:-8} "http://127.0.0.1:8100=$WORK/never" "http://127.0.0.1:8101=$WORK/after" "http://127.0.0.1:8102=$WORK/teardown" &
    pairs cross5 cross ${quick:-12} ${SECONDS_ON:-8} "http://127.0.0.1:8105=$WORK/a5" "http://127.0.0.1:8205=$WORK/b5" &
  fi
  comparisons
  # Each window has what the GPU did.
  for window in "$WORK"/{a5,b5,soak,after,teardown}/window-*.json; do
    echo "$(basename "$(dirname "$window")") $(grep -c '"cat": "kernel"' "$window")"
  done | sort | uniq -c > "$out/kernels.txt"
elif [ "$part" = 2 ]; then
  start full 8101 $W VARCAS_REST_SECONDS=0 VARCAS_WINDOW_STEPS=10
  start forked 8103 forked.Worker VARCAS_REST_SECONDS=0
  start stock 8107 - -- --profiler-config '{"profiler":"torch","torch_profiler_dir":"'"$WORK"'/stock","torch_profiler_with_stack":false}'
  start stacks 8108 - -- --profiler-config '{"profiler":"torch","torch_profiler_dir":"'"$WORK"'/stacks","torch_profiler_with_stack":true}'
  ready 8101 8103 8107 8108 || true
  (pairs full windows http://127.0.0.1:8101 "$WORK/full" ${quick:-3} 8; pairs soak soak http://127.0.0.1:8101 "$WORK/full" ${SOAK:-75}) &
  pairs forked windows http://127.0.0.1:8103 "$WORK/forked" ${quick:-3} 4 &
  pairs stock stock http://127.0.0.1:8107 ${quick:-3} 4 &
  pairs stacks stock http://127.0.0.1:8108 1 4 &
  comparisons
else
  # Memory over more than 200 windows within a budget, beside a server that makes none; what stays at rest after windows.
  for name in soak:8109 without:8110; do
    start "${name%:*}" "${name#*:}" $W VARCAS_PROFILE_BUDGET=0.20 VARCAS_WINDOW_STEPS=${SOAK_STEPS:-6}
  done
  start never 8100 late.Worker
  start after 8105 late.Worker VARCAS_PROFILE_BUDGET=0.20 TEARDOWN_CUPTI=0
  start teardown 8106 late.Worker VARCAS_PROFILE_BUDGET=0.20
  ready 8109 8110 8100 8105 8106 || { save "$out"; exit 1; }
  pairs soak soak http://127.0.0.1:8109 "$WORK/soak" ${SOAK:-400} measuring &
  pairs without soak http://127.0.0.1:8110 "$WORK/without" ${SOAK:-400} loading &
  # Something else may run beside this part at first.
  sleep "${REST_AFTER:-0}"
  pairs rest rest ${quick:-10} ${SECONDS_ON:-8} "http://127.0.0.1:8100=$WORK/never" "http://127.0.0.1:8105=$WORK/after" "http://127.0.0.1:8106=$WORK/teardown" &
  comparisons
fi
# One file, and small.
save "$WORK"
(cd "$WORK" && tar cz $(ls */windows.jsonl *.log.gz)) > "$out/part-$part.tar.gz"
