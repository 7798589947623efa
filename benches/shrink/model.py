"""lm12m as every rival gets it: its tensors, calibration windows and a GGUF file; and what a rival hands back."""

import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
from check_divergence import read, write  # noqa: E402
from make_tiny_gguf import in_pairs, renamed  # noqa: E402

WINDOW = 256
# Weights of the 56 matrices.
MATRICES = 9_912_320
# Name of a text, windows of it that are calibrated with (the first) and measured on (the last), as `shrink run` has it.
TEXTS = [("val_english", 48, 64), ("val_code", 16, 32)]


@dataclass
class Result:
    """A student of a rival."""

    rival: str
    method: str
    # Folder with the dequantised model, or the rival's own GGUF file.
    model: str
    # The file that the rival writes, and its bytes.
    file: str
    file_bytes: int
    # Bytes of the 56 matrices in it, with scales and offsets.
    matrix_bytes: int
    # What the embedding is stored in.
    embedding: str
    note: str = ""

    def save(self, folder: Path) -> None:
        (folder / "result.json").write_text(json.dumps(asdict(self), indent=1))


def windows(base: Path, name: str) -> np.ndarray:
    ids = np.fromfile(base / f"{name}.u16", "<u2")
    return ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)


def calibration(base: Path) -> np.ndarray:
    return np.concatenate([windows(base, name)[:first] for name, first, _ in TEXTS])


def evaluation(base: Path, folder: Path) -> list[Path]:
    """Files with the ids that are measured on, for the program."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, _, last in TEXTS:
        files.append(folder / f"{name}.u16")
        windows(base, name)[-last:].tofile(files[-1])
    return files


def is_matrix(name: str) -> bool:
    """Whether a tensor is of one of the 56 matrices, by its name in Hugging Face or GGUF."""
    return "_proj." in name or name.startswith("blk.") and "norm" not in name


def write_dense(base: Path, folder: Path, tensors: dict[str, np.ndarray]) -> None:
    """A folder of Hugging Face in F32."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "model.safetensors", {name: np.ascontiguousarray(x, "<f4") for name, x in tensors.items()})
    shutil.copy(base / "config.json", folder)


def heads(config: dict, name: str) -> int | None:
    """Heads of a matrix whose rows llama.cpp stores in pairs."""
    key = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    return next((config[value] for part, value in key.items() if part in name), None)


def in_halves(x: np.ndarray, count: int) -> np.ndarray:
    """The reverse of in_pairs."""
    return x.reshape(count, x.shape[0] // count // 2, 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape)


def rows_joined(name: str, shape: tuple[int, ...]) -> int:
    """How many rows make a row of a multiple of 256 columns."""
    return next(count for count in (1, 2, 4, 8) if shape[-1] * count % 256 == 0)


def write_gguf(base: Path, path: Path, joined: bool) -> None:
    """The model in BF16. `joined`: several rows of a matrix make one row, so that blocks of 256 fit."""
    import gguf

    config = json.loads((base / "config.json").read_text())
    width = config["hidden_size"] // config["num_attention_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(width)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    for name, x in read(base / "model.safetensors").items():
        if x.ndim == 1:
            writer.add_tensor(renamed(name), np.ascontiguousarray(x))
            continue
        count = heads(config, name)
        x = np.ascontiguousarray(in_pairs(x, count) if count else x)
        if joined:
            x = x.reshape(x.shape[0] // rows_joined(name, x.shape), -1)
        halves = (x.view("<u4") >> 16).astype("<u2")
        writer.add_tensor(renamed(name), halves.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(base: Path, path: Path) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, int]]]:
    """Dequantised tensors under the names of Hugging Face, and the type and bytes of each."""
    import gguf

    config = json.loads((base / "config.json").read_text())
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    tensors, sizes = {}, {}
    for name, original in read(base / "model.safetensors").items():
        tensor = stored[renamed(name)]
        x = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype("<f4").reshape(original.shape)
        count = heads(config, name)
        tensors[name] = in_halves(x, count) if count and x.ndim == 2 else x
        sizes[name] = (tensor.tensor_type.name, int(tensor.n_bytes))
    return tensors, sizes
