"""CPU seconds (user + system) and seconds on the clock, best of five, process start included, of salvage against other tools, in one run:
speed.py VARCAS_GUARD TRIALS TRACE.json TRACE.json.gz"""
import os, resource, subprocess, sys, time

guard, trials, plain, packed = sys.argv[1:5]
PYTHON = """
import json, sys, gzip
opener = gzip.open if sys.argv[1].endswith('.gz') else open
d = json.load(opener(sys.argv[1]))
json.dump(d, open('/dev/null', 'w'))
"""
GZIP = "import gzip, sys; d = open(sys.argv[1], 'rb').read(); print(len(gzip.compress(d, int(sys.argv[2]))), 'bytes')"
size = os.path.getsize(plain)


def cpu(name, command, rounds=5):
    best, clock = None, None
    for _ in range(rounds):
        began = time.monotonic()
        a = resource.getrusage(resource.RUSAGE_CHILDREN)
        out = subprocess.run(command, capture_output=True).stdout if "compress" in name else subprocess.run(command, stdout=subprocess.DEVNULL)
        b = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = (b.ru_utime - a.ru_utime, b.ru_stime - a.ru_stime)
        best = min(best or used, used, key=sum)
        took = time.monotonic() - began
        clock = min(clock or took, took)
    note = out.decode().strip() if isinstance(out, bytes) else ""
    print(f"{name:36} user {best[0]:.3f} sys {best[1]:.3f} s, clock {clock:.3f} s, {size / sum(best) / 1e6:.0f} MB/s of JSON {note}", flush=True)


cpu("salvage --check, plain", [guard, "salvage", "--check", plain])
cpu("salvage --check, gz", [guard, "salvage", "--check", packed])
cpu("pigz -dc", ["pigz", "-dc", packed])
cpu("gzip -dc", ["gzip", "-dc", packed])
if size < 1e9:
    cpu("Python json, plain", [sys.executable, "-c", PYTHON, plain], 1)
    cpu("Python json, gz", [sys.executable, "-c", PYTHON, packed], 1)
    for level in "69":
        cpu(f"compress, Python level {level}", [sys.executable, "-c", GZIP, plain, level])
    for level in "5678":
        cpu(f"compress, ours level {level}, 1 worker", [trials, "compress", level, "1", plain])
    cpu("compress, ours level 7, 2 workers", [trials, "compress", "7", "2", plain])
    cpu("window: check, count, compress", [trials, "window", plain])
