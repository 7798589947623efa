#!/usr/bin/env python3
"""Uploads the history of a student to Weights & Biases, with the wandb package and the account that you have.

    python3 tools/wandb_upload.py student/ --project shrink
    WANDB_MODE=offline python3 tools/wandb_upload.py student/report/history.jsonl     # nothing leaves this machine

`deltaloom shrink run` writes the history: one line of JSON for each matrix, each text that was measured, and the
whole student. Numbers become metrics, under the kind of their line: measurement/kl, student/ratio and so on. What
the student is (its verdict, names of texts, the recipe) becomes the configuration of the run.
"""
import argparse
import json
import math
import sys
from pathlib import Path

LARGEST_LINE = 1 << 20


def history_of(path):
    """The history that a path means: the file itself, or that of a student or its report."""
    if not path.is_dir():
        return path
    places = [path / "history.jsonl", path / "report" / "history.jsonl"]
    return next((place for place in places if place.is_file()), places[-1])


def read(path):
    """Entries of a history: dictionaries with an event and a step."""
    entries = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(iter(lambda: file.readline(LARGEST_LINE), ""), 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise SystemExit(f"error: {path}:{number}: no JSON: {error}") from None
            known = isinstance(entry, dict) and isinstance(entry.get("event"), str)
            if not known or type(entry.get("step")) is not int:
                raise SystemExit(f"error: {path}:{number}: an entry needs an event and a step")
            entries.append(entry)
    if not entries:
        raise SystemExit(f"error: {path}: there is nothing in it")
    return entries


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def metrics(entry):
    """Numbers of an entry, named by its kind and, for a text, by the text."""
    prefix = entry["event"]
    if prefix == "measurement" and isinstance(entry.get("name"), str):
        prefix += "/" + entry["name"]
    return {f"{prefix}/{key}": value for key, value in entry.items() if key != "step" and is_number(value)}


def configuration(history, entries):
    """What the run is about, from its entries and, if it is there, its summary."""
    found = {"texts": [entry.get("name") for entry in entries if entry["event"] == "measurement"]}
    found["matrices"] = sum(entry["event"] == "matrix" for entry in entries)
    found["verdict"] = next((entry.get("verdict") for entry in entries if entry["event"] == "student"), None)
    try:
        summary = json.loads((history.parent / "summary.json").read_text(encoding="utf-8"))
        found |= {key: summary.get(key) for key in ["experiment", "tool", "recipe", "weights", "teacher"]}
    except (OSError, ValueError, AttributeError):
        pass
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("history", type=Path, help="a student, its report, or a file history.jsonl")
    parser.add_argument("--project", default="deltaloom-shrink", help="project of the run (default: %(default)s)")
    parser.add_argument("--name", help="name of the run (default: the experiment of the recipe)")
    options = parser.parse_args()
    history = history_of(options.history)
    try:
        entries = read(history)
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"error: {history}: {error}") from None
    try:
        import wandb
    except ImportError:
        raise SystemExit("error: the package wandb is not installed: pip install wandb") from None
    config = configuration(history, entries)
    run = wandb.init(project=options.project, name=options.name or config.get("experiment"), config=config)
    for entry in entries:
        run.log(metrics(entry), step=entry["step"])
    run.finish()
    print(f"{len(entries)} entries of {history}", file=sys.stderr)


if __name__ == "__main__":
    main()
