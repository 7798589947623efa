"""Plain writers of GGUF and of its blocks (numpy only)."""
import os
import re
import struct
import kquants
import numpy as np

TYPES = {"F32": 0, "F16": 1, "BF16": 30, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13,
         "Q6_K": 14}
NAMES = {"embed_tokens": "token_embd", "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down", "post_attention_layernorm": "ffn_norm"}

def blocks(x, kind):
    """Rows of blocks, as the reference quantisers of ggml have them."""
    if kind in kquants.KINDS:
        return kquants.blocks(x, kind).reshape(x.shape[0], -1)
    b = np.ascontiguousarray(x, np.float32).reshape(-1, 32); one = lambda d: np.where(d == 0, 0, 1 / d).astype(np.float32)
    with np.errstate(all="ignore"):
        if kind == "Q8_0":
            d = np.abs(b).max(1, keepdims=True) / np.float32(127); y = b * one(d)
            codes = (np.sign(y) * np.floor(np.abs(y) + np.float32(0.5))).astype(np.int8).view(np.uint8); parts = [d]
        elif kind == "Q4_0":
            a = np.take_along_axis(b, np.abs(b).argmax(1)[:, None], 1); d = a / np.float32(-8)
            q = np.trunc(b * one(d) + np.float32(8.5)).clip(0, 15).astype(np.uint8); codes, parts = q[:, :16] | q[:, 16:] << 4, [d]
        else:
            m = b.min(1, keepdims=True); d = (b.max(1, keepdims=True) - m) / np.float32(15)
            q = np.trunc((b - m) * one(d) + np.float32(0.5)).clip(0, 15).astype(np.uint8); codes, parts = q[:, :16] | q[:, 16:] << 4, [d, m]
        return np.concatenate([p.astype(np.float16).view(np.uint8) for p in parts] + [codes], 1).reshape(x.shape[0], -1)

def numbers(rows, kind, cols):
    if kind in kquants.KINDS:
        return kquants.numbers(rows, kind).reshape(-1, cols)
    b = rows.reshape(-1, {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20}[kind]); f16 = lambda at: np.ascontiguousarray(b[:, at:at + 2]).view(np.float16).astype(np.float32)
    if kind == "Q8_0":
        return (b[:, 2:].view(np.int8).astype(np.float32) * f16(0)).reshape(-1, cols)
    low = b[:, -16:]; q = np.concatenate([low & 15, low >> 4], 1).astype(np.float32)
    return ((q - 8) * f16(0) if kind == "Q4_0" else q * f16(0) + f16(2)).astype(np.float32).reshape(-1, cols)

def paired(x, heads):
    """Rows of heads with halves as pairs, as llama.cpp wants them."""
    return x.reshape(heads, 2, x.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(x.shape)

def renamed(name):
    name = name.removeprefix("model.").replace("layers.", "blk.")
    if name == "norm.weight":
        return "output_norm.weight"
    for old, new in NAMES.items():
        name = name.replace(f"{old}.", f"{new}.")
    return name

def save_gguf(path, tensors):
    """`tensors`: name to (type, array, shape of numbers)."""
    text = lambda s: struct.pack("<Q", len(s)) + s.encode()
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 1) + text("general.architecture") + struct.pack("<I", 8) + text("llama")
    data = b""
    for name, (kind, array, shape) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), TYPES[kind], len(data))
        raw = np.ascontiguousarray(array).tobytes(); data += raw + bytes(-len(raw) % 32)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(head + bytes(-len(head) % 32) + data)

def of_llama(state, kind, heads=4):
    """A LLaMA state as converters write it: matrices in blocks, norms in F32. `kind` may be a function of the name."""
    out, of_name = {}, kind if callable(kind) else lambda name: kind
    for name, v in state.items():
        v = paired(v, heads) if "q_proj" in name or "k_proj" in name else v
        out[renamed(name)] = (of_name(name), blocks(v, of_name(name)), v.shape) if v.ndim == 2 else ("F32", v.astype(np.float32), v.shape)
    return out

def of_gguf(state, tensors, heads=4):
    """The BF16 tensors, under the names of a LLaMA state, that its GGUF stands for."""
    from weights import B
    out = {}
    for name in state:
        kind, array, shape = tensors[renamed(name)]
        x = numbers(array, kind, shape[1]) if kind != "F32" else array
        if "q_proj" in name or "k_proj" in name:
            x = x.reshape(heads, x.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(x.shape)
        out[name] = B(x)
    return out

def experts(seed=0, d=256, ff=256, layers=2, count=8):
    """The experts of some layers, each in tensors of its own, with values that BF16 has."""
    from weights import bf16, f32, matrix
    rng = np.random.default_rng(seed); q = lambda a, b: f32(bf16(matrix(rng, a, b)))
    return {f"model.layers.{i}.mlp.experts.{e}.{part}_proj.weight": q(*((d, ff) if part == "down" else (ff, d)))
            for i in range(layers) for e in range(count) for part in ("gate", "up", "down")}

def of_experts(state, kind):
    """The same as GGUF stacks them."""
    stacks = {}
    for name, x in state.items():
        layer, part = re.fullmatch(r"model\.layers\.(\d+)\.mlp\.experts\.\d+\.(\w+)_proj\.weight", name).groups()
        stacks.setdefault(f"blk.{layer}.ffn_{part}_exps.weight", []).append(x)
    all_of = lambda rows, k: np.concatenate([blocks(x, k) for x in rows])
    return {name: (kind(name), all_of(rows, kind(name)), (len(rows), *rows[0].shape)) for name, rows in stacks.items()}
