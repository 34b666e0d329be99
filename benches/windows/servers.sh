#!/usr/bin/env bash
# Several real vLLM servers side by side for pairs.py; source it.
#   PY      the interpreter that has vLLM          MODEL   the model's folder
#   ARGS    further arguments for vLLM             CODE    a folder with varcas_*.py (and forked.py)
#   WORK    a scratch folder
# start NAME PORT WORKER [VARIABLE=VALUE ...] [-- FURTHER ARGUMENTS]; WORKER is a class, or - for the stock one
pids=()
start() {
  local name=$1 port=$2 worker=$3; shift 3
  local env=() more=()
  while [ $# -gt 0 ]; do
    if [ "$1" = -- ]; then shift; more=("$@"); break; fi
    env+=("$1"); shift
  done
  mkdir -p "$WORK/$name"
  [ "$worker" = - ] || more+=(--worker-cls "$worker")
  echo loading > "$WORK/$name/phase"
  env "${env[@]}" VARCAS_TRACE_DIR="$WORK/$name" VARCAS_EVIDENCE_DIR="$WORK/$name" VARCAS_RUN_ID=bench VARCAS_ATTEMPT=1 PYTHONPATH="$CODE:$PYTHONPATH" \
    setsid "$PY" -m vllm.entrypoints.openai.api_server --model "$MODEL" --served-model-name tiny --load-format dummy --dtype bfloat16 \
    --max-model-len 2048 --port "$port" --enforce-eager $ARGS "${more[@]}" > "$WORK/$name.log" 2>&1 &
  pids+=($!)
}
# ready PORT...: false when one of the servers has died or none answers in four minutes.
ready() {
  local port pid until=$((SECONDS + 240))
  for port in "$@"; do
    until curl -sf "http://127.0.0.1:$port/health" > /dev/null; do
      for pid in "${pids[@]}"; do kill -0 "$pid" 2> /dev/null || { echo "a server died: pid $pid"; return 1; }; done
      [ $SECONDS -lt $until ] || { echo "port $port does not answer"; return 1; }
      sleep 0.5
    done
  done
}
save() {
  local log
  for log in "$WORK"/*.log; do tail -c 20000 "$log" | gzip > "$1/$(basename "$log").gz"; done
}
# Each server leads a session of its own.
end() {
  for pid in "${pids[@]}"; do kill -9 -- "-$pid" 2> /dev/null; done
  wait "${pids[@]}" 2> /dev/null
  pids=()
}
