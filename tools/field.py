"""Packs the situations of tools/field and compares the ratios with their bars.

A case is a generator of a base and a fine-tune, deterministic and synthetic. What it should come to ("reachable") was
measured where the same values can be arranged so that names and shapes match; "about" and "above" are arithmetic. The
bar is 85 % of it, or 30 % where it is "above", and never less than XOR + zstd-1 of the same bytes.
"""
import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import zstandard

HERE = Path(__file__).parent
ABOVE, MEASURED = "above", ""
# Name: kind, how sure the number is, reachable ratio, whether the small set has it.
RATIOS = {
    "vocab_grow": ("rows", "about", 10, True),
    "vocab_grow_zero_pad": ("rows", "about", 2500, True),
    "vocab_shrink": ("rows", MEASURED, 11.3, False),
    "vocab_trim_rows": ("rows", "about", 1000, True),
    "dtype_BF16_F32_exact": ("dtype", ABOVE, 3000, False),
    "dtype_BF16_F16_exact": ("dtype", ABOVE, 1500, False),
    "dtype_F16_BF16_exact": ("dtype", ABOVE, 1500, False),
    "dtype_F32_BF16_exact": ("dtype", MEASURED, 1756, False),
    "dtype_F32_F16_exact": ("dtype", MEASURED, 1756, False),
    "dtype_F32_BF16_tuned": ("dtype", MEASURED, 11.3, True),
    "dtype_F16_BF16_tuned": ("dtype", MEASURED, 11.3, False),
    "dtype_BF16_F16_tuned": ("dtype", MEASURED, 3.9, True),
    "dtype_F32_F16_tuned": ("dtype", MEASURED, 3.9, False),
    "dtype_BF16_F32_tuned": ("dtype", MEASURED, 1.87, False),
    "vlm_rename": ("names", MEASURED, 11.3, False),
    "vlm_ambiguous_prefix": ("names", MEASURED, 11.3, False),
    "peft_base_layer_infix": ("names", MEASURED, 11.3, False),
    "fsdp_compile_infix": ("names", MEASURED, 11.3, False),
    "meta_names_exact": ("names", ABOVE, 2000, True),
    "bert_gamma_beta": ("names", MEASURED, 1.87, False),
    "frankenmerge_exact": ("layers", ABOVE, 1000, False),
    "depth_upscaled_trained": ("layers", MEASURED, 11.1, False),
    "layers_pruned": ("layers", MEASURED, 11.1, False),
    "moe_upcycled_exact": ("layers", ABOVE, 1000, False),
    "moe_upcycled_trained": ("layers", "about", 11, True),
    "untied_head": ("tied", MEASURED, 11.3, False),
    "untied_head_exact": ("tied", MEASURED, 50, False),
    "qkv_fused": ("fused", MEASURED, 11.3, True),
    "qkv_split": ("fused", MEASURED, 11.3, False),
    "transposed_conv1d": ("transposed", MEASURED, 11.2, True),
    "experts_stacked": ("experts", MEASURED, 10.9, True),
    "experts_unstacked": ("experts", ABOVE, 1000, True),
    "shape_squeezed": ("reshaped", MEASURED, 11.0, False),
    "shape_squeezed_exact": ("reshaped", ABOVE, 1000, False),
    "qk_permuted": ("permuted", MEASURED, 11.3, True),
    "m_zero_flat_repartition": ("re-cut", MEASURED, 2.06, True),
    "m_passthrough_scaled": ("scaled", "about", 1000, True),
    "tokenizer_grown": ("files", MEASURED, 3200, True),
    "tokenizer_renumbered": ("files", MEASURED, 84, True),
    "json_reformatted": ("files", "about", 1000, True),
    "opaque_shifted": ("files", MEASURED, 6.65, True),
    "hub_cache_repo": ("files", MEASURED, 11.4, True),
    "near_copies_in_one_file": ("copies", MEASURED, 2.65, False),
    "q_bf16_to_fp8_block": ("quantised", ABOVE, 100, True),
    "q_fp8_block_to_bf16": ("quantised", ABOVE, 1000, True),
    "q_mxfp4_to_bf16": ("quantised", ABOVE, 1000, True),
    "q_gptq_from_base": ("quantised", ABOVE, 50, True),
    "q_fp8_finetune_rescaled": ("quantised", MEASURED, 8.13, False),
    "gguf_q8_0_from_base": ("quantised", ABOVE, 100, True),
    "gguf_q4_0_from_base": ("quantised", ABOVE, 100, True),
    "gguf_q4_1_to_bf16": ("quantised", ABOVE, 1000, True),
    "gguf_q4_k_from_base": ("quantised", "about", 9.5, True),
    "gguf_q4_k_m_from_base": ("quantised", "about", 10, True),
    "gguf_q2_q3_q5_k_from_base": ("quantised", "about", 7, False),
    "gguf_q6_k_to_bf16": ("quantised", ABOVE, 1000, True),
    "gguf_experts_from_base": ("quantised", "about", 47, True),
    "gguf_experts_to_bf16": ("quantised", ABOVE, 1000, True),
    "bnb_nested_from_base": ("quantised", ABOVE, 100, True),
    "bnb_nested_to_bf16": ("quantised", ABOVE, 1000, True),
    "gguf_q8_0_pair": ("codes", MEASURED, 15.8, False),
    "gguf_q4_0_pair": ("codes", MEASURED, 24.0, False),
    "int8_rows_scales": ("quantised", ABOVE, 500, True),
    "gptq_act_order_from_base": ("quantised", ABOVE, 50, True),
    "gptq_act_order_to_f16": ("quantised", ABOVE, 1000, True),
    "mxfp4_from_bf16": ("quantised", ABOVE, 200, True),
    "q_mlx_u32_pair": ("codes", MEASURED, 12.21, True),
    "q_gptq_pair": ("codes", MEASURED, 5.10, False),
    "q_bnb_nf4_pair": ("codes", MEASURED, 9.78, False),
    "q_nvfp4_pair": ("codes", MEASURED, 9.49, False),
    "q_opaque_dtypes_pair": ("codes", MEASURED, 41.6, False),
    "lora_rank_cliff": ("rank", "about", 9, True),
    "conv_merged": ("rank", "about", 30, True),
    "experts_merged": ("rank", "about", 40, True),
}
# The same with adapters, which are given as well.
RATIOS |= {
    "lora_plain": ("adapter", MEASURED, 1178, True),
    "lora_rslora_embed": ("adapter", MEASURED, 81.6, False),
    "lora_bias_all": ("adapter", MEASURED, 898, False),
    "lora_modules_to_save": ("adapter", MEASURED, 1345, False),
    "lora_modules_to_save_f32": ("adapter", MEASURED, 1330, False),
    "lora_alpha_pattern_order": ("adapter", MEASURED, 1178, True),
    "lora_pattern_regex": ("adapter", MEASURED, 1178, True),
    "lora_null_fields": ("adapter", MEASURED, 1178, False),
    "lora_dora": ("adapter", ABOVE, 500, False),
    "lora_vocab_grown": ("adapter", ABOVE, 1000, False),
    "lora_gpt2_fan_in_fan_out": ("adapter", MEASURED, 1100, True),
    "lora_two_sequential": ("adapter", "about", 1000, True),
    "lora_weighted_merge": ("adapter", MEASURED, 1178, True),
    "lora_moe_target_parameters": ("adapter", ABOVE, 300, True),
    "lora_conv": ("adapter", ABOVE, 200, True),
    "lora_kohya_file": ("adapter", MEASURED, 300, True),
    "lora_layer_replicated": ("adapter", ABOVE, 500, True),
    "lora_qkv_fused_base": ("adapter", ABOVE, 500, True),
}
# Name: kind. With the base, the container should be no larger than without; the bar is 85 % of that ratio, too.
OVERHEADS = {"tiny_tensors_base_hurts": "digests", "equal_scalars_base_hurts": "digests"}
# Name: kind, two sizes. User time must grow at most as fast as the number of tensors, with some room.
TIMES = {"many_renamed_tensors": ("time", 10_000, 40_000), "near_equal_tensors_quadratic": ("time", 500, 2000)}
ROOM = 1.5


def make(name, folder, *arguments):
    subprocess.run([sys.executable, HERE / "field" / f"{name}.py", folder, *map(str, arguments)], check=True)
    bases = sorted([*folder.glob("base*"), *folder.glob("adapter*")])
    tuned = next(path for path in (folder / "tuned", folder / "tuned.safetensors", folder / "tuned.gguf") if path.exists())
    return tuned, bases


def with_bases(bases):
    return [part for base in bases for part in ("--adapter" if base.name.startswith("adapter") else "--base", base)]


def pack(program, tuned, bases, target):
    """The size of the container and the user time, after a round trip."""
    before = os.times().children_user
    subprocess.run([program, "-q", "pack", tuned, *with_bases(bases), "-o", target, "--overwrite"], check=True)
    seconds = os.times().children_user - before
    back = target.with_name("back" + tuned.suffix)
    subprocess.run([program, "-q", "unpack", target, *with_bases(bases), "-o", back, "--overwrite"], check=True)
    if files_of(back) != files_of(tuned):
        sys.exit(f"{tuned}: the restored files differ")
    return target.stat().st_size, seconds


def files_of(path):
    # Blobs of a hub cache are packed under the names that the snapshots have for them.
    is_blob = lambda file: file.parent.name == "blobs" and (file.parents[1] / "snapshots").is_dir()
    files = sorted(file for file in path.rglob("*") if file.is_file() and not is_blob(file)) if path.is_dir() else [path]
    return {file.relative_to(path): file.read_bytes() for file in files}


def tensors_of(path):
    found = {}
    # What has no header of safetensors is compared as a whole.
    for file, data in files_of(path).items():
        if (path / file).suffix != ".safetensors":
            found[str(file), "U8", (len(data),)] = data
            continue
        size = struct.unpack("<Q", data[:8])[0]
        for name, entry in json.loads(data[8:8 + size]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                found[name, entry["dtype"], tuple(entry["shape"])] = data[8 + size:][begin:end]
    return found


def xor_zstd(tuned, bases):
    """Bytes of XOR + zstd-1: with the tensor of the same name, dtype and shape, where there is one."""
    known = {key: data for base in bases for key, data in tensors_of(base).items()}
    xor = lambda a, b: (int.from_bytes(a, "little") ^ int.from_bytes(b, "little")).to_bytes(len(a), "little")
    parts = [xor(data, known[key]) if key in known else data for key, data in tensors_of(tuned).items()]
    return len(zstandard.ZstdCompressor(level=1).compress(b"".join(parts)))


def original_bytes(path):
    return sum(len(data) for data in files_of(path).values())


def rows_of(program, only_small):
    with tempfile.TemporaryDirectory() as root:
        folder = lambda name: Path(root) / name
        for name, (kind, sure, reachable, is_small) in RATIOS.items():
            if only_small and not is_small:
                continue
            tuned, bases = make(name, folder(name))
            size, _ = pack(program, tuned, bases, folder(name) / "x.loom")
            ratio = original_bytes(tuned) / size
            plain = original_bytes(tuned) / xor_zstd(tuned, bases)
            bar = max(reachable * (0.3 if sure == ABOVE else 0.85), plain)
            yield name, kind, f"{ratio:.2f}", f"{sure} {reachable}".strip(), f"{bar:.2f}", f"{plain:.2f}", ratio >= bar
        for name, kind in OVERHEADS.items():
            tuned, bases = make(name, folder(name))
            size, _ = pack(program, tuned, bases, folder(name) / "x.loom")
            alone, _ = pack(program, tuned, [], folder(name) / "y.loom")
            ratio, reachable = original_bytes(tuned) / size, original_bytes(tuned) / alone
            yield name, kind, f"{ratio:.3f}", f"{reachable:.3f}", f"{0.85 * reachable:.3f}", "", ratio >= 0.85 * reachable
        for name, (kind, few, many) in () if only_small else TIMES.items():
            seconds = []
            for count in (few, many):
                tuned, bases = make(name, folder(name), count)
                times = [pack(program, tuned, bases, folder(name) / "x.loom")[1] for _ in range(3)]
                seconds.append(sorted(times)[1])
            growth, bar = seconds[1] / seconds[0], many / few * ROOM
            yield name, kind, f"{growth:.1f} times", "", f"{bar:.1f} times", "", growth <= bar


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path, help="the deltaloom program")
    parser.add_argument("--small", action="store_true", help="only some cases, none of which takes long")
    parser.add_argument("--out", type=Path, help="write the table to this file as Markdown")
    arguments = parser.parse_args()
    start, lines, failed = time.monotonic(), [], []
    for *cells, is_reached in rows_of(arguments.program.resolve(), arguments.small):
        line = "| " + " | ".join([*cells, "reached" if is_reached else "**missed**"]) + " |"
        print(line, flush=True)
        lines.append(line)
        if not is_reached:
            failed.append(cells[0])
    if arguments.out:
        head = ["| case | kind | ratio | reachable | bar | XOR + zstd-1 | verdict |", "|---|---|--:|--:|--:|--:|---|"]
        text = "# Pairs from the field\n\nWritten by `just field`.\n\n" + "\n".join(__doc__.strip().split("\n"))
        text += "\n\nSizes of containers are exact. For `time`, the number is how much more user time four times as many\n"
        text += "tensors take (medians of three), and for `digests`, what is reachable is the container without the base.\n\n"
        arguments.out.write_text(text + "\n".join(head + lines) + "\n")
    print(f"{len(lines) - len(failed)} of {len(lines)} reached, {time.monotonic() - start:.0f} s")
    sys.exit(f"missed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
