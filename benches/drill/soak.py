#!/usr/bin/env python3
"""Many attempts in one run, and what the guard takes meanwhile.

    benches/drill/soak.py target/release/varcas-guard 60

Starts `run --server sim` with so many attempts, of which each dies under load in one of five ways, and samples the
guard from outside once a second: resident memory, open descriptors, threads, size of the journal. Prints the samples
of every tenth part, and a straight line through the second half of them; a guard that leaks has a slope. What was
detected late is read from the journal and the simulator's marks. Everything lies in a temporary folder that is removed.
"""

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

FAULTS = ["kill@step:60", "segv@step:60", "crash(oom)@step:60", "api.exit(3)@request:12", "crash(nccl)@step:60"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def config(path, attempts, marks):
    faults = [
        f"fault={FAULTS[attempt % len(FAULTS)]}#{attempt + 1}" for attempt in range(attempts - 1)
    ]
    sim = ["load=50ms", "step=2ms", "ttft=2ms", "sampled_compile=10ms", "window_events=50", "watchdog=200ms", *faults]
    with open(path, "w") as file:
        file.write(
            f"""retries = {attempts - 1}
[server.env]
VARCAS_SIM = "{','.join(sim)}"
VARCAS_SIM_MARKS = "{marks}"
[load]
duration = "1s"
rate = 20.0
warmup-requests = 2
[profile]
rest = "200ms"
window-steps = 8
[backoff]
initial = "10ms"
max = "20ms"
[policy]
mitigate = false
same-failure = 1000
"""
        )


def sample(pid, journal):
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.split(":", 1) for line in file if ":" in line)
    return {
        "rss": int(fields["VmRSS"].split()[0]) / 1024,
        "threads": int(fields["Threads"]),
        "fds": len(os.listdir(f"/proc/{pid}/fd")),
        "journal": os.path.getsize(journal) / 1e6 if os.path.exists(journal) else 0,
    }


def slope(points):
    """Of a straight line, by least squares."""
    if len(points) < 3:
        return 0.0
    x_mean = statistics.fmean(x for x, _ in points)
    y_mean = statistics.fmean(y for _, y in points)
    below = sum((x - x_mean) ** 2 for x, _ in points)
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / below if below else 0.0


def detections(journal, marks):
    first, decided = None, {}
    with open(journal) as file:
        for line in file:
            event = json.loads(line)
            if first is None:
                wall = subprocess.run(["date", "+%s.%N", "-d", event["wall"]], capture_output=True, text=True, check=True)
                first = float(wall.stdout) - event["t"]
            if event["event"] == "attempt-ending":
                decided[event["attempt"]] = first + event["t"]
    struck = {}
    with open(marks) as file:
        for line in file:
            mark = json.loads(line)
            if "fault" in mark:
                struck.setdefault(mark["attempt"], mark["t"])
    return [(attempt, decided[attempt] - struck[attempt]) for attempt in sorted(struck) if attempt in decided]


def attempt_of(journal):
    with open(journal, "rb") as file:
        file.seek(max(0, os.path.getsize(journal) - 20000))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            return json.loads(line)["attempt"]
        except (ValueError, KeyError):
            continue
    return 0


def main():
    program, attempts = os.path.abspath(sys.argv[1]), int(sys.argv[2])
    with tempfile.TemporaryDirectory(prefix="soak-", dir="/tmp") as folder:
        run, marks, settings = f"{folder}/run", f"{folder}/marks", f"{folder}/guard.toml"
        os.mkdir(f"{folder}/t")
        config(settings, attempts, marks)
        command = [program, "run", "--quiet", "--server", "sim", "--port", str(free_port()), "--config", settings, run]
        began = time.monotonic()
        with open(f"{folder}/told", "w") as told:
            guard = subprocess.Popen(
                [*command, "--", "--max-model-len", "160"],
                cwd=folder, env={**os.environ, "TMPDIR": f"{folder}/t"}, stdin=subprocess.DEVNULL, stdout=told, stderr=told,
            )
        samples = []
        try:
            while guard.poll() is None:
                time.sleep(1)
                try:
                    samples.append({**sample(guard.pid, f"{run}/events.jsonl"), "t": time.monotonic() - began,
                                    "attempt": attempt_of(f"{run}/events.jsonl")})
                except (FileNotFoundError, ProcessLookupError, KeyError):
                    # Between two looks it has not begun, or has ended.
                    continue
        except KeyboardInterrupt:
            guard.send_signal(signal.SIGINT)
            guard.send_signal(signal.SIGINT)
            guard.wait()
        took = time.monotonic() - began
        print(f"{attempts} attempts asked for, exit code {guard.returncode}, {took:.0f} s, {len(samples)} samples")
        if guard.returncode not in (0, 75):
            print(open(f"{folder}/told").read()[-2000:])
        print("attempt   seconds   RSS MiB   descriptors   threads   journal MB")
        for index in range(0, len(samples), max(1, len(samples) // 10)):
            s = samples[index]
            print(f"{s['attempt']:7} {s['t']:9.0f} {s['rss']:9.1f} {s['fds']:13} {s['threads']:9} {s['journal']:12.2f}")
        half = samples[len(samples) // 2:]
        for key, unit in (("rss", "MiB"), ("fds", "descriptors"), ("threads", "threads"), ("journal", "MB")):
            per = slope([(s["attempt"], s[key]) for s in half])
            peak = max(s[key] for s in samples)
            print(f"{key}: at most {peak:.1f} {unit}; in the second half {per * 100:+.3f} {unit} in 100 attempts")
        found = detections(f"{run}/events.jsonl", marks)
        for name, part in (("first", found[: len(found) // 4]), ("last", found[-(len(found) // 4):])):
            times = sorted(seconds * 1000 for _, seconds in part)
            if times:
                print(f"detection in the {name} quarter: median {statistics.median(times):.1f} ms, worst {times[-1]:.1f} ms, of {len(times)}")
        left = os.listdir(f"{folder}/t")
        print(f"left in the temporary folder: {left or 'nothing'}")


main()
