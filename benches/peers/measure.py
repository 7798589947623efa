"""Times all tools on one case: every round runs each of them once, one after the other, from another start each time.

So a disturbance by something else on the machine hits all tools alike, and the median over the rounds leaves it out.
"""
import filecmp
import gc
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cases import Case
from tools import RIVALS, Memcpy, Tool

DELTALOOM = "deltaloom"
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Row:
    """What one tool did on one case; seconds of each round."""

    name: str
    original_bytes: int
    packed_bytes: int = 0
    encode_seconds: list[float] = field(default_factory=list)
    decode_seconds: list[float] = field(default_factory=list)

    def as_json(self) -> dict:
        def spread(seconds: list[float]) -> dict:
            return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}

        return asdict(self) | {
            "encode_seconds": spread(self.encode_seconds),
            "decode_seconds": spread(self.decode_seconds),
        }


class WrongBytes(Exception):
    """What came back is not what went in."""


class Rival:
    """A tool of tools.py on a case."""

    def __init__(self, kind: type[Tool], case: Case):
        self.case = case
        self.tool = kind(case.dtype, case.base, len(case.data))
        self.row = Row(kind.name, len(case.data))
        packed, restored = self.once()[2:]
        if memoryview(restored).cast("B") != case.data:
            raise WrongBytes(f"{kind.name} does not restore {case.name}")
        self.row.packed_bytes = self.tool.packed_bytes(packed)

    def once(self) -> tuple:
        source = self.tool.prepare(self.case.data)
        start = time.perf_counter()
        packed = self.tool.encode(source)
        encoded = time.perf_counter()
        restored = self.tool.decode(packed)
        decoded = time.perf_counter()
        return encoded - start, decoded - encoded, packed, restored

    def measure(self) -> None:
        encode_seconds, decode_seconds = self.once()[:2]
        self.row.encode_seconds.append(encode_seconds)
        self.row.decode_seconds.append(decode_seconds)


class Deltaloom:
    """The release binary on the files of a case. `deltaloom bench` warms up by itself and times one round."""

    def __init__(self, binary: Path, case: Case):
        self.binary, self.case = binary, case
        self.bases = ["--base", str(case.base_file)] if case.base_file else []
        first = self.bench()
        self.row = Row(DELTALOOM, first["original_bytes"], self.container_bytes())
        self.isa = first["machine"]["isa"]

    def command(self, *words: str) -> str:
        done = subprocess.run([str(self.binary), *words], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"deltaloom {words[0]}: {(done.stderr.strip() or 'no message').splitlines()[0]}")
        return done.stdout

    def container_bytes(self) -> int:
        """The size of the container, which is unpacked and compared first."""
        with tempfile.TemporaryDirectory() as folder:
            container, restored = f"{folder}/packed.loom", f"{folder}/restored.safetensors"
            self.command("pack", str(self.case.file), *self.bases, "-o", container)
            self.command("unpack", container, *self.bases, "-o", restored)
            if not filecmp.cmp(self.case.file, restored, shallow=False):
                raise WrongBytes(f"deltaloom does not restore {self.case.name}")
            return os.path.getsize(container)

    def bench(self) -> dict:
        options = ["--only", DELTALOOM, "--rounds", "1", "--threads", "1", "--json"]
        return json.loads(self.command("bench", str(self.case.file), *self.bases, *options))

    def measure(self) -> None:
        (row,) = self.bench()["rows"]
        self.row.encode_seconds += row["encode_seconds"]
        self.row.decode_seconds += row["decode_seconds"]


@dataclass
class Outcome:
    """A measured case: its rows, and the tools that are absent from it with the reason."""

    rows: list[dict]
    absent: dict[str, str]
    isa: str | None


def run_case(case: Case, binary: Path, rounds: int, say: Callable[[str], None]) -> Outcome:
    runners, absent = [], {}

    def add(name: str, make: Callable[[], Rival | Deltaloom]) -> None:
        try:
            runners.append(make())
        except WrongBytes:
            raise
        except Exception as error:  # whatever a rival fails of, the others are measured and the report says it
            absent[name] = f"{type(error).__name__}: {error}".replace(f"{ROOT}/", "")
            say(f"WARNING: {name} is absent from {case.name}: {absent[name]}")

    add(DELTALOOM, lambda: Deltaloom(binary, case))
    for kind in (Memcpy, *RIVALS):
        if kind.fits(case.dtype, case.base is not None):
            add(kind.name, lambda kind=kind: Rival(kind, case))

    gc.collect()
    gc.disable()
    for turn in range(rounds):
        at = turn % len(runners)
        for runner in runners[at:] + runners[:at]:
            runner.measure()
    gc.enable()
    isa = next((runner.isa for runner in runners if isinstance(runner, Deltaloom)), None)
    return Outcome([runner.row.as_json() for runner in runners], absent, isa)
