#!/usr/bin/env python3
"""A server that prints GIB GiB as fast as it can, or MIB_S MiB a second: `flood.py GUARD GIB MAX_LOG [MIB_S]`.

Says what its log and what is kept of it took of the disk at most (allocated blocks, looked at every 20 ms), what is left at the end,
whether every line is accounted for, and what CPU the guard took.
"""

import glob
import gzip
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time

SERVER = """
import os, sys, time
gib, rate = float(sys.argv[1]), float(sys.argv[2])
line = b"INFO 11-24 03:10:01 [flood.py:1] %012d a line of no importance, and of the length that lines of a log have\\n"
began, number = time.monotonic(), 0
for block in range(int(gib * 1024)):
    text = b"".join(line % (number + n) for n in range(9500)) if block < 8 else text
    number += 9500
    os.write(1, text)
    if rate:
        time.sleep(max(0, began + (block + 1) * len(text) / rate / 2**20 - time.monotonic()))
sys.stderr.write("wrote %d lines in %.2f s\\n" % (number, time.monotonic() - began))
"""


def main():
    guard, gib, limit = os.path.abspath(sys.argv[1]), sys.argv[2], sys.argv[3]
    rate = sys.argv[4] if len(sys.argv) > 4 else "0"
    with tempfile.TemporaryDirectory(dir=os.environ.get("FLOOD_DIR")) as folder:
        out = os.path.join(folder, "run")
        command = [guard, "run", "--server", "command", "--retries", "0", "--port", "28431", "--quiet", "--max-log", limit, out]
        child = subprocess.Popen(command + ["--", sys.executable, "-c", SERVER, gib, rate], cwd=folder, stderr=subprocess.DEVNULL)
        peak = 0
        while child.poll() is None:
            now = 0
            for path in glob.glob(os.path.join(out, "attempt-1", "vllm_server.log*")):
                try:
                    now += os.stat(path).st_blocks * 512
                except FileNotFoundError:
                    pass
            peak = max(peak, now)
            time.sleep(0.02)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        attempt = os.path.join(out, "attempt-1")
        log, piece = os.path.join(attempt, "vllm_server.log"), os.path.join(attempt, "vllm_server.log.cut.gz")
        text = open(log, "rb").read()
        note = re.search(rb"\[varcas-guard: lines (\d+) to (\d+), .*\n", text)
        wrote = re.search(rb"wrote (\d+) lines in ([\d.]+) s", text)
        cuts = [e for e in map(json.loads, open(os.path.join(out, "events.jsonl"))) if e["event"] == "log-cut"]
        kept = 0
        if os.path.exists(piece):
            with gzip.open(piece, "rb") as file:
                while block := file.read(1 << 20):
                    kept += block.count(b"\n")
        print(f"limit {limit}, {gib} GiB in {wrote[2].decode()} s; at most {peak / 1e6:.0f} MB on disk; at the end log {len(text) / 1e6:.0f} MB, "
              f"piece {os.path.getsize(piece) / 1e6 if os.path.exists(piece) else 0:.1f} MB with {kept} lines")
        if note:
            gone = int(note[2]) - int(note[1]) + 1
            left = text.count(b"\n") - 1
            print(f"lines written {int(wrote[1]) + 1}, left {left}, taken out {gone}, sum {left + gone}; events {len(cuts)}; "
                  f"kept by the last event {cuts[-1]['data']['kept'] + 1 - cuts[-1]['data']['first']}")
        print(f"CPU of server and guard together: {used.ru_utime + used.ru_stime:.1f} s")


main()
