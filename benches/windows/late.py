"""For `pairs.py rest`: nothing of the profiler is touched before the first window. `--worker-cls late.Worker`.

varcas-guard makes a first profile when the model is loaded, which attaches CUPTI.
"""

import varcas_recorder
from varcas_worker import Worker  # noqa: F401


def loaded(recorder):
    recorder.ready = True


varcas_recorder.Recorder.loaded = loaded
