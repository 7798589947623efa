#!/usr/bin/env python3
"""Runs the recipes in recipes/goals on lm12m and writes docs/benchmarks/shrink.md: what each student costs, beside
what is wanted. `just shrink-goals` calls it. The weights must be in $DELTALOOM_DATA.

A goal was measured on other windows. It is scaled by what an anchor of its family costs on these windows, over what
it cost on those."""

import argparse
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECIPES = ROOT / "recipes" / "goals"
PAGE = ROOT / "docs" / "benchmarks" / "shrink.md"

# Recipe of an anchor: what it cost when the goals were set, in nats per token.
ANCHORS = {"rtn3": 0.0032, "magnitude50": 0.0103, "svd200": 0.0202, "embed_frequency": 0.0148}

# Recipe, what it is, its goal in nats per token, its anchor.
GOALS = [
    ("int4", "feedback, 4 bits in groups of 64", 0.00026, "rtn3"),
    ("int3", "feedback, 3 bits in groups of 64", 0.00125, "rtn3"),
    ("int2", "feedback, 2 bits in groups of 64", 0.0088, "rtn3"),
    ("q265", "entropy-coded, 2.65 bits a weight", 0.0012, "rtn3"),
    ("q22", "entropy-coded, 2.2 bits a weight", 0.0025, "rtn3"),
    ("q18", "entropy-coded, 1.8 bits a weight", 0.0055, "rtn3"),
    ("q145", "entropy-coded, 1.45 bits a weight", 0.0140, "rtn3"),
    ("sparse50", "SparseGPT, 50 % zeros", 0.0040, "magnitude50"),
    ("sparse70", "SparseGPT, 70 % zeros", 0.021, "magnitude50"),
    ("sparse90", "SparseGPT, 90 % zeros", 0.30, "magnitude50"),
    ("sparse24", "SparseGPT, 2:4", 0.0100, "magnitude50"),
    ("lowrank125", "low rank, 1.25 times fewer numbers", 0.0031, "svd200"),
    ("lowrank200", "low rank, 2 times fewer", 0.0110, "svd200"),
    ("lowrank400", "low rank, 4 times fewer", 0.033, "svd200"),
    ("lowrank1000", "low rank, 10 times fewer", 0.25, "svd200"),
    ("embed160", "embedding of rank 160, tied", 0.0148, "embed_frequency"),
    ("embed80", "embedding of rank 80, tied", 0.0581, "embed_frequency"),
]


def run(program: str, name: str, model: pathlib.Path, results: pathlib.Path, only_stored: bool) -> dict | None:
    """The report of a recipe. One that is there already is read."""
    stored = results / f"{name}.json"
    if only_stored and not stored.is_file():
        return None
    if not stored.is_file():
        recipe = RECIPES / f"{name}.yaml"
        if not recipe.is_file():
            recipe = RECIPES / "anchors" / f"{name}.yaml"
        student = results / name
        command = [program, "shrink", "run", str(recipe), "--teacher", str(model), "-o", str(student)]
        ended = subprocess.run([*command, "--overwrite", "--json", "--quiet"], stdout=subprocess.PIPE, text=True)
        # 1 says that a target of the recipe is missed, which is an answer.
        if ended.returncode not in (0, 1):
            sys.exit(f"{name}: the program ended with {ended.returncode}")
        stored.write_text(ended.stdout)
    return json.loads(stored.read_text())


def texts(report: dict) -> str:
    return " | ".join(f"{text['kl']:.5f} ± {text['kl_error']:.5f}" for text in report["texts"])


def page(reports: dict[str, dict]) -> str:
    anchors = {name: old for name, old in ANCHORS.items() if name in reports}
    scale = {name: reports[name]["texts"][0]["kl"] / old for name, old in anchors.items()}
    lines = [
        "# Smaller models: what they cost",
        "",
        "Written by `just shrink-goals` (tools/shrink_goals.py). Every student is LOSSY. The teacher is lm12m, 12.5 million",
        "weights in BF16 (25.1 MB). KL is the divergence from the teacher in nats per token, on the last 16,384 tokens of",
        "its English text and the last 8,192 of its Python text, which nothing was fitted to; ± is one standard error, the",
        "larger of those by tokens and by windows. Matrices are fitted to 48 English and 16 Python windows of 256 tokens.",
        "Bytes are those of the packed weights. Bits are those of the packed file without tensors that stayed, for each",
        "weight that did not. The numbers do not depend on threads or processor.",
        "",
        "A goal was set on other windows. It is scaled by what an anchor costs here over what it cost there: "
        + ", ".join(f"{name} {reports[name]['texts'][0]['kl']:.5f} over {old}" for name, old in anchors.items())
        + ".",
        "",
        "| recipe | what | bytes | bits | KL, English | KL, Python | goal | scaled | met |",
        "|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for name, what, goal, anchor in GOALS:
        if name not in reports or anchor not in scale:
            lines.append(f"| {name} | {what} | | | not measured | | {goal} | | |")
            continue
        report = reports[name]
        scaled = goal * scale[anchor]
        met = "yes" if report["texts"][0]["kl"] <= scaled else "**no**"
        bits = report["bits_per_shrunk_weight"]
        lines.append(
            f"| {name} | {what} | {report['student_bytes']:,} | {bits:.3f} | {texts(report)} | {goal} | {scaled:.5f} | {met} |"
        )
    for name in anchors:
        if not any(name == goal[0] for goal in GOALS):
            report = reports[name]
            bits = report["bits_per_shrunk_weight"]
            lines.append(f"| {name} | anchor | {report['student_bytes']:,} | {bits:.3f} | {texts(report)} | | | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", default=str(ROOT / "target/release/deltaloom"))
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "target/shrink-goals", help="reports and students")
    parser.add_argument("--output", type=pathlib.Path, default=PAGE)
    parser.add_argument("--stored", action="store_true", help="run nothing: only reports that are there")
    arguments = parser.parse_args()
    model = pathlib.Path(os.environ.get("DELTALOOM_DATA", "")) / "lm12m" / "base"
    if not model.is_dir():
        sys.exit(f"{model} is absent: set DELTALOOM_DATA to the folder of the weights")
    arguments.results.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys([*ANCHORS, *(goal[0] for goal in GOALS)]))
    reports = {}
    for name in names:
        report = run(arguments.program, name, model, arguments.results, arguments.stored)
        if report is not None:
            reports[name] = report
            print(name, texts(report), flush=True)
    arguments.output.write_text(page(reports))


if __name__ == "__main__":
    main()
