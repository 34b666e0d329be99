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
import os
import signal
import threading
import time

import torch

from varcas_budget import Budget, Coverage, Pace, composition
from varcas_system import Hold, complete_size, detached_at_rest, give_back, headroom, resident, say

# After so many lost windows in a row the cause is not a passing one.
MAX_FAILURES = 3
WATCH_SECONDS = 0.1
# Steps behind a window that may still wait for it: for the flush of another rank, or for work that was put off.
AFTER_STEPS = 2
# Mean size of an event in the JSON: 225 on a CPU, 266 with CUDA.
EVENT_BYTES = 250
# A recording and its flush take about 1.1 KB an event; a window of 150,000 events needs less than this.
MIN_MEMORY = 768e6
# After so much more memory, what was freed is given back to the system; that takes some 20 ms.
GIVE_BACK = 64e6
# What the windows together may add to this process's memory.
MAX_GROWTH = 1e9
# Between two looks at the memory while it is short.
HELD_SECONDS = 10.0
# Steps told one by one in the index.
TOLD_STEPS = 256
# Before this phase is over, vLLM is asked only whether it answers.
NOT_YET = "loading"


class Recorder:
    """The windows of one worker. Everything but `_watch` runs on the thread that runs the steps."""

    def __init__(self, rank, directory, rhythm, on_cpu):
        self.rank = rank
        self.rhythm = rhythm
        self.on_cpu = on_cpu
        self.directory = directory
        self.index = os.path.join(directory, "windows.jsonl")
        self.close_file = os.path.join(directory, "close")
        self.phase_file = os.path.join(directory, "phase")
        self.window_seconds = _number("VARCAS_WINDOW_SECONDS", 2.0)
        self.rest_seconds = _number("VARCAS_REST_SECONDS", 1.0)
        self.idle_seconds = max(0.2, _number("VARCAS_IDLE_SECONDS", 1.0))
        self.min_memory = _number("VARCAS_MIN_MEMORY", MIN_MEMORY)
        self.max_growth = _number("VARCAS_MAX_GROWTH", MAX_GROWTH)
        # Seconds of the measuring phase at which windows open; then nothing else opens any.
        self.times = _times(os.environ.get("VARCAS_WINDOW_AT", ""))
        share = _number("VARCAS_PROFILE_BUDGET", 0.0)
        size = min(_number("VARCAS_WINDOW_BYTES", 40e6), EVENT_BYTES * _number("VARCAS_WINDOW_EVENTS", 150e3))
        self.budget = Budget(share if share > 0 else None, int(_number("VARCAS_WINDOW_STEPS", 20)), size)
        self.pace = Pace()
        self.coverage = Coverage()
        self.activities = []
        # CUPTI goes after each window; it leaves within the next step, so the one behind a window opens none.
        self.detaches = False
        self.steps = 0
        # The last step: what it held, when it began, how long the thread was in it, whether it was recorded.
        self.step = None
        self.step_began = None
        self.step_called = 0.0
        self.step_recorded = False
        # Flushing since that step began.
        self.flushed_s = 0.0
        # The window whose cost is not known to its end yet.
        self.settling = None
        # As the guard told it, and since when.
        self.phase = ""
        self.phase_since = 0.0
        self.phases = set()
        self.held = False
        self.growth = 0
        # Of this, what giving back did not help.
        self.kept = 0
        self.window = 0
        self.failures = 0
        # The open window.
        self.profile = None
        self.first_step = 0
        self.most_steps = 0
        self.opened_at = 0.0
        self.opened_rss = None
        self.start_s = 0.0
        self.slower_s = 0.0
        self.batch = []
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
        full = self.budget.share is None and self.times is None and self.rest_seconds == 0
        self.detaches = "CUDA" in names and not full and detached_at_rest(torch.version.cuda, os.environ)
        self._line("hello", torch=str(torch.__version__), activities=names, detaches=self.detaches)
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
            with Hold():
                profile = self._new_profile()
                profile.start()
                profile.stop()
                _release(profile)
            self.step_recorded = True
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
                step = composition(scheduled)
                self._settle(step, scheduled)
                self.step = step
                self.step_open = True
                if self.profile is None and not self.disabled:
                    due = self.rhythm.due(self.steps, self._wish)
                    if due is not None:
                        self.window = due[0]
                        self.most_steps = min(due[1], self.budget.fitting())
                        self.rhythm.opened(self.window)
                        self._open()
                self.step_recorded = self.profile is not None
                if self.step_recorded:
                    self.coverage.recorded(step)
                    self.batch.append(step)
                    # The name that tools for PyTorch traces count steps by.
                    self.annotation = torch.profiler.record_function(f"ProfilerStep#{self.steps}")
                    self.annotation.__enter__()
        except Exception as error:
            self._lost(error)
        self.step_began = time.monotonic()

    def _settle(self, step, scheduled):
        """The step before this one is over: how long was it, and what did recording add to it?"""
        if self.step_began is None:
            return
        seconds = time.monotonic() - self.step_began - self.flushed_s
        if step[2] is not None and len(getattr(scheduled, "scheduled_new_reqs", ())) == step[2]:
            # Only newcomers: the engine had nothing to do in between.
            seconds = min(seconds, self.step_called)
        if self.phase != NOT_YET:
            self.budget.work(seconds + self.flushed_s)
        self.flushed_s = 0.0
        settling = self.settling
        if self.profile is None and settling is None:
            self.pace.learn(self.step, seconds)
            self.coverage.meet(self.step)
            return
        excess = self.pace.excess(self.step, seconds)
        if self.profile is not None or self.step_recorded:
            self.slower_s += excess
        else:
            settling["after_s"] += excess
            settling["left"] -= 1
        if self.profile is None and settling["left"] <= 0:
            self._settled(settling)

    def _settled(self, settling):
        self.settling = None
        slower, after = max(0.0, self.slower_s), max(0.0, settling["after_s"])
        self.budget.spend(slower + after)
        cost = settling["flush_s"] + slower + after
        self.budget.learn(settling["steps"], cost, settling["bytes"])
        self._line(
            "planned",
            window=settling["window"],
            cost_s=round(cost, 4),
            slower_s=round(slower, 4),
            after_s=round(after, 4),
            taken=round(self.budget.taken(), 5),
            worked_s=round(self.budget.worked, 3),
            next_steps=self.budget.length,
            rest_s=round(max(self.rest_seconds, self.budget.wait()), 3),
        )

    def _wish(self):
        """The length of a window that should open now, or None."""
        now = time.monotonic()
        if now < self.rest_until or self.settling is not None or self.phase == NOT_YET or (self.detaches and self.step_recorded):
            return None
        if self.times is not None:
            if not self.times or self.phase != "measuring" or now - self.phase_since < self.times[0]:
                return None
        elif self.phase in self.phases and not self.budget.allows(self.step, self.coverage):
            return None
        if not self._has_room(now):
            return None
        if self.times:
            self.times.pop(0)
        return self.budget.length if self.times is None else self.budget.fitting()

    def _has_room(self, now):
        """Never the window that kills the host."""
        room = headroom()
        if room is None or room >= self.min_memory:
            self.held = False
            return True
        self.rest_until = now + HELD_SECONDS
        if not self.held:
            self.held = True
            self._line("held", reason=f"only {room / 1e6:.0f} MB of memory are free, a window needs {self.min_memory / 1e6:.0f} MB")
        return False

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
        now = time.monotonic()
        self.step_called = now - self.step_began
        if self.asked:
            self._finish("asked")
        elif self.profile is not None:
            if self.steps - self.first_step >= self.most_steps:
                self._close("steps")
            elif now - self.opened_at >= self.window_seconds:
                self._close("time")
            elif self.opened_rss is not None and (resident() or 0) - self.opened_rss > self.min_memory:
                self._close("memory")

    # ---- windows ----

    def _new_profile(self):
        return torch.profiler.profile(activities=self.activities, record_shapes=False, with_stack=False)

    def _open(self):
        if torch._C._autograd._profiler_enabled():
            # torch would take the other's recording away without a word.
            self._disable("another profiler is recording in this process")
            return
        with Hold():
            self.busy = True
            try:
                self.opened_rss = resident()
                began = time.monotonic()
                profile = self._new_profile()
                profile.start()
                # Only now: stopping one that did not start would stop whoever else is recording.
                self.profile = profile
                self.first_step = self.steps
                self.opened_at = time.monotonic()
                self.start_s = self.opened_at - began
                self.slower_s = 0.0
                self.batch = []
                self.phases.add(self.phase)
                self.coverage.opened(self.step)
                self._line("opened", window=self.window, step=self.steps, phase=self.phase, start_s=round(self.start_s, 4))
            finally:
                self.busy = False

    def _close(self, why):
        with Hold():
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
        # From here to the end no step runs, so what memory grows by is ours.
        recorded_rss = resident()
        self._line("flushing", window=window)
        for key, value in (
            ("varcas_run", os.environ.get("VARCAS_RUN_ID", "")),
            ("varcas_attempt", os.environ.get("VARCAS_ATTEMPT", "")),
            ("varcas_window", window),
            ("varcas_phase", self.phase),
            ("varcas_rank", self.rank),
            ("varcas_first_step", self.first_step),
            ("varcas_last_step", last_step),
            ("varcas_why", why),
        ):
            profile.add_metadata(key, _plain(value))
        profile.stop()
        stopped = time.monotonic()
        try:
            self._export(profile, part)
            size = complete_size(part)
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
        rss = resident()
        if rss is not None and recorded_rss is not None:
            self.growth += rss - recorded_rss
        self._line(
            "closed",
            window=window,
            file=name,
            bytes=size,
            first_step=self.first_step,
            last_step=last_step,
            recorded_s=round(ended - self.opened_at, 4),
            start_s=round(self.start_s, 4),
            stop_s=round(stopped - ended, 4),
            export_s=round(exported - stopped, 4),
            why=why,
            phase=self.phase,
            rss=rss,
            grown=self.growth,
            batch=self.batch[:TOLD_STEPS],
        )
        self.failures = 0
        self._watch_growth(rss)
        flush_s = time.monotonic() - ended
        self.flushed_s += flush_s
        self.budget.spend(self.start_s + flush_s)
        self.settling = {
            "window": window,
            "steps": last_step - self.first_step,
            "bytes": size,
            "flush_s": self.start_s + flush_s,
            "after_s": 0.0,
            "left": AFTER_STEPS if self.budget.share is not None else 0,
        }
        self.rest_until = time.monotonic() + self.rest_seconds

    def _export(self, profile, path):
        profile.export_chrome_trace(path)

    def _watch_growth(self, rss):
        """What windows leave in the memory of this process is bounded; what else grows in it is not ours to judge."""
        if rss is None or self.growth - self.kept <= GIVE_BACK:
            return
        # What was freed lies in pieces between what the engine allocated meanwhile, and is taken anew rather than used again.
        give_back()
        self.growth -= rss - (resident() or rss)
        self.kept = max(0, self.growth)
        if self.growth > self.max_growth:
            self._disable(f"the windows together added {self.growth / 1e6:.0f} MB to the memory of this worker")

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
            self._look_at_phase()
            if self.wake is None or self.in_call or self.busy or not (self.asked or self._idle()):
                continue
            if time.monotonic() - woken >= 1.0:
                woken = time.monotonic()
                signal.pthread_kill(self.main_ident, self.wake)

    def _look_at_phase(self):
        try:
            with open(self.phase_file, encoding="ascii") as file:
                phase = file.read().strip()
        except (OSError, ValueError):
            return
        if phase and phase != self.phase:
            self.phase_since = time.monotonic()
            self.phase = phase

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
    """Drops the recording at once.

    The profile object and its results hold each other, so they would wait for the garbage collector, and memory grew by 430 MB with
    each window of 300,000 events. Dropped at once, it stays at the size of the largest window, which the C library keeps.
    """
    inner = getattr(profile, "profiler", None)
    if inner is not None:
        inner.kineto_results = None
        profile.profiler = None


def _number(name, default):
    try:
        value = float(os.environ[name])
        return value if value >= 0 else default
    except (KeyError, ValueError):
        return default


def _plain(value):
    """Only characters that Kineto writes unharmed: some versions do not escape metadata."""
    return "".join(c if c.isalnum() or c in "-_.:/ " else "_" for c in str(value))


def _times(text):
    """`10,60` in ascending order; None if nothing is given."""
    try:
        times = sorted(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        return None
    return times or None
