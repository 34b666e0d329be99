#!/usr/bin/env python3
"""From a fatal line in the server's log to the decision and to the kill: `fatal_to_decision.py GUARD RUNS`.

A small server that never gets ready writes the line with its own clock in it; the journal says when the attempt was
given up and when the keeper sent SIGKILL.
"""

import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile

SERVER = """
import sys, time
time.sleep(1)
sys.stdout.write("ERROR torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB. at=%d\\n" % time.time_ns())
sys.stdout.flush()
time.sleep(60)
"""


def seconds(event):
    stamp, fraction = event["wall"].rstrip("Z").split(".")
    whole = datetime.datetime.fromisoformat(stamp).replace(tzinfo=datetime.timezone.utc).timestamp()
    return whole + float("0." + fraction)


def main():
    guard, runs = os.path.abspath(sys.argv[1]), int(sys.argv[2])
    decided, killed = [], []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            out = os.path.join(folder, "run")
            command = [guard, "run", "--server", "command", "--retries", "0", "--port", "28411", "--quiet", out]
            subprocess.run(command + ["--", sys.executable, "-c", SERVER], cwd=folder, capture_output=True)
            written = None
            for line in open(os.path.join(out, "events.jsonl")):
                event = json.loads(line)
                if event["event"] == "finding" and "at=" in event["data"]["text"]:
                    written = int(event["data"]["text"].split("at=")[1]) / 1e9
                if event["event"] == "attempt-ending":
                    decided.append((seconds(event) - written) * 1e3)
                if event["event"] == "signal-sent" and event["data"]["signal"] == 9:
                    killed.append((seconds(event) - written) * 1e3)
                    break
    for name, values in (("decision", decided), ("SIGKILL", killed)):
        values.sort()
        p99 = values[min(len(values) - 1, int(len(values) * 0.99))]
        print(f"{name}: n {len(values)} median {statistics.median(values):.1f} ms p99 {p99:.1f} ms max {values[-1]:.1f} ms")


main()
