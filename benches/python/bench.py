"""Measures the Python package: import, load and save beside the program, memory, threads, Ctrl-C.

    just py-bench [--rounds N] [--megabytes N,N] [FOLDER]

FOLDER has base.safetensors and tuned.safetensors (default: pairs of 32 and 400 MB that are made
here, which say little about ratios). Medians of the rounds; use an otherwise idle machine.
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


def made(folder: Path, megabytes: int) -> Path:
    """A pair of BF16 matrices in a new folder."""
    import ml_dtypes
    import numpy as np
    import safetensors.numpy

    folder.mkdir()
    rng = np.random.default_rng(0)
    base, tuned = {}, {}
    for number in range(max(1, round(megabytes / 8.4))):
        weights = rng.standard_normal((2048, 2048), np.float32) * np.float32(0.02)
        name, base[name] = f"w{number}", weights.astype(ml_dtypes.bfloat16)
        weights += rng.standard_normal(weights.shape, np.float32) * np.float32(1e-5)
        tuned[name] = weights.astype(ml_dtypes.bfloat16)
    safetensors.numpy.save_file(base, folder / "base.safetensors")
    safetensors.numpy.save_file(tuned, folder / "tuned.safetensors")
    return folder


def of_bench(base: Path, plain: Path, rounds: int) -> float:
    """Seconds of decoding with digests, by the program's own measurement."""
    words = ["bench", plain, "--base", base, "--only", "deltaloom+digests", "--threads", "0", "--rounds", rounds, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "deltaloom", *map(str, words)], capture_output=True, text=True, check=True
    )
    return statistics.median(json.loads(done.stdout)["rows"][0]["decode_seconds"])


def pair(folder: Path, scratch: Path, rounds: int) -> None:
    """Loads and saves a pair: speeds beside the program's, and memory."""
    from deltaloom import main as program
    from deltaloom.numpy import load_file, save_file

    base, plain = folder / "base.safetensors", folder / "tuned.safetensors"
    packed, target, fast = scratch / "tuned.loom", scratch / "out.loom", Path("/dev/shm/deltaloom-out")
    tensors = load_file(plain)
    size = sum(array.nbytes for array in tensors.values())
    ratio = save_file(tensors, packed, base=base, overwrite=True).ratio
    print(f"\n{size / 1e6:.1f} MB, ratio {ratio:.2f}")

    def unpack() -> None:
        words = ["unpack", str(packed), "--base", str(base), "-o", str(fast), "--overwrite", "--quiet"]
        assert program(words) == 0

    try:
        load = size / median(rounds, lambda: load_file(packed, base=base))
        unpacked = size / median(rounds, unpack)
    finally:
        fast.unlink(missing_ok=True)
    bench = size / of_bench(base, plain, rounds)
    print(
        f"load_file {load / 1e6:.0f} MB/s; the program's bench {bench / 1e6:.0f} ({load / bench:.2f} of it), "
        f"its unpack {unpacked / 1e6:.0f} ({load / unpacked:.2f})"
    )
    save = size / median(rounds, lambda: save_file(tensors, target, base=base, overwrite=True))
    print(f"save_file {save / 1e6:.0f} MB/s")
    for what, most in (("load", 64), ("save", 300)):
        peak = in_process(PEAK, str(packed), str(base), str(plain), str(target), what)
        beyond = (peak["kb"] * 1024 - (peak["bytes"] if what == "load" else 0)) / 1e6
        of = "the result" if what == "load" else "the tensors"
        print(f"{what}: peak memory {beyond:.0f} MB beyond {of}, {most} wanted")


def threads(folder: Path, scratch: Path, rounds: int) -> None:
    """What other threads and Ctrl-C get while one thread works."""
    from deltaloom.numpy import load_file, save_file

    base, packed, target = folder / "base.safetensors", scratch / "tuned.loom", scratch / "out.loom"
    tensors = load_file(folder / "tuned.safetensors")
    save_file(tensors, packed, base=base, overwrite=True)

    def save() -> None:
        save_file(tensors, target, base=base, overwrite=True, threads=1)

    share = counted(lambda: [load_file(packed, base=base, threads=1) for _ in range(3)])
    print(f"\na counting thread keeps {share:.0%} of its speed while one thread loads")
    print(f"a counting thread keeps {counted(save):.0%} of its speed while one thread saves")
    waits = [interrupted(lambda: [save() for _ in range(9)]) for _ in range(rounds)]
    print(f"Ctrl-C is answered within {max(waits) * 1000:.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--megabytes", default="32,400", help="sizes of the pairs that are made")
    arguments = parser.parse_args()
    rounds = arguments.rounds
    print(f"{os.cpu_count()} cores, medians of {rounds}")
    imported = [in_process(IMPORT) for _ in range(rounds)]
    seconds = statistics.median(one["s"] for one in imported)
    print(f"import: {seconds * 1000:.0f} ms, 60 wanted, clean: {imported[0]['clean']}")
    script = str(Path(sys.executable).with_name("deltaloom"))
    started = median(rounds, lambda: subprocess.run([script, "--version"], capture_output=True, check=True))
    print(f"the script's --version: {started * 1000:.0f} ms, 150 wanted")
    with tempfile.TemporaryDirectory() as made_in:
        scratch = Path(made_in)
        if arguments.folder is not None:
            folders = [arguments.folder]
        else:
            folders = [made(scratch / size, int(size)) for size in arguments.megabytes.split(",")]
        for folder in folders:
            pair(folder, scratch, rounds)
        threads(folders[0], scratch, rounds)


if __name__ == "__main__":
    main()
