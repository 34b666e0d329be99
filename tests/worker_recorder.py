"""Promises of varcas_recorder, with real torch and invented steps. Run by worker_recorder.rs as `worker_recorder.py FOLDER`.

Importing torch takes seconds, so one process imports it and forks for each promise; each prints a line of JSON about its end.
"""

import errno
import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time

import torch
# The profiler imports it on its first start, which takes seconds; the forks inherit it.
import torch._inductor.config
import varcas_recorder
import varcas_rhythm
import varcas_system
from varcas_recorder import Recorder
from varcas_rhythm import Alone, Together

DIRECTORY = None
REAL_EXPORT = torch.profiler.profile.export_chrome_trace
A = torch.ones(8, 8)
KILLS = 100


class Scheduled:
    total_num_scheduled_tokens = 4
    num_scheduled_tokens = {"a": 1, "b": 1, "c": 1, "d": 1}
    scheduled_new_reqs = ()


def recorder(ready=True, **settings):
    for name, value in settings.items():
        os.environ[name] = str(value)
    made = Recorder(0, DIRECTORY, Alone(), True)
    made.start()
    if ready:
        made.loaded()
    return made


def step(rec):
    rec.begin(Scheduled)
    torch.mm(A, A)
    rec.leave()
    rec.resume()
    torch.relu(A)
    rec.end()


def lines(event=None):
    try:
        with open(os.path.join(DIRECTORY, "windows.jsonl"), encoding="utf-8") as file:
            found = [json.loads(line) for line in file]
    except FileNotFoundError:
        return []
    return [line for line in found if event is None or line["event"] == event]


def trace(line):
    with open(os.path.join(DIRECTORY, line["file"]), encoding="utf-8") as file:
        return json.load(file)


def final_names():
    return sorted(name for name in os.listdir(DIRECTORY) if name.endswith(".pt.trace.json"))


def unfinished_names():
    return [name for name in os.listdir(DIRECTORY) if name.startswith(".window")]


def until(condition, what):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}; {lines()}"
        time.sleep(0.01)


def like_vllm():
    """vLLM's handler: SystemExit at whatever line is running, once."""
    came = []

    def handler(_number, _frame):
        if not came:
            came.append(1)
            raise SystemExit(0)

    signal.signal(signal.SIGTERM, handler)
    signal.signal(signal.SIGINT, handler)


def tell_phase(rec, phase):
    with open(os.path.join(DIRECTORY, "phase"), "w", encoding="ascii") as file:
        file.write(phase)
    until(lambda: rec.phase == phase, f"{phase} is known")


def ask_to_close():
    open(os.path.join(DIRECTORY, "close"), "w", encoding="utf-8").close()


# ---- windows ----


def a_window_holds_exactly_its_steps_and_their_sampling():
    rec = recorder(VARCAS_WINDOW_STEPS=10, VARCAS_REST_SECONDS=0)
    for _ in range(35):
        step(rec)
    closed = lines("closed")
    assert [(line["first_step"], line["last_step"], line["why"]) for line in closed] == [
        (0, 10, "steps"),
        (10, 20, "steps"),
        (20, 30, "steps"),
    ], closed
    document = trace(closed[1])
    names = [event["name"] for event in document["traceEvents"] if event.get("cat") == "user_annotation"]
    assert [name for name in names if name.startswith("ProfilerStep#")] == [f"ProfilerStep#{n}" for n in range(10, 20)]
    operators = [event["name"] for event in document["traceEvents"] if event.get("cat") == "cpu_op"]
    assert operators.count("aten::mm") == 10 and operators.count("aten::relu") == 10
    assert (document["varcas_run"], document["varcas_window"], document["varcas_first_step"]) == ("run-7", "1", "10")


def cupti_goes_at_rest_where_it_can_come_back():
    for cuda, chosen, detaches in (("13.0", {}, True), ("12.6", {}, True), ("12.4", {}, False), (None, {}, False), ("13.0", {"TEARDOWN_CUPTI": "0"}, False)):
        environment = dict(chosen)
        assert varcas_system.detached_at_rest(cuda, environment) == detaches, (cuda, chosen)
        assert environment == (chosen or ({"TEARDOWN_CUPTI": "1"} if detaches else {})), (cuda, environment)


def where_cupti_goes_a_step_lies_between_windows():
    rec = recorder(VARCAS_WINDOW_STEPS=5, VARCAS_REST_SECONDS=0)
    rec.detaches = True
    for _ in range(20):
        step(rec)
    # The first profile, which none asked for, counts as a window.
    assert [(line["first_step"], line["last_step"]) for line in lines("closed")] == [(1, 6), (7, 12), (13, 18)], lines()


def a_pipeline_stage_without_sampling_counts_its_steps():
    rec = recorder(VARCAS_WINDOW_STEPS=5, VARCAS_REST_SECONDS=0)
    for _ in range(11):
        rec.begin(Scheduled)
        rec.leave()
    assert [(line["first_step"], line["last_step"]) for line in lines("closed")] == [(0, 5), (5, 10)], lines()


def a_window_closes_on_time():
    rec = recorder(VARCAS_WINDOW_STEPS=10**6, VARCAS_WINDOW_SECONDS=0.05, VARCAS_IDLE_SECONDS=600)
    step(rec)
    until(lambda: step(rec) or lines("closed"), "closed on time")
    assert lines("closed")[0]["why"] == "time"


def a_budget_is_kept_and_each_choice_is_told():
    rec = recorder(VARCAS_WINDOW_STEPS=20, VARCAS_REST_SECONDS=0, VARCAS_PROFILE_BUDGET=0.2)
    until(lambda: step(rec) or len(lines("planned")) >= 8, "eight windows are paid for")
    planned = lines("planned")
    assert planned[-1]["taken"] < 0.25, planned[-1]
    lengths = [line["last_step"] - line["first_step"] for line in lines("closed")]
    assert lengths[:4] == [4, 8, 16, 20], lengths
    assert [line["next_steps"] for line in planned[:3]] == [8, 16, 20], planned
    assert all(line["cost_s"] > 0 and line["rest_s"] >= 0 for line in planned), planned
    # What the steps held.
    assert lines("closed")[0]["batch"] == [[0, 4, 4]] * 4, lines("closed")[0]


def a_window_is_no_larger_than_asked():
    rec = recorder(VARCAS_WINDOW_STEPS=1000, VARCAS_REST_SECONDS=0, VARCAS_PROFILE_BUDGET=0.9, VARCAS_WINDOW_BYTES=40000)
    until(lambda: step(rec) or len(lines("closed")) >= 8, "eight windows")
    closed = lines("closed")[3:]
    assert max(line["bytes"] for line in closed) < 60000, closed
    assert max(line["last_step"] - line["first_step"] for line in closed) < 100, closed


def windows_open_at_the_times_asked_for():
    rec = recorder(VARCAS_WINDOW_STEPS=5, VARCAS_REST_SECONDS=0, VARCAS_WINDOW_AT="0.2,0.1", VARCAS_PROFILE_BUDGET=0.05)
    for _ in range(20):
        step(rec)
    assert lines("opened") == [], "the load has not begun"
    tell_phase(rec, "measuring")
    until(lambda: step(rec) or len(lines("closed")) >= 2, "both windows")
    since = rec.phase_since + time.time() - time.monotonic()
    opened = [line["t"] - since for line in lines("opened")]
    assert opened[0] > 0.09 and opened[1] > 0.19, opened
    for _ in range(20):
        step(rec)
    assert [line["last_step"] - line["first_step"] for line in lines("closed")] == [5, 5]


def each_phase_has_its_window_and_loading_has_none():
    rec = recorder(ready=False, VARCAS_WINDOW_STEPS=5, VARCAS_REST_SECONDS=0, VARCAS_PROFILE_BUDGET=0.000001)
    tell_phase(rec, "loading")
    rec.loaded()
    for _ in range(10):
        step(rec)
    assert lines("opened") == []
    for phase in ("warm-up", "measuring"):
        tell_phase(rec, phase)
        until(lambda: step(rec) or rec.settling is None and lines("planned"), "settled")
        for _ in range(20):
            step(rec)
    assert [line["phase"] for line in lines("closed")] == ["warm-up", "measuring"], lines()
    assert trace(lines("closed")[1])["varcas_phase"] == "measuring"


def without_memory_to_spare_nothing_is_recorded():
    rec = recorder(VARCAS_WINDOW_STEPS=5, VARCAS_REST_SECONDS=0, VARCAS_MIN_MEMORY=10**15)
    for _ in range(50):
        rec.rest_until = 0
        step(rec)
    assert rec.steps == 50 and lines("opened") == [] and not rec.disabled
    assert len(lines("held")) == 1 and "memory" in lines("held")[0]["reason"], lines()
    rec.min_memory = 0
    rec.rest_until = 0
    step(rec)
    assert len(lines("opened")) == 1


def memory_that_windows_add_is_bounded():
    rec = recorder(VARCAS_WINDOW_STEPS=5, VARCAS_REST_SECONDS=0, VARCAS_MAX_GROWTH=30000000)
    kept = []
    varcas_recorder._release = kept.append
    for _ in range(3000):
        if rec.disabled:
            break
        rec.begin(Scheduled)
        for _ in range(1000):
            torch.mm(A, A)
        rec.end()
    assert rec.disabled and "memory" in lines("disabled")[0]["reason"], lines("disabled")
    assert all(trace(line)["traceEvents"] for line in lines("closed"))


def nothing_is_recorded_before_loading_is_over():
    rec = recorder(ready=False, VARCAS_WINDOW_STEPS=2)
    for _ in range(10):
        step(rec)
    assert lines("opened") == []
    rec.loaded()
    step(rec)
    assert lines("opened")[0]["step"] == 0, "warm-up steps do not count"


def a_step_without_tokens_opens_nothing():
    class Empty:
        total_num_scheduled_tokens = 0

    rec = recorder()
    rec.begin(Empty)
    rec.end()
    assert lines("opened") == [] and rec.steps == 0


# ---- idle and requests ----


def blocked_in_a_queue(rec, condition, what):
    """The main thread waits as vLLM's does, and a helper ends the wait when `condition` holds."""
    inbox = queue.Queue()
    failed = []

    def helper():
        try:
            until(condition, what)
        except BaseException as error:
            failed.append(error)
        inbox.put("request")

    threading.Thread(target=helper).start()
    assert inbox.get() == "request"
    assert not failed, failed
    step(rec)


def an_idle_engine_closes_its_window():
    rec = recorder(VARCAS_WINDOW_STEPS=10**6, VARCAS_WINDOW_SECONDS=600, VARCAS_IDLE_SECONDS=0.3)
    step(rec)
    blocked_in_a_queue(rec, lambda: lines("closed"), "closed on idle")
    closed = lines("closed")[0]
    assert closed["why"] == "idle" and trace(closed)["traceEvents"]


def a_request_to_close_is_answered_by_an_idle_engine():
    rec = recorder(VARCAS_WINDOW_STEPS=10**6, VARCAS_WINDOW_SECONDS=600, VARCAS_IDLE_SECONDS=600, VARCAS_REST_SECONDS=0)
    step(rec)
    ask_to_close()
    blocked_in_a_queue(rec, lambda: lines("finished"), "finished")
    assert [line["why"] for line in lines("closed")] == ["asked"]
    for _ in range(10):
        step(rec)
    assert len(lines("opened")) == 1 and len(lines("finished")) == 1


def a_request_to_close_is_answered_under_load():
    rec = recorder(VARCAS_WINDOW_STEPS=10**6, VARCAS_WINDOW_SECONDS=600, VARCAS_IDLE_SECONDS=600)
    step(rec)
    ask_to_close()
    until(lambda: step(rec) or lines("finished"), "finished")
    assert [line["why"] for line in lines("closed")] == ["asked"]


def a_request_to_close_without_any_window_is_answered():
    rec = recorder()
    ask_to_close()
    blocked_in_a_queue(rec, lambda: lines("finished"), "finished")
    assert lines("opened") == []


# ---- signals ----


def sigterm_in_the_middle_of_an_export_loses_nothing():
    like_vllm()
    rec = recorder(VARCAS_WINDOW_STEPS=5, VARCAS_REST_SECONDS=0)
    exports = []

    def export(profile, path):
        os.kill(os.getpid(), signal.SIGTERM)
        # Bytecodes at which a handler that was not held back would raise.
        for _ in range(1000):
            pass
        exports.append(REAL_EXPORT(profile, path))

    torch.profiler.profile.export_chrome_trace = export
    try:
        for _ in range(50):
            step(rec)
        raise AssertionError("SIGTERM was swallowed")
    except SystemExit:
        pass
    finally:
        rec.shutdown()
    assert len(exports) == 1 and rec.steps == 5, "the exit comes right after the window, not later"
    closed = lines("closed")
    assert len(closed) == 1 and trace(closed[0])["traceEvents"] and unfinished_names() == []
    assert len(lines("finished")) == 1


def sigterm_within_a_window_closes_it():
    like_vllm()
    rec = recorder(VARCAS_WINDOW_STEPS=10**6, VARCAS_WINDOW_SECONDS=600)
    try:
        step(rec)
        rec.begin(Scheduled)
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            rec.end()
    except SystemExit:
        pass
    finally:
        rec.shutdown()
    closed = lines("closed")
    assert [(line["why"], line["last_step"]) for line in closed] == [("shutdown", 2)], lines()
    assert trace(closed[0])["traceEvents"]


def a_second_sigterm_during_the_last_flush_waits_for_it():
    # vLLM gives the default handler back before it closes the worker, so this one kills; the Rust side sees by which signal.
    rec = recorder(VARCAS_WINDOW_STEPS=10**6, VARCAS_WINDOW_SECONDS=600)
    step(rec)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def export(profile, path):
        os.kill(os.getpid(), signal.SIGTERM)
        REAL_EXPORT(profile, path)

    torch.profiler.profile.export_chrome_trace = export
    rec.shutdown()
    raise AssertionError("the signal was swallowed")


# ---- harm ----


def a_full_disk_switches_the_profiler_off_and_the_steps_go_on():
    rec = recorder(VARCAS_WINDOW_STEPS=2, VARCAS_REST_SECONDS=0)

    def export(_profile, path):
        with open(path, "w", encoding="utf-8") as file:
            file.write('{"traceEvents": [')
        raise OSError(errno.ENOSPC, "No space left on device")

    torch.profiler.profile.export_chrome_trace = export
    until(lambda: setattr(rec, "rest_until", 0) or step(rec) or lines("disabled"), "disabled")
    assert len(lines("failed")) == varcas_recorder.MAX_FAILURES and lines("closed") == []
    assert final_names() == [] and unfinished_names() == [], os.listdir(DIRECTORY)
    before = rec.steps
    for _ in range(20):
        step(rec)
    assert rec.steps == before + 20 and len(lines("disabled")) == 1
    ask_to_close()
    until(lambda: step(rec) or lines("finished"), "finished")


def a_trace_that_the_writer_cut_short_gets_no_final_name():
    rec = recorder(VARCAS_WINDOW_STEPS=2)

    def export(profile, path):
        REAL_EXPORT(profile, path)
        os.truncate(path, os.path.getsize(path) // 2)

    torch.profiler.profile.export_chrome_trace = export
    until(lambda: step(rec) or lines("failed"), "failed")
    assert "cut" in lines("failed")[0]["error"]
    assert final_names() == [] and unfinished_names() == []


def one_failure_is_forgiven():
    rec = recorder(VARCAS_WINDOW_STEPS=2, VARCAS_REST_SECONDS=0)
    calls = []

    def export(profile, path):
        calls.append(path)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        REAL_EXPORT(profile, path)

    torch.profiler.profile.export_chrome_trace = export
    until(lambda: setattr(rec, "rest_until", 0) or step(rec) or lines("closed"), "closed")
    assert rec.failures == 0 and lines("disabled") == []
    assert lines("failed")[0]["window"] == 0 and lines("closed")[0]["window"] == 1


def a_deleted_folder_harms_nothing():
    rec = recorder(VARCAS_WINDOW_STEPS=2, VARCAS_REST_SECONDS=0)
    for name in os.listdir(DIRECTORY):
        os.unlink(os.path.join(DIRECTORY, name))
    os.rmdir(DIRECTORY)
    for _ in range(40):
        rec.rest_until = 0
        step(rec)
    assert rec.steps == 40 and rec.disabled


def a_read_only_folder_harms_nothing():
    try:
        os.unshare(os.CLONE_NEWNS)
        for command in (["mount", "--make-rprivate", "/"], ["mount", "-t", "tmpfs", "-o", "ro", "none", DIRECTORY]):
            subprocess.run(command, check=True)
    except (AttributeError, OSError, subprocess.CalledProcessError) as error:
        print(f"SKIPPED: nothing can be mounted here: {error}")
        return
    rec = recorder(VARCAS_WINDOW_STEPS=2, VARCAS_REST_SECONDS=0)
    for _ in range(40):
        rec.rest_until = 0
        step(rec)
    assert rec.steps == 40 and rec.disabled and os.listdir(DIRECTORY) == []


def somebody_elses_profile_goes_on():
    rec = recorder(VARCAS_WINDOW_STEPS=2, VARCAS_REST_SECONDS=0)
    other = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    other.start()
    for _ in range(40):
        rec.rest_until = 0
        step(rec)
    path = os.path.join(DIRECTORY, "other.json")
    other.stop()
    other.export_chrome_trace(path)
    with open(path, encoding="utf-8") as file:
        names = [event["name"] for event in json.load(file)["traceEvents"]]
    assert names.count("aten::mm") == 40, names.count("aten::mm")
    assert rec.steps == 40 and lines("opened") == [] and len(lines("disabled")) == 1


def a_process_that_ends_within_a_window_ends_cleanly_and_keeps_it():
    # Without care torch dies of SIGSEGV here, which would turn a clean end of vLLM into a crash.
    rec = recorder(VARCAS_WINDOW_STEPS=10**6, VARCAS_WINDOW_SECONDS=600)
    step(rec)
    assert len(lines("opened")) == 1


def memory_does_not_climb():
    rec = recorder(VARCAS_WINDOW_STEPS=20, VARCAS_REST_SECONDS=0)
    while len(lines("closed")) < 40:
        rec.begin(Scheduled)
        for _ in range(200):
            torch.mm(A, A)
        rec.end()
    closed = lines("closed")
    # 30 windows of 4,000 operators: kept, they would be some 100 MB.
    assert closed[-1]["rss"] - closed[9]["rss"] < 10e6, [line["rss"] for line in closed]


def a_sigkill_at_any_moment_loses_at_most_the_open_window():
    global DIRECTORY
    base, moments = DIRECTORY, random.Random(11)
    lost = whole = unfinished = 0
    for kill in range(KILLS):
        DIRECTORY = os.path.join(base, str(kill))
        os.makedirs(DIRECTORY)
        child = os.fork()
        if child == 0:
            try:
                rec = recorder(VARCAS_WINDOW_STEPS=5, VARCAS_REST_SECONDS=0)
                while True:
                    rec.begin(Scheduled)
                    for _ in range(100):
                        torch.mm(A, A)
                    rec.end()
            finally:
                os._exit(1)
        windows = moments.randrange(1, 6)
        until(lambda: len(lines("opened")) >= windows, "windows")
        # A moment within the next window, of which the export is the larger part.
        time.sleep(moments.random() * 0.03)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
        opened, closed = ({line["window"] for line in lines(event)} for event in ("opened", "closed"))
        for name in final_names():
            with open(os.path.join(DIRECTORY, name), encoding="utf-8") as file:
                assert json.load(file)["traceEvents"], name
        for line in lines("closed"):
            assert os.path.getsize(os.path.join(DIRECTORY, line["file"])) == line["bytes"], line
        assert len(opened - closed) <= 1 and len(final_names()) >= len(closed), (opened, closed, final_names())
        lost += len(opened - closed)
        whole += len(final_names())
        unfinished += len(unfinished_names())
    print(f"{KILLS} kills: {whole} windows whole, {lost} open ones lost, {unfinished} of them half written")
    # A test that never met an open window, or an export, would prove nothing.
    assert lost > KILLS / 2 and unfinished > 0, (lost, unfinished)


# ---- several workers ----


def workers_open_on_the_same_step():
    path = os.path.join(DIRECTORY, ".rhythm-0")
    leader, other = Together(path, True), Together(path, False)
    opened = {0: [], 1: []}
    at = {0: 0, 1: 0}
    for turn in range(800):
        # Each in turn runs up to three steps ahead.
        first = turn // 40 % 2
        for rank in (first, 1 - first):
            while at[rank] < turn + (3 if rank == first else 0):
                rhythm = leader if rank == 0 else other
                window = rhythm.due(at[rank], lambda: 7 if rank == 0 and at[0] % 100 == 0 else None)
                if window is not None:
                    opened[rank].append((window, at[rank]))
                at[rank] += 1
    assert opened[0] == opened[1], opened
    assert [entry[0] for entry in opened[0]] == [(number, 7) for number in range(len(opened[0]))] and len(opened[0]) >= 8, opened


def a_worker_that_comes_too_late_leaves_the_window_out():
    path = os.path.join(DIRECTORY, ".rhythm-0")
    ahead = varcas_rhythm.AHEAD_STEPS
    leader, late = Together(path, True), Together(path, False)

    def wanted():
        return 5

    def unwanted():
        return None

    assert leader.due(0, wanted) is None
    assert late.due(100, unwanted) is None
    assert leader.due(ahead, unwanted) == (0, 5)
    assert leader.due(101, wanted) is None
    assert late.due(101 + ahead, unwanted) == (1, 5) and leader.due(101 + ahead, unwanted) == (1, 5)
    leader.end()
    assert not os.path.exists(path)


PROMISES = [
    a_window_holds_exactly_its_steps_and_their_sampling,
    cupti_goes_at_rest_where_it_can_come_back,
    where_cupti_goes_a_step_lies_between_windows,
    a_pipeline_stage_without_sampling_counts_its_steps,
    a_window_closes_on_time,
    a_budget_is_kept_and_each_choice_is_told,
    a_window_is_no_larger_than_asked,
    windows_open_at_the_times_asked_for,
    each_phase_has_its_window_and_loading_has_none,
    without_memory_to_spare_nothing_is_recorded,
    memory_that_windows_add_is_bounded,
    nothing_is_recorded_before_loading_is_over,
    a_step_without_tokens_opens_nothing,
    an_idle_engine_closes_its_window,
    a_request_to_close_is_answered_by_an_idle_engine,
    a_request_to_close_is_answered_under_load,
    a_request_to_close_without_any_window_is_answered,
    sigterm_in_the_middle_of_an_export_loses_nothing,
    sigterm_within_a_window_closes_it,
    a_second_sigterm_during_the_last_flush_waits_for_it,
    a_full_disk_switches_the_profiler_off_and_the_steps_go_on,
    a_trace_that_the_writer_cut_short_gets_no_final_name,
    one_failure_is_forgiven,
    a_deleted_folder_harms_nothing,
    a_read_only_folder_harms_nothing,
    somebody_elses_profile_goes_on,
    a_process_that_ends_within_a_window_ends_cleanly_and_keeps_it,
    memory_does_not_climb,
    a_sigkill_at_any_moment_loses_at_most_the_open_window,
    workers_open_on_the_same_step,
    a_worker_that_comes_too_late_leaves_the_window_out,
]


def main():
    global DIRECTORY
    for promise in PROMISES:
        base = os.path.join(sys.argv[1], promise.__name__)
        DIRECTORY = os.path.join(base, "traces")
        os.makedirs(DIRECTORY)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            with open(os.path.join(base, "output"), "w", encoding="utf-8") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            promise()
            # The end of the interpreter belongs to the promise.
            return
        _, status = os.waitpid(child, 0)
        with open(os.path.join(base, "output"), encoding="utf-8", errors="replace") as output:
            said = output.read()
        signalled = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        print(json.dumps({"promise": promise.__name__, "signal": signalled, "code": code, "said": said}))


if __name__ == "__main__":
    main()
