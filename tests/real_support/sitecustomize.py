"""Faults inside a real vLLM worker. Python imports this by itself when its folder is on PYTHONPATH.

When the file named by VARCAS_TEST_FAULT appears, the next step of the engine does what its text says; `loop@1` only in the
worker of rank 1, which then never enters the collective that the others wait in.
"""

import os
import sys
import threading
import time


def _loop(*_args, **_kwargs):
    while True:
        pass


def _lock(*_args, **_kwargs):
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def _memory(*_args, **_kwargs):
    hold = []
    while True:
        hold.append(bytearray(os.urandom(1 << 20) * 64))


def _spin(*_args, **_kwargs):
    import torch

    torch.cuda._sleep(1 << 62)
    torch.cuda.synchronize()


_FAULTS = {"loop": _loop, "lock": _lock, "memory": _memory, "spin": _spin}


def _of_rank(rank, fault, well):
    def execute_model(self, *args, **kwargs):
        return (fault if self.rank == rank else well)(self, *args, **kwargs)

    return execute_model


def _watch(path):
    while not os.path.exists(path):
        time.sleep(0.02)
    with open(path) as file:
        what, _, rank = file.read().strip().partition("@")
    fault = _FAULTS[what]
    for module, name in (("vllm.v1.worker.gpu_worker", "Worker"), ("vllm.v1.worker.cpu_worker", "CPUWorker")):
        worker = getattr(sys.modules.get(module), name, None)
        if worker is not None:
            worker.execute_model = _of_rank(int(rank), fault, worker.execute_model) if rank else fault


def _start():
    threading.Thread(target=_watch, args=(os.environ["VARCAS_TEST_FAULT"],), daemon=True).start()


if os.environ.get("VARCAS_TEST_FAULT"):
    _start()
    os.register_at_fork(after_in_child=_start)
