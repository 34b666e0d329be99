"""varcas_recorder: profiler windows of one worker, driven by the steps that `varcas_worker` reports.

A few engine steps are recorded with torch.profiler, exported as one complete file, then the engine rests. Nothing here is told
through an API; the environment says it all (VARCAS_*), and `windows.jsonl` in the trace folder answers.

Three rules:
- A window opens, closes and is exported on the thread that runs the steps, which is the main thread of its process. Kineto
  keeps its state per thread, and there the recorded operators are.
- Nothing may harm the engine. Whatever goes wrong becomes a `failed` or `disabled` line, and the engine goes on.
- A file has its final name only when it is complete.
"""

import atexit
import json
import mmap
import os
import signal
import struct
import sys
import threading
import time

import torch

# After so many lost windows in a row the cause is not a passing one.
MAX_FAILURES = 3
WATCH_SECONDS = 0.1
# How many steps ahead the first rank announces a window. Ranks meet in every step, but with asynchronous scheduling and pipelines
# one may be a few steps ahead of another.
AHEAD_STEPS = 8
# The footer of a trace is far shorter; what lies in it proves that the writer came to its end.
FOOTER_BYTES = 4096


def _number(name, default):
    try:
        value = float(os.environ[name])
        return value if value >= 0 else default
    except (KeyError, ValueError):
        return default


def _plain(value):
    """Only characters that Kineto writes unharmed: some versions do not escape metadata."""
    return "".join(c if c.isalnum() or c in "-_.:/ " else "_" for c in str(value))


class _Hold:
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


class Alone:
    """When windows open, for an engine with one worker: as soon as the rest is over."""

    def __init__(self):
        self.number = 0

    def due(self, _step, rested):
        return self.number if rested else None

    def opened(self, _number):
        self.number += 1

    def end(self):
        pass


class Together:
    """When windows open, for an engine with several workers: the first announces window and step, all open on that step.

    They talk through 16 shared bytes: the step, then how many windows were announced. A worker that comes too late for a window
    leaves it out.
    """

    FIELD = struct.Struct("=Q")

    def __init__(self, path, leads):
        self.path = path
        self.leads = leads
        self.announced = 0
        self.seen = 0
        self.target = None
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(fd, 2 * self.FIELD.size)
            self.shared = mmap.mmap(fd, 2 * self.FIELD.size)
        finally:
            os.close(fd)

    def due(self, step, rested):
        if self.leads and rested and self.target is None:
            self.FIELD.pack_into(self.shared, 0, step + AHEAD_STEPS)
            self.announced += 1
            self.FIELD.pack_into(self.shared, self.FIELD.size, self.announced)
        if self.target is None:
            (count,) = self.FIELD.unpack_from(self.shared, self.FIELD.size)
            if count > self.seen:
                self.seen = count
                (self.target,) = self.FIELD.unpack_from(self.shared, 0)
        if self.target is None or step < self.target:
            return None
        on_time = step == self.target
        self.target = None
        return self.seen - 1 if on_time else None

    def opened(self, _number):
        pass

    def end(self):
        if self.leads:
            try:
                os.unlink(self.path)
            except OSError:
                pass


class Recorder:
    """The windows of one worker. Everything but `_watch` runs on the thread that runs the steps."""

    def __init__(self, rank, directory, rhythm, on_cpu):
        self.rank = rank
        self.rhythm = rhythm
        self.on_cpu = on_cpu
        self.directory = directory
        self.index = os.path.join(directory, "windows.jsonl")
        self.close_file = os.path.join(directory, "close")
        self.window_steps = max(1, int(_number("VARCAS_WINDOW_STEPS", 20)))
        self.window_seconds = _number("VARCAS_WINDOW_SECONDS", 2.0)
        self.rest_seconds = _number("VARCAS_REST_SECONDS", 5.0)
        self.idle_seconds = max(0.2, _number("VARCAS_IDLE_SECONDS", 1.0))
        # The share of time that recording may take from the engine; 0 means that only the rest counts.
        self.budget = _number("VARCAS_PROFILE_BUDGET", 0.0)
        self.activities = []
        self.steps = 0
        self.step_began = 0.0
        # Seconds of a step at rest (a running mean), of the recorded steps together, and of a window's cost (a running mean).
        self.resting_step = None
        self.recorded_steps_s = 0.0
        self.mean_cost = None
        self.start_s = 0.0
        self.window = 0
        self.failures = 0
        # The open window.
        self.profile = None
        self.first_step = 0
        self.opened_at = 0.0
        self.rest_until = 0.0
        # The running step. `in_call`: the thread is inside it and only it may close; between execute_model and sample_tokens
        # the step is open, but the thread is outside.
        self.step_open = False
        self.in_call = False
        self.annotation = None
        self.touched_at = time.monotonic()
        # While the model is loaded and warmed up, vLLM calls execute_model with invented requests.
        self.ready = False
        self.busy = False
        self.asked = False
        self.disabled = False
        self.finished = False
        self.main_ident = None
        self.wake = None

    # ---- life ----

    def start(self):
        """Says hello and starts watching; on the main thread, before the model is loaded."""
        reason = None
        try:
            self.activities = self._activities()
            if not torch.autograd.profiler.kineto_available():
                reason = "this torch was built without Kineto"
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        names = [str(activity).rsplit(".", 1)[-1] for activity in self.activities]
        self._line("hello", torch=str(torch.__version__), activities=names)
        if reason is not None:
            self._disable(reason)
        if threading.current_thread() is threading.main_thread():
            self.main_ident = threading.get_ident()
            self.wake = self._free_signal()
        threading.Thread(target=self._watch, name="varcas-watch", daemon=True).start()
        # torch crashes with SIGSEGV when its process ends within a recording.
        atexit.register(self.shutdown)

    def _activities(self):
        known = torch.profiler.ProfilerActivity
        wanted = [known.CPU]
        if not self.on_cpu:
            supported = torch.profiler.supported_activities()
            for name in ("CUDA", "XPU", "PrivateUse1"):
                activity = getattr(known, name, None)
                if activity is not None and activity in supported:
                    wanted.append(activity)
                    break
        return wanted

    def _free_signal(self):
        """A signal that nobody uses, with our handler on it."""
        for number in (signal.SIGUSR2, *range(signal.SIGRTMIN + 5, signal.SIGRTMAX - 5)):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, self._on_wake)
                return number
        return None

    def loaded(self):
        """Loading is over. The first profile of a process initialises Kineto and CUPTI: better here than in a step."""
        self.ready = True
        if self.disabled or self.finished:
            return
        began = time.monotonic()
        try:
            with _Hold():
                profile = self._new_profile()
                profile.start()
                profile.stop()
                _release(profile)
        except Exception as error:
            self._disable(f"the profiler does not start: {type(error).__name__}: {error}")
        else:
            self._line("primed", seconds=round(time.monotonic() - began, 4))

    def shutdown(self):
        self.asked = True
        try:
            self._finish("shutdown")
        except Exception as error:
            self._lost(error)

    # ---- steps ----

    def begin(self, scheduled):
        """execute_model is entered. `scheduled` is vLLM's SchedulerOutput, or None if its place moved."""
        self.in_call = True
        if not self.ready:
            return
        try:
            if self.step_open:
                # A pipeline stage that is not the last gets no sample_tokens.
                self._complete()
            if self.asked:
                self._finish("asked")
            elif getattr(scheduled, "total_num_scheduled_tokens", 1) > 0:
                self.step_open = True
                if self.profile is None and not self.disabled:
                    number = self.rhythm.due(self.steps, time.monotonic() >= self.rest_until)
                    if number is not None:
                        self.window = number
                        self.rhythm.opened(number)
                        self._open()
                if self.profile is not None:
                    # The name that tools for PyTorch traces count steps by.
                    self.annotation = torch.profiler.record_function(f"ProfilerStep#{self.steps}")
                    self.annotation.__enter__()
        except Exception as error:
            self._lost(error)
        self.step_began = time.monotonic()

    def leave(self):
        """execute_model returned None: sample_tokens follows."""
        self.touched_at = time.monotonic()
        self.in_call = False

    def resume(self):
        """sample_tokens is entered."""
        self.in_call = True

    def end(self):
        """The step is complete, or it raised."""
        try:
            if self.step_open:
                self._complete()
        except Exception as error:
            self._lost(error)
        self.touched_at = time.monotonic()
        self.in_call = False

    def _complete(self):
        self.step_open = False
        self.steps += 1
        annotation, self.annotation = self.annotation, None
        if annotation is not None:
            annotation.__exit__(None, None, None)
        took = time.monotonic() - self.step_began
        if self.profile is not None:
            self.recorded_steps_s += took
        elif self.resting_step is None:
            self.resting_step = took
        else:
            # A step that compiles takes a thousand times as long and says nothing about the others.
            self.resting_step += 0.02 * (min(took, 10 * self.resting_step) - self.resting_step)
        if self.asked:
            self._finish("asked")
        elif self.profile is not None:
            if self.steps - self.first_step >= self.window_steps:
                self._close("steps")
            elif time.monotonic() - self.opened_at >= self.window_seconds:
                self._close("time")

    # ---- windows ----

    def _new_profile(self):
        return torch.profiler.profile(activities=self.activities, record_shapes=False, with_stack=False)

    def _open(self):
        if torch._C._autograd._profiler_enabled():
            # torch would take the other's recording away without a word.
            self._disable("another profiler is recording in this process")
            return
        began = time.monotonic()
        with _Hold():
            self.busy = True
            try:
                profile = self._new_profile()
                profile.start()
                # Only now: stopping one that did not start would stop whoever else is recording.
                self.profile = profile
                self.first_step = self.steps
                self.opened_at = time.monotonic()
                self.start_s = self.opened_at - began
                self.recorded_steps_s = 0.0
                self._line("opened", window=self.window, step=self.steps, start_s=round(self.start_s, 4))
            finally:
                self.busy = False

    def _close(self, why):
        with _Hold():
            self.busy = True
            try:
                self._flush(why)
            finally:
                self.busy = False

    def _flush(self, why):
        profile, window, last_step = self.profile, self.window, self.steps
        name = f"window-{window:04d}-rank{self.rank}.pt.trace.json"
        path = os.path.join(self.directory, name)
        part = os.path.join(self.directory, f".{name}.part")
        ended = time.monotonic()
        self._line("flushing", window=window)
        for key, value in (
            ("varcas_run", os.environ.get("VARCAS_RUN_ID", "")),
            ("varcas_attempt", os.environ.get("VARCAS_ATTEMPT", "")),
            ("varcas_window", window),
            ("varcas_rank", self.rank),
            ("varcas_first_step", self.first_step),
            ("varcas_last_step", last_step),
            ("varcas_why", why),
        ):
            profile.add_metadata(key, _plain(value))
        profile.stop()
        stopped = time.monotonic()
        try:
            profile.export_chrome_trace(part)
            size = _complete_size(part)
            os.rename(part, path)
        finally:
            self.profile = None
            _release(profile)
            for leftover in (part, part + ".tmp"):
                try:
                    os.unlink(leftover)
                except OSError:
                    pass
        exported = time.monotonic()
        cost, rest = self._account(exported - ended, last_step - self.first_step, ended - self.opened_at)
        self._line(
            "closed",
            window=window,
            file=name,
            bytes=size,
            first_step=self.first_step,
            last_step=last_step,
            recorded_s=round(ended - self.opened_at, 4),
            stop_s=round(stopped - ended, 4),
            export_s=round(exported - stopped, 4),
            why=why,
            rss=_resident(),
            cost_s=round(cost, 4),
            rest_s=round(rest, 3),
        )
        self.failures = 0
        self.rest_until = time.monotonic() + rest

    def _account(self, flush_s, steps, open_s):
        """What the window took from the engine, and how long to rest so that the share stays within the budget."""
        slower = 0.0
        if self.resting_step is not None:
            slower = max(0.0, self.recorded_steps_s - steps * self.resting_step)
        cost = self.start_s + slower + flush_s
        # The first window often holds a compilation; it must not silence the profiler for minutes.
        if self.mean_cost is None:
            self.mean_cost = self.start_s + flush_s
        else:
            self.mean_cost += 0.3 * (min(cost, 10 * self.mean_cost) - self.mean_cost)
        rest = self.rest_seconds
        if self.budget > 0:
            rest = max(rest, self.mean_cost / self.budget - open_s - flush_s)
        return cost, rest

    def _finish(self, why):
        """Closes what is open and opens no more."""
        if self.finished:
            return
        try:
            if self.profile is not None:
                if self.step_open:
                    self.step_open = False
                    self.steps += 1
                self._close(why)
        except Exception as error:
            self._lost(error)
        self.finished = True
        self.rhythm.end()
        self._line("finished")

    def _lost(self, error):
        """Something failed: give the window up, never the engine."""
        text = f"{type(error).__name__}: {error}"
        profile, self.profile = self.profile, None
        self.annotation = None
        if profile is not None:
            try:
                profile.stop()
            except Exception:
                pass
            _release(profile)
        self._line("failed", window=self.window, error=text)
        self.failures += 1
        self.rest_until = time.monotonic() + max(1.0, self.rest_seconds) * 2**self.failures
        if self.failures >= MAX_FAILURES:
            self._disable(f"{self.failures} windows failed in a row, the last with {text}")

    def _disable(self, reason):
        if not self.disabled:
            self.disabled = True
            say(f"profiling is off, the engine goes on: {reason}")
            self._line("disabled", reason=reason)

    def _line(self, event, **fields):
        record = {"event": event, "rank": self.rank, "pid": os.getpid(), "t": round(time.time(), 6), **fields}
        try:
            fd = os.open(self.index, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.write(fd, (json.dumps(record) + "\n").encode())
            finally:
                os.close(fd)
        except OSError as error:
            say(f"cannot write {event} to {self.index}: {error}")

    # ---- idle and requests ----

    def _watch(self):
        """The engine blocks without a step when it is idle, so somebody must wake it to close a window.

        Only a signal reaches the thread that has to do it. vLLM waits in calls that Python restarts after a signal, and none is
        sent while a step runs.
        """
        woken = 0.0
        while not self.finished:
            time.sleep(WATCH_SECONDS)
            if not self.asked and os.path.exists(self.close_file):
                self.asked = True
            if self.wake is None or self.in_call or self.busy or not (self.asked or self._idle()):
                continue
            if time.monotonic() - woken >= 1.0:
                woken = time.monotonic()
                signal.pthread_kill(self.main_ident, self.wake)

    def _idle(self):
        return self.profile is not None and time.monotonic() - self.touched_at >= self.idle_seconds

    def _on_wake(self, _number, _frame):
        if self.in_call or self.busy or self.finished:
            return
        if self.step_open and time.monotonic() - self.touched_at < 0.2:
            # Between execute_model and sample_tokens; the step itself will look.
            return
        try:
            if self.asked:
                self._finish("asked")
            elif self._idle():
                self._close("idle")
        except Exception as error:
            self._lost(error)


def _release(profile):
    """Drops the recording at once; waiting for the garbage collector would let memory grow window by window."""
    inner = getattr(profile, "profiler", None)
    if inner is not None:
        inner.kineto_results = None
        profile.profiler = None


def _complete_size(path):
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


def _resident():
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def say(text):
    """To the server's log."""
    try:
        print(f"varcas: {text}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass
