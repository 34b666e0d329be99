#!/usr/bin/env python3
"""What profiler windows take from a real vLLM: blocks with and without them, alternating, under one closed-loop load.

usage: pairs.py windows URL TRACES PAIRS SECONDS          one server; its recorder is switched through the phase file in TRACES
       pairs.py cross   PAIRS SECONDS URL=TRACES URL=TRACES  two servers of one kind under load at once, one of them with windows, in turn
       pairs.py rest    BLOCKS SECONDS URL=TRACES URL=TRACES...  servers at rest before and after all but the first made windows
       pairs.py soak    URL TRACES SECONDS [loading]         windows without end on one server, or none: its memory
       pairs.py stock   URL TIMES SECONDS                  one server with the stock profiler and its start/stop API

Prints one JSON object. Tokens are counted when they arrive here; a block with windows ends TAIL seconds after they were switched
off, so that a window that is open then is paid for in its own block.
"""

import bisect
import http.client
import json
import os
import random
import statistics
import sys
import threading
import time
import urllib.request

STREAMS = int(os.environ.get("STREAMS", "32"))
OUTPUT_TOKENS = int(os.environ.get("OUTPUT_TOKENS", "128"))
TAIL = 1.0


class Load:
    """STREAMS closed-loop streams to one server at a time. Every arrival of a token is kept."""

    def __init__(self):
        self.url = None
        self.lock = threading.Lock()
        self.tokens = []
        self.ends = []
        self.failed = 0
        self.open = 0
        self.over = False
        self.threads = [threading.Thread(target=self._stream, args=(number,), daemon=True) for number in range(STREAMS)]
        for thread in self.threads:
            thread.start()

    def _stream(self, number):
        words = random.Random(number)
        while not self.over:
            url = self.url
            if url is None:
                time.sleep(0.01)
                continue
            with self.lock:
                self.open += 1
            try:
                self._request(url, words)
            except Exception:
                with self.lock:
                    self.failed += 1
                time.sleep(0.05)
            finally:
                with self.lock:
                    self.open -= 1

    def _request(self, url, words):
        prompt = " ".join(str(words.randrange(10_000)) for _ in range(words.randrange(40, 400)))
        # Streams of one length would run in step, and prefills would come in bursts.
        length = words.randrange(OUTPUT_TOKENS // 2, 3 * OUTPUT_TOKENS // 2)
        body = {"model": "tiny", "prompt": prompt, "max_tokens": length, "ignore_eos": True, "stream": True}
        host, port = url.split("//")[1].split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=300)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise OSError(answer.read())
        arrivals = []
        for line in answer:
            if line.startswith(b"data: {"):
                arrivals.append(time.monotonic())
        connection.close()
        with self.lock:
            self.tokens.extend(arrivals)
            self.ends.append((arrivals[0], arrivals[-1], len(arrivals)))

    def stop(self):
        """Requests that a frozen engine holds are left behind."""
        self.url = None
        until = time.monotonic() + 20
        while self.open and time.monotonic() < until:
            time.sleep(0.005)
        self.over = True


def rate(load, block):
    began, ended = block
    return sum(began <= at < ended for at in load.tokens) / (ended - began)


def tpot(load, blocks):
    """Milliseconds a token, of the requests that lay within the blocks."""
    found = sorted(
        1000 * (last - first) / (count - 1)
        for first, last, count in load.ends
        if count > 1 and any(began <= first and last < ended for began, ended in blocks)
    )
    if not found:
        return None
    at = lambda q: round(found[min(len(found) - 1, int(q * len(found)))], 3)
    return {"requests": len(found), "p50": at(0.5), "p99": at(0.99), "max": round(found[-1], 3)}


def lost(load, told, clock):
    """Seconds of output that each window cost as seen here: what arrived from its opening until 0.3 s after its export, against
    the two seconds before and after. Neighbours in time drift less than blocks do."""
    tokens = sorted(load.tokens)
    count = lambda began, ended: bisect.bisect_left(tokens, ended) - bisect.bisect_left(tokens, began)
    found, opened = [], {}
    for line in told:
        if line["event"] == "opened":
            opened[line["window"]] = line["t"] - clock
        elif line["event"] == "closed" and line["window"] in opened:
            began, ended = opened[line["window"]], line["t"] - clock + 0.3
            usual = (count(began - 2, began) + count(ended, ended + 2)) / 4
            if usual > 0:
                found.append((ended - began) - count(began, ended) / usual)
    return found


def spread(values):
    values = sorted(values)
    picks = random.Random(7)
    medians = sorted(statistics.median(picks.choices(values, k=len(values))) for _ in range(2000))
    return {
        "n": len(values),
        "median": round(statistics.median(values), 4),
        "mean": round(statistics.mean(values), 4),
        "least": round(values[0], 4),
        "most": round(values[-1], 4),
        "median_95": [round(medians[50], 4), round(medians[1949], 4)],
    }


def tell(traces, phase):
    with open(os.path.join(traces, "phase"), "w", encoding="ascii") as file:
        file.write(phase)


def index(traces):
    with open(os.path.join(traces, "windows.jsonl"), encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def windows(url, traces, pairs, seconds):
    load = Load()
    load.url = url
    # First steps compile.
    while len(load.ends) < 2 * STREAMS:
        time.sleep(0.1)
    # The lengths settle.
    tell(traces, "warm-up")
    time.sleep(6)
    tell(traces, "measuring")
    time.sleep(8)
    tell(traces, "loading")
    time.sleep(TAIL)
    before = len(index(traces))
    blocks = []
    for pair in range(pairs):
        # on off, off on, on off, ...
        for is_on in (True, False) if pair % 2 == 0 else (False, True):
            began = time.monotonic()
            if is_on:
                tell(traces, "measuring")
            time.sleep(seconds)
            if is_on:
                tell(traces, "loading")
                time.sleep(TAIL)
            blocks.append((pair, is_on, (began, time.monotonic())))
    load.stop()
    clock = time.time() - time.monotonic()
    told = index(traces)[before:]
    seen = lost(load, told, clock)
    closed = [line for line in told if line["event"] == "closed"]
    planned = [line for line in told if line["event"] == "planned"]
    earlier = [line for line in index(traces)[:before] if line["event"] == "planned"]
    on = [block for _, is_on, block in blocks if is_on]
    off = [block for _, is_on, block in blocks if not is_on]
    ratios = []
    for pair in range(pairs):
        one = {is_on: block for number, is_on, block in blocks if number == pair}
        loss = 1 - rate(load, one[True]) / rate(load, one[False])
        # Windows were allowed for `seconds` of the block only.
        ratios.append(loss * (one[True][1] - one[True][0]) / seconds)
    worked = planned[-1]["worked_s"] - earlier[-1]["worked_s"] if planned and earlier else None
    cost = sum(line["cost_s"] for line in planned)
    waits = {"on": tpot(load, on), "off": tpot(load, off)}
    return {
        "loss": spread(ratios),
        "tokens_s": {"on": round(statistics.median(rate(load, b) for b in on), 1), "off": round(statistics.median(rate(load, b) for b in off), 1)},
        "tpot_ms": waits,
        "own_account": None if not worked else round(cost / worked, 4),
        "seen_here": None if not worked else round(sum(seen) / worked, 4),
        "a_window": {"own_s": round(cost / max(1, len(planned)), 4), "seen_s": spread(seen) if len(seen) > 1 else None},
        "worked_s": worked,
        "windows": len(closed),
        "steps": statistics.median(line["last_step"] - line["first_step"] for line in closed) if closed else None,
        "bytes": statistics.median(line["bytes"] for line in closed) if closed else None,
        "stop_s": statistics.median(line["stop_s"] for line in closed) if closed else None,
        "export_s": statistics.median(line["export_s"] for line in closed) if closed else None,
        "slower_s": statistics.median(line["slower_s"] for line in planned) if planned else None,
        "after_s": statistics.median(line["after_s"] for line in planned) if planned else None,
        "rss_mb": [round(line["rss"] / 1e6) for line in closed][:: max(1, len(closed) // 20)],
        "failed": load.failed,
    }


def soak(url, traces, seconds, phase):
    """Memory of the worker over many windows in a row; phase `loading` makes none, for comparison."""
    load = Load()
    load.url = url
    while len(load.ends) < STREAMS:
        time.sleep(0.1)
    tell(traces, phase)
    began, memory = time.monotonic(), []
    while time.monotonic() - began < seconds:
        memory.append(resident(traces))
        time.sleep(seconds / 25)
    tell(traces, "loading")
    load.stop()
    closed = [line for line in index(traces) if line["event"] == "closed"]
    some = closed[:: max(1, len(closed) // 25)]
    return {
        "rss_mb": memory,
        "windows": len(closed),
        "rss_after_window_mb": [round(line["rss"] / 1e6) for line in some],
        "grown_mb": [round(line["grown"] / 1e6, 1) for line in some],
        "events_about": sum(line["bytes"] for line in closed) // 250,
        "tokens": len(load.tokens),
    }


def warm(loads):
    """Until the first steps have compiled."""
    for load in loads:
        while len(load.ends) < 2 * STREAMS:
            time.sleep(0.1)


def account(traces, before, blocks):
    """What the worker itself says of its windows since its index had `before` lines."""
    told = index(traces)[before:]
    planned = [line for line in told if line["event"] == "planned"]
    closed = [line for line in told if line["event"] == "closed"]
    earlier = [line for line in index(traces)[:before] if line["event"] == "planned"]
    worked = planned[-1]["worked_s"] - earlier[-1]["worked_s"] if planned and earlier else None
    cost = sum(line["cost_s"] for line in planned)
    return told, {
        "windows": len(closed),
        "steps": statistics.median(line["last_step"] - line["first_step"] for line in closed) if closed else None,
        "worked_s": worked,
        "own_account": round(cost / worked, 4) if worked else None,
        # Of the time in which windows were allowed.
        "own_share_of_blocks": round(cost / sum(ended - began for began, ended in blocks), 4),
        "rss_mb": [round(line["rss"] / 1e6) for line in closed],
    }


def cross(pairs, seconds, servers):
    """Both servers feel what the machine does meanwhile, so it cancels; which of them is faster cancels over the two halves of a pair."""
    loads = [Load() for _ in servers]
    for load, (url, _) in zip(loads, servers):
        load.url = url
    warm(loads)
    for phase, pause in (("warm-up", 6), ("measuring", 8), ("loading", TAIL)):
        for _, traces in servers:
            tell(traces, phase)
        time.sleep(pause)
    before = [len(index(traces)) for _, traces in servers]
    blocks = []
    for half in range(2 * pairs):
        # on in A, B, B, A, A, B, ...
        recording = (half + half // 2) % 2
        began = time.monotonic()
        tell(servers[recording][1], "measuring")
        time.sleep(seconds)
        tell(servers[recording][1], "loading")
        time.sleep(TAIL)
        blocks.append((recording, (began, time.monotonic())))
    clock = time.time() - time.monotonic()
    for load in loads:
        load.stop()
    halves = [rate(loads[one], block) / rate(loads[1 - one], block) for one, block in blocks]
    losses = []
    for pair in range(pairs):
        began, ended = blocks[2 * pair][1]
        # Windows were allowed for `seconds` of the block only.
        losses.append((1 - (halves[2 * pair] * halves[2 * pair + 1]) ** 0.5) * (ended - began) / seconds)
    accounts, seen, worked = [], [], 0.0
    for number, (load, (_, traces)) in enumerate(zip(loads, servers)):
        told, one = account(traces, before[number], [block for recording, block in blocks if recording == number])
        accounts.append(one)
        seen += lost(load, told, clock)
        worked += one["worked_s"] or 0.0
    on = [(loads[one], block) for one, block in blocks]
    off = [(loads[1 - one], block) for one, block in blocks]
    return {
        "loss": spread(losses),
        "losses": [round(one, 4) for one in losses],
        "halves": [round(one, 4) for one in halves],
        "tokens_s": {name: round(statistics.median(rate(*one) for one in found), 1) for name, found in (("on", on), ("off", off))},
        "tpot_ms": {
            name: [tpot(load, [block for other, block in found if other is load]) for load in loads]
            for name, found in (("on", on), ("off", off))
        },
        "seen_here": round(sum(seen) / worked, 4) if worked else None,
        "a_window_seen_s": spread(seen) if len(seen) > 1 else None,
        "servers": accounts,
        "failed": [load.failed for load in loads],
    }


def resident(traces):
    """Megabytes of the process with the recorder, which is the one that has the model."""
    try:
        with open(f"/proc/{index(traces)[0]['pid']}/statm", encoding="ascii") as file:
            return round(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)
    except OSError:
        return None


def rest(blocks, seconds, servers):
    """What is left in a server after its windows. All run at once: what the machine does meanwhile, and which of them is faster, cancels."""
    loads = [Load() for _ in servers]
    for load, (url, _) in zip(loads, servers):
        load.url = url
    warm(loads)
    time.sleep(8)

    memory = []

    def measured():
        found = []
        for _ in range(blocks):
            began = time.monotonic()
            time.sleep(seconds)
            found.append((began, time.monotonic()))
            memory.append([resident(traces) for _, traces in servers])
        return found

    earlier = measured()
    for _, traces in servers[1:]:
        tell(traces, "measuring")
    time.sleep(12)
    for _, traces in servers[1:]:
        tell(traces, "loading")
    time.sleep(3)
    later = measured()
    for load in loads:
        load.stop()
    rates = [[[rate(load, block) for block in found] for found in (earlier, later)] for load in loads]
    result = {"tokens_s": [[round(statistics.median(one), 1) for one in both] for both in rates], "lost": []}
    for both, (_, traces) in list(zip(rates, servers))[1:]:
        then, now = ([one / first for one, first in zip(found, firsts)] for found, firsts in zip(both, rates[0]))
        picks = random.Random(7)
        drawn = sorted(
            1 - statistics.median(picks.choices(now, k=blocks)) / statistics.median(picks.choices(then, k=blocks)) for _ in range(2000)
        )
        windows_made = sum(line["event"] == "closed" for line in index(traces))
        lost_now = 1 - statistics.median(now) / statistics.median(then)
        result["lost"].append({"windows": windows_made, "median": round(lost_now, 4), "median_95": [round(drawn[50], 4), round(drawn[1949], 4)]})
    result["rss_mb"] = memory
    result["failed"] = [load.failed for load in loads]
    result["unanswered"] = [load.open for load in loads]
    return result


def post(url, seconds):
    began = time.monotonic()
    try:
        urllib.request.urlopen(urllib.request.Request(url, data=b""), timeout=seconds).read()
        said = "answered"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    return round(time.monotonic() - began, 2), said


def stock(url, times, seconds):
    load = Load()
    load.url = url
    while len(load.ends) < 2 * STREAMS:
        time.sleep(0.1)
    found = []
    for _ in range(times):
        began = time.monotonic()
        time.sleep(seconds)
        off = (began, time.monotonic())
        start = post(url + "/start_profile", 60)
        began = time.monotonic()
        time.sleep(seconds)
        on = (began, time.monotonic())
        stop = post(url + "/stop_profile", 100)
        whole = (began, time.monotonic())
        found.append((off, on, whole, start, stop))
        if stop[1] != "answered":
            break
        time.sleep(1)
    is_answering = found[-1][4][1] == "answered"
    if is_answering:
        load.stop()
    return [
        {
            "loss_while_recording": round(1 - rate(load, on) / rate(load, off), 4),
            "loss_with_stop": round(1 - rate(load, whole) / rate(load, off), 4),
            "off_tokens_s": round(rate(load, off), 1),
            "start": start,
            "stop": stop,
        }
        for off, on, whole, start, stop in found
    ]


def main():
    what, given = sys.argv[1], sys.argv[2:]
    if what == "windows":
        result = windows(given[0], given[1], int(given[2]), float(given[3]))
    elif what == "soak":
        result = soak(given[0], given[1], float(given[2]), given[3] if len(given) > 3 else "measuring")
    elif what in ("cross", "rest"):
        result = {"cross": cross, "rest": rest}[what](int(given[0]), float(given[1]), [part.split("=") for part in given[2:]])
    else:
        result = stock(given[0], int(given[1]), float(given[2]))
    print(json.dumps({"what": what, **({"blocks": result} if isinstance(result, list) else result)}))
    sys.stdout.flush()
    # Streams that wait for a frozen engine would keep the process.
    os._exit(0)


if __name__ == "__main__":
    main()
