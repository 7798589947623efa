#!/usr/bin/env python3
"""Loads, removes, replaces and asks fine-tunes of `deltaloom serve` at random for some minutes, and leaves in the middle of
answers. Afterwards memory, open files and keys and values must be those of the start. `just check-endurance` calls it. It makes
its fine-tunes of lm12m with bench_serve.py; the weights must be in $DELTALOOM_DATA."""

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

from bench_serve import ROOT, TENANTS, make_tenants
from loom_server import Server, metric, serving

ADMIN_KEY = "a key for this check"
SERVED = 6
# Memory, files and pages may differ by so much: caches of the allocator, connections that just closed.
MORE_BYTES = 20_000_000
MORE_FILES = 4
QUIET_SECONDS = 60


class Load:
    """What the threads share."""

    def __init__(self, server: Server, files: list[str], tokens: int) -> None:
        self.server, self.files, self.tokens = server, files, tokens
        self.counts: collections.Counter[str] = collections.Counter()
        self.lock = threading.Lock()
        self.stop = threading.Event()

    def ask(self, path: str, body: dict, method: str = "POST") -> urllib.request.Request:
        headers = {"content-type": "application/json", "authorization": f"Bearer {ADMIN_KEY}"}
        return urllib.request.Request(self.server.url + path, json.dumps(body).encode(), headers, method=method)

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def complete(self, chance: random.Random, leaves: bool) -> None:
        """A text, of which all is read or only the beginning."""
        prompt = [chance.randrange(100, 8000) for _ in range(chance.randrange(1, 100))]
        name = f"s{chance.randrange(SERVED)}"
        body = {"model": name, "prompt": prompt, "max_tokens": chance.randrange(1, self.tokens), "stream": True, "ignore_eos": True}
        with urllib.request.urlopen(self.ask("/v1/completions", body), timeout=300) as answer:
            for number, _ in enumerate(answer):
                if leaves and number > 4:
                    self.count("left")
                    return
        self.count("answers")

    def change(self, chance: random.Random) -> None:
        """A fine-tune comes, goes, or takes the place of another."""
        name = f"s{chance.randrange(SERVED)}"
        if chance.random() < 0.3:
            urllib.request.urlopen(self.ask(f"/admin/tenants/{name}", {}, "DELETE"), timeout=300).read()
            self.count("removed")
        else:
            body = {"name": name, "path": chance.choice(self.files), "replace": True}
            urllib.request.urlopen(self.ask("/admin/tenants", body), timeout=300).read()
            self.count("loaded")

    def run(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self.stop.is_set():
            try:
                kind = chance.random()
                if kind < 0.2:
                    self.change(chance)
                else:
                    self.complete(chance, leaves=kind < 0.5)
            except urllib.error.HTTPError as error:
                # A name that nobody has now, or a server that is full.
                self.count(str(error.code))
                if error.code not in (404, 409, 429):
                    self.count("failures")
                    print(error.code, error.read()[:300], file=sys.stderr)

    def for_seconds(self, seconds: float, seed: int) -> None:
        self.stop.clear()
        threads = [threading.Thread(target=self.run, args=(seed + number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        self.stop.wait(seconds)
        self.stop.set()
        for thread in threads:
            thread.join()

    def at_rest(self) -> dict[str, float]:
        """Numbers of the server with no requests, and the same fine-tunes each time."""
        for number in range(SERVED):
            body = {"name": f"s{number}", "path": self.files[number], "replace": True}
            urllib.request.urlopen(self.ask("/admin/tenants", body), timeout=300).read()
        deadline = time.monotonic() + QUIET_SECONDS
        while True:
            with urllib.request.urlopen(self.ask("/metrics", {}, "GET"), timeout=60) as answer:
                text = answer.read().decode()
            names = ("num_requests_running", "num_requests_waiting", "kv_cache_bytes", "resident_bytes")
            numbers = {name: metric(text, name + " ") for name in names}
            if numbers["num_requests_running"] == numbers["num_requests_waiting"] == 0 or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        return numbers | {"anonymous": self.server.anonymous_bytes(), "files": self.server.open_files()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", default=str(ROOT / "target/release/deltaloom"))
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "target/bench-serve", help="fine-tunes")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--tokens", type=int, default=48, help="longest text")
    arguments = parser.parse_args()
    base = pathlib.Path(os.environ.get("DELTALOOM_DATA", "")) / "lm12m" / "base"
    if not base.is_dir():
        sys.exit(f"{base} is absent: set DELTALOOM_DATA to the folder of the weights")
    made = arguments.work / "tenants"
    make_tenants(arguments.program, base, made, 0.13)
    with tempfile.TemporaryDirectory() as scratch:
        folder, key = pathlib.Path(scratch) / "tenants", pathlib.Path(scratch) / "key"
        folder.mkdir()
        key.write_text(ADMIN_KEY)
        files = [f"t{number:02}.loom" for number in range(TENANTS)]
        for name in files:
            shutil.copy(made / name, folder / name)
        limits = ["--memory", "125MB", "--kv-memory", "8MB", "--threads", "2", "--admin-key", str(key)]
        with serving(arguments.program, str(base), "--tenants", str(folder), *limits) as server:
            load = Load(server, files, arguments.tokens)
            # What is allocated once.
            load.for_seconds(min(60.0, arguments.minutes * 20), seed=1000)
            before = load.at_rest()
            load.for_seconds(arguments.minutes * 60, seed=0)
            after = load.at_rest()
    print(json.dumps({"minutes": arguments.minutes, "counts": load.counts, "before": before, "after": after}, indent=1))
    faults = [f"{load.counts['failures']} failures"] if load.counts["failures"] else []
    for name, more in (("anonymous", MORE_BYTES), ("files", MORE_FILES), ("kv_cache_bytes", 8_000_000)):
        if after[name] - before[name] > more:
            faults.append(f"{name} grew from {before[name]:,.0f} to {after[name]:,.0f}")
    if after["num_requests_running"] or after["num_requests_waiting"]:
        faults.append("requests never ended")
    sys.exit("; ".join(faults) or None)


if __name__ == "__main__":
    main()
