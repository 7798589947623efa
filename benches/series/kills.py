"""Two writers add steps to one series at once and are killed at random; then every step must be there once, and restore byte for byte.

Needs numpy. Prints one line of JSON with what was done and how long it took; exit code 1 if anything was lost.
"""

import argparse
import collections
import hashlib
import json
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import threading
import time

import numpy


def safetensors(words):
    """One BF16 matrix as a file."""
    header = {"weight": {"dtype": "BF16", "shape": [len(words) // 1024, 1024], "data_offsets": [0, 2 * len(words)]}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + words.tobytes()


class Writer(threading.Thread):
    """Adds its own drifting checkpoints, each until the series has it."""

    def __init__(self, arguments, folder, name, kills):
        super().__init__()
        self.arguments, self.folder, self.name_ = arguments, folder, name
        self.random = random.Random(f"{arguments.seed}-{name}")
        self.kills_left, self.killed, self.killed_after_naming = kills, 0, 0
        self.digests, self.durations = {}, collections.deque([0.2], maxlen=20)
        self.failure = None

    def run(self):
        try:
            self.add_all()
        except Exception as e:  # told by the main thread
            self.failure = e

    def add_all(self):
        numbers = numpy.random.default_rng(self.random.getrandbits(64))
        values = numbers.normal(0, 0.02, self.arguments.elems).astype(numpy.float32)
        words = (values.view(numpy.uint32) >> 16).astype(numpy.uint16)
        path = self.folder / f"{self.name_}.safetensors"
        for n in range(self.arguments.adds // 2):
            moved = numbers.integers(0, len(words), len(words) // 50)
            words[moved] += numbers.integers(0, 2, len(moved), dtype=numpy.uint16) * 2 - 1
            data = safetensors(words)
            path.write_bytes(data)
            name = f"{self.name_}-{n}"
            self.digests[name] = hashlib.sha256(data).hexdigest()
            while not self.add(path, name):
                pass

    def add(self, path, name):
        arguments = self.arguments
        command = [arguments.program, "series", "add", self.folder / "store", path, "--step", "next"]
        command += ["--meta", f"name={name}", "--threads", "1"]
        start = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        is_victim = self.kills_left > 0 and self.random.random() < 0.35
        if is_victim:
            try:
                process.wait(self.random.uniform(0, 1.1) * sorted(self.durations)[len(self.durations) // 2])
            except subprocess.TimeoutExpired:
                process.kill()
        said = process.communicate()[1]
        if process.returncode == 0:
            if not is_victim:
                self.durations.append(time.monotonic() - start)
            return True
        if process.returncode > 0:
            raise RuntimeError(f"{command}: {said.decode()}")
        self.kills_left -= 1
        self.killed += 1
        found = name in [step["meta"].get("name") for step in steps(arguments.program, self.folder, "--last", "40")]
        self.killed_after_naming += found
        return found


def steps(program, folder, *which):
    return json.loads(run(program, "series", "ls", folder / "store", "--json", *which))["steps"]


def run(*command):
    return subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE).stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--program", default="target/release/deltaloom")
    parser.add_argument("--adds", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--elems", type=int, default=2 << 20, help="of 2 bytes each")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        run(arguments.program, "series", "init", folder / "store")
        writers = [Writer(arguments, folder, name, arguments.kills // 2) for name in ("a", "b")]
        start = time.monotonic()
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
            if writer.failure:
                raise writer.failure
        added = time.monotonic() - start
        run(arguments.program, "series", "gc", folder / "store", "--grace", "0s")
        verified = run(arguments.program, "series", "verify", folder / "store", "--deep").decode().strip()
        names = collections.Counter()
        wrong = []
        for step in steps(arguments.program, folder, "--all"):
            name = step["meta"]["name"]
            names[name] += 1
            out = folder / "out"
            run(arguments.program, "series", "get", folder / "store", "--step", step["step"], "-o", out, "--overwrite")
            expected = writers["ab".index(name[0])].digests[name]
            if hashlib.sha256(out.read_bytes()).hexdigest() != expected:
                wrong.append(name)
        expected = {name for writer in writers for name in writer.digests}
        report = {
            "adds": len(expected),
            "kills": sum(writer.killed for writer in writers),
            "killed_after_naming": sum(writer.killed_after_naming for writer in writers),
            "lost": len(expected - names.keys()),
            "twice": sum(count > 1 for count in names.values()),
            "wrong": len(wrong),
            "verify": verified,
            "stored_bytes": sum(f.stat().st_size for f in (folder / "store").rglob("*") if f.is_file()),
            "seconds": round(added, 1),
        }
        print(json.dumps(report))
        return int(any(report[key] for key in ("lost", "twice", "wrong")) or not verified.startswith("ok"))


sys.exit(main())
