#!/usr/bin/env python3
"""Provokes real failures of a real vLLM on the CPU and keeps their logs, without the paths and names of this machine.

usage: provoke_cpu.py PYTHON MAKE_MODEL OUT [NAME ...]

PYTHON is an interpreter that has vLLM for the CPU, MAKE_MODEL a script that writes a toy model into the folder it is
given. OUT gets one NAME.log for each failure; the table at the end says what each of them is. Some failures need root:
a private /dev/shm and a full disk are mounts of a namespace of their own, the memory limit is a cgroup. Nothing that is
started here outlives the script, and nothing is sent anywhere but to 127.0.0.1.
"""

import contextlib
import glob
import http.client
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
START = 400  # seconds a start may take on a busy machine
MAX_LOG = 200_000


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Server:
    """One server with its log, its temporary folder and everything it starts."""

    def __init__(self, python, model, log, **how):
        self.port = how.get("port") or free_port()
        self.tmp = tempfile.mkdtemp(prefix="pv", dir="/tmp")
        self.log = log
        env = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/root"),
            "LANG": "C.UTF-8",
            "TMPDIR": self.tmp,
            "VLLM_RPC_BASE_PATH": self.tmp,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "NO_COLOR": "1",
            "PYTHONFAULTHANDLER": "1",
            **how.get("env", {}),
        }
        args = ["--model", model, "--served-model-name", "tiny", "--port", str(self.port)]
        if how.get("usual", True):
            args += ["--load-format", "dummy", "--enforce-eager", "--dtype", "bfloat16"]
            if "--max-model-len" not in how.get("args", []) and not how.get("no_len"):
                args += ["--max-model-len", "1024"]
        command = [python, "-m", "vllm.entrypoints.openai.api_server", *args, *how.get("args", [])]
        wrapped = how.get("wrap", own_shm)(command, self.tmp)
        limits = how.get("limits", lambda: None)
        with open(log, "wb") as file:
            self.child = subprocess.Popen(
                [shutil.which("nice"), "-n", "19", *wrapped], stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                env=env, start_new_session=True, preexec_fn=limits)

    def ours(self):
        """Pids of everything that was started: a server and its processes stay in one session."""
        found = []
        for entry in glob.glob("/proc/[0-9]*/stat"):
            with contextlib.suppress(OSError, ValueError):
                fields = open(entry).read().rpartition(") ")[2].split()
                if int(fields[3]) == self.child.pid and fields[0] != "Z":
                    found.append(int(entry.split("/")[2]))
        return found

    def find(self, name):
        for _ in range(600):
            for pid in self.ours():
                with contextlib.suppress(OSError):
                    title = open(f"/proc/{pid}/cmdline", "rb").read().decode(errors="replace")
                    if title.startswith(name):
                        return pid
            time.sleep(0.1)
        raise RuntimeError(f"no process {name}")

    def ready(self):
        began = time.monotonic()
        while time.monotonic() - began < START:
            if self.child.poll() is not None:
                return False
            with contextlib.suppress(OSError, http.client.HTTPException):
                link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                link.request("GET", "/health")
                if link.getresponse().status == 200:
                    return True
            time.sleep(0.5)
        return False

    def post(self, path, timeout=60, **body):
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        link.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = link.getresponse()
        return answer.status, answer.read()

    def ask(self, tokens=16, prompt="the quick brown fox", timeout=120, temperature=0):
        return self.post("/v1/completions", timeout, model="tiny", prompt=prompt, max_tokens=tokens,
                         temperature=temperature, ignore_eos=True)

    def load(self, streams=4, tokens=400):
        """Requests that go on until the server is gone."""
        def one():
            with contextlib.suppress(OSError, http.client.HTTPException):
                while True:
                    self.ask(tokens, timeout=90)
        for _ in range(streams):
            threading.Thread(target=one, daemon=True).start()
        time.sleep(3)

    def said(self, text, patience=240):
        began = time.monotonic()
        while time.monotonic() - began < patience:
            if text in open(self.log, errors="replace").read():
                return True
            if self.child.poll() is not None:
                return text in open(self.log, errors="replace").read()
            time.sleep(0.3)
        return False

    def ended(self, patience=120):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(patience)

    def close(self):
        for _ in range(50):
            alive = [pid for pid in self.ours() if pid != os.getpid()]
            if not alive:
                break
            for pid in alive:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(10)
        shutil.rmtree(self.tmp, ignore_errors=True)


class Bench:
    def __init__(self, python, make_model, out):
        self.python, self.out = os.path.abspath(python), out
        os.makedirs(out, exist_ok=True)
        self.work = tempfile.mkdtemp(prefix="pv-models-", dir="/tmp")
        self.make_model = make_model
        self.model = self.new_model("tiny")
        self.hooks = os.path.join(self.work, "hooks")
        os.makedirs(self.hooks)
        shutil.copy(os.path.join(HERE, "hook.py"), os.path.join(self.hooks, "sitecustomize.py"))

    def new_model(self, name, **config):
        folder = os.path.join(self.work, name)
        subprocess.run([self.python, self.make_model, folder], check=True)
        path = os.path.join(folder, "config.json")
        value = json.load(open(path))
        value.update(config)
        json.dump(value, open(path, "w"), indent=1)
        return folder

    def hook(self, what, **env):
        return {"PYTHONPATH": self.hooks, "VARCAS_HOOK": what, **env}

    def clean(self, text):
        site = glob.glob(os.path.join(os.path.dirname(os.path.dirname(self.python)), "lib/python3*/site-packages"))
        for path in site:
            text = text.replace(path, "/opt/venv/lib/python3.12/site-packages")
        base = subprocess.run([self.python, "-c", "import sys; print(sys.base_prefix)"], capture_output=True, text=True)
        text = text.replace(base.stdout.strip() or "\0", "/usr")
        text = text.replace(os.path.dirname(os.path.dirname(self.python)), "/opt/venv")
        text = text.replace(self.hooks, "/srv/hooks").replace(self.work, "/srv/vllm")
        text = text.replace(os.path.expanduser("~") + "/", "/home/user/")
        text = re.sub(r"/tmp/pv\w+", "/tmp/private", text)
        text = re.sub(rf"\b{re.escape(socket.gethostname())}\b", "host", text)
        text = re.sub(r"\b(?!127\.0\.0\.1|0\.0\.0\.0)\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b(?=[:\]'])", "192.0.2.1", text)
        return text

    def keep(self, name, raw):
        text = self.clean(open(raw, errors="replace", newline="").read())
        # The long list of routes says nothing, and of requests that succeeded the first three say it all.
        lines, good = [], 0
        for line in text.split("\n"):
            good += " 200 OK" in line
            if "Route: /" not in line and (" 200 OK" not in line or good <= 3):
                lines.append(line)
        text = "\n".join(lines)
        if len(text) > MAX_LOG:
            text = text[: MAX_LOG // 2] + "\n" + text[-MAX_LOG // 2:]
        with open(os.path.join(self.out, name + ".log"), "w", newline="") as file:
            file.write(text)

    def run(self, name, do=None, **how):
        raw = os.path.join(self.work, name + ".raw")
        began = time.monotonic()
        server = Server(self.python, how.pop("model", self.model), raw, **how)
        try:
            if do is None:
                server.ended(START)
            else:
                do(server)
        except Exception as error:  # the log is kept all the same
            print(f"  {name}: {error!r}", flush=True)
        finally:
            server.close()
        self.keep(name, raw)
        print(f"{name}: {time.monotonic() - began:.0f} s, exit {server.child.returncode}", flush=True)


def full_disk(command, tmp):
    """A temporary folder without room, in a mount namespace that ends with the server."""
    script = f'mount -t tmpfs -o size=48k tmpfs {tmp}; exec "$@"'
    return ["unshare", "-m", "sh", "-c", script, "sh", *command]


def own_shm(command, _tmp, size="2g"):
    """Segments that a killed server leaves go with its mount namespace."""
    script = f'{shutil.which("mount")} -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    shell = [shutil.which("unshare"), "-m", "/bin/sh", "-c", script, "sh"]
    return [*shell, *command] if os.geteuid() == 0 else command


def small_shm(command, tmp):
    return own_shm(command, tmp, "12k")


def cgroup(limit):
    group = "/sys/fs/cgroup/memory/varcas-provoked"

    def wrap(command, _tmp):
        script = (f'mkdir -p {group} && echo {limit} > {group}/memory.limit_in_bytes && echo $$ > {group}/cgroup.procs '
                  '&& exec "$@"')
        return ["sh", "-c", script, "sh", *command]
    return wrap


def few_files(count):
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


def served(after):
    def do(server):
        if server.ready():
            server.ask()
            after(server)
    return do


def kill(name, number):
    def do(server):
        server.load()
        os.kill(server.find(name), number)
        server.ended(60)
    return served(do)


def failures(bench):
    """Name, cause, and how it comes about."""
    broken = lambda name, file, text: _broken(bench, name, file, text)
    yield "missing-folder", "model-not-found", dict(model="/srv/none/model")
    yield "missing-hub-model", "model-not-found", dict(model="nobody/nothing-7b")
    yield "missing-weights", "model-not-found", dict(usual=False, args=["--dtype", "bfloat16", "--max-model-len", "1024", "--enforce-eager"])
    yield "corrupt-weights", "weights-corrupt", dict(
        usual=False, model=broken("corrupt", "model.safetensors", "not a tensor in here, whatever the name says"),
        args=["--dtype", "bfloat16", "--max-model-len", "1024", "--enforce-eager"])
    yield "bad-dtype", "cli-usage-error", dict(usual=False, args=["--dtype", "int3"])
    yield "bad-flag", "cli-usage-error", dict(args=["--enable-cuda-graph"])
    yield "bad-value", "cli-usage-error", dict(args=["--max-num-seqs", "many"])
    yield "unknown-architecture", "unsupported-arch-or-config", dict(model=bench.new_model("foobar", model_type="foobar"))
    yield "unsupported-architecture", "unsupported-arch-or-config", dict(
        model=bench.new_model("wrong-arch", architectures=["FooBarForCausalLM"]))
    yield "broken-config", "unsupported-arch-or-config", dict(model=broken("no-json", "config.json", "{ this is no json"))
    yield "context-too-long", "unsupported-arch-or-config", dict(args=["--max-model-len", "99999"])
    yield "tp-does-not-divide", "unsupported-arch-or-config", dict(args=["-tp", "3"])
    yield "wrong-quantization", "unsupported-arch-or-config", dict(args=["--quantization", "awq"])
    yield "broken-tokenizer", "tokenizer-error", dict(model=broken("no-tokens", "tokenizer.json", '{"model": {"type": "Foo"}}'))
    yield "missing-module", "python-dependency-error", dict(env=bench.hook("no-module"))
    yield "undefined-name", "python-dependency-error", dict(env=bench.hook("no-name"))
    yield "port-taken", "port-in-use", dict(do=_with_port_taken)
    yield "kv-cache-too-small", "kv-cache-too-small", dict(
        no_len=True, model=bench.new_model("long", max_position_embeddings=3_000_000))
    yield "no-disk-under-load", "disk-full", dict(wrap=full_disk, do=served(_sampled))
    yield "no-shm", "shm-exhausted", dict(wrap=small_shm, args=["-tp", "2"])
    yield "few-files-at-start", "too-many-open-files", dict(limits=few_files(40))
    yield "no-memory-for-cache", "host-oom", dict(env={"VLLM_CPU_KVCACHE_SPACE": "4000"})
    # The kernel says why, the log does not.
    yield "cgroup-oom-at-start", "killed-externally", dict(wrap=cgroup(900 << 20))
    yield "engine-killed", "killed-externally", dict(do=kill("VLLM::Engine", signal.SIGKILL))
    yield "worker-killed", "killed-externally", dict(args=["-tp", "2"], do=kill("VLLM::Worker_TP1", signal.SIGKILL))
    yield "engine-killed-at-start", "killed-externally", dict(do=_kill_loading)
    yield "engine-segfault", "segfault", dict(env=bench.hook("segfault"), do=served(_wait))
    yield "worker-segfault", "segfault", dict(env=bench.hook("segfault"), args=["-tp", "2"], do=served(_wait))
    yield "engine-abort", "undetermined", dict(env=bench.hook("abort"), do=served(_wait))
    yield "engine-exception", "undetermined", dict(env=bench.hook("raise"), do=served(_wait))
    yield "exception-at-start", "undetermined", dict(env=bench.hook("raise-at-start"))
    yield "worker-loops", "engine-hang", dict(env=bench.hook("loop", VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS="25", VLLM_RINGBUFFER_WARNING_INTERVAL="5"), args=["-tp", "2"], do=served(_wait))
    yield "worker-stopped", "engine-hang", dict(
        env={"VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "25", "VLLM_RINGBUFFER_WARNING_INTERVAL": "5"}, args=["-tp", "2"], do=served(_stop_worker))
    yield "no-compiler", "torch-compile-failure", dict(env={"PATH": "/nonexistent", "CXX": "/nonexistent/c++"}, do=served(_sampled))
    yield "terminated-at-start", "startup-timeout", dict(do=_terminate_loading)
    yield "terminated", "graceful-shutdown", dict(do=served(lambda server: (os.kill(_api(server), signal.SIGTERM), server.ended(60))))
    yield "interrupted", "graceful-shutdown", dict(do=served(lambda server: (os.kill(_api(server), signal.SIGINT), server.ended(60))))
    yield "request-too-long", "request-too-long", dict(do=served(lambda server: (server.ask(16, "word " * 3000), server.ask())))
    yield "profiler-404", "profiler-404", dict(do=served(lambda server: (server.post("/start_profile"), server.ask(), server.post("/stop_profile"))))
    yield "stock-profiler", "kineto-thread-mismatch", dict(args=_profiler(), do=served(_profile))
    yield "flush-cut-off", "profiler-flush-stall", dict(args=_profiler(), do=served(_profile_cut))
    yield "healthy", "healthy", dict(do=served(lambda server: (server.ask(), time.sleep(12))))


def _broken(bench, name, file, text):
    folder = bench.new_model(name)
    with open(os.path.join(folder, file), "w") as out:
        out.write(text)
    return folder


def _api(server):
    return server.child.pid


def _wait(server):
    server.load(2)
    server.ended(120)


def _sampled(server):
    with contextlib.suppress(OSError, http.client.HTTPException):
        server.ask(8, temperature=0.8, timeout=90)
    server.ended(15)


def _with_port_taken(server):
    server.ended(START)


def _kill_loading(server):
    server.said("Initializing a V1 LLM engine")
    os.kill(server.find("VLLM::Engine"), signal.SIGKILL)
    server.ended(90)


def _terminate_loading(server):
    server.said("Starting to load model")
    for _ in range(10):
        with contextlib.suppress(OSError):
            os.kill(_api(server), signal.SIGTERM)
        server.ended(3)


def _stop_worker(server):
    server.load(2)
    os.kill(server.find("VLLM::Worker_TP1"), signal.SIGSTOP)
    server.ended(120)


def _profiler():
    return ["--profiler-config.profiler=torch", "--profiler-config.torch_profiler_dir=/tmp/pvtraces"]


def _profile(server):
    server.post("/start_profile")
    server.ask(32)
    server.post("/stop_profile", timeout=200)
    server.ask()
    shutil.rmtree("/tmp/pvtraces", ignore_errors=True)


def _profile_cut(server):
    server.post("/start_profile")
    server.ask(300)
    threading.Thread(target=lambda: _quiet(lambda: server.post("/stop_profile", timeout=100)), daemon=True).start()
    server.said("Stopping profiler...")
    server.close()
    shutil.rmtree("/tmp/pvtraces", ignore_errors=True)


def _quiet(call):
    with contextlib.suppress(OSError, http.client.HTTPException):
        call()


def main():
    python, make_model, out, *names = sys.argv[1:]
    bench = Bench(python, make_model, out)
    rows = []
    try:
        for name, cause, how in failures(bench):
            rows.append((name, cause))
            if names and name not in names:
                continue
            if name == "port-taken":
                with socket.socket() as held:
                    held.bind(("0.0.0.0", 0))
                    held.listen()
                    bench.run(name, port=held.getsockname()[1], **how)
            else:
                bench.run(name, **how)
    finally:
        shutil.rmtree(bench.work, ignore_errors=True)
        for group in glob.glob("/sys/fs/cgroup/memory/varcas-provoked"):
            with contextlib.suppress(OSError):
                os.rmdir(group)
    for name, cause in rows:
        print(f"{name}\t{cause}")


if __name__ == "__main__":
    main()
