"""Measures students of rivals on lm12m beside ours, by one meter, `deltaloom eval divergence`, and writes
docs/benchmarks/shrink-peers.md. benches/shrink/run.sh has the arguments. What was measured before is read again."""

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

import llama
import torch_rivals
from model import MATRICES, Result, evaluation, is_matrix
from page import write_page

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Version of the package whose source holds llama.cpp; run.sh builds it.
LLAMA = "0.3.36"
# Seconds that a student of a rival may take.
PATIENCE = 1200
# Reports of `just shrink-goals` that are points of our curve, and further points: bits per weight of the matrices.
GOALS = ["int4", "int3", "int2", "q265", "q22", "q18", "q145"]
RATES = [3.2, 3.8, 4.5, 5.5, 6.5, 8.5]
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
    # Divergence and its standard error, for each text.
    kl: list[tuple[float, float]]
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


class Meter:
    """Measures models. A model that was measured is not measured again, whatever its name."""

    def __init__(self, program: str, base: Path, work: Path):
        self.program, self.base, self.work = program, base, work / "meter"
        self.texts = evaluation(base, work / "texts")
        self.work.mkdir(exist_ok=True)

    def kl(self, model: Path) -> list[tuple[float, float]]:
        with open(model / "model.safetensors", "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:24]
        return [self.on(model, text, digest) for text in self.texts]

    def on(self, model: Path, text: Path, digest: str) -> tuple[float, float]:
        stored = self.work / f"{digest}-{text.stem}.json"
        if not stored.is_file():
            command = [self.program, "eval", "divergence", self.base, model, "--tokens", text, "--window", 256]
            answer = run([*command, "--kv", "f32", "--json", "--quiet"], self.work / "log")
            stored.write_text(answer)
        report = json.loads(stored.read_text())
        return report["mean_kl"], max(report["kl"]["standard_error"], report["kl"].get("kl_window_error") or 0.0)

    def packed(self, file: Path) -> tuple[int, int]:
        """Bytes of a file that deltaloom packed, and of the matrices in it."""
        container = file.with_suffix(".loom")
        if not container.is_file():
            run([self.program, "pack", file, "-o", container, "--quiet"], self.work / "log")
        report = json.loads(run([self.program, "inspect", container, "--tensors", "--json"], self.work / "log"))
        tensors = report["tensors"]
        return report["packed_bytes"], sum(x["packed_bytes"] for x in tensors if is_matrix(x["name"]))


def make(script: str, case: tuple, base: Path, work: Path, extra: list) -> Result | str:
    """The student of a case, or why there is none."""
    name = "-".join(str(part) for part in case).replace(":", "").replace(" ", "")
    folder = work / f"{Path(script).stem}-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    made, failed = folder / "result.json", folder / "failed.txt"
    if not made.is_file() and not failed.is_file():
        print(f"making {folder.name}", flush=True)
        command = [sys.executable, HERE / script, base, folder, json.dumps(case), *extra]
        started = time.monotonic()
        try:
            run(command, folder / "log", PATIENCE)
        except subprocess.TimeoutExpired:
            failed.write_text(f"not done after {PATIENCE // 60} minutes")
        except RuntimeError as error:
            failed.write_text(str(error))
        print(f"  {time.monotonic() - started:.0f} s", flush=True)
        if not made.is_file() and not failed.is_file():
            failed.write_text(reason(folder / "log"))
    return Result(**json.loads(made.read_text())) if made.is_file() else failed.read_text()


def row_of(found: Result, meter: Meter) -> Row:
    kl = meter.kl(Path(found.model))
    packed, matrices = meter.packed(Path(found.file))
    print(f"{found.rival}, {found.method}: {found.matrix_bytes:,} bytes, KL {kl[0][0]:.5f}, {kl[1][0]:.5f}", flush=True)
    sizes = found.matrix_bytes, found.file_bytes, matrices, packed
    return Row(found.rival, found.method, found.note, found.embedding, *sizes, kl)


def agreement(program: str, work: Path, meter: Meter) -> str:
    """A student of ours, measured as the rivals are."""
    folder = work / f"rate{RATES[0]}"
    dense, report = folder / "dense", json.loads((folder / "report.json").read_text())
    if not dense.is_dir():
        run([program, "shrink", "materialise", folder / "student", "-o", dense], folder / "log")
    counted, measured = report["texts"][0]["kl"], meter.kl(dense)[0][0]
    if abs(counted - measured) > 1e-6:
        sys.exit(f"error: `shrink run` reports {counted}, and `eval divergence` {measured}")
    return f" ({counted:.7f} and {measured:.7f} for a student of {RATES[0]} bits)"


def versions() -> str:
    names = [*torch_rivals.RIVALS, "torch", "transformers"]
    packages = {"llm-compressor": "llmcompressor"}
    found = [f"{name} {importlib.metadata.version(packages.get(name, name))}" for name in names]
    return ", ".join([f"llama.cpp of llama-cpp-python {LLAMA}", *found])


def ours(program: str, base: Path, work: Path, goals: Path) -> list[Row]:
    """Points of our curves: matrices only, by goals and rates, and the whole model, by ratios."""
    reports = {name: goals / f"{name}.json" for name in GOALS}
    fixed = "version: 1\nplanner: {{mode: fixed}}\nbranches:\n  blt: {{enabled: false}}\n"
    fixed += "  quantise: {{method: waterfill, rate: {}}}\n"
    for rate in RATES:
        reports[f"rate {rate}"] = shrunk(program, base, work / f"rate{rate}", fixed.format(rate), [])
    recipe = (ROOT / "recipes" / "lm12m_10x.yaml").read_text()
    for ratio in RATIOS:
        reports[f"{ratio} times smaller"] = shrunk(program, base, work / f"ratio{ratio}", recipe, ["--ratio", ratio])
    rows = []
    for name, path in reports.items():
        if path is None or not path.is_file() or not path.read_text().strip():
            print(f"note: no report of {name}")
            continue
        report = json.loads(path.read_text())
        whole = name.endswith("smaller")
        kl = [(text["kl"], text["kl_error"]) for text in report["texts"]]
        size = report["student_bytes"]
        matrices = 0 if whole else round(report["bits_per_shrunk_weight"] * MATRICES / 8)
        method = name if whole else f"{name}, {report['bits_per_shrunk_weight']:.2f} bits"
        embedding = "codes" if whole else "BF16"
        rows.append(Row("deltaloom", method, "", embedding, matrices, size, matrices, size, kl, ours=True))
    return rows


def shrunk(program: str, base: Path, folder: Path, recipe: str, options: list) -> Path | None:
    report = folder / "report.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not report.is_file():
        print(f"making {folder.name}", flush=True)
        (folder / "recipe.yaml").write_text(recipe)
        command = [program, "shrink", "run", folder / "recipe.yaml", "--teacher", base, "-o", folder / "student"]
        try:
            report.write_text(run([*command, *options, "--overwrite", "--json", "--quiet"], folder / "log"))
        except RuntimeError as error:
            print(f"note: {folder.name}: {error}")
            return None
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", default=str(ROOT / "target/release/deltaloom"))
    parser.add_argument("--data", type=Path, required=True, help="folder of lm12m")
    parser.add_argument("--llama", type=Path, help="libllama.so")
    parser.add_argument("--work", type=Path, default=ROOT / "target/shrink-peers", help="students and measurements")
    parser.add_argument("--goals", type=Path, default=ROOT / "target/shrink-goals", help="reports of `just shrink-goals`")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/benchmarks/shrink-peers.md")
    arguments = parser.parse_args()
    base, work = (arguments.data / "base").resolve(), arguments.work.resolve()
    if not base.is_dir():
        sys.exit(f"{base} is absent: set DELTALOOM_DATA to the folder of the weights")
    work.mkdir(parents=True, exist_ok=True)
    os.environ |= {"HF_HUB_OFFLINE": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    cases = [("torch_rivals.py", case, []) for case in torch_rivals.CASES]
    if arguments.llama:
        cases = [("llama.py", case, [arguments.llama.resolve()]) for case in llama.CASES] + cases
    made = [(case, make(script, case, base, work, extra)) for script, case, extra in cases]
    failures = {case: found for case, found in made if isinstance(found, str)}
    if not arguments.llama:
        failures[("llama.cpp",)] = "its library is absent"
    meter = Meter(arguments.program, base, work)
    rows = [row_of(found, meter) for _, found in made if isinstance(found, Result)]
    rows += ours(arguments.program, base, work, arguments.goals)
    write_page(arguments.output, rows, failures, agreement(arguments.program, work, meter), versions())


if __name__ == "__main__":
    main()
