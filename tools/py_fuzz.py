"""Throws damaged bytes and odd calls at the Python package: only documented exceptions may come out.

    just py-fuzz [SECONDS] [--seed N] [--atheris]

Inputs are containers, safetensors files and series that the script makes, with bytes flipped, cut,
doubled, or taken from each other; with --atheris, that package changes them, led by the lines of
Python that they reach. A crash ends the process, and its input is in the folder that is named at the
start; an exception of another kind, or a call that takes long, is reported.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

if "--atheris" in sys.argv:
    import atheris

    with atheris.instrument_imports(include=["deltaloom"]):
        import deltaloom
        import deltaloom.numpy
import deltaloom
from deltaloom.numpy import load, load_file, save

ALLOWED = (deltaloom.DeltaloomError, ValueError, KeyError, TypeError, IndexError, OSError)
"""What docs/python.md says. Panics of Rust are none of these."""
SLOW_SECONDS = 20.0
_MOST_BYTES = 1 << 20


def seeds(folder: Path) -> dict[str, bytes]:
    """Small files of every kind, and the base of some of them at `folder`."""
    rng = np.random.default_rng(1)
    base = {
        "up": rng.normal(0, 0.02, (40, 32)).astype(ml_dtypes.bfloat16),
        "norm": np.ones(32, np.float32),
        "ids": np.arange(50, dtype=np.int64),
        "f8": rng.normal(0, 1, (8, 16)).astype(ml_dtypes.float8_e4m3fn),
        "none": np.zeros((0, 4), np.float16),
    }
    tuned = {name: array.copy() for name, array in base.items()}
    tuned["up"] = (base["up"].astype(np.float32) * 1.01).astype(ml_dtypes.bfloat16)
    tuned["ids"][3] = 7
    safetensors.numpy.save_file(base, folder / "base.safetensors")
    series = deltaloom.Series.init(folder / "series")
    series.add(base, step=1, meta={"loss": 2})
    series.add(tuned, step=2)
    objects = sorted(path for path in (folder / "series").rglob("*") if path.is_file())
    stored = {path.relative_to(folder).as_posix(): path.read_bytes() for path in objects}
    return {
        "alone.loom": save(base),
        "tuned.loom": save(tuned, base=base),
        "max.loom": save(tuned, base=base, preset="max"),
        "plain.safetensors": safetensors.numpy.save(tuned),
        **stored,
    }


def damaged(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """The bytes with some of them changed."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(out) + 1)
        # Heads and indexes decide more than payloads do.
        if rng.random() < 0.5:
            at = rng.choice((min(at, 64), max(0, len(out) - rng.randrange(1, 600))))
        kind = rng.randrange(7)
        if kind == 0 and out:
            out[min(at, len(out) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + 1] = bytes([rng.choice((0, 1, 127, 128, 255))])
        elif kind == 2:
            del out[at : at + rng.randrange(1, 200)]
        elif kind == 3:
            out[at:at] = out[at : at + rng.randrange(1, 200)]
        elif kind == 4:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            out[at : at + 64] = other[start : start + rng.randrange(64)]
        elif kind == 5:
            out[at : at + 8] = rng.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)).to_bytes(8, "little")
        else:
            del out[at:]
    return bytes(out[:_MOST_BYTES])


class Fuzz:
    """Makes inputs of one seed after another, and calls the package with them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.rng = random.Random(seed)
        self.seeds = seeds(folder)
        self.base = folder / "base.safetensors"
        self.ended: Counter[str] = Counter()
        self.calls: list[Callable[[bytes], Any]] = [
            self._load, self._load_file, self._open, self._series, self._as_base, self._operations
        ]

    def once(self) -> None:
        """One input and one call.

        Raises:
            BaseException: What the package may not raise.
        """
        call = self.rng.choice(self.calls)
        names = [name for name in self.seeds if name.startswith("series/") == (call == self._series)]
        self.name = self.rng.choice(names)
        self.call(call, damaged(self.rng, self.seeds[self.name], list(self.seeds.values())))

    def of_bytes(self, data: bytes) -> None:
        """One call: the first bytes say which, and the others are its input."""
        self.rng.seed(data[:4])
        call = self.calls[data[0] % len(self.calls)] if data else self._load
        self.name = self.rng.choice([name for name in self.seeds if name.startswith("series/")])
        self.call(call, data[4:])

    def call(self, call: Callable[[bytes], Any], data: bytes) -> None:
        # What was tried stays if the process dies.
        (self.folder / "last").write_bytes(data)
        begin = time.perf_counter()
        try:
            call(data)
            outcome = "accepted"
        except ALLOWED as error:
            str(error), repr(error), getattr(error, "hint", None)
            outcome = type(error).__name__
        seconds = time.perf_counter() - begin
        if seconds > SLOW_SECONDS:
            raise RuntimeError(f"{call.__name__} took {seconds:.1f} s")
        self.ended[f"{call.__name__.strip('_')}: {outcome}"] += 1

    def _bases(self) -> Any:
        rng = self.rng
        return rng.choice((self.base, [self.base], None, [], {"x": np.ones(3, np.float32)}, self.folder / "series"))

    def _load(self, data: bytes) -> None:
        kind = self.rng.choice((bytes, bytearray, memoryview))
        load(kind(data), base=self._bases(), verify=self.rng.random() < 0.5, threads=self.rng.choice((0, 1, 3)))

    def _file(self, data: bytes) -> Path:
        path = self.folder / self.rng.choice(("a.loom", "a.safetensors", "a.gguf", "a.pt", "a.bin"))
        path.write_bytes(data)
        return path

    def _load_file(self, data: bytes) -> None:
        names = self.rng.choice((None, ["up"], ["missing"], [], "up"))
        load_file(self._file(data), base=self._bases(), names=names)

    def _open(self, data: bytes) -> None:
        rng = self.rng
        with deltaloom.safe_open(self._file(data), rng.choice(("np", "raw")), base=self._bases()) as f:
            f.metadata(), f.files(), f.offset_keys()
            for name in (*f.keys(), "missing"):
                try:
                    f.info(name)
                    part = f.get_slice(name)
                    part.get_shape(), part.get_dtype()
                    key = rng.choice((0, -1, 2**40, slice(1, 3), slice(None, None, -1), ..., (0, 0), slice(9, 2), "x"))
                    part[key]
                    f.read_into(name, bytearray(rng.randrange(64)), rng.choice((None, slice(0, 1), slice(5, 90))))
                except ALLOWED:
                    continue

    def _series(self, data: bytes) -> None:
        path = self.folder / self.name
        whole = self.seeds[self.name]
        try:
            path.write_bytes(data)
            series = deltaloom.Series.open(self.folder / "series")
            for step in series.steps():
                try:
                    step.metrics, step.meta, repr(step)
                    series.load(step, framework="np")
                except ALLOWED:
                    continue
            series.summary(), series.find(self.rng.choice((1, 2, 2**63))), bool(series.verify(deep=True))
            series.prune("last 1", dry_run=True), series.gc(dry_run=True)
        finally:
            path.write_bytes(whole)

    def _as_base(self, data: bytes) -> None:
        load(self.seeds["tuned.loom"], base=self._file(data))

    def _operations(self, data: bytes) -> None:
        path, rng = self._file(data), self.rng
        rng.choice(
            (
                lambda: deltaloom.inspect(path).to_dict(),
                lambda: bool(deltaloom.verify(path, base=self._bases() or ())),
                lambda: deltaloom.diff(path, self.base),
                lambda: deltaloom.lineage(path, self.base),
                lambda: deltaloom.pack(path, self.folder / "out.loom", base=self.base, overwrite=True),
                lambda: deltaloom.unpack(path, self.folder / "out.safetensors", base=self.base, overwrite=True),
            )
        )()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("seconds", nargs="?", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    parser.add_argument("--atheris", action="store_true", help="let atheris change the inputs")
    arguments = parser.parse_args()
    # It stays if this process dies.
    folder = Path(tempfile.mkdtemp(prefix="deltaloom-fuzz-"))
    print(f"seed {arguments.seed}; the last input is {folder}/last", flush=True)
    fuzz = Fuzz(folder, arguments.seed)
    if arguments.atheris:
        guided(fuzz, arguments.seconds)
    end = time.monotonic() + arguments.seconds
    while time.monotonic() < end:
        fuzz.once()
    shutil.rmtree(folder)
    print(json.dumps(dict(sorted(fuzz.ended.items())), indent=1))
    print(f"{fuzz.ended.total()} inputs, no crash, only documented exceptions")


def guided(fuzz: Fuzz, seconds: float) -> None:
    """Runs atheris, which ends this process."""
    corpus = fuzz.folder / "corpus"
    corpus.mkdir()
    for number, (name, data) in enumerate(fuzz.seeds.items()):
        for call in range(len(fuzz.calls)):
            (corpus / f"{number}-{call}").write_bytes(bytes([call, 0, 0, number]) + data)
    options = [f"-max_total_time={seconds:.0f}", f"-max_len={_MOST_BYTES}", "-rss_limit_mb=4096", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={fuzz.folder}/", "-print_final_stats=1", str(corpus)], fuzz.of_bytes)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
