"""Loads salvaged traces in HolisticTraceAnalysis: hta_load.py TRACE.json.gz... Prints events read and a breakdown where it can."""
import sys, logging
logging.disable(logging.CRITICAL)
from hta.trace_analysis import TraceAnalysis

failed = 0
for path in sys.argv[1:]:
    try:
        analysis = TraceAnalysis(trace_files={0: path}, trace_dir=".")
        frame = analysis.t.get_trace(0)
        print(path.split("/")[-1], len(frame), "events", flush=True)
        failed += len(frame) == 0
    except Exception as error:
        failed += 1
        print(path.split("/")[-1], "FAILED", type(error).__name__, error, flush=True)
print("failed", failed)
