#!/usr/bin/env python3
"""Many attempts in one run, and what the guard takes meanwhile.

    benches/drill/soak.py target/release/varcas-guard 500 [--keep FOLDER]

Starts `run --server sim` with so many attempts, of which each dies under load in one of five ways, and samples the
guard from outside once a second: resident memory, open descriptors, threads, size of the journal. Prints a sample of
every tenth part, the lowest and highest of each, and the slope of a straight line through what follows the first fifth of the attempts, with its 95 %
interval; a guard that leaks has a slope. Neighbouring samples resemble one another, so the line goes through the means
of 25 blocks of attempts. The journal is counted by kind of event. How long each failure took to be noticed comes from
the journal and the simulator's marks; its slope is Theil and Sen's, because a few late ones say nothing about all.
Everything lies in a temporary folder that is removed; `--keep` moves journal, marks and samples to FOLDER first.
"""

import argparse
import collections
import csv
import json
import math
import os
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time

FAULTS = ["kill@step:60", "segv@step:60", "crash(oom)@step:60", "api.exit(3)@request:12", "crash(nccl)@step:60"]
BLOCKS = 25
# Two-sided, 95 %, 23 degrees of freedom.
STUDENT = 2.069


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
        "anonymous": int(fields["RssAnon"].split()[0]) / 1024,
        "threads": int(fields["Threads"]),
        "fds": len(os.listdir(f"/proc/{pid}/fd")),
        "journal": os.path.getsize(journal) / 1e6 if os.path.exists(journal) else 0,
    }


def line(points):
    """Slope of a straight line through the means of blocks, and half of its 95 % interval."""
    size = len(points) / BLOCKS
    blocks = [points[int(i * size):int((i + 1) * size)] for i in range(BLOCKS)]
    if any(not block for block in blocks):
        return None
    xs = [statistics.fmean(x for x, _ in block) for block in blocks]
    ys = [statistics.fmean(y for _, y in block) for block in blocks]
    x_mean, y_mean = statistics.fmean(xs), statistics.fmean(ys)
    below = sum((x - x_mean) ** 2 for x in xs)
    if not below:
        return None
    slope = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys)) / below
    rest = sum((y - y_mean - slope * (x - x_mean)) ** 2 for x, y in zip(xs, ys))
    return slope, STUDENT * math.sqrt(rest / (BLOCKS - 2) / below)


def theil_sen(points):
    """Median of the slopes of all pairs, and its 95 % interval after Sen (1968)."""
    n = len(points)
    slopes = sorted(
        (points[j][1] - points[i][1]) / (points[j][0] - points[i][0]) for i in range(n) for j in range(i + 1, n)
    )
    if not slopes:
        return None
    width = 1.96 * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low, high = int((len(slopes) - width) / 2), min(len(slopes) - 1, int((len(slopes) + width) / 2))
    return statistics.median(slopes), slopes[max(0, low)], slopes[high]


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
    return [(attempt, (decided[attempt] - struck[attempt]) * 1000) for attempt in sorted(struck) if attempt in decided]


def contents(journal):
    """Lines and bytes of each kind of event."""
    kinds = collections.defaultdict(lambda: [0, 0])
    with open(journal, "rb") as file:
        for line in file:
            kind = kinds[json.loads(line)["event"]]
            kind[0] += 1
            kind[1] += len(line)
    return sorted(kinds.items(), key=lambda item: -item[1][1])


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


def report(samples, attempts, journal, marks):
    print("attempt   seconds   RSS MiB   descriptors   threads   journal MB")
    for index in range(0, len(samples), max(1, len(samples) // 10)):
        s = samples[index]
        print(f"{s['attempt']:7} {s['t']:9.0f} {s['rss']:9.1f} {s['fds']:13} {s['threads']:9} {s['journal']:12.2f}")
    later = [s for s in samples if s["attempt"] > attempts / 5]
    for key, unit in (("rss", "MiB"), ("anonymous", "MiB"), ("fds", "descriptors"), ("threads", "threads"), ("journal", "MB")):
        slope = line([(s["attempt"], s[key]) for s in later])
        told = f"{slope[0] * 100:+.3f} +- {slope[1] * 100:.3f}" if slope else "(too few samples)"
        print(f"{key}: at most {max(s[key] for s in samples):.1f} {unit}; after the first fifth {told} {unit} in 100 attempts")
    # They swing with what an attempt is at; what leaks raises the lowest.
    for key in ("rss", "fds", "threads"):
        tenth = max(1, len(samples) // 10)
        spans = [[s[key] for s in samples[i:i + tenth]] for i in range(0, tenth * 10, tenth)]
        print(f"{key}, lowest and highest of each tenth: " + ", ".join(f"{min(s):.1f}-{max(s):.1f}" for s in spans if s))
    found = detections(journal, marks)
    slope = theil_sen(found)
    if slope:
        times = sorted(ms for _, ms in found)
        print(
            f"detection of {len(found)} failures: median {statistics.median(times):.2f} ms, "
            f"95 of 100 within {times[int(len(times) * 0.95)]:.1f} ms, worst {times[-1]:.1f} ms; "
            f"slope {slope[0] * 100:+.3f} ({slope[1] * 100:+.3f} to {slope[2] * 100:+.3f}) ms in 100 attempts"
        )
    quarter = len(found) // 4
    for name, part in (("first", found[:quarter]), ("last", found[len(found) - quarter:])):
        if part:
            times = sorted(ms for _, ms in part)
            print(f"detection in the {name} quarter: median {statistics.median(times):.2f} ms, worst {times[-1]:.1f} ms, of {len(times)}")
    whole = os.path.getsize(journal)
    for kind, (lines, size) in contents(journal)[:12]:
        print(f"journal: {kind:22} {lines:7} lines {size / 1e3:9.1f} kB {100 * size / whole:5.1f} % {size / lines:7.0f} bytes each")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("attempts", type=int)
    parser.add_argument("--keep")
    args = parser.parse_args()
    program, attempts = os.path.abspath(args.program), args.attempts
    with tempfile.TemporaryDirectory(prefix="soak-", dir="/tmp") as folder:
        run, marks, settings = f"{folder}/run", f"{folder}/marks", f"{folder}/guard.toml"
        journal = f"{run}/events.jsonl"
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
                    samples.append({**sample(guard.pid, journal), "t": time.monotonic() - began, "attempt": attempt_of(journal)})
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
        if args.keep:
            os.makedirs(args.keep, exist_ok=True)
            for path in (journal, marks):
                shutil.copy(path, args.keep)
            with open(f"{args.keep}/samples.csv", "w") as file:
                table = csv.DictWriter(file, samples[0].keys())
                table.writeheader()
                table.writerows(samples)
        report(samples, attempts, journal, marks)
        print(f"left in the temporary folder: {os.listdir(f'{folder}/t') or 'nothing'}")


main()
