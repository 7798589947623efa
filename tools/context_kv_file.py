"""Computes a long sequence of a model with random weights twice, with keys and values in memory and in a file of which 64 MB
stay in memory, and compares the bits of the last logits and the memory of the processes. tools/context_kv_file.sh builds the
program; a model has the shape of SmolLM2-135M but for --layers."""

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
from pathlib import Path

WIDTH, HEADS, KV_HEADS, HEAD, INNER, VOCABULARY = 576, 9, 3, 64, 1536, 49152
RESIDENT, ALLOWED = 64_000_000, 100_000_000
# The upper byte of a BF16 number between 1/128 and 1/32, with the sign of a random byte.
UPPER = bytes(byte & 0x80 | 0x3C for byte in range(256))
ONE = bytes([0x80, 0x3F])


def write_model(folder: Path, layers: int) -> None:
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": WIDTH, "num_hidden_layers": layers,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "intermediate_size": INNER, "vocab_size": VOCABULARY,
        "max_position_embeddings": 8192, "rope_theta": 100000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
    for layer in range(layers):
        of_layer = {
            "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (KV_HEADS * HEAD, WIDTH),
            "self_attn.v_proj": (KV_HEADS * HEAD, WIDTH), "self_attn.o_proj": (WIDTH, WIDTH),
            "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH), "mlp.down_proj": (WIDTH, INNER),
            "input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in of_layer.items()}
    source, header, data = random.Random(7), {}, bytearray()
    for name, shape in shapes.items():
        start, count = len(data), math.prod(shape)
        values = bytearray(ONE * count)
        if len(shape) == 2:
            values[0::2], values[1::2] = source.randbytes(count), source.randbytes(count).translate(UPPER)
        data += values
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", help="the example kv_file")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--layers", type=int, default=30)
    arguments = parser.parse_args()

    def measure(*words: object) -> dict:
        command = [arguments.program, *map(str, words)]
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)

    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        model.mkdir()
        write_model(model, arguments.layers)
        in_memory = measure(model, arguments.tokens)
        in_file = measure(model, arguments.tokens, Path(folder) / "kv", RESIDENT)
        left = (Path(folder) / "kv").exists()
    bound = in_file["weight_bytes"] + RESIDENT + ALLOWED
    mb = lambda count: f"{count / 1e6:,.0f} MB"
    print(f"{arguments.tokens} tokens, {arguments.layers} layers, weights {mb(in_file['weight_bytes'])}, "
          f"keys and values {mb(in_file['kv_bytes'])}\n")
    print("| keys and values | most memory | seconds | read back | logits |\n|---|--:|--:|--:|---|")
    for name, run in [("in memory", in_memory), ("in a file", in_file)]:
        print(f"| {name} | {mb(run['peak_bytes'])} | {run['seconds']:.0f} | {mb(run['read_bytes'] or 0)} | {run['logits'][:16]} |")
    missed = [what for what, holds in [
        ("the same bits", in_memory["logits"] == in_file["logits"]),
        (f"at most {mb(bound)} of memory", in_file["peak_bytes"] <= bound),
        ("the file goes at the end", not left),
    ] if not holds]
    print("".join(f"MISSED: {what}\n" for what in missed) or f"\nthe same bits, and at most {mb(bound)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
