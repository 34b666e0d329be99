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
  # Three servers at once, each with its own load: a block shorter than the rest between two windows shows nothing, and 60 pairs of
  # such blocks one after the other take too long. What the others do is noise here.
  start b2 8102 $W VARCAS_PROFILE_BUDGET=0.02
  start b5 8105 $W VARCAS_PROFILE_BUDGET=0.05
  start b20 8120 $W VARCAS_PROFILE_BUDGET=0.20
  ready 8102 8105 8120 || { save "$out"; exit 1; }
  pairs b2 windows http://127.0.0.1:8102 "$WORK/b2" ${quick:-20} ${SECONDS_ON:-10} &
  pairs b5 windows http://127.0.0.1:8105 "$WORK/b5" ${quick:-20} ${SECONDS_ON:-10} &
  pairs b20 windows http://127.0.0.1:8120 "$WORK/b20" ${quick:-20} ${SECONDS_ON:-10} &
  comparisons
else
  start never 8100 -
  start after 8105 $W VARCAS_PROFILE_BUDGET=0.05
  start teardown 8106 $W VARCAS_PROFILE_BUDGET=0.05 TEARDOWN_CUPTI=1
  start full 8101 $W VARCAS_REST_SECONDS=0 VARCAS_WINDOW_STEPS=10
  start forked 8103 forked.Worker VARCAS_REST_SECONDS=0
  start stock 8107 - -- --profiler-config '{"profiler":"torch","torch_profiler_dir":"'"$WORK"'/stock","torch_profiler_with_stack":false}'
  start stacks 8108 - -- --profiler-config '{"profiler":"torch","torch_profiler_dir":"'"$WORK"'/stacks","torch_profiler_with_stack":true}'
  ready 8100 8105 8106 8101 8103 8107 8108 || true
  # Both have made windows before they are compared at rest.
  pairs after windows http://127.0.0.1:8105 "$WORK/after" 1 2 &
  pairs teardown-first windows http://127.0.0.1:8106 "$WORK/teardown" 1 2 &
  comparisons
  pairs rest servers ${quick:-8} 2.5 never=http://127.0.0.1:8100 after=http://127.0.0.1:8105 teardown=http://127.0.0.1:8106
  touch "$out/quiet-is-over"
  # From here on differences are large: the rest at once.
  (pairs full windows http://127.0.0.1:8101 "$WORK/full" ${quick:-3} 8; pairs soak soak http://127.0.0.1:8101 "$WORK/full" ${SOAK:-75}) &
  pairs forked windows http://127.0.0.1:8103 "$WORK/forked" ${quick:-3} 4 &
  pairs teardown windows http://127.0.0.1:8106 "$WORK/teardown" ${quick:-4} 10 &
  pairs stock stock http://127.0.0.1:8107 ${quick:-3} 4 &
  pairs stacks stock http://127.0.0.1:8108 1 4 &
  comparisons
fi
# One file, and small.
save "$WORK"
(cd "$WORK" && tar cz $(ls */windows.jsonl *.log.gz)) > "$out/part-$part.tar.gz"
