"""CPU seconds of this thread, best of five, and size of one-shot gzip at every level: curve.py TRACE.json... With isal, zlib-ng and
deflate (libdeflate) of PyPI where they are installed; Python's own zlib is the measure. Ours: `salvage_trials curve`."""
import gzip, sys, time, zlib

ways = [("Python zlib", range(1, 10), lambda text, level: gzip.compress(text, level))]
try:
    from zlib_ng import gzip_ng
    ways.append(("zlib-ng", range(1, 10), lambda text, level: gzip_ng.compress(text, level)))
except ImportError:
    pass
try:
    from isal import igzip
    ways.append(("ISA-L", range(0, 4), lambda text, level: igzip.compress(text, level)))
except ImportError:
    pass
try:
    import deflate
    ways.append(("libdeflate, one block", range(1, 10), lambda text, level: deflate.gzip_compress(text, level)))
except ImportError:
    pass
print(sys.version.split()[0], zlib.ZLIB_RUNTIME_VERSION)
for path in sys.argv[1:]:
    text = open(path, "rb").read()
    print(f"{path}: {len(text)} bytes")
    for name, levels, compress in ways:
        for level in levels:
            best = None
            for _ in range(5):
                began = time.thread_time()
                size = len(compress(text, level))
                took = time.thread_time() - began
                best = min(best or took, took)
            print(f"{name} {level}: {best:.4f} CPU s, {size} bytes", flush=True)
