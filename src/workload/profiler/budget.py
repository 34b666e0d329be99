"""varcas_budget: when a window opens and how long it is. Pure: no torch, no clock, no files.

The budget is a share of the time in which the engine works. What a window takes from the engine is added up: the start, the
steps that were slower than their like at rest, stop and export, and the steps after it that still waited (for a rank that
flushed longer). A window opens when enough has been saved up for it.
"""

# The first window is this long; each further one at most twice as long as the one before.
FIRST_STEPS = 4
# Whoever rested longer than for one and a half windows opens no two in a row.
MOST_SAVED = 1.5
# A window that needs more seconds of work to be paid for is made shorter, but not than the first one.
LONGEST_REST = 10.0
# A load is higher than any recorded one from this factor on.
HIGHER = 1.25
# Weight of the newest value in running means.
FRESH_STEP = 0.05
FRESH_WINDOW = 0.5
# A step that takes so many times as long as its like compiles or waits; it says nothing about the others.
ODD = 10.0


def composition(scheduled):
    """Prefill tokens, decode tokens and requests of a step, from vLLM's SchedulerOutput; all None if its fields moved."""
    try:
        counts = scheduled.num_scheduled_tokens
        total, requests = scheduled.total_num_scheduled_tokens, len(counts)
        if total == requests:
            return 0, total, requests
        drafts = getattr(scheduled, "scheduled_spec_decode_tokens", None) or {}
        prefill = sum(count for request, count in counts.items() if count > 1 and request not in drafts)
        return prefill, total - prefill, requests
    except (AttributeError, TypeError):
        return None, None, None


def kind(step):
    """Steps of one kind take about the same time: with or without prefill, and the batch to a power of two."""
    prefill, _decode, requests = step
    return None if requests is None else (prefill > 0, requests.bit_length())


class Pace:
    """How long steps take at rest, by kind."""

    def __init__(self):
        self.by_kind = {}
        self.any = None

    def learn(self, step, seconds):
        self.any = self._newer(self.any, seconds)
        self.by_kind[kind(step)] = self._newer(self.by_kind.get(kind(step)), seconds)

    @staticmethod
    def _newer(known, seconds):
        if known is None or known > ODD * seconds:
            # The one before was odd.
            return seconds
        return known + FRESH_STEP * (min(seconds, ODD * known) - known)

    def expect(self, step):
        return self.by_kind.get(kind(step), self.any)

    def excess(self, step, seconds):
        """How much longer than at rest, or 0 where nobody knows."""
        expected = self.expect(step)
        return 0.0 if expected is None else min(seconds, ODD * expected) - expected


class Coverage:
    """Which kinds of step were recorded how often, and at which load."""

    def __init__(self):
        self.windows = {}
        self.met = set()
        self.highest = 0

    def meet(self, step):
        self.met.add(kind(step))

    def opened(self, step):
        self.windows[kind(step)] = self.windows.get(kind(step), 0) + 1

    def recorded(self, step):
        self.highest = max(self.highest, step[2] or 0)

    def is_rare(self, step):
        """No kind that was met has been chosen less often."""
        return self.windows.get(kind(step), 0) <= min((self.windows.get(one, 0) for one in self.met), default=0)

    def is_higher(self, step):
        return (step[2] or 0) > HIGHER * self.highest


class Budget:
    """`share` None: windows back to back. Sizes are of the plain JSON."""

    def __init__(self, share, steps, size):
        self.share = share
        self.most_steps = max(1, steps)
        self.most_bytes = size
        self.length = self.most_steps if share is None else min(FIRST_STEPS, self.most_steps)
        self.worked = 0.0
        self.spent = 0.0
        # Savings beyond MOST_SAVED, given up.
        self.waived = 0.0
        self.windows = 0
        # What a recorded step costs in all (a running mean), and its bytes in the newest window.
        self.step_cost = None
        self.step_bytes = None

    def work(self, seconds):
        """The engine worked so long, whether recorded or not."""
        self.worked += seconds
        if self.share is not None and self.step_cost is not None:
            self.waived += max(0.0, self.saved() - MOST_SAVED * self.price())

    def spend(self, seconds):
        self.spent += seconds

    def saved(self):
        return self.share * self.worked - self.spent - self.waived

    def price(self):
        """What the next window will cost."""
        return (self.step_cost or 0.0) * self.length

    def taken(self):
        """The share that recording has taken from the engine so far."""
        return self.spent / self.worked if self.worked > 0 else 0.0

    def allows(self, step, coverage):
        if self.share is None:
            return True
        saved, price = self.saved(), self.price()
        if saved >= price and coverage.is_rare(step):
            return True
        # A load not seen before may be gone when the savings suffice.
        if saved >= 0 and coverage.is_higher(step):
            return True
        return saved >= MOST_SAVED * price * 0.999

    def wait(self):
        """Seconds of work until the next window can be paid for."""
        if self.share is None:
            return 0.0
        return max(0.0, (self.price() - self.saved()) / self.share)

    def learn(self, steps, cost, size):
        """A window of so many steps cost so much in all and is so large. Chooses the next length."""
        self.windows += 1
        if steps > 0:
            # Warm-up compiles: what the first window costs says nothing about the second.
            fresh = 1.0 if self.windows <= 2 else FRESH_WINDOW
            self.step_cost = _mean(self.step_cost, cost / steps, fresh)
            self.step_bytes = size / steps
        self.length = min(2 * self.length, self.fitting(), max(FIRST_STEPS, self.affordable()))

    def affordable(self):
        """Many short windows see more than few long ones."""
        if self.share is None or not self.step_cost:
            return self.most_steps
        return int(self.share * LONGEST_REST / self.step_cost)

    def fitting(self):
        """Steps that stay within the size of a window, as far as is known."""
        return max(1, min(self.most_steps, int(self.most_bytes / self.step_bytes))) if self.step_bytes else self.most_steps


def _mean(mean, value, fresh):
    return value if mean is None else mean + fresh * (value - mean)
