"""Restores every step of a generated series of large checkpoints: hops, time against unpacking one container per hop, and peak memory.

Needs numpy. The weights drift as training moves them: by normal steps of one size, so that a few percent of the BF16 weights change per step.
"""

import argparse
import hashlib
import json
import os
import pathlib
import statistics
import struct
import subprocess
import sys
import tempfile
import time

import numpy

TENSORS, COLUMNS = 12, 2048


def write(path, masters):
    """FP32 masters, as BF16 tensors in one file."""
    offset, header, words = 0, {}, []
    for i, master in enumerate(masters):
        bits = master.view(numpy.uint32)
        rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(numpy.uint16)
        end = offset + 2 * len(rounded)
        header[f"layers.{i}.weight"] = {"dtype": "BF16", "shape": [len(rounded) // COLUMNS, COLUMNS], "data_offsets": [offset, end]}
        offset = end
        words.append(rounded)
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for rounded in words:
            file.write(rounded.tobytes())


# A process counts the memory of the one that starts it as its own peak, so a small one does.
STARTER = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(time.perf_counter() - start, 1024 * usage.ru_maxrss)
sys.exit(1 if status else 0)
"""


def timed(*command):
    """Seconds and peak memory in bytes of a command."""
    starter = [sys.executable, "-I", "-S", "-c", STARTER, *[str(part) for part in command]]
    ended = subprocess.run(starter, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if ended.returncode:
        raise RuntimeError(f"{command}: {ended.stderr.decode()}")
    seconds, peak = ended.stdout.split()
    return float(seconds), int(peak)


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--program", default="target/release/deltaloom")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--bytes", type=int, default=100_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    program = arguments.program
    rng = numpy.random.default_rng(1)
    rows = arguments.bytes // (2 * COLUMNS * TENSORS)
    masters = [rng.normal(0, 0.02, rows * COLUMNS).astype(numpy.float32) for _ in range(TENSORS)]
    # The disk in memory, where there is one: what is measured is decoding.
    place = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        folder = pathlib.Path(folder)
        store, out, unpacked = folder / "store", folder / "out", folder / "unpacked"
        models = [folder / f"step-{step}.safetensors" for step in range(arguments.steps)]
        timed(program, "series", "init", store)
        digests, adds = [], []
        for step in range(arguments.steps):
            write(models[step], masters)
            digests.append(digest(models[step]))
            adds.append(timed(program, "series", "add", store, models[step], "--step", step, "--threads", 1))
            for master in masters:
                master += rng.normal(0, 2e-6, len(master)).astype(numpy.float32)
        listed = json.loads(subprocess.run([program, "series", "ls", store, "--all", "--json"], check=True, stdout=subprocess.PIPE).stdout)
        max_chain = listed["options"]["max_chain"]
        rows = []
        for entry in listed["steps"]:
            step = entry["step"]
            get = [program, "series", "get", store, "--step", step, "-o", out, "--overwrite", "--threads", 1]
            runs = [timed(*get) for _ in range(arguments.rounds)]
            if digest(out) != digests[step]:
                raise RuntimeError(f"step {step} differs")
            # The same container with the steps that it rests on as plain files: one hop.
            single, ancestors, at = None, [], entry
            while at.get("reference") is not None:
                ancestors += ["--base", models[at["reference"]]]
                at = listed["steps"][at["reference"]]
            if ancestors:
                container = store / "objects" / entry["object"][:2] / f"{entry['object']}.loom"
                unpack = [program, "unpack", container, *ancestors, "-o", unpacked, "--overwrite", "--threads", 1]
                single = statistics.median(timed(*unpack)[0] for _ in range(arguments.rounds))
            rows.append((step, entry["hops"], statistics.median(seconds for seconds, _ in runs), single, max(peak for _, peak in runs)))
        worst = max((seconds / (hops * single) for _, hops, seconds, single, _ in rows if single), default=0)
        print("| step | hops | get, s | one unpack, s | get / (hops x unpack) | peak MB |\n|--:|--:|--:|--:|--:|--:|")
        for step, hops, seconds, single, peak in rows:
            ratio = f"{single:.3f} | {seconds / (hops * single):.2f}" if single else "- | -"
            print(f"| {step} | {hops} | {seconds:.3f} | {ratio} | {peak / 1e6:.0f} |")
        print(json.dumps({
            "steps": len(rows),
            "checkpoint_bytes": sum(2 * len(master) for master in masters),
            "max_hops": max(hops for _, hops, *_ in rows),
            "max_chain": max_chain,
            "worst_ratio": round(worst, 2),
            "peak_bytes": max(peak for *_, peak in rows),
            "add_seconds_median": round(statistics.median(seconds for seconds, _ in adds), 2),
            "add_peak_bytes": max(peak for _, peak in adds),
            "stored_bytes": listed["totals"]["stored_bytes"],
        }))
        return int(worst > 1.5 or max(hops for _, hops, *_ in rows) > max_chain)


sys.exit(main())
