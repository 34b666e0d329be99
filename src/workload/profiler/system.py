"""varcas_system: what the recorder needs of the operating system."""

import ctypes
import os
import signal
import sys
import threading

# The footer of a trace is far shorter; what lies in it proves that the writer came to its end.
FOOTER_BYTES = 4096


class Hold:
    """SIGTERM and SIGINT wait until the block ends.

    vLLM's own handlers raise SystemExit at whatever line the main thread is executing; in the middle of an export that loses
    the window. Blocking the signals would not help: a Python handler runs in the main thread whichever thread the
    kernel chose. So the handlers are exchanged for one that takes a note, and what came is raised again afterwards.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.came = []
        self.saved = {}

    def _note(self, number, _frame):
        self.came.append(number)

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self
        try:
            for number in self.SIGNALS:
                handler = signal.getsignal(number)
                # None: installed by C code, which Python could not put back.
                if handler is not None:
                    self.saved[number] = handler
                    signal.signal(number, self._note)
        except BaseException:
            self._restore()
            raise
        return self

    def _restore(self):
        for number, handler in self.saved.items():
            signal.signal(number, handler)

    def __exit__(self, *_exception):
        self._restore()
        for number in self.came:
            signal.raise_signal(number)
        return False


def complete_size(path):
    """Kineto does not notice a full disk and renames what it has: look at the end of the file."""
    if not os.path.exists(path):
        room = os.statvfs(os.path.dirname(path))
        raise OSError(f"the trace could not be written, {room.f_bavail * room.f_frsize} bytes are free on its disk")
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - FOOTER_BYTES))
        footer = file.read().rstrip()
    if not footer.endswith(b"}") or b'"traceName"' not in footer:
        raise OSError(f"the trace was cut after {size} bytes, which usually means that the disk is full")
    return size


def resident():
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def detached_at_rest(cuda, environment):
    """Has CUPTI taken away after each recording, unless somebody chose otherwise; whether it will be.

    While it stays attached every call of CUDA takes a detour through it: 17 % of the throughput of a small model, at rest. Before
    CUDA 12.6 its coming back crashed with CUDA graphs.
    """
    try:
        known = tuple(int(part) for part in cuda.split(".")[:2]) >= (12, 6)
    except (AttributeError, ValueError):
        known = False
    if known:
        environment.setdefault("TEARDOWN_CUPTI", "1")
    return environment.get("TEARDOWN_CUPTI") == "1"


def give_back():
    """Freed memory stays with the C library until it is asked; 22 ms for 400 MB."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        pass


def headroom():
    """Bytes that may still be taken before this machine, or the control group of this process, runs out; None if unknown."""
    found = [_available(), *_cgroup_room()]
    known = [one for one in found if one is not None]
    return min(known) if known else None


def _available():
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cgroup_room():
    """Version 2. Page cache counts as used there, but can be had back."""
    try:
        with open("/proc/self/cgroup", encoding="ascii") as file:
            path = next((line[3:].strip() for line in file if line.startswith("0::")), None)
        while path is not None:
            base = "/sys/fs/cgroup" + path.rstrip("/")
            most = _word(base + "/memory.max")
            used = _word(base + "/memory.current")
            if most is not None and used is not None:
                yield most - used + (_stat(base + "/memory.stat", "file ") or 0)
            path = os.path.dirname(path) if path.strip("/") else None
    except OSError:
        return


def _word(path):
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def _stat(path, key):
    try:
        with open(path, encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith(key)), None)
    except (OSError, ValueError, IndexError):
        return None


def say(text):
    """To the server's log."""
    try:
        print(f"varcas: {text}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass
