"""Kills real exports at random moments: kill.py OUT_DIR COUNT VARCAS_GUARD [STEPS]. Prints a line per kill, a summary at the end.

One process imports torch; each child records, exports to .json.gz as tensorboard_trace_handler does and is killed with
SIGKILL. What can be recovered is computed here with zlib and json, independently of the salvage."""
import glob, gzip, json, os, random, re, signal, subprocess, sys, time, zlib
import torch
from torch.profiler import ProfilerActivity, profile, record_function

out, count, guard = sys.argv[1], int(sys.argv[2]), sys.argv[3]
steps = int(sys.argv[4]) if len(sys.argv) > 4 else 500
torch.set_num_threads(1)
random.seed(9)


def export(folder, steps, ready):
    os.environ["TMPDIR"] = folder + "/tmp"
    import tempfile
    tempfile.tempdir = None
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    with profile(activities=[ProfilerActivity.CPU]) as prof:
        for step in range(steps):
            with record_function(f"step_{step}"):
                model(torch.randn(4, 16)).sum().backward()
    os.write(ready, b"x")
    prof.export_chrome_trace(f"{folder}/traces/host_{os.getpid()}.{time.time_ns()}.pt.trace.json.gz")
    os.write(ready, b"y")


def whole_events(text):
    """Texts of the events whose last byte is there, by the line structure and json alone."""
    at = text.find(b'"traceEvents": [')
    if at < 0:
        return []
    decoder, found = json.JSONDecoder(), []
    text = text.decode("utf-8", "replace")
    pos = at + len('"traceEvents": [')
    while True:
        while pos < len(text) and text[pos] in " \n,":
            pos += 1
        if pos >= len(text) or text[pos] != "{":
            return found
        try:
            value, pos = decoder.raw_decode(text, pos)
        except ValueError:
            return found
        found.append(value)


def inflate(raw):
    d = zlib.decompressobj(31)
    try:
        return d.decompress(raw) + d.flush()
    except zlib.error:
        return b""


rows = []
# How long an export takes from its beginning, so that the kills fall into it.
length = None
for number in range(-1, count):
    folder = f"{out}/{number:02}"
    os.makedirs(folder + "/tmp"), os.makedirs(folder + "/traces")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            export(folder, steps, writer)
        finally:
            os._exit(0)
    os.read(reader, 1)
    began = time.monotonic()
    if number < 0:
        os.read(reader, 1)
        length = time.monotonic() - began
    else:
        time.sleep(random.random() * length * 1.1)
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reader), os.close(writer)
    halves = sorted(h for h in glob.glob(folder + "/tmp/*") + glob.glob(folder + "/traces/*") if os.path.isfile(h))
    left = ", ".join(f"{re.sub(r'.*/(tmp|host_)[^.]*[.0-9]*', lambda m: m[1] + '*.', h)} {os.path.getsize(h)}" for h in halves)
    best = []
    for half in halves:
        raw = open(half, "rb").read()
        events = whole_events(inflate(raw) if raw[:2] == b"\x1f\x8b" else raw)
        best = max(best, events, key=len)
    result = subprocess.run([guard, "salvage", "--json", folder, "--out", folder + "/out"], capture_output=True, text=True)
    records = json.loads(result.stdout)
    record = records[0] if records else {"status": "no file left", "events_kept": 0, "output": None}
    assert len(records) <= 1, records
    if record["output"]:
        got = json.load(gzip.open(record["output"]))["traceEvents"]
        seen = {json.dumps(e, sort_keys=True) for e in got}
        lost = [e for e in best if json.dumps(e, sort_keys=True) not in seen]
    elif record["status"] == "complete":
        lost = []
    else:
        lost = best
    row = (left or "nothing", len(best), record["status"], record["events_kept"], len(lost))
    rows.append(row)
    print(number, *row, sep=" | ", flush=True)
kinds = {}
for left, best, status, kept, lost in rows[1:]:
    key = re.sub(r" \d+", lambda m: " 0" if m[0] == " 0" else " n", left)
    kinds.setdefault((key, status), []).append((best, kept, lost))
for (left, status), runs in sorted(kinds.items()):
    print(f"{len(runs)} kills left {left}: {status}, recoverable {sum(r[0] for r in runs)}, kept {sum(r[1] for r in runs)}, missed {sum(r[2] for r in runs)}")
