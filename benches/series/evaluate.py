#!/usr/bin/env python3
"""Loss of a small LLaMA-shaped model in nats per token, with numpy alone.

    python3 evaluate.py CHECKPOINT --data lm12m/base [--sequences 16] [--tokens val_english.u16]

CHECKPOINT is a safetensors file or a directory with one; BF16, FP16 and FP32 tensors are read. --data has config.json
and the held-out token ids as little-endian u16; the first sequences of as many tokens as the model's context count, all
tokens but each first one predicted. The last line printed is the loss, as `deltaloom lab tpde --evaluate` wants it.
"""
import argparse
import json
import pathlib

import numpy as np


def load(path):
    path = pathlib.Path(path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    tensors = {}
    for file in files:
        data = file.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:end]).items():
            if name == "__metadata__":
                continue
            raw = data[end + entry["data_offsets"][0] : end + entry["data_offsets"][1]]
            if entry["dtype"] == "BF16":
                values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
            elif entry["dtype"] in ("F16", "F32"):
                values = np.frombuffer(raw, "<f2" if entry["dtype"] == "F16" else "<f4").astype(np.float32)
            else:
                continue
            tensors[name] = values.reshape(entry["shape"])
    return tensors


def rms_norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + np.concatenate([-x[..., half:], x[..., :half]], axis=-1) * sin


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def loss(tensors, config, ids):
    """Mean loss of predicting each token of `ids` (sequences, length) from those before it."""
    heads, eps = config["num_attention_heads"], config["rms_norm_eps"]
    embedding = tensors["model.embed_tokens.weight"]
    count, length = ids.shape
    width = embedding.shape[1] // heads
    frequencies = config["rope_theta"] ** (-np.arange(0, width, 2, dtype=np.float32) / width)
    angles = np.outer(np.arange(length, dtype=np.float32), frequencies)
    angles = np.concatenate([angles, angles], axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    future = np.triu(np.full((length, length), -np.inf, np.float32), 1)
    x = embedding[ids]
    for layer in range(config["num_hidden_layers"]):
        part = lambda name: tensors[f"model.layers.{layer}.{name}.weight"]
        normal = rms_norm(x, part("input_layernorm"), eps)
        split = lambda y: y.reshape(count, length, heads, width).transpose(0, 2, 1, 3)
        q, k, v = (split(normal @ part(f"self_attn.{name}_proj").T) for name in "qkv")
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        weights = softmax(q @ k.transpose(0, 1, 3, 2) / np.sqrt(np.float32(width)) + future)
        mixed = (weights @ v).transpose(0, 2, 1, 3).reshape(count, length, -1)
        x = x + mixed @ part("self_attn.o_proj").T
        normal = rms_norm(x, part("post_attention_layernorm"), eps)
        gate = normal @ part("mlp.gate_proj").T
        x = x + (gate / (1 + np.exp(-gate)) * (normal @ part("mlp.up_proj").T)) @ part("mlp.down_proj").T
    x = rms_norm(x, tensors["model.norm.weight"], eps)
    logits = x[:, :-1] @ tensors.get("lm_head.weight", embedding).T
    top = logits.max(axis=-1)
    total = top + np.log(np.exp(logits - top[..., None]).sum(axis=-1))
    target = np.take_along_axis(logits, ids[:, 1:, None], axis=-1)[..., 0]
    return float(np.mean(total - target))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--tokens", default="val_english.u16")
    parser.add_argument("--sequences", type=int, default=16)
    arguments = parser.parse_args()
    config = json.loads((arguments.data / "config.json").read_text())
    length = config["max_position_embeddings"]
    ids = np.fromfile(arguments.data / arguments.tokens, "<u2").astype(np.int64)
    count = min(arguments.sequences, len(ids) // length)
    ids = ids[: count * length].reshape(count, length)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        tensors = load(arguments.checkpoint)
        losses = [loss(tensors, config, ids[i : i + 1]) for i in range(count)]
    print(float(np.mean(losses)))


if __name__ == "__main__":
    main()
