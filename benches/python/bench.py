"""Measures the Python package: import, load and save beside the program, memory, threads, Ctrl-C.

    just py-bench [--rounds N] [FOLDER]

FOLDER has base.safetensors and tuned.safetensors (default: files that are made here, which say
little about ratios). Medians of the rounds; use an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROUNDS = 5


def median(rounds: int, work) -> float:
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def in_process(code: str, *words: str) -> dict:
    """Runs code in an interpreter of its own. It prints one object of JSON."""
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


IMPORT = """
import time; begin = time.perf_counter()
import deltaloom, json, sys
print(json.dumps({"s": time.perf_counter() - begin, "clean": not {"numpy", "torch"} & set(sys.modules)}))
"""

# Peak memory above what the process had before the call.
PEAK = """
import json, sys, time
import numpy
from deltaloom.numpy import load_file, save_file
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
def now():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1])
packed, base, plain, target = sys.argv[1:5]
what = sys.argv[5]
held = load_file(plain) if what == "save" else None
open("/proc/self/clear_refs", "w").write("5")
before = now()
begin = time.perf_counter()
if what == "load":
    size = sum(a.nbytes for a in load_file(packed, base=base).values())
else:
    size = save_file(held, target, base=base, overwrite=True).original_bytes
seconds = time.perf_counter() - begin
print(json.dumps({"kb": peak() - before, "bytes": size, "s": seconds}))
"""


def counted(work) -> float:
    """The share of its speed at which another thread counts during `work`."""
    stop, count = threading.Event(), [0]

    def counter() -> None:
        while not stop.is_set():
            for _ in range(1000):
                count[0] += 1

    thread = threading.Thread(target=counter)
    thread.start()
    rates = []
    for wait in (lambda: stop.wait(1.0), work):
        begin, before = time.perf_counter(), count[0]
        wait()
        rates.append((count[0] - before) / (time.perf_counter() - begin))
    stop.set()
    thread.join()
    return rates[1] / rates[0]


def interrupted(work) -> float:
    sent = []

    def send() -> None:
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.05, send)
    timer.start()
    try:
        work()
    except KeyboardInterrupt:
        return time.perf_counter() - sent[0]
    timer.cancel()
    return float("nan")


def made(folder: Path) -> None:
    import numpy as np
    import safetensors.numpy

    rng = np.random.default_rng(0)
    base = {f"w{i}": rng.normal(0, 0.02, (1024, 1024)).astype(np.float32) for i in range(8)}
    tuned = {name: array + rng.normal(0, 1e-5, array.shape).astype(np.float32) for name, array in base.items()}
    safetensors.numpy.save_file(base, folder / "base.safetensors")
    safetensors.numpy.save_file(tuned, folder / "tuned.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    from deltaloom import main as program
    from deltaloom.numpy import load_file, save_file

    with tempfile.TemporaryDirectory() as made_in:
        folder = arguments.folder or Path(made_in)
        if arguments.folder is None:
            made(folder)
        base, plain = folder / "base.safetensors", folder / "tuned.safetensors"
        packed, target = Path(made_in) / "tuned.loom", Path(made_in) / "out.loom"
        tensors = load_file(plain)
        size = sum(array.nbytes for array in tensors.values())
        ratio = save_file(tensors, packed, base=base).ratio
        imported = [in_process(IMPORT) for _ in range(arguments.rounds)]
        print(f"{size / 1e6:.1f} MB, ratio {ratio:.2f}, {os.cpu_count()} cores, medians of {arguments.rounds}")
        print(f"import: {statistics.median(one['s'] for one in imported) * 1000:.0f} ms, clean: {imported[0]['clean']}")

        def unpack() -> None:
            words = ["unpack", str(packed), "--base", str(base), "-o", "/dev/shm/deltaloom-out", "--overwrite"]
            assert program([*words, "--quiet"]) == 0

        load = median(arguments.rounds, lambda: load_file(packed, base=base))
        save = median(arguments.rounds, lambda: save_file(tensors, target, base=base, overwrite=True))
        print(f"load_file {size / load / 1e6:.0f} MB/s, program's unpack {size / median(arguments.rounds, unpack) / 1e6:.0f} MB/s")
        print(f"save_file {size / save / 1e6:.0f} MB/s")
        Path("/dev/shm/deltaloom-out").unlink(missing_ok=True)
        for what in ("load", "save"):
            peak = in_process(PEAK, str(packed), str(base), str(plain), str(target), what)
            beyond = peak["kb"] * 1024 - (peak["bytes"] if what == "load" else 0)
            print(f"{what}: peak memory {beyond / 1e6:.0f} MB beyond {'the result' if what == 'load' else 'the tensors'}")
        share = counted(lambda: [load_file(packed, base=base, threads=1) for _ in range(3)])
        print(f"a counting thread keeps {share:.0%} of its speed while one thread loads")
        share = counted(lambda: save_file(tensors, target, base=base, overwrite=True, threads=1))
        print(f"a counting thread keeps {share:.0%} of its speed while one thread saves")
        waits = [
            interrupted(lambda: [save_file(tensors, target, base=base, overwrite=True, threads=1) for _ in range(9)])
            for _ in range(arguments.rounds)
        ]
        print(f"Ctrl-C is answered within {max(waits) * 1000:.0f} ms")


if __name__ == "__main__":
    main()
