"""varcas_worker: the worker class that varcas-guard hands to vLLM as `--worker-cls varcas_worker.Worker`.

It is the stock worker of the platform with a recorder (`varcas_recorder`) around its steps.
"""

import faulthandler
import os
import signal

from vllm.platforms import current_platform

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as _Base
else:
    from vllm.v1.worker.gpu_worker import Worker as _Base

from varcas_recorder import Recorder
from varcas_rhythm import Alone, Together
from varcas_system import say


def _register_stacks():
    """`kill -USR1 PID` writes the stacks of all threads; the file's existence says that the signal is safe to send."""
    directory = os.environ.get("VARCAS_EVIDENCE_DIR")
    if not directory:
        return
    try:
        file = open(os.path.join(directory, f"stacks-{os.getpid()}.txt"), "a", encoding="utf-8")
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True, chain=False)
    except Exception as error:
        say(f"stacks cannot be asked for: {type(error).__name__}: {error}")


def _recorder(worker):
    directory = os.environ.get("VARCAS_TRACE_DIR")
    if not directory:
        say("VARCAS_TRACE_DIR is not set, nothing will be recorded")
        return None
    try:
        parallel = worker.vllm_config.parallel_config
        # Data parallel engines count their ranks from 0 each.
        replica = getattr(parallel, "data_parallel_index", None) or getattr(parallel, "data_parallel_rank", 0) or 0
        if parallel.world_size == 1:
            rhythm = Alone()
        else:
            rhythm = Together(os.path.join(directory, f".rhythm-{replica}"), worker.rank == 0)
        return Recorder(replica * parallel.world_size + worker.rank, directory, rhythm, current_platform.is_cpu())
    except Exception as error:
        say(f"profiling is off, the engine goes on: {type(error).__name__}: {error}")
        return None


_register_stacks()


class Worker(_Base):
    """The stock worker with a recorder around its steps. Signatures differ between versions, so all is passed through."""

    _varcas = None

    def init_device(self, *args, **kwargs):
        result = super().init_device(*args, **kwargs)
        self._varcas = _recorder(self)
        if self._varcas is not None:
            self._varcas.start()
        return result

    def compile_or_warm_up_model(self, *args, **kwargs):
        result = super().compile_or_warm_up_model(*args, **kwargs)
        if self._varcas is not None:
            self._varcas.loaded()
        return result

    def execute_model(self, *args, **kwargs):
        recorder = self._varcas
        if recorder is None:
            return super().execute_model(*args, **kwargs)
        recorder.begin(args[0] if args else kwargs.get("scheduler_output"))
        output = None
        raised = True
        try:
            output = super().execute_model(*args, **kwargs)
            raised = False
        finally:
            if raised or output is not None:
                recorder.end()
            else:
                recorder.leave()
        return output

    def sample_tokens(self, *args, **kwargs):
        recorder = self._varcas
        if recorder is None:
            return super().sample_tokens(*args, **kwargs)
        recorder.resume()
        try:
            return super().sample_tokens(*args, **kwargs)
        finally:
            recorder.end()

    def shutdown(self, *args, **kwargs):
        if self._varcas is not None:
            self._varcas.shutdown()
        return super().shutdown(*args, **kwargs)
