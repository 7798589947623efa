"""Rounds a LLaMA to 4 bits, and compares `deltaloom eval divergence` with logits and divergences that numpy computes in
FP64. Arguments: the program, the folder of the base with val_english.u16. tools/check_divergence.sh runs it."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

GROUP, WINDOW, TOKENS, GOAL = 32, 256, 1024, 1e-5


def read(path):
    """The tensors of a safetensors file in FP32."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    found = {}
    for name, entry in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        raw = np.frombuffer(data[start + begin : start + end], {"BF16": "<u2", "F32": "<f4"}[entry["dtype"]])
        numbers = (raw.astype("<u4") << 16).view("<f4") if entry["dtype"] == "BF16" else raw
        found[name] = numbers.reshape(entry["shape"])
    return found


def write(path, tensors):
    header, parts, at = {}, [], 0
    for name, numbers in tensors.items():
        data = numbers.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(numbers.shape), "data_offsets": [at, at + len(data)]}
        parts.append(data)
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def rounded(numbers):
    """The nearest of 16 multiples of a scale, for each group of a row."""
    groups = numbers.reshape(-1, GROUP)
    scale = np.abs(groups).max(1, keepdims=True) / np.float32(7)
    scale[scale == 0] = 1
    return (np.clip(np.round(groups / scale), -8, 7) * scale).astype(np.float32).reshape(numbers.shape)


def norm(x, weight, epsilon):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


def logits(weights, config, ids):
    """What a LLaMA computes for the tokens of one sequence."""
    heads, shared = config["num_attention_heads"], config.get("num_key_value_heads", config["num_attention_heads"])
    size = config.get("head_dim") or config["hidden_size"] // heads
    theta = (config.get("rope_parameters") or {}).get("rope_theta") or config.get("rope_theta", 10000.0)
    angles = np.outer(np.arange(len(ids)), theta ** (-np.arange(0, size, 2) / size))
    angles = np.concatenate([angles, angles], 1)
    epsilon = config["rms_norm_eps"]

    def turned(x):
        halves = np.concatenate([-x[..., size // 2 :], x[..., : size // 2]], -1)
        return x * np.cos(angles) + halves * np.sin(angles)

    x = weights["model.embed_tokens.weight"][ids]
    hidden = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    for layer in range(config["num_hidden_layers"]):
        get = lambda name: weights[f"model.layers.{layer}.{name}.weight"]
        y = norm(x, get("input_layernorm"), epsilon)
        split = lambda name, count: (y @ get(f"self_attn.{name}_proj").T).reshape(len(ids), count, size).swapaxes(0, 1)
        q, k, v = turned(split("q", heads)), turned(split("k", shared)), split("v", shared)
        k, v = (np.repeat(z, heads // shared, 0) for z in (k, v))
        scores = q @ k.swapaxes(1, 2) / np.sqrt(size) + hidden
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        y = (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(len(ids), -1)
        x = x + y @ get("self_attn.o_proj").T
        y = norm(x, get("post_attention_layernorm"), epsilon)
        gate = y @ get("mlp.gate_proj").T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ get("mlp.up_proj").T)) @ get("mlp.down_proj").T
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return norm(x, weights["model.norm.weight"], epsilon) @ head.T


def log_probabilities(values):
    values = values - values.max(-1, keepdims=True)
    return values - np.log(np.exp(values).sum(-1, keepdims=True))


def main():
    program, base = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    config = json.loads((base / "config.json").read_text())
    weights = read(base / "model.safetensors")
    student = {name: rounded(x) if x.ndim == 2 else x for name, x in weights.items()}
    with tempfile.TemporaryDirectory(prefix="deltaloom-check-") as name:
        folder = Path(name)
        write(folder / "model.safetensors", student)
        (folder / "config.json").write_text(json.dumps(config))
        command = [program, "eval", "divergence", base, folder, "--tokens", base / "val_english.u16", "--json"]
        command += ["--window", str(WINDOW), "--limit", str(TOKENS), "--kv", "f32"]
        found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    ids = np.fromfile(base / "val_english.u16", "<u2")[:TOKENS]
    both = [{name: x.astype(np.float64) for name, x in tensors.items()} for tensors in (weights, student)]
    divergences, same = [], 0
    for start in range(0, TOKENS, WINDOW):
        window = ids[start : start + WINDOW]
        p, q = (log_probabilities(logits(tensors, config, window)[:-1]) for tensors in both)
        divergences.append((np.exp(p) * (p - q)).sum(-1))
        same += (p.argmax(-1) == q.argmax(-1)).sum()
    expected = np.concatenate(divergences)
    difference = abs(found["mean_kl"] - expected.mean())
    print(f"mean_kl {found['mean_kl']:.9f}, numpy {expected.mean():.9f}: {difference:.1e} apart (goal {GOAL:.0e})")
    print(f"{found['tokens']} tokens, numpy {len(expected)}; same top {found['same_top']['value']:.6f}, "
          f"numpy {same / len(expected):.6f}")
    if difference > GOAL or found["tokens"] != len(expected):
        raise SystemExit("error: they differ")


if __name__ == "__main__":
    main()
