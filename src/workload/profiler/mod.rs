//! The profiler: `worker.py` records windows inside vLLM; `windows` reads its index, checks and compresses the traces.

pub mod windows;
