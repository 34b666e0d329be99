"""varcas_rhythm: on which step a window opens, so that all workers of an engine open it on the same one."""

import mmap
import os
import struct

# How many steps ahead the first rank announces a window. Ranks meet in every step, but with asynchronous scheduling and pipelines
# one may be a few steps ahead of another.
AHEAD_STEPS = 8


class Alone:
    """When windows open, for an engine with one worker: as soon as one is wanted."""

    def __init__(self):
        self.number = 0

    def due(self, _step, wish):
        """Number and length of the window that opens with this step. `wish()` is the length wanted now, or None."""
        steps = wish()
        return None if steps is None else (self.number, steps)

    def opened(self, _number):
        self.number += 1

    def end(self):
        pass


class Together:
    """When windows open, for an engine with several workers: the first announces window and step, all open on that step.

    They talk through 24 shared bytes: the step and the length, then how many windows were announced. A worker that comes too late
    for a window leaves it out.
    """

    FIELDS = struct.Struct("=QQ")
    COUNT = struct.Struct("=Q")
    SIZE = 24

    def __init__(self, path, leads):
        self.path = path
        self.leads = leads
        self.announced = 0
        self.seen = 0
        self.target = None
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(fd, self.SIZE)
            self.shared = mmap.mmap(fd, self.SIZE)
        finally:
            os.close(fd)

    def due(self, step, wish):
        if self.leads and self.target is None:
            steps = wish()
            if steps is not None:
                self.FIELDS.pack_into(self.shared, 0, step + AHEAD_STEPS, steps)
                self.announced += 1
                self.COUNT.pack_into(self.shared, self.FIELDS.size, self.announced)
        if self.target is None:
            (count,) = self.COUNT.unpack_from(self.shared, self.FIELDS.size)
            if count > self.seen:
                self.seen = count
                self.target = self.FIELDS.unpack_from(self.shared, 0)
        if self.target is None or step < self.target[0]:
            return None
        (at, steps), self.target = self.target, None
        return (self.seen - 1, steps) if at == step else None

    def opened(self, _number):
        pass

    def end(self):
        if self.leads:
            try:
                os.unlink(self.path)
            except OSError:
                pass
