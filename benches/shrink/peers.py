"""Measures students of rivals on lm12m beside ours, by one meter, `deltaloom eval divergence`, and writes
docs/benchmarks/shrink-peers.md. benches/shrink/run.sh has the arguments. What was made and measured before is kept."""

import argparse
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from cases import LLAMA, LLAMA_VERSION, PACKAGES, TORCH
from model import MATRICES, Result, evaluation, is_matrix
from page import write_page

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Seconds that a student of a rival may take.
PATIENCE = 1200
# Reports of `just shrink-goals` that are points of our curve, and further points: bits per weight of the matrices.
GOALS = ["int4", "int3", "int2", "q265", "q22", "q18", "q145"]
RATES = [3.2, 3.8, 4.5, 5.5, 6.5, 8.5]
RATE = """version: 1
planner: {{mode: fixed}}
branches:
  blt: {{enabled: false}}
  quantise: {{method: waterfill, rate: {}}}
"""
# The whole model, this many times smaller than the teacher in BF16.
RATIOS = [2.5, 3, 3.5, 4, 5, 6, 8, 10]


@dataclass
class Row:
    """A line of the page."""

    rival: str
    method: str
    note: str
    embedding: str
    matrix_bytes: int
    file_bytes: int
    # The same, packed by deltaloom. Our files are packed.
    packed_matrix_bytes: int
    packed_bytes: int
    # Divergence and its standard error, for each text; none where it is not measured yet.
    kl: list[tuple[float, float] | None]
    ours: bool = False


def run(command: list, log: Path, seconds: int | None = None) -> str:
    """What a command prints. Its messages go to the log."""
    with open(log, "w") as messages:
        ended = subprocess.run(
            [str(part) for part in command], stdout=subprocess.PIPE, stderr=messages, text=True, timeout=seconds
        )
    # 1 says that a target of a recipe is missed, which is an answer.
    if ended.returncode not in (0, 1) or not ended.stdout and ended.returncode:
        raise RuntimeError(reason(log))
    return ended.stdout


def reason(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it ended without a word"


def make(script: str, case: tuple, base: Path, work: Path, extra: list) -> None:
    """Makes the student of a case, or notes why there is none."""
    folder = folder_of(script, case, work)
    folder.mkdir(parents=True, exist_ok=True)
    made, failed = folder / "result.json", folder / "failed.txt"
    if made.is_file() or failed.is_file():
        return
    print(f"making {folder.name}", flush=True)
    command = [sys.executable, HERE / script, base, folder, json.dumps(case), *extra]
    started = time.monotonic()
    try:
        run(command, folder / "log", PATIENCE)
        if not made.is_file():
            failed.write_text(reason(folder / "log"))
    except subprocess.TimeoutExpired:
        failed.write_text(f"not done after {PATIENCE // 60} minutes")
    except RuntimeError as error:
        failed.write_text(str(error))
    print(f"  {time.monotonic() - started:.0f} s", flush=True)


def folder_of(script: str, case: tuple, work: Path) -> Path:
    return work / "-".join([Path(script).stem, *(str(part).replace(":", "") for part in case)])


def result_of(folder: Path) -> Result | str | None:
    """The student of a case, or why there is none. Nothing for a case that was not tried."""
    made, failed = folder / "result.json", folder / "failed.txt"
    if made.is_file():
        return Result(**json.loads(made.read_text()))
    return failed.read_text() if failed.is_file() else None


class Meter:
    """Measures models. A model that was measured is not measured again, whatever its name."""

    def __init__(self, program: str, base: Path, work: Path, stored: bool):
        self.program, self.base, self.work, self.stored = program, base, work / "meter", stored
        self.texts = evaluation(base, work / "texts")
        self.work.mkdir(exist_ok=True)

    def kl(self, model: Path) -> list[tuple[float, float] | None]:
        with open(model / "model.safetensors", "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:24]
        return [self.on(model, text, digest) for text in self.texts]

    def on(self, model: Path, text: Path, digest: str) -> tuple[float, float] | None:
        answer = self.work / f"{digest}-{text.stem}.json"
        if not answer.is_file():
            if self.stored:
                return None
            command = [self.program, "eval", "divergence", self.base, model, "--tokens", text, "--window", 256]
            answer.write_text(run([*command, "--kv", "f32", "--json", "--quiet"], self.work / "log"))
        report = json.loads(answer.read_text())
        return report["mean_kl"], max(report["kl"]["standard_error"], report.get("kl_window_error") or 0.0)

    def packed(self, file: Path) -> tuple[int, int]:
        """Bytes of the matrices in a file that deltaloom packs, and of all of it."""
        container = file.with_suffix(".loom")
        if not container.is_file():
            run([self.program, "pack", file, "-o", container, "--quiet"], self.work / "log")
        report = json.loads(run([self.program, "inspect", container, "--tensors", "--json"], self.work / "log"))
        tensors = report["tensors"]
        return sum(x["packed_bytes"] for x in tensors if is_matrix(x["name"])), report["packed_bytes"]

    def row(self, found: Result) -> Row | None:
        kl = self.kl(Path(found.model))
        if kl[0] is None:
            return None
        print(f"{found.rival}, {found.method}: {found.matrix_bytes:,} bytes, KL {kl[0][0]:.5f}", flush=True)
        sizes = found.matrix_bytes, found.file_bytes, *self.packed(Path(found.file))
        return Row(found.rival, found.method, found.note, found.embedding, *sizes, kl)


def versions() -> str:
    found = [f"{name} {importlib.metadata.version(name)}" for name in [*PACKAGES, "torch", "transformers"]]
    return ", ".join([f"llama.cpp in llama-cpp-python {LLAMA_VERSION}", *found])


def ours(program: str, base: Path, work: Path, goals: Path, stored: bool) -> list[Row]:
    """Points of our curves: matrices only, by goals and rates, and the whole model, by ratios."""
    recipes = {name: (work / f"goal-{name}", (ROOT / f"recipes/goals/{name}.yaml").read_text(), []) for name in GOALS}
    for rate in RATES:
        recipes[f"rate {rate}"] = (work / f"rate{rate}", RATE.format(rate), [])
    whole = (ROOT / "recipes/lm12m_10x.yaml").read_text()
    for ratio in RATIOS:
        recipes[f"{ratio} times smaller"] = (work / f"ratio{ratio}", whole, ["--ratio", ratio])
    rows = []
    for name, (folder, recipe, options) in recipes.items():
        report = goals / f"{name}.json"
        if not report.is_file() or not report.read_text().strip():
            report = folder / "report.json"
        if not report.is_file():
            if stored or not shrink(program, base, folder, recipe, options):
                print(f"note: no report of {name}")
                continue
        rows.append(row_of_ours(name, json.loads(report.read_text()), bool(options)))
    return rows


def row_of_ours(name: str, report: dict, whole: bool) -> Row:
    kl = [(text["kl"], text["kl_error"]) for text in report["texts"]]
    size, bits = report["student_bytes"], report["bits_per_shrunk_weight"]
    matrices = 0 if whole else round(bits * MATRICES / 8)
    embedding = "codes" if whole else "BF16"
    return Row("deltaloom", name, "", embedding, matrices, size, matrices, size, kl, ours=True)


def shrink(program: str, base: Path, folder: Path, recipe: str, options: list) -> bool:
    print(f"making {folder.name}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe)
    command = [program, "shrink", "run", folder / "recipe.yaml", "--teacher", base, "-o", folder / "student"]
    try:
        report = run([*command, *options, "--overwrite", "--json", "--quiet"], folder / "log")
    except RuntimeError as error:
        print(f"note: {folder.name}: {error}")
        return False
    (folder / "report.json").write_text(report)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", default=str(ROOT / "target/release/deltaloom"))
    parser.add_argument("--data", type=Path, required=True, help="folder of lm12m")
    parser.add_argument("--llama", type=Path, help="libllama.so")
    parser.add_argument("--work", type=Path, default=ROOT / "target/shrink-peers", help="students and measurements")
    goals = ROOT / "target/shrink-goals"
    parser.add_argument("--goals", type=Path, default=goals, help="reports of `just shrink-goals`")
    parser.add_argument("--stored", action="store_true", help="leave out what is not made and measured yet")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/benchmarks/shrink-peers.md")
    arguments = parser.parse_args()
    base, work = (arguments.data / "base").resolve(), arguments.work.resolve()
    if not base.is_dir():
        sys.exit(f"{base} is absent: set DELTALOOM_DATA to the folder of the weights")
    work.mkdir(parents=True, exist_ok=True)
    os.environ["HF_HUB_OFFLINE"] = "1"
    # By itself it wants one worker on two cores, and then refuses that number.
    os.environ["GPTQMODEL_CPU_WORKERS"] = "2"
    # optimum-quanto looks for ninja there.
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    cases = [("torch_rivals.py", case, []) for case in TORCH]
    if arguments.llama:
        cases = [("llama.py", case, [arguments.llama.resolve()]) for case in LLAMA] + cases
    if not arguments.stored:
        for script, case, extra in cases:
            make(script, case, base, work, extra)
    made = {case: result_of(folder_of(script, case, work)) for script, case, _ in cases}
    failures = {case: found for case, found in made.items() if isinstance(found, str)}
    if not arguments.llama:
        failures[("llama.cpp",)] = "its library is absent"
    meter = Meter(arguments.program, base, work, arguments.stored)
    students = {case: meter.row(found) for case, found in made.items() if isinstance(found, Result)}
    pending = [case for case in made if case not in failures and students.get(case) is None]
    rows = [row for row in students.values() if row]
    rows += ours(arguments.program, base, work, arguments.goals, arguments.stored)
    write_page(arguments.output, rows, failures, pending, versions())


if __name__ == "__main__":
    main()
