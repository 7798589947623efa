"""Times SmolLM2 in BF16 on one and two threads beside llama.cpp, mistral.rs and transformers, in rounds that take turns,
and writes the section "Speed" of a page. tools/bench_lm.sh has the arguments."""

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

# Tokens of the prompt, tokens to decode, and tokens before those.
PROMPT, DECODE, CONTEXT = 512, 64, 32
BEGIN, END = "<!-- speed -->", "<!-- /speed -->"


def make_models(gguf, work):
    """SmolLM2 rounded to BF16: a folder for deltaloom and transformers, and a GGUF file for the others."""
    folder, file = work / "smollm2-bf16", work / "smollm2-bf16.gguf"
    if not (folder / "done").exists():
        import torch
        from safetensors.torch import save_file
        from transformers import AutoModelForCausalLM, AutoTokenizer

        source = dict(pretrained_model_name_or_path=str(gguf.parent), gguf_file=gguf.name)
        shutil.rmtree(folder, ignore_errors=True)
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
        AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
        # The weights are plain numbers now.
        vars(model.config).pop("quantization_config", None)
        model.config.save_pretrained(folder)
        weights = {name: value.contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "done").touch()
    if not file.exists():
        write_gguf(gguf, file)
    return folder, file


def write_gguf(source, target):
    """The same file with matrices in BF16 and vectors in F32."""
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants

    reader = GGUFReader(source)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        sub_type = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type)
    for tensor in reader.tensors:
        numbers = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if numbers.ndim > 1:
            halves = quants.quantize(numbers, GGMLQuantizationType.BF16)
            writer.add_tensor(tensor.name, halves, raw_dtype=GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(tensor.name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def of_deltaloom(arguments, models, threads):
    command = [arguments.speed, models[0], PROMPT, DECODE, threads]
    found = json.loads(subprocess.run(map(str, command), check=True, capture_output=True, text=True).stdout)
    return {
        "read": found["weight_bytes"] / found["read_seconds"] / 1e9,
        "bytes": found["weight_bytes"],
        "prefill exact": PROMPT / found["prompt_seconds"]["exact"],
        "prefill exact16": PROMPT / found["prompt_seconds"]["exact16"],
        "decode exact": DECODE / found["decode_seconds"]["exact"],
        "decode exact16": DECODE / found["decode_seconds"]["exact16"],
    }


def of_llama(arguments, models, threads):
    command = [arguments.work / "bin/llama-bench", "-m", models[1], "-p", PROMPT, "-n", DECODE, "-t", threads]
    command += ["-r", 1, "-o", "json"]
    found = json.loads(subprocess.run(map(str, command), check=True, capture_output=True, text=True).stdout)
    speeds = {("prefill" if row["n_prompt"] else "decode"): row["avg_ts"] for row in found}
    return {"prefill llama.cpp": speeds["prefill"], "decode llama.cpp": speeds["decode"]}


TRANSFORMERS = f"""
import sys, time, json, torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(int(sys.argv[2]))
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).eval()
ids = torch.arange({PROMPT})[None] * 7919 % model.config.vocab_size
with torch.no_grad():
    model(ids[:, :32], logits_to_keep=1)
    start = time.perf_counter()
    model(ids, logits_to_keep=1)
    prefill = time.perf_counter() - start
    out = model(ids[:, :{CONTEXT}], use_cache=True, logits_to_keep=1)
    start = time.perf_counter()
    for _ in range({DECODE}):
        next = out.logits[:, -1].argmax(-1, keepdim=True)
        out = model(next, past_key_values=out.past_key_values, use_cache=True)
    decode = time.perf_counter() - start
print(json.dumps(dict(prefill=prefill, decode=decode)))
"""


def of_transformers(arguments, models, threads):
    command = [sys.executable, "-c", TRANSFORMERS, models[0], threads]
    found = subprocess.run(map(str, command), check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    found = json.loads(found)
    return {"prefill transformers": PROMPT / found["prefill"], "decode transformers": DECODE / found["decode"]}


MISTRAL = f"""
import sys, time, json
from pathlib import Path
from mistralrs import CompletionRequest, Runner, Which
file = Path(sys.argv[1])
runner = Runner(which=Which.GGUF(quantized_model_id=str(file.parent), quantized_filename=file.name))
def run(tokens):
    start = time.perf_counter()
    answer = runner.send_completion_request(CompletionRequest(
        model="default", prompt="Once upon a time", max_tokens=tokens, temperature=0.0))
    return time.perf_counter() - start, answer.usage.completion_tokens
run(4)
(short, few), (long, many) = run(4), run({DECODE})
print(json.dumps((many - few) / (long - short)))
"""


def of_mistral(arguments, models, threads):
    environment = {"RAYON_NUM_THREADS": str(threads), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", MISTRAL, models[1]]
    # Candle takes as many threads as it finds processors.
    command = ["taskset", "-c", "0" if threads == 1 else "0,1", *command]
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, env=environment)
    return {"decode mistral.rs": json.loads(done.stdout.splitlines()[-1])}


def first_token(arguments, model):
    """Seconds from the start of a process to its first token, warm files."""
    command = [arguments.program, "generate", model, "Once upon a time", "--max-tokens", 1, "--json"]
    start = time.perf_counter()
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return time.perf_counter() - start


def measure(arguments, models):
    rivals, absent, found = [of_deltaloom, of_llama, of_transformers, of_mistral], {}, {1: {}, 2: {}}
    for number in range(arguments.rounds):
        for threads, speeds in found.items():
            for rival in rivals:
                if rival in absent:
                    continue
                try:
                    for name, value in rival(arguments, models, threads).items():
                        speeds.setdefault(name, []).append(value)
                except (subprocess.CalledProcessError, FileNotFoundError) as error:
                    absent[rival] = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1:]
        print(f"round {number + 1} of {arguments.rounds}", flush=True)
    starts = {"SmolLM2": models[0]}
    if arguments.lm12m.exists():
        starts["lm12m"] = arguments.lm12m
    starts = {name: [first_token(arguments, path) for _ in range(5)] for name, path in starts.items()}
    return found, starts, absent


def processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    units = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    return f"{names[0] if names else platform.processor()} ({', '.join(units)})"


def write(found, starts, absent, rounds):
    lines = [BEGIN, "## Speed", ""]
    lines += [f"Machine: {processor()}, shared. Medians of {rounds} rounds, in which all programs take turns.", ""]
    lines += ["SmolLM2-135M in BF16, from a GGUF file whose 4-bit numbers were rounded to BF16. Command: `just bench-lm`.", ""]
    lines += [f"A prompt has {PROMPT} tokens; {DECODE} tokens are decoded after {CONTEXT}. Numbers are tokens per second."]
    lines += ["`exact` keeps activations in FP32, `exact16` rounds them to BF16, as the others do.", ""]
    middle = {threads: {name: statistics.median(all) for name, all in speeds.items()} for threads, speeds in found.items()}
    programs = ["exact", "exact16", "llama.cpp", "transformers", "mistral.rs"]
    lines += ["| | " + " | ".join(programs) + " |", "|---|" + "--:|" * len(programs)]
    for kind in ("prefill", "decode"):
        for threads, speeds in middle.items():
            cells = [f"{speeds[f'{kind} {name}']:.1f}" if f"{kind} {name}" in speeds else "-" for name in programs]
            lines.append(f"| {kind}, {threads} thread{'s' if threads > 1 else ''} | " + " | ".join(cells) + " |")
    lines += ["", "| goal | at least | found | |", "|---|--:|--:|---|"]

    def goal(what, least, value, is_met=None):
        met = value >= least if is_met is None else is_met
        lines.append(f"| {what} | {least} | {value:.2f} | {'reached' if met else 'missed'} |")

    for threads, speeds in middle.items():
        share = speeds["decode exact"] * speeds["bytes"] / 1e9 / speeds["read"]
        on = f"{threads} thread{'s' if threads > 1 else ''}"
        goal(f"decode, {on}: weights per second / what a plain read makes ({speeds['read']:.1f} GB/s)", 0.8, share)
        for kind, ours, name, least in [
            ("decode", "exact", "llama.cpp", 1.0),
            ("decode", "exact", "mistral.rs", 2.5),
            ("prefill", "exact", "llama.cpp", 2.0),
            ("prefill", "exact16", "llama.cpp", 4.0),
            ("prefill", "exact16", "transformers", 0.8),
        ]:
            if f"{kind} {name}" in speeds:
                ratio = speeds[f"{kind} {ours}"] / speeds[f"{kind} {name}"]
                goal(f"{kind} {ours}, {on}: times {name}", least, ratio)
    for name, seconds in starts.items():
        most = {"SmolLM2": 0.4, "lm12m": 0.1}[name]
        value = statistics.median(seconds)
        lines.append(
            f"| start to first token, {name}, s (at most) | {most} | {value:.3f} | {'reached' if value <= most else 'missed'} |"
        )
    lines += [f"\nNot measured: {rival.__name__[3:]} ({' '.join(why)})." for rival, why in absent.items()]
    return "\n".join([*lines, END])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("gguf", "work", "speed", "program", "lm12m"):
        parser.add_argument(f"--{name}", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5, help="rounds; a result is the median (5)")
    parser.add_argument("--page", type=Path, default=Path("docs/benchmarks/lm.md"), help="the page to write")
    arguments = parser.parse_args()
    section = write(*measure(arguments, make_models(arguments.gguf, arguments.work)), arguments.rounds)
    print(section)
    page = arguments.page.read_text() if arguments.page.exists() else "# Language models\n"
    if BEGIN in page:
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        page = before + section + after
    else:
        page = f"{page.rstrip()}\n\n{section}\n"
    arguments.page.write_text(page)


if __name__ == "__main__":
    main()
