"""What files hold (docs/format.md sections 2, 5 and 16), for the plain reader in loom_reader.py: numbers, tensors and
their chunks; safetensors files, PyTorch archives and GGUF files; bases and what they are known by."""
import collections, io, json, math, re, struct, zipfile
import numpy as np
import loom_blocks as blocks
from blake3_numpy import digest as blake3

Type = collections.namedtuple("Type", "bits exp man signed", defaults=(0, 0, False))  # exp > 0: a float
TYPES = {"BF16": Type(16, 8, 7, True), "F16": Type(16, 5, 10, True), "F32": Type(32, 8, 23, True),
         "F64": Type(64, 11, 52, True), "F8_E4M3": Type(8, 4, 3, True), "F8_E5M2": Type(8, 5, 2, True), "BOOL": Type(8),
         **{f"{c}{bits}": Type(bits, signed=c == "I") for c in "IU" for bits in (8, 16, 32, 64)}}

def must(ok, what):
    if not ok:
        raise ValueError(what)

class Bytes(io.BytesIO):  # reads that fail where the data ends
    def take(self, size):
        data = self.read(size)
        must(len(data) == size, "data ends early")
        return data

    def u8(self):
        return self.take(1)[0]

    def varint(self):
        value = shift = 0
        while (byte := self.u8()) >= 128:
            value |= (byte & 127) << shift
            shift += 7
        return value | byte << shift

class Tensor:
    def __init__(self, name, dtype, shape, begin, end, target):
        self.name, self.dtype, self.shape, self.begin, self.end = name, dtype, shape, begin, end
        self.kind = TYPES.get(dtype, Type(8))
        must(dtype not in TYPES or math.prod(shape) * self.kind.bits == 8 * (end - begin), f"bad size of {name}")
        self.n = n = (end - begin) * 8 // self.kind.bits
        self.cols = shape[-1] if dtype in TYPES and len(shape) >= 2 and 0 < shape[-1] <= target else 1
        rows = n // self.cols
        step = -(-rows // max(1, (n + target // 2) // target)) or 1
        self.chunks = [(i * self.cols, min(i + step, rows) * self.cols) for i in range(0, rows, step)]

def varint(value):
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])

def safetensors_tensors(header, target, tail=0):
    """The tensors of a safetensors header in the order of their bytes, then the bytes behind them as one more."""
    tensors = [Tensor(name, e["dtype"], e["shape"], *e["data_offsets"], target)
               for name, e in dict(json.loads(header)).items() if name != "__metadata__"]
    tensors.sort(key=lambda t: (t.begin, t.end, t.name.encode("utf-8")))
    must(all(t.begin == end <= t.end for t, end in zip(tensors, [0] + [t.end for t in tensors])), "overlap or hole")
    if tail:
        name, end = "__tail__", tensors[-1].end if tensors else 0
        while name in {t.name for t in tensors}:
            name += "_"
        tensors.append(Tensor(name, "U8", [tail], end, end + tail, target))
    return tensors

def open_safetensors(data, target):
    """The tensors of a safetensors file and the bytes that they are places in."""
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header, data = data[8:start].tobytes(), data[start:]
    end = max((e["data_offsets"][1] for name, e in json.loads(header).items() if name != "__metadata__"), default=0)
    must(end <= len(data), "a safetensors file ends early")
    return safetensors_tensors(header, target, len(data) - end), data

def framed_tensors(path, meta, target):
    """A frame and the tensors of its file, each with the number of bytes of the frame that come before it."""
    frame_bytes, used, end, listed = meta.varint(), 0, 0, []
    text = lambda: meta.take(meta.varint()).decode("utf-8")
    for _ in range(meta.varint()):
        used += meta.varint()
        name, dtype, shape = text(), text(), [meta.varint() for _ in range(meta.varint())]
        must(dtype in TYPES and len(shape) <= 16, f"a bad tensor in {path!r}")
        begin, end = end, end + math.prod(shape) * TYPES[dtype].bits // 8
        listed.append(Tensor(name, dtype, shape, begin, end, target))
        listed[-1].before = used
    must(0 < frame_bytes <= 10**8 and used <= frame_bytes, f"a bad frame in {path!r}")
    names, name = {t.name for t in listed}, "__frame__"
    must(len(names) == len(listed), f"two tensors of {path!r} have one name")
    while name in names:
        name += "_"
    frame = Tensor(name, "U8", [frame_bytes], 0, frame_bytes, target)
    frame.before = None
    return [frame, *listed]

def assemble(tensors, parts):
    """A framed file from the bytes of its frame and of its tensors."""
    frame, out, at = parts[0], [], 0
    for t, part in zip(tensors[1:], parts[1:]):
        out += [frame[at:t.before], part]
        at = t.before
    return b"".join([*out, frame[at:]])

def open_archive(file, data):
    """The files in a zip archive below a folder `data`, and all other bytes. What they are is told by their digests."""
    with zipfile.ZipFile(file) as archive:
        places = []
        for entry in archive.infolist():
            start, size = entry.header_offset, entry.file_size
            start += 30 + sum(struct.unpack("<HH", data[start + 26:start + 30].tobytes()))
            if entry.compress_type == zipfile.ZIP_STORED and re.fullmatch(r"[^/]*/data/[^/]*", entry.filename):
                places.append((start, start + size))
    places.sort()
    yield from (data[start:end] for start, end in places)
    gaps = zip([0] + [end for _, end in places], [start for start, _ in places] + [len(data)])
    yield np.concatenate([data[start:end] for start, end in gaps])

def open_gguf(data):
    """The tensors of a GGUF file; blocks are bytes, in rows. None if it cannot be read."""
    cur = Bytes(data.tobytes())
    number = lambda size: int.from_bytes(cur.take(size), "little")
    text = lambda: cur.take(number(8)).decode("utf-8")
    SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
    OTHERS = {15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 21: (256, 110), 22: (256, 82),
              29: (256, 56), 34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36)}
    sizes = {key: (kind.numbers, kind.size) for key, kind in blocks.GGML_TYPES.items()} | OTHERS

    def value(kind):
        if kind == 8:
            return text()
        if kind == 9:
            inner, count = number(4), number(8)
            return cur.take(SIZES[inner] * count) if inner in SIZES else [value(inner) for _ in range(count)]
        return number(SIZES[kind])

    must(cur.take(4) == b"GGUF" and number(4) in (2, 3), "not a GGUF file that is known")
    count, pairs = number(8), number(8)
    metadata = {text(): value(number(4)) for _ in range(pairs)}
    listed = []
    for _ in range(count):
        name, shape = text(), [number(8) for _ in range(number(4))][::-1]
        kind, start = number(4), number(8)
        if kind not in PLAIN:
            elements, size = sizes[kind]
            shape[-1] = shape[-1] // elements * size
        listed.append((name, PLAIN.get(kind, "U8"), shape, start))
    alignment = metadata.get("general.alignment", 32)
    place = -(-cur.tell() // alignment) * alignment
    ends = lambda dtype, shape, start: place + start + math.prod(shape) * TYPES[dtype].bits // 8
    found = [Tensor(name, dtype, shape, place + start, ends(dtype, shape, start), 1 << 20) for name, dtype, shape, start in listed]
    found.sort(key=lambda t: (t.begin, t.end))
    gaps = zip([0] + [t.end for t in found], [t.begin for t in found] + [len(data)])
    frame = np.concatenate([data[start:end] for start, end in gaps])
    return found, frame

def files_of(path):
    return sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]

def find_bases(paths):
    """The elements of all tensors of the bases by digest, dtype and shape. Other files are tensors, too."""
    for file in (file for path in paths for file in files_of(path)):
        data = np.frombuffer(file.read_bytes(), np.uint8)
        tensors = [Tensor(file.name, "U8", [len(data)], 0, len(data), 1 << 20)]
        if file.suffix == ".safetensors":
            tensors, data = open_safetensors(data, 1 << 20)
        for t in tensors:
            elements = data[t.begin:t.end].view(f"<u{t.kind.bits // 8}")
            yield (blake3(elements), t.dtype, tuple(t.shape)), elements
        if zipfile.is_zipfile(file):
            for part in open_archive(file, data):
                yield (blake3(part), None, None), part
        if data[:4].tobytes() == b"GGUF":
            listed, frame = open_gguf(data)
            yield (blake3(frame), "U8", (len(frame),)), frame
            for t in listed:
                elements = data[t.begin:t.end].view(f"<u{t.kind.bits // 8}")
                yield (blake3(elements), t.dtype, tuple(t.shape)), elements

def base_digest(path):
    """By what a base is known (section 16): of names, dtypes, shapes and samples of its tensors."""
    records = []
    for file in files_of(path):
        data = np.frombuffer(file.read_bytes(), np.uint8)
        if file.suffix == ".safetensors":
            tensors, data = open_safetensors(data, 1 << 20)
        elif data[:4].tobytes() == b"GGUF":
            tensors = open_gguf(data)[0]
        else:
            continue
        for t in tensors:
            values, texts = data[t.begin:t.end], [text.encode("utf-8") for text in (t.name, t.dtype)]
            record = b"".join(varint(len(text)) + text for text in texts) + varint(len(t.shape))
            record += b"".join(map(varint, t.shape)) + varint(size := len(values))
            starts = [size // 3, 2 * size // 3] if size > 2048 else [0]
            records.append(record + b"".join(values[at:at + (512 if size > 2048 else size)].tobytes() for at in starts))
    return blake3(np.frombuffer(b"".join(sorted(records)), np.uint8))[:16].hex()
