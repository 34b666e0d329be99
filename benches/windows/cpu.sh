#!/usr/bin/env bash
# What windows take from vLLM on a CPU: cpu.sh OUT [PAIRS] [SECONDS], with PY, MODEL, CODE as servers.sh wants them. One budget after another.
set -u
out=$1 pairs=${2:-10} seconds=${3:-8}
here=$(cd "$(dirname "$0")" && pwd)
WORK=$(mktemp -d)
ARGS=" "
. "$here/servers.sh"
trap 'end; rm -rf "$WORK"' EXIT
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 STREAMS=${STREAMS:-4}
PYTHONPATH=${PYTHONPATH:-}
for budget in ${BUDGETS:-0.05 0.20}; do
  start "b$budget" 8140 varcas_worker.Worker VARCAS_PROFILE_BUDGET=$budget
  ready 8140 && "$PY" "$here/pairs.py" windows http://127.0.0.1:8140 "$WORK/b$budget" $pairs $seconds > "$out/b$budget.json"
  cp "$WORK/b$budget/windows.jsonl" "$out/b$budget.windows.jsonl"
  end
done
