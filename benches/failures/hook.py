"""What VARCAS_HOOK asks for happens inside a real vLLM. Python imports this by itself when its folder is on PYTHONPATH."""

import importlib.abc
import os
import sys
import threading
import time

WHAT = os.environ.get("VARCAS_HOOK", "")
AFTER = int(os.environ.get("VARCAS_HOOK_AFTER", "40"))  # steps that go well
CLASSES = (("vllm.v1.worker.gpu_worker", "Worker"), ("vllm.v1.worker.cpu_worker", "CPUWorker"))


def _segfault():
    import ctypes

    ctypes.string_at(0)


def _abort():
    os.abort()


def _raise():
    raise KeyError("layer_17.no_such_name")


def _loop():
    while True:
        pass


def _device_assert():
    import torch

    table = torch.zeros(8, device="cuda")
    table[torch.tensor([1 << 20], device="cuda")].sum().item()


class _Far:
    """The memory of a small tensor, said to be a terabyte long."""

    def __init__(self, tensor):
        self.tensor = tensor
        self.__cuda_array_interface__ = {
            "shape": (1 << 38,), "typestr": "<f4", "data": (tensor.data_ptr(), False), "version": 2}


def _illegal_access():
    import torch

    far = torch.as_tensor(_Far(torch.zeros(8, device="cuda")), device="cuda")
    (far[-64:] + 1).sum().item()


def _limit(gib):
    """No more than this, so that others on the same GPU have theirs."""
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(gib * (1 << 30) / total)


def _oom():
    import torch

    _limit(torch.cuda.memory_reserved() / (1 << 30) + 3)
    hold = []
    while True:
        hold.append(torch.empty(1 << 30, dtype=torch.uint8, device="cuda"))


STEPS = {"segfault": _segfault, "abort": _abort, "raise": _raise, "loop": _loop, "device-assert": _device_assert,
         "illegal-access": _illegal_access, "cuda-oom": _oom}


def _wrap(worker, fault):
    inner, count = worker.execute_model, [0]

    def execute_model(self, *args, **kwargs):
        count[0] += 1
        if count[0] > AFTER and getattr(self, "rank", 0) == int(os.environ.get("VARCAS_HOOK_RANK", "0")):
            fault()
        return inner(self, *args, **kwargs)

    worker.execute_model = execute_model


def _at_load(worker):
    inner = worker.load_model

    def load_model(self, *args, **kwargs):
        import torch

        if WHAT == "oom-at-load":
            _limit(1)
        else:
            begin = torch.cuda.graph.__enter__

            def enter(graph):
                begin(graph)
                torch.ones(1, device="cuda").sum().item()

            torch.cuda.graph.__enter__ = enter
        return inner(self, *args, **kwargs)

    worker.load_model = load_model


def _watch():
    """Wraps the worker's class as soon as somebody has imported it."""
    done = set()
    while True:
        for module, name in CLASSES:
            worker = getattr(sys.modules.get(module), name, None)
            if worker is not None and module not in done and "execute_model" in vars(worker):
                done.add(module)
                if WHAT in ("oom-at-load", "capture"):
                    _at_load(worker)
                elif WHAT == "raise-at-start":
                    def load_model(self, *args, **kwargs):
                        raise IndexError("no layer of this name in the checkpoint's index")
                    worker.load_model = load_model
                else:
                    _wrap(worker, STEPS[WHAT])
        time.sleep(0.02)


class _Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if WHAT == "no-module" and name == "msgspec":
            raise ModuleNotFoundError("No module named 'msgspec'", name=name)
        if WHAT == "no-name" and name == "vllm.v1.engine.async_llm":
            raise ImportError("cannot import name 'AsyncLLM' from partially initialized module 'vllm.v1.engine'")
        return None


if WHAT in ("no-module", "no-name"):
    sys.meta_path.insert(0, _Missing())
elif WHAT:
    threading.Thread(target=_watch, daemon=True).start()
    os.register_at_fork(after_in_child=lambda: threading.Thread(target=_watch, daemon=True).start())
