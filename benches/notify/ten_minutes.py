#!/usr/bin/env python3
"""A webhook that answers 500 for all of a ten-minute run: `ten_minutes.py GUARD [MINUTES]`.

Two simulated runs side by side, one with a webhook that fails and one that nobody is told of. Each loses its first attempt to a
killed engine, so that `start`, `verdict`, `retry` and `success` are due. What must be the same: outcome, exit code, attempts,
requests. Afterwards the webhook is well, and `notify --resend` must deliver everything, in order. Everything stays on 127.0.0.1.
"""

import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading
import time

CONFIG = """
retries = 1
[server.env]
VARCAS_SIM = "load=200ms,fault=kill@step:50,only_attempt=1"
[load]
rate = 2.0
[backoff]
initial = "1s"
max = "2s"
"""


class Hook(http.server.BaseHTTPRequestHandler):
    answer = 500
    seen = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Hook.seen.append((time.monotonic(), Hook.answer, body["occasion"]))
        self.send_response(Hook.answer)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def start(guard, folder, name, port, minutes, more=""):
    config = os.path.join(folder, name + ".toml")
    with open(config, "w") as file:
        file.write(CONFIG + more)
    out = os.path.join(folder, name)
    command = [guard, "run", "--server", "sim", "--duration", f"{minutes}m", "--port", str(port), "--quiet", "--config", config]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VARCAS_")}
    child = subprocess.Popen(command + [out, "--", "--max-model-len", "160"], cwd=folder, env=environment)
    return {"name": name, "out": out, "config": config, "child": child, "began": time.monotonic()}


def main():
    guard = os.path.abspath(sys.argv[1])
    minutes = int(sys.argv[2]) if len(sys.argv) > 2 else 10
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        url = f"http://127.0.0.1:{server.server_port}/hook"
        runs = [
            start(guard, folder, "told", 28421, minutes, f'[[notify]]\nname = "hook"\nurl = "{url}"\n'),
            start(guard, folder, "untold", 28422, minutes),
        ]
        while any("took" not in run for run in runs):
            for run in runs:
                if "took" not in run and run["child"].poll() is not None:
                    run["took"] = time.monotonic() - run["began"]
            time.sleep(0.1)
        for run in runs:
            with open(os.path.join(run["out"], "report.json")) as file:
                report = json.load(file)
            bench = (report["benchmark"] or {}).get("progress", {})
            print(
                f"{run['name']}: exit {run['child'].returncode}, {report['outcome']}, attempts {len(report['attempts'])}, "
                f"completed {bench.get('completed')}, failed {bench.get('failed')}, run {report['duration_s']:.1f} s, "
                f"process {run['took']:.1f} s"
            )
        tries = list(Hook.seen)
        print(f"tries answered with 500: {len(tries)}, over {tries[-1][0] - tries[0][0]:.0f} s; first of each:",
              list(dict.fromkeys(occasion for _, _, occasion in tries)))
        Hook.answer, Hook.seen[:] = 200, []
        told = subprocess.run([guard, "notify", "--resend", runs[0]["out"], "--config", runs[0]["config"]],
                              cwd=folder, capture_output=True, text=True)
        print("resend:", told.stdout.strip().splitlines()[0], "exit", told.returncode, [occasion for _, _, occasion in Hook.seen])
        again = subprocess.run([guard, "notify", "--resend", runs[0]["out"], "--config", runs[0]["config"]],
                               cwd=folder, capture_output=True, text=True)
        print("again:", again.stdout.strip())
    server.shutdown()


main()
