"""A second reader of students, made from docs/student.md: prints the SHA-256 of each matrix of a folder, in F32.
student_reader.py FOLDER [--base FOLDER]"""
import hashlib, json, math, sys
from pathlib import Path
import numpy as np
from blake3_numpy import digest as blake3

DEEPEST, LARGEST_MATRIX, LARGEST_DESCRIPTION = 4, 1 << 34, 16 << 20
TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I8": "i1", "U8": "u1"}


def must(ok, what):
    if not ok:
        raise ValueError(what)


def is_size(value):
    return type(value) is int and value >= 0


class Tensors:
    """The tensors of a safetensors file by name. They stay bytes until a form asks for them."""

    def __init__(self, path):
        self.data = np.memmap(path, np.uint8, "r")
        length = int.from_bytes(bytes(self.data[:8]), "little")
        must(len(self.data) >= 8 + length, "the header ends early")
        self.header = json.loads(bytes(self.data[8:8 + length]))
        self.data = self.data[8 + length:]

    def find(self, name, dtype, shape):
        tensor = self.header.get(name)
        must(tensor is not None, f"there is no tensor {name}")
        must(tensor["dtype"] == dtype and tensor["shape"] == shape, f"{name} does not fit its form")
        begin, end = tensor["data_offsets"]
        kind = np.dtype(TYPES[dtype])
        must(is_size(begin) and end <= len(self.data), f"bad place of {name}")
        must(end - begin == math.prod(shape) * kind.itemsize, f"bad size of {name}")
        return np.frombuffer(self.data[begin:end].tobytes(), kind).reshape(shape)

    def halves(self, name, shape):
        found = self.find(name, "F16", shape).astype(np.float32)
        must(np.isfinite(found).all(), f"{name} is not finite")
        return found


def widened(values, dtype):
    return (values.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else values.astype(np.float32)


def dense(form, name, shape, tensors, depth, base):
    dtype = form["dtype"]
    must(dtype in ("F32", "BF16", "F16"), f"{name} has an unknown dtype")
    values = tensors.find(f"{name}.values", dtype, shape)
    values = widened(values, dtype)
    must(np.isfinite(values).all(), f"{name} has a value that is not finite")
    return values


def quantised(form, name, shape, tensors, depth, base):
    (rows, cols), group = shape, form.get("group")
    must(group is None or is_size(group) and group > 0, f"{name} has a bad group")
    must(all(type(form[key]) is bool for key in ("column_factors", "row_factors")), f"{name}: factors are there or not")
    codes = tensors.find(f"{name}.codes", "I8", shape)
    must((codes != -128).all(), f"{name} has the code -128")
    if group is None:
        steps = tensors.halves(f"{name}.steps", [1])
    else:
        steps = tensors.halves(f"{name}.steps", [rows, -(-cols // group)])[:, np.arange(cols) // group]
    values = codes.astype(np.float32) * steps
    if form["column_factors"]:
        values *= tensors.halves(f"{name}.columns", [cols])
    if form["row_factors"]:
        values *= tensors.halves(f"{name}.rows", [rows])[:, None]
    return values


def sparse(form, name, shape, tensors, depth, base):
    (rows, cols), pattern = shape, form["pattern"]
    must(is_size(form["count"]), f"{name} has a bad count")
    bits = tensors.find(f"{name}.bits", "U8", [rows, -(-cols // 8)])
    bits = np.unpackbits(bits, axis=1, bitorder="little").astype(bool)
    must(not bits[:, cols:].any(), f"{name} has a bit behind the last column")
    kept = bits[:, :cols]
    must(int(kept.sum()) == form["count"], f"{name} has another number of set bits")
    if pattern != "any":
        must(type(pattern) is dict and pattern.keys() == {"n_of_m"}, f"{name} has an unknown pattern")
        pattern = pattern["n_of_m"]
        must(type(pattern) is dict and pattern.keys() == {"keep", "of"}, f"{name} has a bad pattern")
        keep, of = pattern["keep"], pattern["of"]
        must(is_size(keep) and is_size(of) and 0 < keep < of, f"{name} has a bad pattern")
        for begin in range(0, cols, of):
            must((kept[:, begin:begin + of].sum(axis=1) <= keep).all(), f"{name} has bits that are not {keep}:{of}")
    out = np.zeros(shape, np.float32)
    out[kept] = decode(form["values"], f"{name}.kept", [1, form["count"]], tensors, depth + 1)[0]
    return out


def low_rank(form, name, shape, tensors, depth, base):
    (rows, cols), rank = shape, form["rank"]
    must(is_size(rank) and 1 <= rank <= min(shape), f"{name} has a bad rank")
    left = decode(form["left"], f"{name}.left", [rows, rank], tensors, depth + 1).astype(np.float64)
    right = decode(form["right"], f"{name}.right", [rank, cols], tensors, depth + 1).astype(np.float64)
    out = np.zeros(shape, np.float64)
    for k in range(rank):
        out += left[:, k, None] * right[k]
    return out.astype(np.float32)


def turned(form, name, shape, tensors, depth, base):
    return np.ascontiguousarray(decode(form["form"], f"{name}.turned", shape[::-1], tensors, depth + 1).T)


def added(form, name, shape, tensors, depth, base):
    must(type(form["parts"]) is list, f"{name} has no parts")
    out = np.zeros(shape, np.float32)
    for number, part in enumerate(form["parts"]):
        out += decode(part, f"{name}.{number}", shape, tensors, depth + 1, base)
    return out


def of_base(form, name, shape, tensors, depth, base):
    must(base is not None and list(base.shape) == shape, f"{name} is that of a base, which has no such matrix")
    return base


# Of each kind: its decoder, and its keys besides `kind`.
KINDS = {"dense": (dense, {"dtype"}), "quantised": (quantised, {"group", "column_factors", "row_factors"}),
         "sparse": (sparse, {"pattern", "count", "values"}), "low_rank": (low_rank, {"rank", "left", "right"}),
         "turned": (turned, {"form"}), "sum": (added, {"parts"}), "base": (of_base, set()),
         "zero": (lambda form, name, shape, *_: np.zeros(shape, np.float32), set())}


def decode(form, name, shape, tensors, depth=0, base=None):
    """The matrix of a form, in F32. `shape` is that of the matrix, `[rows, cols]`, and `base` what the base has as it."""
    must(depth <= DEEPEST, f"forms of {name} nest too deep")
    must(type(form) is dict and form.get("kind") in KINDS, f"{name} has no known form")
    decoder, keys = KINDS[form["kind"]]
    must({"group", *form} - {"kind"} == {"group", *keys} and form.keys() <= {"kind", *keys}, f"bad keys of {name}")
    return decoder(form, name, shape, tensors, depth, base)


def read_base(directory, digest):
    """The tensors of a base by name, in F32; `None` for those that are no floating-point numbers."""
    found = {}
    for tensors in map(Tensors, Path(directory).glob("*.safetensors")):
        for name in tensors.header.keys() - {"__metadata__"}:
            tensor, values = tensors.header[name], None
            data = tensors.data[slice(*tensor["data_offsets"])].tobytes()
            if tensor["dtype"] in ("F32", "BF16", "F16"):
                values = widened(tensors.find(name, tensor["dtype"], tensor["shape"]), tensor["dtype"])
                data = values.tobytes() if tensor["dtype"] == "F16" else data
            found[name] = data, values
    data = b"".join(name.encode() + found[name][0] for name in sorted(found, key=str.encode))
    must(blake3(np.frombuffer(data, np.uint8)).hex() == digest, "this is another base")
    return {name: values for name, (_, values) in found.items()}


def read(directory, base=None):
    """The matrices of a student that have forms, as float32 arrays by name. `base` is the folder of its base."""
    description = Path(directory) / "student.json"
    must(description.stat().st_size <= LARGEST_DESCRIPTION, "student.json is too large")
    student = json.loads(description.read_bytes())
    must(student.get("schema") == 1 and student.get("lossy") is True, "no student of schema 1")
    tensors = Tensors(Path(directory) / "student.safetensors")
    must((base is None) == ("base" not in student), "a base is needed, or there is none")
    base = {} if base is None else read_base(base, student["base"])
    for name in student.get("from_base", []):
        must(name in base and name not in tensors.header and name not in student["matrices"], f"{name} is not that of a base")
    out = {}
    for name, matrix in student["matrices"].items():
        shape = matrix["shape"]
        must(type(shape) is list and len(shape) == 2 and all(map(is_size, shape)), f"{name} is not a matrix")
        must(math.prod(shape) <= LARGEST_MATRIX and name not in tensors.header, f"{name} is too large, or there twice")
        with np.errstate(over="ignore", invalid="ignore"):
            out[name] = decode(matrix["form"], name, shape, tensors, base=base.get(name))
        must(np.isfinite(out[name]).all(), f"{name} is not finite")
    return out


if __name__ == "__main__":
    arguments = sys.argv[1:]
    must(len(arguments) == 1 or len(arguments) == 3 and arguments[1] == "--base", __doc__)
    for name, values in read(arguments[0], *arguments[2:]).items():
        print(name, hashlib.sha256(values.astype("<f4").tobytes()).hexdigest())
