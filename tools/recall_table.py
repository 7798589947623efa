"""Tables of docs/benchmarks/recall.md: what plans of attention find on the model of assets/recall at four times its
trained length, beside truncation. All numbers are of texts with planted facts (`deltaloom context test --retrieval`).

    python3 tools/recall_table.py DELTALOOM [--write docs/benchmarks] [--texts N]
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from context_goals import Program, plans, table

ROOT = pathlib.Path(__file__).resolve().parent.parent
TRAINED, LONG = 256, 1024
# Sees no fact at the end of a text of LONG tokens.
BLIND = "window 32"


def of(report, name, tokens):
    return next(row for row in report["retrieval"] if row["name"] == name and row["tokens"] == tokens)


def measure(program, recipes, texts, task):
    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder) / "model"
        subprocess.run([program.path, "unpack", "--quiet", ROOT / "assets/recall/recall.loom", "-o", model], check=True)
        return program.test(model, ROOT / "assets/speaker/text.txt", recipes, "--lengths", f"{TRAINED},{LONG}",
                            "--sequences", texts, "--passages", 0, "--retrieval", task)


def percent(share):
    return f"{100 * share['value']:.1f} ({100 * share['low']:.1f} to {100 * share['high']:.1f})"


def points(gain):
    return f"{100 * gain['mean']:+.1f} ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"


def rows_of(report):
    """One row for each plan, and the names of those that are clear of truncation."""
    names = [row["name"] for row in report["retrieval"] if row["tokens"] == LONG]
    rows, clear = [], []
    for name in names:
        inside, far = of(report, name, TRAINED), of(report, name, LONG)
        gain = far["gain"]
        is_clear = gain is not None and gain["low"] > 0
        clear += [name] * is_clear
        over = [points(gain), "yes" if is_clear else "no"] if gain else ["", ""]
        rows.append([name, f"{100 * inside['forced_choice']['value']:.1f}", percent(far["forced_choice"]),
                     f"{100 * far['exact']['value']:.1f}", *over])
    return rows, clear


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--write", default="docs/benchmarks")
    parser.add_argument("--texts", type=int, default=12)
    arguments = parser.parse_args()
    program = Program(arguments.program)
    recipes = {**plans(TRAINED), BLIND: {"default": {"reach": {"window": 32}}}}
    columns = ["plan", f"{TRAINED} tokens, %", f"{LONG:,} tokens, % (interval)", "written, %", "over truncation, points", "clear"]
    measured, parts = {}, []
    some = {name: recipes[name] for name in ["llama3 4", "Self-Extend 8, 128", BLIND]}
    for task, texts, recipes in [("multikey", arguments.texts, recipes), ("passkey", 2 * arguments.texts, some)]:
        report = measure(program, recipes, texts, task)
        measured[task] = report["retrieval"]
        rows, clear = rows_of(report)
        questions = of(report, "unchanged", LONG)["forced_choice"]["of"]
        parts.append(f"## {task}: {questions} questions in {texts} texts\n\n{table(columns, rows)}\n"
                     f"Clear of truncation: {'; '.join(clear) or 'none'}.\n")
    multikey = {"retrieval": measured["multikey"]}
    inside, plain = of(multikey, "unchanged", TRAINED)["forced_choice"], of(multikey, "unchanged", LONG)["forced_choice"]
    blind = of(multikey, BLIND, LONG)["forced_choice"]
    distance = abs(blind["value"] - 1 / 8) / (7 / 64 / blind["of"]) ** 0.5
    goals = [
        ["found within the trained length", "99 % or more", f"{100 * inside['value']:.1f} %", inside["value"] >= 0.99],
        ["facts out of sight: distance from 1 of 8", "3 standard errors or less", f"{distance:.1f}", distance <= 3],
        ["the model as it is at 4 times the length", "below 30 %", f"{100 * plain['value']:.1f} %", plain["value"] < 0.3],
    ]
    rows = [[*goal, "yes" if reached else "**no**"] for *goal, reached in goals]
    head = ("# Facts found at four times the trained length\n\nWritten by `just recall-table`; do not edit. The model is "
            "**synthetic**: 0.8 M parameters that were trained on little but such facts within 256 tokens "
            "([assets/recall](../../assets/recall/README.md)). The table tests the tester and compares plans on this model; "
            "it says nothing about another one. By chance, 12.5 % are found. A plan is clear of truncation if the interval "
            "of the difference in the same texts is above 0.\n")
    out = pathlib.Path(arguments.write)
    goals = table(["goal", "wanted", "measured", "reached"], rows)
    (out / "recall.md").write_text("\n".join([head, f"## Goals\n\n{goals}", *parts]))
    (out / "recall.json").write_text(json.dumps(measured, indent=1) + "\n")
    return 0 if all(row[-1] == "yes" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
