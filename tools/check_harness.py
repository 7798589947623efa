#!/usr/bin/env python3
"""lm-evaluation-harness by `local-completions` against `deltaloom serve`: its numbers must be those of `deltaloom eval` to
1e-6, on the bundled questions and text. `just check-harness` calls it."""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

from loom_server import serving

ROOT = pathlib.Path(__file__).resolve().parent.parent
ASSETS = ROOT / "assets" / "speaker"

CHOICES = """
task: loom_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: context
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""

TEXT = """
task: loom_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{{metric: word_perplexity}}, {{metric: byte_perplexity}}]
"""


def post(url: str, body: dict) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def evaluated(program: str, *arguments: str) -> dict:
    command = [program, "eval", *arguments, "--json", "--quiet"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def harness(url: str, tasks: pathlib.Path, model: str, longest: int) -> dict:
    """Runs both tasks: eight prompts a request, four requests at a time."""
    out = tasks / f"{model}.json"
    settings = f"model={model},base_url={url}/v1/completions,tokenizer_backend=remote,num_concurrent=4,max_length={longest}"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", settings]
    command += ["--tasks", "loom_choices,loom_text", "--include_path", str(tasks), "--batch_size", "8"]
    command += ["--output_path", str(out)]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tasks / "home")}
    subprocess.run(command, check=True, env=offline, stdout=subprocess.DEVNULL)
    return json.loads(next(tasks.glob(f"{model}*.json")).read_text())["results"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", default="target/release/deltaloom")
    program = parser.parse_args().program
    # Windows of the harness have two tokens less, and the one before.
    longest = 200
    scored = longest - 2
    with tempfile.TemporaryDirectory() as folder, serving(program, "demo", "--tenant", "demo:pirate") as server:
        url = server.url
        tasks = pathlib.Path(folder)
        # Whole windows: the last one would see more than the others.
        tokenize = {"prompt": (ASSETS / "text.txt").read_text()[:20_000], "add_special_tokens": False}
        ids = post(f"{url}/tokenize", tokenize)["tokens"]
        text = post(f"{url}/detokenize", {"tokens": ids[: len(ids) // scored * scored]})["prompt"]
        (tasks / "text.jsonl").write_text(json.dumps({"text": text}) + "\n")
        (tasks / "choices.yaml").write_text(CHOICES.format(data=ASSETS / "questions.jsonl"))
        (tasks / "text.yaml").write_text(TEXT.format(data=tasks / "text.jsonl"))
        with urllib.request.urlopen(f"{url}/tokenizer_info") as answer:
            end = json.load(answer)["eos_token"]
        # The harness puts this before a text.
        ids = post(f"{url}/tokenize", {"prompt": end, "add_special_tokens": False})["tokens"]
        ids += post(f"{url}/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]
        assert len(ids) % scored == 1
        ids_file = tasks / "text.u32"
        ids_file.write_bytes(b"".join(number.to_bytes(4, "little") for number in ids))
        for model, tenant in (("base", []), ("pirate", ["--tenant", "demo:pirate"])):
            found = harness(url, tasks, model, longest)
            choices = evaluated(program, "choices", "demo", "demo:questions", *tenant)
            windows = ["--window", str(scored + 1), "--stride", str(scored)]
            loss = evaluated(program, "perplexity", "demo", str(ids_file), *windows, *tenant)["loss"]
            expected = {
                "acc": choices["acc"]["value"],
                "acc_norm": choices["acc_norm"]["value"],
                "byte_perplexity": math.exp(loss * (len(ids) - 1) / len(text.encode())),
            }
            for name, wanted in expected.items():
                task = "loom_text" if "perplexity" in name else "loom_choices"
                value = found[task][f"{name},none"]
                print(f"{model} {name}: harness {value:.9f}, eval {wanted:.9f}", flush=True)
                assert abs(value - wanted) <= 1e-6 * max(1.0, abs(wanted)), name


if __name__ == "__main__":
    main()
