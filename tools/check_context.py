"""Compares models with a recipe of `deltaloom context`, exported for transformers, with what transformers computes in FP32, prints
a table, and fails if a goal is missed. tools/check_context.sh has the arguments; the model is lm12m."""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

GOAL = 2e-4
TOKENS, TARGET = 1024, 1024
# Name, architecture, and what a recipe says of all layers or of some.
CASES = [
    ("linear", "llama", "default: { rope: { type: linear, factor: 4 } }"),
    ("dynamic", "llama", "default: { rope: { type: dynamic, factor: 1, by: sequence } }"),
    ("dynamic, factor 4", "llama", "default: { rope: { type: dynamic, factor: 4, by: sequence } }"),
    ("yarn", "llama", "default: { rope: { type: yarn, factor: 4 } }"),
    ("llama3", "llama", "default: { rope: { type: llama3, factor: 4 } }"),
    ("longrope", "llama", None),
    ("another theta", "llama", "default: { rope: { type: default, rope_theta: 40000 } }"),
    ("every 4th layer without positions", "smollm3", "layers: [{ select: { every: 4 }, rope: none }]"),
    ("windows on two layers", "smollm3", "layers: [{ select: [2, 5], reach: { window: 128 } }]"),
    ("windows without positions, every 4th", "smollm3",
     "layers: [{ select: { every: 4 }, rope: none, reach: { window: 200 } }]"),
    ("two layers without positions, a table for the others", "smollm3",
     "default: { rope: { type: yarn, factor: 4 } }\nlayers: [{ select: [0, 1], rope: none }]"),
]


def longrope(pairs: int) -> str:
    short, long = [1.0] * pairs, [round(1 + 0.1 * pair, 1) for pair in range(pairs)]
    return f"default: {{ rope: {{ type: longrope, factor: 4, by: sequence, short_factor: {short}, long_factor: {long} }} }}"


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True)


@torch.no_grad()
def error_of(arguments: argparse.Namespace, architecture: str, recipe: str, ids: list[int], folder: Path) -> float:
    """The largest error of a logit over the largest logit."""
    (folder / "recipe.yaml").write_text(f"context: 1\ntarget: {TARGET}\n{recipe}\n")
    base, container = arguments.lm12m, folder / "longer.loom"
    export = ["--export", folder / "exported", "--as", architecture]
    run(arguments.deltaloom, "context", "apply", base, "--recipe", folder / "recipe.yaml", "-o", container, *export, "--quiet")
    run(arguments.deltaloom, "unpack", container, "--base", base, "-o", folder / "ours", "--quiet")
    (folder / "questions.json").write_text(json.dumps({"logits": [ids]}))
    run(arguments.program, folder / "ours", folder / "questions.json", folder)
    model = AutoModelForCausalLM.from_pretrained(folder / "exported", dtype=torch.float32).eval()
    assert model.config.model_type == architecture, model.config.model_type
    expected = model(torch.tensor([ids])).logits[0].numpy()
    ours = np.fromfile(folder / "logits.f32", dtype="<f4").reshape(expected.shape)
    return float(np.abs(ours - expected).max() / np.abs(expected).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", required=True, help="the example model_numbers")
    parser.add_argument("--deltaloom", required=True, help="the program")
    parser.add_argument("--lm12m", type=Path, required=True)
    arguments = parser.parse_args()
    config = json.loads((arguments.lm12m / "config.json").read_text())
    pairs = config["hidden_size"] // config["num_attention_heads"] // 2
    ids = np.fromfile(arguments.lm12m / "val_english.u16", dtype="<u2")[:TOKENS].astype(int).tolist()
    missed = False
    print("| recipe | exported as | largest error of a logit over the largest logit | goal |\n|---|---|--:|--:|")
    for name, architecture, recipe in CASES:
        with tempfile.TemporaryDirectory() as folder:
            error = error_of(arguments, architecture, recipe or longrope(pairs), ids, Path(folder))
        missed |= not error <= GOAL
        print(f"| {name} | {architecture} | {error:.1e} | {GOAL:.0e} |{'' if error <= GOAL else ' MISSED'}", flush=True)
    if missed:
        raise SystemExit("a goal is missed")


if __name__ == "__main__":
    main()
