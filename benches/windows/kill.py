#!/usr/bin/env python3
"""SIGKILL of a real vLLM at random moments while windows are recorded back to back: what is left of them?

usage: kill.py TIMES PYTHON MODEL CODE      CODE is a folder with varcas_*.py; vLLM for the CPU
"""

import glob
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

from pairs import Load, tell


def lines(traces, event):
    try:
        with open(os.path.join(traces, "windows.jsonl"), encoding="utf-8") as file:
            return [line for line in map(json.loads, file) if line["event"] == event]
    except FileNotFoundError:
        return []


def once(number, python, model, code, moments):
    work, shared = tempfile.mkdtemp(prefix="vk"), set(os.listdir("/dev/shm"))
    traces, port = os.path.join(work, "traces"), 8160 + number
    os.mkdir(traces)
    tell(traces, "loading")
    env = {**os.environ, "PYTHONPATH": code, "VARCAS_TRACE_DIR": traces, "VARCAS_REST_SECONDS": "0", "VARCAS_RUN_ID": "kill", "VARCAS_ATTEMPT": "1",
           "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": work}
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "tiny", "--load-format", "dummy", "--dtype",
               "bfloat16", "--max-model-len", "1024", "--port", str(port), "--enforce-eager", "--worker-cls", "varcas_worker.Worker"]
    with open(os.path.join(work, "log"), "w", encoding="utf-8") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                if urllib.request.urlopen(url + "/health", timeout=2).status == 200:
                    break
            except OSError:
                assert server.poll() is None, "the server died"
                time.sleep(0.3)
        load = Load()
        load.url = url
        while not load.ends:
            time.sleep(0.05)
        tell(traces, "measuring")
        while len(lines(traces, "opened")) < 3:
            time.sleep(0.005)
        time.sleep(moments.random() * 0.15)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    load.over, load.url = True, None
    whole = glob.glob(os.path.join(traces, "*.pt.trace.json"))
    for path in whole:
        with open(path, encoding="utf-8") as file:
            assert json.load(file)["traceEvents"], path
    opened, closed = ({line["window"] for line in lines(traces, event)} for event in ("opened", "closed"))
    half = glob.glob(os.path.join(traces, ".window*"))
    assert len(opened - closed) <= 1 and len(whole) >= len(closed), (opened, closed, whole)
    shutil.rmtree(work)
    for name in set(os.listdir("/dev/shm")) - shared:
        if name.startswith(("sem.mp-", "psm_")):
            os.unlink(os.path.join("/dev/shm", name))
    return len(whole), len(opened - closed), len(half)


def main():
    times, python, model, code = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
    moments = random.Random(5)
    found = [once(number, python, model, code, moments) for number in range(times)]
    whole, lost, half = map(sum, zip(*found))
    print(json.dumps({"kills": times, "windows_whole": whole, "open_ones_lost": lost, "half_written_under_other_names": half}))


if __name__ == "__main__":
    main()
