#!/usr/bin/env python3
"""Runs `deltaloom lab tpde` on lm12m and writes docs/benchmarks/tpde.md.

    python3 benches/series/tpde.py --program target/release/deltaloom --data ../shared/data/lm12m [--series DIR] [--cases DIR]

--series is a folder of BF16 snapshots of consecutive AdamW steps at lr 1e-6 (step-*/model.safetensors), of which the
first ten are taken; without it that case is left out. JSON of each case is kept in --cases and used again if it is
there. Needs numpy for the evaluation.
"""
import argparse
import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
# Tokens of the evaluation and its sequences.
ENGLISH = ("val_english.u16", 16)
CODE = ("val_code.u16", 8)
USUAL = ["quantile=0.9", "bytes=1000000", "threshold=1e-4", "threshold=0"]
SMALL = ["lr-steps=1e-6,8", "threshold=1e-5", "bytes=100000", "threshold=0"]


def cases(data, series):
    whole = lambda name: data / name / "model.safetensors"
    yield "bf16", "ckpt_11 -> base -> ft_bf16, BF16", [whole("ckpt_11"), whole("base"), whole("ft_bf16")], USUAL, ENGLISH
    yield "master", "ckpt_11 -> base -> ft_master, BF16", [whole("ckpt_11"), whole("base"), whole("ft_master")], USUAL, CODE
    slices = [data / "slices" / f"{name}.fp32.safetensors" for name in ("base", "ft_master")]
    yield "slices", "slices/base -> ft_master, FP32 (layer 0)", slices, USUAL + ["lr-steps=5e-5,10"], None
    yield "rl", "rl/step20 -> step28, BF16 (layers 0 and 1)", [data / "rl" / f"step{i}.safetensors" for i in (20, 28)], SMALL, None
    if series:
        steps = sorted(series.glob("step-*/model.safetensors"))[:10]
        yield "series", "ten snapshots one AdamW step apart at lr 1e-6, BF16", steps, SMALL, None


def command(program, data, paths, rules, evaluated):
    line = [str(program), "lab", "tpde", *map(str, paths)]
    for rule in rules:
        line += ["--adaptive", rule]
    if evaluated:
        tokens, sequences = evaluated
        evaluate = f"{sys.executable} {HERE}/evaluate.py {{}} --data {data}/base --tokens {tokens} --sequences {sequences}"
        line += ["--evaluate", evaluate]
    return line + ["--json"]


def size(count):
    for unit, divisor in (("MB", 1e6), ("kB", 1e3)):
        if count >= divisor:
            return f"{count / divisor:.3g} {unit}" if count < 1e3 * divisor else f"{count / divisor:,.0f} {unit}"
    return f"{count} B"


def number(value, digits=3):
    return "-" if value is None else "0" if value == 0 else f"{value:.{digits}g}"


def table(rows, evaluated):
    head = ["row", "form", "after the first", "ratio", "ratio of all", "mean of ratios", "as published", "their mean", "kept", "max error", "state error"]
    head += ["loss"] if evaluated else []
    yield "| " + " | ".join(head) + " |"
    yield "|---|---|" + "--:|" * (len(head) - 2)
    for row in rows:
        last, after = row["steps"][-1], row["steps"][1:]
        kept, elems = (sum(step[key] for step in after) for key in ("kept_elems", "elems"))
        cells = [
            row["method"],
            row["form"],
            size(sum(step["out_bytes"] for step in after)),
            f"{row['ratio_after_first']:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['mean_ratio']:.2f}",
            "-" if row["published_ratio"] is None else f"{row['published_ratio']:.2f}",
            "-" if row["published_mean_ratio"] is None else f"{row['published_mean_ratio']:.2f}",
            "-" if row["form"] == "exact" else f"{100 * kept / max(elems, 1):.3g} %",
            number(max((step["max_error"] for step in row["steps"] if step["max_error"] is not None), default=None)),
            number(last["relative_state_error"]),
        ]
        if evaluated:
            cells.append("-" if last.get("loss") is None else f"{last['loss']:.4f}")
        yield "| " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", required=True, type=pathlib.Path)
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--series", type=pathlib.Path)
    parser.add_argument("--cases", type=pathlib.Path, default=pathlib.Path("target/tpde"))
    parser.add_argument("--out", type=pathlib.Path, default=HERE.parent.parent / "docs/benchmarks/tpde.md")
    arguments = parser.parse_args()
    arguments.cases.mkdir(parents=True, exist_ok=True)
    out = [(HERE / "tpde-head.md").read_text()]
    for name, title, paths, rules, evaluated in cases(arguments.data, arguments.series):
        kept = arguments.cases / f"{name}.json"
        line = command(arguments.program, arguments.data, paths, rules, evaluated)
        if not kept.exists():
            kept.write_bytes(subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout)
        shown = " ".join(f"--adaptive {rule}" for rule in rules)
        out.append(f"## {title}\n\n`deltaloom lab tpde ... {shown}`\n")
        if evaluated:
            out.append("Loss on the first {1} x 256 tokens of {0}.\n".format(*evaluated))
        out.append("\n".join(table(json.loads(kept.read_text())["rows"], evaluated)) + "\n")
    arguments.out.write_text("\n".join(out))


if __name__ == "__main__":
    main()
