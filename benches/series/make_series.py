"""Trains a small LLaMA-shaped model and writes a BF16 snapshot after every step, as a dense series to pack.

It has its own forward pass for jax and its own AdamW, so that it needs no training framework; it measures nothing.

Masters are FP32. A snapshot holds BF16 weights only, and where within its rounding interval a weight of the run that
made them stood is lost, so that masters start at a place in it drawn evenly (--centred starts them in the middle,
where no weight changes for many steps). AdamW's moments are warmed up before the first snapshot. The same seed gives
the same series on the same machine; XLA sums in an order that depends on the processor.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

BETA1, BETA2, EPSILON, WEIGHT_DECAY = 0.9, 0.999, 1e-8, 0.01


def dithered(weights, generator):
    """A master of each BF16 weight that rounds to it, drawn evenly from those between its neighbours' midpoints."""
    bits = weights.view(np.uint16).astype(np.int64) << 16
    offset = generator.integers(-(1 << 15) + 1, 1 << 15, size=bits.shape)
    # Magnitudes of zero stay zero: they have a neighbour of the other sign.
    moved = np.where(bits & 0x7FFF0000, bits + offset, bits)
    return moved.astype(np.uint32).view(np.float32)


def normed(x, weight, epsilon):
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight


def rotated(x, theta):
    """Rotary positions as LLaMA has them: the two halves of a head are the parts of a complex number."""
    positions, half = x.shape[1], x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half) / half)
    angle = jnp.arange(positions)[:, None] * frequency
    cos, sin = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def loss_of(weights, tokens, config):
    heads, epsilon = config["num_attention_heads"], config["rms_norm_eps"]
    inputs, goals = tokens[:, :-1], tokens[:, 1:]
    embedding = weights["model.embed_tokens.weight"]
    x = embedding[inputs]
    batch, length, width = x.shape
    mask = jnp.tril(jnp.ones((length, length), bool))
    for layer in range(config["num_hidden_layers"]):
        of = lambda name: weights[f"model.layers.{layer}.{name}.weight"]
        y = normed(x, of("input_layernorm"), epsilon)
        split = lambda name: (y @ of(f"self_attn.{name}").T).reshape(batch, length, heads, width // heads)
        q, k = (rotated(split(name), config["rope_theta"]) for name in ("q_proj", "k_proj"))
        scores = jnp.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(width // heads)
        shares = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
        mixed = jnp.einsum("bhij,bjhd->bihd", shares, split("v_proj")).reshape(batch, length, width)
        x = x + mixed @ of("self_attn.o_proj").T
        y = normed(x, of("post_attention_layernorm"), epsilon)
        x = x + (jax.nn.silu(y @ of("mlp.gate_proj").T) * (y @ of("mlp.up_proj").T)) @ of("mlp.down_proj").T
    logits = normed(x, weights["model.norm.weight"], epsilon) @ embedding.T
    chances = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(chances, goals[..., None], axis=-1))


def step_of(config, lr):
    """One update: loss, then masters and moments after it."""

    def step(masters, first, second, count, tokens):
        # The forward pass sees BF16 weights, as in mixed precision; the gradient is applied to the masters.
        seen = {name: w.astype(jnp.bfloat16).astype(jnp.float32) for name, w in masters.items()}
        loss, gradient = jax.value_and_grad(loss_of)(seen, tokens, config)
        scale1, scale2 = 1 - BETA1**count, 1 - BETA2**count
        first = {name: BETA1 * first[name] + (1 - BETA1) * g for name, g in gradient.items()}
        second = {name: BETA2 * second[name] + (1 - BETA2) * g * g for name, g in gradient.items()}
        masters = {
            name: w
            - lr * (WEIGHT_DECAY * w + first[name] / scale1 / (jnp.sqrt(second[name] / scale2) + EPSILON))
            for name, w in masters.items()
        }
        return loss, masters, first, second

    return jax.jit(step, donate_argnums=(0, 1, 2))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="directory with config.json, model.safetensors and the text")
    parser.add_argument("out", type=Path, help="directory for step-NNNNNN/model.safetensors")
    parser.add_argument("--text", default="val_code.u16", help="token ids, little-endian u16, in the model's directory")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warm-up", type=int, default=20, help="steps before the first snapshot")
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--batch", type=int, default=4, help="sequences per step")
    parser.add_argument("--length", type=int, default=128, help="tokens per sequence")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--centred", action="store_true", help="start masters at the BF16 weights themselves")
    parser.add_argument("--optimizer", action="store_true", help="also write masters and moments, FP32")
    options = parser.parse_args()

    config = json.loads((options.model / "config.json").read_text())
    start = load_file(options.model / "model.safetensors")
    text = np.fromfile(options.model / options.text, dtype="<u2").astype(np.int32)
    generator = np.random.Generator(np.random.PCG64(options.seed))
    place = (lambda w: w.astype(np.float32)) if options.centred else (lambda w: dithered(w, generator))
    masters = {name: jnp.asarray(place(w)) for name, w in sorted(start.items())}
    first = {name: jnp.zeros_like(w) for name, w in masters.items()}
    second = {name: jnp.zeros_like(w) for name, w in masters.items()}
    step = step_of(config, options.lr)
    previous, began = None, time.monotonic()
    for count in range(1, options.warm_up + options.steps + 1):
        starts = generator.integers(0, len(text) - options.length - 1, size=options.batch)
        tokens = np.stack([text[at : at + options.length + 1] for at in starts])
        loss, masters, first, second = step(masters, first, second, jnp.float32(count), tokens)
        snapshot = {name: np.asarray(w).astype(ml_dtypes.bfloat16) for name, w in masters.items()}
        changed = ""
        if previous is not None:
            differ = sum(int((w.view(np.uint16) != previous[name].view(np.uint16)).sum()) for name, w in snapshot.items())
            changed = f", {100 * differ / sum(w.size for w in snapshot.values()):.2f} % of weights changed"
        previous = snapshot
        print(f"step {count}: loss {float(loss):.3f}{changed}, {time.monotonic() - began:.0f} s", flush=True)
        if count <= options.warm_up:
            continue
        directory = options.out / f"step-{count:06}"
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(options.model / "config.json", directory / "config.json")
        save_file(snapshot, directory / "model.safetensors", metadata={"format": "pt"})
        if options.optimizer:
            state = {f"master.{name}": np.asarray(w) for name, w in masters.items()}
            state |= {f"exp_avg.{name}": np.asarray(w) for name, w in first.items()}
            state |= {f"exp_avg_sq.{name}": np.asarray(w) for name, w in second.items()}
            save_file(state, directory / "optimizer.safetensors")


if __name__ == "__main__":
    main()
