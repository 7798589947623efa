"""llama.cpp's quantiser, called in libllama, with and without an importance matrix. Arguments: the model, the folder of
the student, the case in JSON, and libllama.so."""

import ctypes
import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from model import Result, calibration, is_matrix, read_gguf, renamed, rows_joined, write_dense, write_gguf

# Names of llama.cpp and their numbers in its llama_ftype.
FTYPES = {
    "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q4_K_M": 15, "IQ4_XS": 30, "Q3_K_M": 12, "IQ3_XXS": 23, "Q2_K": 10,
    "IQ2_M": 29, "IQ2_XS": 20, "IQ2_XXS": 19,
}  # fmt: skip
# Its number in ggml_type.
BF16 = 30


class Importance(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t)]


class Parameters(ctypes.Structure):
    _fields_ = [
        ("nthread", ctypes.c_int32),
        ("ftype", ctypes.c_int),
        ("output_tensor_type", ctypes.c_int),
        ("token_embedding_type", ctypes.c_int),
        ("allow_requantize", ctypes.c_bool),
        ("quantize_output_tensor", ctypes.c_bool),
        ("only_copy", ctypes.c_bool),
        ("pure", ctypes.c_bool),
        ("keep_split", ctypes.c_bool),
        ("dry_run", ctypes.c_bool),
        ("imatrix", ctypes.POINTER(Importance)),
        ("kv_overrides", ctypes.c_void_p),
        ("tt_overrides", ctypes.c_void_p),
        ("prune_layers", ctypes.c_void_p),
        ("max_buf_size", ctypes.c_size_t),
    ]


def library(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    found.llama_model_quantize_default_params.restype = Parameters
    found.llama_model_quantize.restype = ctypes.c_uint32
    found.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Parameters)]
    return found


def importance(base: Path, path: Path) -> dict[str, np.ndarray]:
    """Mean square of each input of a matrix on the calibration windows: what llama-imatrix collects."""
    if not path.is_file():
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        sums: dict[str, torch.Tensor] = {}

        def hook(name):
            def add(_module, inputs):
                squares = inputs[0].double().square().reshape(-1, inputs[0].shape[-1])
                sums[name] = sums.get(name, 0) + squares.sum(0)

            return add

        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(hook(f"{name}.weight"))
        ids = torch.from_numpy(calibration(base).astype(np.int64))
        with torch.no_grad():
            for part in ids.split(8):
                model(part)
        np.savez(path, **{name: (x / ids.numel()).float().numpy() for name, x in sums.items()})
    return dict(np.load(path))


def quantise(found: ctypes.CDLL, source: Path, target: Path, ftype: int, keep: bool, weights: dict | None) -> None:
    parameters = found.llama_model_quantize_default_params()
    parameters.nthread, parameters.ftype = 1, ftype
    if keep:
        parameters.token_embedding_type = BF16
    if weights:
        entries = (Importance * (len(weights) + 1))()
        for entry, (name, data) in zip(entries, weights.items()):
            data = np.ascontiguousarray(data, "<f4")
            weights[name] = data  # stays alive while the library reads it
            entry.name, entry.size = name.encode(), data.size
            entry.data = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        parameters.imatrix = entries
    if found.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(parameters)):
        raise RuntimeError("llama_model_quantize refuses it")


def student(found: ctypes.CDLL, base: Path, folder: Path, kind: str, joined: bool, embedding: str, important: bool):
    """One file of llama.cpp, dequantised into a folder."""
    shared = folder.parent
    source = shared / ("joined.gguf" if joined else "plain.gguf")
    if not source.is_file():
        write_gguf(base, source, joined)
    weights = None
    if important:
        weights = {}
        for name, data in importance(base, shared / "importance.npz").items():
            weights[renamed(name)] = np.tile(data, rows_joined(name, data.shape)) if joined else data
    file = folder / f"{kind}.gguf"
    quantise(found, source, file, FTYPES[kind], embedding == "BF16", weights)
    tensors, sizes = read_gguf(base, file)
    write_dense(base, folder / "dense", tensors)
    types = Counter(kind for name, (kind, _) in sizes.items() if is_matrix(name))
    matrix_bytes = sum(size for name, (_, size) in sizes.items() if is_matrix(name))
    note = ", ".join(f"{count} {kind}" for kind, count in types.most_common())
    Result(
        rival="llama.cpp, rows joined" if joined else "llama.cpp",
        method=kind + (", importance" if important else ""),
        model=str(folder / "dense"),
        file=str(file),
        file_bytes=file.stat().st_size,
        matrix_bytes=matrix_bytes,
        embedding=sizes["model.embed_tokens.weight"][0],
        note=note,
    ).save(folder)


if __name__ == "__main__":
    base, folder, case = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    student(library(Path(sys.argv[4])), base, folder, *case)
