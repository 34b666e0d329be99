#!/usr/bin/env bash
# Provokes real failures of a real vLLM on one GPU and keeps their logs, without the paths and names of the machine.
#
# usage: provoke_gpu.sh OUT MODEL_DIR [NAME ...]
#
# python3 must find vLLM (PYTHONPATH), MODEL_DIR is a model of about 1.1 billion parameters that loads with dummy weights.
# OUT gets one NAME.log (below 200 kB) for each failure. Three groups of servers run one after another, each server on a port
# of its own and with a small share of the memory; no setting of the GPU is touched. Needs about 10 GiB for each server of a
# group, 40 GiB (or HOLD_GIB) for the one that holds memory, and about 7 minutes. Nothing that is started outlives the script.
set -u
here=$(cd "$(dirname "$0")" && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)
model=$(cd "$2" && pwd)
shift 2
only=" $* "
work=$(mktemp -d /tmp/pg.XXXXXX)
mkdir "$work/hooks"
cp "$here/hook.py" "$work/hooks/sitecustomize.py"
mark="VARCAS_PROVOKED=$$"
export VARCAS_PROVOKED=$$ HF_HUB_OFFLINE=1 VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_NO_USAGE_STATS=1 NO_COLOR=1 PYTHONFAULTHANDLER=1
# Another script of this kind beside this one names a PORT of its own.
port=${PORT:-$((20000 + $$ % 20000))}
site=$(python3 -c 'import importlib.util, os; print(os.path.dirname(os.path.dirname(importlib.util.find_spec("vllm").origin)))')
prefix=$(python3 -c 'import sys; print(sys.prefix)')
host=$(hostname)

ours() { # pids of everything marked, but not this script
    for entry in /proc/[0-9]*/environ; do
        pid=${entry#/proc/}; pid=${pid%/environ}
        [ "$pid" != $$ ] && [ "$pid" != "$BASHPID" ] && tr '\0' '\n' 2>/dev/null <"$entry" | grep -qx "$mark" && echo "$pid"
    done
}
sweep() {
    for _ in 1 2 3 4 5; do
        pids=$(ours)
        [ -z "$pids" ] && return
        kill -9 $pids 2>/dev/null
        sleep 0.5
    done
}
trap 'sweep 2>/dev/null; rm -rf "$work"' EXIT

wanted() { [ "$only" = "  " ] || [[ "$only" == *" $1 "* ]]; }

# start NAME HOOK ARGS...: a server in the background with its log; its port and pid are in $work/NAME.*
start() {
    local name=$1 hook=$2
    shift 2
    port=$((port + 1))
    echo $port >"$work/$name.port"
    mkdir -p "$work/$name.tmp"
    (
        export TMPDIR="$work/$name.tmp" VLLM_RPC_BASE_PATH="$work/$name.tmp"
        [ -n "$hook" ] && export VARCAS_HOOK=$hook PYTHONPATH="$work/hooks:${PYTHONPATH:-}"
        [ "$name" = no-gpu ] && export CUDA_VISIBLE_DEVICES=
        exec python3 -m vllm.entrypoints.openai.api_server --model "$model" --served-model-name tiny --load-format dummy \
            --dtype bfloat16 --port "$port" "$@"
    ) >"$work/$name.raw" 2>&1 </dev/null &
    echo $! >"$work/$name.pid"
}
alive() { kill -0 "$(cat "$work/$1.pid")" 2>/dev/null; }
# ready NAME SECONDS
ready() {
    for _ in $(seq "$2"); do
        python3 -S - "$(cat "$work/$1.port")" <<'PY' && return 0
import sys, urllib.request
try:
    sys.exit(urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/health", timeout=2).status != 200)
except Exception:
    sys.exit(1)
PY
        alive "$1" || return 1
        sleep 1
    done
    return 1
}
# load NAME: requests until the server is gone
load() {
    python3 -S - "$(cat "$work/$1.port")" <<'PY' &
import json, sys, threading, time, urllib.request
url = f"http://127.0.0.1:{sys.argv[1]}/v1/completions"
body = json.dumps({"model": "tiny", "prompt": "the quick brown fox " * 20, "max_tokens": 128, "ignore_eos": True}).encode()
stop = time.monotonic() + 60
def one():
    while time.monotonic() < stop:
        try:
            urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"}), timeout=30).read()
        except OSError:
            return
for thread in [threading.Thread(target=one, daemon=True) for _ in range(8)]:
    thread.start()
    time.sleep(0.1)
time.sleep(61)
PY
}
ended() { # NAME SECONDS
    for _ in $(seq "$2"); do alive "$1" || return 0; sleep 1; done
}
keep() { # NAME
    [ -f "$work/$1.raw" ] || return
    grep -v 'Route: /' "$work/$1.raw" | sed -e "s#$site#/opt/venv/lib/python3.12/site-packages#g" -e "s#$work/hooks#/srv/hooks#g" \
        -e "s#$work/[a-z-]*\.tmp#/tmp/private#g" -e "s#$model#/srv/vllm/big#g" -e "s#$work/#/srv/vllm/#g" \
        -e "s#$prefix#/opt/venv#g" -e "s#\b$host\b#host#g" \
        -e "s#$HOME/#/home/user/#g" \
        -e 's#\b\(10\|172\|192\|100\)\.[0-9]\{1,3\}\.[0-9]\{1,3\}\.[0-9]\{1,3\}\b#192.0.2.1#g' >"$work/$1.clean"
    if [ "$(stat -c %s "$work/$1.clean")" -gt 190000 ]; then
        { head -c 95000 "$work/$1.clean"; echo; tail -c 90000 "$work/$1.clean"; } >"$out/$1.log"
    else
        cp "$work/$1.clean" "$out/$1.log"
    fi
    echo "$1: $(wc -l <"$out/$1.log") lines, $SECONDS s since the beginning"
}
eager="--enforce-eager --max-model-len 2048"

# Group 1: failures of the start.
first=""
if wanted no-gpu; then start no-gpu "" $eager; first+=" no-gpu"; fi
if wanted kv-cache-too-small; then start kv-cache-too-small "" $eager --gpu-memory-utilization 0.03; first+=" kv-cache-too-small"; fi
if wanted cuda-oom-at-load; then start cuda-oom-at-load oom-at-load $eager --gpu-memory-utilization 0.12; first+=" cuda-oom-at-load"; fi
if wanted wrong-backend; then
    start wrong-backend "" $eager --attention-backend FLASHMLA --gpu-memory-utilization 0.1; first+=" wrong-backend"
fi
if wanted unsupported-dtype; then
    cp -r "$model" "$work/awq"
    python3 - "$work/awq/config.json" <<'PY'
import json, sys
value = json.load(open(sys.argv[1]))
value["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
json.dump(value, open(sys.argv[1], "w"))
PY
    start unsupported-dtype "" $eager --model "$work/awq" --quantization awq --gpu-memory-utilization 0.1; first+=" unsupported-dtype"
fi
for name in $first; do ended "$name" 150; done
for name in $first; do keep "$name"; done
sweep

# Group 2: failures under load.
second=""
for pair in cuda-oom-under-load:cuda-oom device-assert:device-assert illegal-access:illegal-access engine-killed:; do
    name=${pair%%:*}
    # A cache of a given size: what the others of the group take meanwhile would be counted as this one's.
    if wanted "$name"; then
        start "$name" "${pair#*:}" $eager --gpu-memory-utilization 0.12 --kv-cache-memory-bytes 1073741824
        second+=" $name"
    fi
done
for name in $second; do ready "$name" 180 && load "$name"; done
if [[ " $second " == *" engine-killed "* ]]; then
    sleep 5
    # By its parent: every server here has an engine of this name.
    parent=$(cat "$work/engine-killed.pid")
    for stat in /proc/[0-9]*/stat; do
        read -r line 2>/dev/null <"$stat" || continue
        rest=${line##*) }
        set -- $rest
        [[ "$line" == *"(VLLM::EngineCor"* ]] && [ "$2" = "$parent" ] && kill -9 "${line%% *}"
    done
fi
for name in $second; do ended "$name" 45; done
for name in $second; do keep "$name"; done
sweep

# Group 3: somebody holds memory; a context that does not fit; a graph that may not be captured.
third=""
if wanted long-context; then
    cp -r "$model" "$work/long"
    sed -i 's/"max_position_embeddings": *[0-9]*/"max_position_embeddings": 1000000/' "$work/long/config.json"
    start long-context "" --enforce-eager --model "$work/long" --gpu-memory-utilization 0.1 --kv-cache-memory-bytes 1073741824; third+=" long-context"
fi
if wanted graph-capture; then start graph-capture capture --max-model-len 2048 --gpu-memory-utilization 0.15; third+=" graph-capture"; fi
if wanted leftover-memory; then
    python3 -c '
import time, torch
hold = torch.empty('"${HOLD_GIB:-40}"' << 30, dtype=torch.uint8, device="cuda")
print("holding", flush=True)
time.sleep(300)' >"$work/holder.raw" 2>&1 &
    for _ in $(seq 60); do grep -q holding "$work/holder.raw" && break; sleep 1; done
    start leftover-memory "" $eager --gpu-memory-utilization 0.9; third+=" leftover-memory"
fi
for name in $third; do ended "$name" 170; done
for name in $third; do keep "$name"; done
echo "done after $SECONDS s"
