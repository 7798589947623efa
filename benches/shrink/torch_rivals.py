"""Rivals that run in torch. Each quantises lm12m in F32 on the CPU, writes a file in its own format, and is dequantised
into a folder. Arguments: the model, the folder of the student, and the case in JSON. Each case is a process."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np

os.environ["CUDA_VISIBLE_DEVICES"] = ""
import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from model import Result, calibration, is_matrix, read, write_dense  # noqa: E402

# Groups of 64 columns; matrices with 864 columns, which 64 does not divide, get groups of 32 where that is needed.
GROUP, NARROW = 64, 32


def load(base: Path, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()


def with_tokenizer(base: Path, folder: Path) -> Path:
    """The model with what AutoTokenizer wants."""
    model = folder / "teacher"
    shutil.copytree(base, model, dirs_exist_ok=True, copy_function=shutil.copyfile)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "<eos>"}
    vocabulary = json.loads((base / "tokenizer.json").read_text())["model"]["vocab"]
    first = next(token for token, number in vocabulary.items() if number == 0)
    settings.update(pad_token=first, eos_token=first, bos_token=first)
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    return model


def linears(model):
    return [(name, module) for name, module in model.named_modules() if is_matrix(f"{name}.")]


def examples(base: Path) -> list[dict[str, torch.Tensor]]:
    ids = torch.from_numpy(calibration(base).astype(np.int64))
    return [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in ids]


def stored(file: Path) -> int:
    """Bytes of the matrices in a safetensors file."""
    with safe_open(file, "pt") as opened:
        return sum(
            opened.get_tensor(name).numel() * opened.get_tensor(name).element_size()
            for name in opened.keys()
            if is_matrix(name)
        )


def finish(base: Path, folder: Path, rival: str, method: str, matrices: dict, file: Path, note="", size=None) -> None:
    tensors = read(base / "model.safetensors")
    for name, x in matrices.items():
        tensors[f"{name}.weight"] = x.detach().float().numpy().reshape(tensors[f"{name}.weight"].shape)
    write_dense(base, folder / "dense", tensors)
    Result(
        rival=rival,
        method=method,
        model=str(folder / "dense"),
        file=str(file),
        file_bytes=file.stat().st_size,
        matrix_bytes=size or stored(file),
        embedding="BF16",
        note=note,
    ).save(folder)


def save_with_rest(base: Path, file: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A safetensors file of what a rival stores of matrices, and all else as it was."""
    with safe_open(base / "model.safetensors", "pt") as opened:
        rest = {name: opened.get_tensor(name) for name in opened.keys() if not is_matrix(name)}
    save_file({name: x.detach().contiguous() for name, x in {**rest, **tensors}.items()}, file)


def hqq(base: Path, folder: Path, bits: int, axis: int) -> None:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer

    model = load(base)
    kept, matrices = {}, {}
    for name, module in linears(model):
        config = BaseQuantizeConfig(nbits=bits, group_size=GROUP, axis=axis)
        done = HQQLinear(module, config, compute_dtype=torch.float16, device="cpu", del_orig=False)
        meta = dict(done.meta)
        kept |= {f"{name}.W_q": done.W_q.data, f"{name}.scale": meta["scale"], f"{name}.zero": meta["zero"]}
        meta |= {"scale": meta["scale"].float(), "zero": meta["zero"].float(), "compute_dtype": torch.float32}
        matrices[name] = Quantizer.dequantize(done.W_q.data, meta)
    save_with_rest(base, folder / "model.safetensors", kept)
    method = f"{bits} bits, groups of {GROUP}, axis {axis}"
    finish(base, folder, "hqq", method, matrices, folder / "model.safetensors", "uses no text")


def gptqmodel(base: Path, folder: Path, bits: int) -> None:
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    narrow = {r"+:.*down_proj.*": {"group_size": NARROW}}
    config = QuantizeConfig(bits=bits, group_size=GROUP, dynamic=narrow, device="cpu")
    source = with_tokenizer(base, folder)
    model = GPTQModel.load(str(source), config, dtype=torch.float32)
    model.quantize(examples(base), batch_size=8)
    model.save(str(folder / "own"))
    del model
    file = folder / "own" / "model.safetensors"
    model = GPTQModel.load(str(folder / "own"), device="cpu", backend=BACKEND.TORCH, dtype=torch.float32)
    matrices = {}
    for name, module in model.model.named_modules():
        if is_matrix(f"{name}.") and hasattr(module, "dequantize_weight"):
            matrices[name] = module.dequantize_weight().T
    finish(base, folder, "gptqmodel", f"GPTQ, {bits} bits, groups of {GROUP}", matrices, file, NOTE_NARROW)


def auto_round(base: Path, folder: Path, bits: int) -> None:
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    source = with_tokenizer(base, folder)
    model = load(source)
    narrow = {name: {"group_size": NARROW} for name, _ in linears(model) if name.endswith("down_proj")}
    rows = [row["input_ids"] for row in examples(base)]
    made = AutoRound(
        model, AutoTokenizer.from_pretrained(source), bits=bits, group_size=GROUP, sym=False, layer_config=narrow,
        dataset=rows, seqlen=256, nsamples=len(rows), iters=200, device_map="cpu", amp=False,
    )  # fmt: skip
    done, _ = made.quantize()
    matrices = {name: module.weight.clone() for name, module in linears(done)}
    made.save_quantized(str(folder / "own"), format="auto_round")
    file = folder / "own" / "model.safetensors"
    finish(base, folder, "auto-round", f"{bits} bits, groups of {GROUP}, 200 steps", matrices, file, NOTE_NARROW)


def compressor(base: Path, folder: Path, method: str, bits: int | None) -> None:
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier

    note = ""
    if bits:

        def scheme(group, targets):
            weights = {"num_bits": bits, "type": "int", "symmetric": False, "strategy": "group", "group_size": group}
            return {"targets": targets, "weights": weights}

        groups = {
            "wide": scheme(GROUP, ["re:.*(q|k|v|o|gate|up)_proj$"]),
            "narrow": scheme(NARROW, ["re:.*down_proj$"]),
        }
        recipe = {"GPTQ": GPTQModifier, "RTN": QuantizationModifier}[method](config_groups=groups, ignore=["lm_head"])
        text, note = f"{method}, {bits} bits, groups of {GROUP}", NOTE_NARROW
    else:
        recipe = SparseGPTModifier(sparsity=0.5, mask_structure=method, targets=["Linear"], ignore=["re:.*lm_head"])
        text = "SparseGPT, 50 % zeros" if method == "0:0" else f"SparseGPT, {method}"
    rows = calibration(base).astype(np.int64)
    data = Dataset.from_dict({"input_ids": rows.tolist(), "attention_mask": np.ones_like(rows).tolist()})
    # In BF16, the dtype of its scales and of the values that it keeps.
    model = load(base, torch.bfloat16)
    oneshot(
        model=model, dataset=data, recipe=recipe, max_seq_length=256, num_calibration_samples=len(rows),
        shuffle_calibration_samples=False, batch_size=16,
    )  # fmt: skip
    matrices = {}
    for name, module in linears(model):
        weight = module.weight
        if bits:
            from compressed_tensors.quantization.lifecycle.forward import fake_quantize

            weights = module.quantization_scheme.weights
            weight = fake_quantize(weight.float(), module.weight_scale.float(), module.weight_zero_point, weights)
        matrices[name] = weight.detach().clone()
    model.save_pretrained(folder / "own", save_compressed=True)
    finish(base, folder, "llm-compressor", text, matrices, folder / "own" / "model.safetensors", note)


def quanto(base: Path, folder: Path, bits: int) -> None:
    from optimum.quanto import freeze, qint2, qint4, quantize

    model = load(base, torch.bfloat16)
    quantize(model, weights={2: qint2, 4: qint4}[bits], exclude="lm_head")
    freeze(model)
    kept = {f"{name}.{key}": x for name, module in linears(model) for key, x in flat(module.weight).items()}
    matrices = {name: module.weight.dequantize() for name, module in linears(model)}
    save_with_rest(base, folder / "model.safetensors", kept)
    method = f"{bits} bits, groups of {linears(model)[0][1].weight_group_size}"
    finish(base, folder, "optimum-quanto", method, matrices, folder / "model.safetensors", "uses no text")


def flat(tensor, prefix="w") -> dict[str, torch.Tensor]:
    """The plain tensors in a tensor of a subclass."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return {prefix: tensor}
    names, _ = tensor.__tensor_flatten__()
    found = {}
    for name in names:
        found |= flat(getattr(tensor, name), f"{prefix}.{name}")
    return found


def torchao(base: Path, folder: Path, bits: int, algorithm: str) -> None:
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_

    model = load(base)
    for group in (GROUP, NARROW):
        config = IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, f"int{bits}"), granularity=PerGroup(group), scale_dtype=torch.bfloat16,
            intx_choose_qparams_algorithm=algorithm,
        )  # fmt: skip
        quantize_(model, config, lambda module, name: is_matrix(f"{name}.") and ("down" in name) == (group == NARROW))
    kept = {f"{name}.{key}": x for name, module in linears(model) for key, x in flat(module.weight).items()}
    matrices = {name: module.weight.dequantize() for name, module in linears(model)}
    save_with_rest(base, folder / "model.safetensors", kept)
    note = f"{NOTE_NARROW}; stores a byte for each code"
    method = f"{bits} bits, groups of {GROUP}, {algorithm}"
    finish(base, folder, "torchao", method, matrices, folder / "model.safetensors", note)


NOTE_NARROW = f"groups of {NARROW} where rows have 864 columns"
RIVALS = {
    "hqq": hqq,
    "gptqmodel": gptqmodel,
    "auto-round": auto_round,
    "llm-compressor": compressor,
    "optimum-quanto": quanto,
    "torchao": torchao,
}

if __name__ == "__main__":
    torch.manual_seed(0)
    rival, *rest = json.loads(sys.argv[3])
    RIVALS[rival](Path(sys.argv[1]), Path(sys.argv[2]), *rest)
