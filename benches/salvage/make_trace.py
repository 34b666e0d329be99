"""Makes a small real trace with torch.profiler: make_trace.py OUT.json STEPS [plain|full]. The export can be killed from outside."""
import sys
import torch
from torch.profiler import ProfilerActivity, profile, record_function

out, steps, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "plain"
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
full = kind == "full"
with profile(activities=[ProfilerActivity.CPU], record_shapes=full, profile_memory=full, with_stack=full) as prof:
    for step in range(steps):
        with record_function(f"step_{step}"):
            model(torch.randn(4, 16)).sum().backward()
print("export", flush=True)
prof.export_chrome_trace(out)
print("done", flush=True)
