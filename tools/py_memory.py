"""Measures the memory of a model of transformers, loaded plain and from a container, and used once.

    just py-memory [--megabytes N] [--rounds N] [--check]

transformers maps the files of a plain model: its weights come into memory when they are used, as
pages of files that the system takes back when it needs room. Those of a container are decoded, and
are anonymous memory from the start. So peaks are compared after both computed logits. Without that,
a plain model has no weights in memory, and the comparison says nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

LOAD = """
import json, sys, threading, time
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from deltaloom.transformers import from_pretrained

def now():
    lines = (line.split() for line in open("/proc/self/status"))
    return {words[0][:-1]: int(words[1]) for words in lines if words[0] in NAMES}

NAMES = ("RssAnon:", "RssFile:", "VmRSS:", "VmHWM:")
peaks, stop = {}, threading.Event()
def watch():
    while not stop.wait(0.002):
        for name, size in now().items():
            peaks[name] = max(peaks.get(name, 0), size)

what, plain, packed, base, dtype = sys.argv[1:6]
torch.set_num_threads(1)
before = now()
open("/proc/self/clear_refs", "w").write("5")
thread = threading.Thread(target=watch)
thread.start()
begin = time.perf_counter()
if what == "plain":
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=dtype)
else:
    model = from_pretrained(AutoModelForCausalLM, packed, base=base, dtype=dtype)
seconds = time.perf_counter() - begin
loaded = now()
with torch.no_grad():
    total = float(model(torch.arange(8)[None]).logits.double().sum())
stop.set()
thread.join()
after = now()
result = {
    "loaded": loaded["VmHWM"] - before["VmRSS"],
    "peak": after["VmHWM"] - before["VmRSS"],
    "anonymous": max(peaks["RssAnon"], after["RssAnon"]) - before["RssAnon"],
    "files": max(peaks["RssFile"], after["RssFile"]) - before["RssFile"],
    "process": after["VmHWM"],
}
result = {name: size * 1024 / 1e6 for name, size in result.items()}
print(json.dumps({**result, "seconds": seconds, "logits": total}))
"""


def make(folder: Path, megabytes: int) -> None:
    """A base and a fine-tune of LLaMA's shape in BF16, in shards, and the container of the second."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import deltaloom

    hidden = 1024
    per_layer = 4 * hidden * hidden + 3 * hidden * 4 * hidden
    layers = max(1, round((megabytes * 500_000 - 2 * 4096 * hidden) / per_layer))
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder / "base", max_shard_size=f"{megabytes // 3 + 1}MB")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (torch.randn(parameter.shape) * 1e-5).to(torch.bfloat16)
    model.save_pretrained(folder / "tuned", max_shard_size=f"{megabytes // 3 + 1}MB")
    deltaloom.pack(folder / "tuned", folder / "tuned.loom", base=folder / "base")


MOST = 1.15
"""Peak memory with a container, over that of the plain model."""


def measure(words: list[str], rounds: int) -> dict[str, float]:
    """Medians of processes that load and use a model."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    runs = []
    for _ in range(rounds):
        done = subprocess.run(
            [sys.executable, "-c", LOAD, *words], env=environment, capture_output=True, text=True, check=True
        )
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--check", action="store_true", help=f"fail if a peak is over {MOST} times the plain one")
    arguments = parser.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make(folder, arguments.megabytes)
        size = sum(file.stat().st_size for file in (folder / "tuned").glob("*.safetensors")) / 1e6
        print(f"{size:.0f} MB of weights in BF16; MB beyond the process after its imports, medians of {arguments.rounds}")
        print("                     loaded     used   anonymous  of files  seconds  whole process")
        for dtype in ("bfloat16", "float32"):
            files = [str(folder / "tuned"), str(folder / "tuned.loom"), str(folder / "base"), dtype]
            plain, packed = (measure([what, *files], arguments.rounds) for what in ("plain", "container"))
            for what, one in (("plain", plain), ("container", packed)):
                print(
                    f"{dtype:8} {what:10} {one['loaded']:7.0f}  {one['peak']:7.0f}  {one['anonymous']:10.0f}  "
                    f"{one['files']:8.0f}  {one['seconds']:7.2f}  {one['process']:13.0f}"
                )
            if plain["logits"] != packed["logits"]:
                raise SystemExit("the logits differ")
            ratio = packed["peak"] / plain["peak"]
            worst = max(worst, ratio)
            whole = packed["process"] / plain["process"]
            print(f"{dtype:8} container over plain, used: {ratio:.2f}; of the whole process {whole:.2f}")
    if arguments.check and worst > MOST:
        raise SystemExit(f"{worst:.2f} is over {MOST}")


if __name__ == "__main__":
    main()
