"""A second, independent reader of deltaloom containers (.loom), written from docs/format.md alone.

It restores the packed file or directory, or compares it with the original. It checks the rules of the format, every
CRC-32, and the BLAKE3 digest of every tensor and of its reference.
"""
import argparse
import json
import math
import struct
import sys
import zlib
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import zstandard

from blake3_numpy import digest as blake3

U64 = np.uint64
Type = namedtuple("Type", "bits exp man signed")  # exp > 0: a float
OPAQUE = Type(8, 0, 0, False)
FLOATS = {"BF16": (16, 8, 7), "F16": (16, 5, 10), "F32": (32, 8, 23), "F64": (64, 11, 52), "F8_E4M3": (8, 4, 3),
          "F8_E5M2": (8, 5, 2)}
TYPES = {"BOOL": OPAQUE, **{name: Type(*bits, True) for name, bits in FLOATS.items()},
         **{f"{c}{bits}": Type(bits, 0, 0, c == "I") for c in "IU" for bits in (8, 16, 32, 64)}}
OPAQUE_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "C64": 64}
ZERO, REFERENCE, IDENTICAL, TIED, CAST, CAST_INTERNAL = range(6)
SAME, CONSTANT, RAW, PLANES, FLOAT, ULP, SPARSE = range(7)


class Corrupt(Exception):
    """The input breaks a rule of the format."""


def must(ok, what):
    if not ok:
        raise Corrupt(what)


class Bytes:
    """A cursor over bytes; every read is checked against what is there."""
    def __init__(self, data):
        self.data, self.pos = data, 0

    def take(self, size):
        must(size <= len(self.data) - self.pos, "data ends early")
        self.pos += size
        return self.data[self.pos - size:self.pos]

    def u8(self):
        return self.take(1)[0]

    def varint(self):
        value = shift = 0
        while True:
            byte = self.u8()
            value |= (byte & 127) << shift
            if byte < 128:
                must(value < 1 << 64 and (byte or not shift), "varint too large or not in its shortest form")
                return value
            shift += 7
            must(shift < 70, "varint too long")

    def zigzag(self):
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def text(self):
        return self.take(self.varint()).decode("utf-8")

    def end(self, what):
        must(self.pos == len(self.data), f"bytes left over in {what}")


def unzstd(frame, size):
    must(zstandard.frame_content_size(frame) in (-1, size), "wrong size in a zstd frame")  # it would be allocated
    out = zstandard.ZstdDecompressor().decompress(frame, max_output_size=max(size, 1), allow_extra_data=False)
    must(len(out) == size, "wrong size of a zstd frame")
    return out


def gather(data, start, width):
    """The bit fields at bit positions `start`, at most 63 bits wide, as u64."""
    data = np.frombuffer(data + bytes(16), np.uint8)
    words = np.ndarray(len(data) - 7, "<u8", data, strides=(1,))  # the 8 bytes from every byte on
    at, shift, width = start >> 3, (start & 7).astype(U64), np.asarray(width, U64)
    # Up to 7 + 63 bits reach into a ninth byte. Shifting it in two steps keeps shift = 0 from being a shift by 64.
    ninth = (data[at + 8].astype(U64) << U64(1)) << (U64(63) - shift)
    return ((words[at] >> shift) | ninth) & ((U64(1) << width) - U64(1))


def read_fields(cur, carry, width):
    """A bit stream of fields, which starts with the carried bytes and goes on with just the bytes it still needs."""
    ends = np.cumsum(width, dtype=np.int64)
    bits = int(ends[-1])
    data = carry + cur.take(max(0, (bits + 7) // 8 - len(carry)))
    must(int.from_bytes(data[bits >> 3:], "little") >> (bits & 7) == 0, "unused bits are not 0")
    return gather(data, ends - width, width)


def read_scales(cur, count):
    base, k, data = cur.zigzag(), cur.u8(), cur.take(cur.varint())
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").tobytes()
    found, pos = [], 0
    for _ in range(count):
        stop = bits.find(0, pos)
        must(stop >= 0, "scales end early")
        found.append((stop - pos, stop + 1))
        pos = stop + 1 + k
    quotient, at = np.array(found).T
    must(k <= 15 and abs(base) < 1 << 30 and quotient.max() <= 4096, "bad scales")
    must((pos + 7) // 8 == len(data) and not any(bits[pos:]), "unused bits in scales")
    u = (quotient << k) | gather(data, at, k).astype(np.int64)
    values = base + ((u >> 1) ^ -(u & 1))
    must(np.abs(values).max() <= 100000, "scale out of range")
    return values


class TableSet:
    def __init__(self, cur):
        count, self.freqs, self.family = cur.u8(), [], None
        must(1 <= count <= 64, "bad table count")
        self.first = [0, *cur.take(count - 1)]
        must(all(a < b for a, b in zip(self.first, self.first[1:])), "first keys do not rise")
        for _ in range(count):
            mode, size = cur.u8(), cur.u8() + 1
            codes = cur.take(size)
            must(mode < size and codes[mode] == 0 and max(codes) <= 144, "bad frequency table")
            freq = [c if c <= 32 else (17 + ((c - 33) & 15)) << (((c - 33) >> 4) + 1) for c in codes]
            freq[mode] = 4096 - sum(freq)
            must(freq[mode] >= 1, "frequencies exceed 4096")
            self.freqs.append(freq + [0] * (256 - size))

    def table_of_key(self):
        skip = int(self.family == SPARSE - 3)  # table 0 of a sparse set is for gaps, the next one begins at key 0
        return skip + np.searchsorted(self.first[skip + 1:], np.arange(256), side="right")

    def lookup(self):
        """Frequency, slot - c and symbol, each at index 4096 * table + slot. One more table, of frequency 4096, leaves
        every state as it is: the lanes that have no symbol in the last step of a stream use it."""
        parts = []
        for f in self.freqs:
            symbol = np.repeat(np.arange(256), f)
            parts.append((np.take(f, symbol), np.arange(4096) - (np.cumsum(f) - f)[symbol], symbol))
        parts.append((np.full(4096, 4096), np.arange(4096), np.zeros(4096, np.int64)))
        freq, bias, symbol = np.concatenate(parts, axis=1)
        return freq.astype(np.uint32), bias.astype(np.uint32), symbol.astype(np.uint8)


def read_block(cur, n):
    """The streams of a rANS block of n symbols (n >= 1: no chunk has an empty block)."""
    lanes = cur.u8()
    must(lanes in (1, 32, 64), "bad number of lanes")
    half = min(n, (n + 63) // 64 * 32)  # ceil(ceil(n / 2) / 32) = ceil(n / 64)
    counts = [half, n - half] if lanes == 64 else [n]
    streams = [SimpleNamespace(count=c, lanes=min(lanes, 32), size=cur.varint()) for c in counts]
    for s in streams:
        s.states = np.frombuffer(cur.take(4 * s.lanes), "<u4")
        must(s.states.min() >= 65536, "rANS state too small")
    for s in streams:
        s.words = np.frombuffer(cur.take(2 * s.size), "<u2")
    return streams


def run_streams(lookup, streams, lanes):
    """Decode streams with the same number of lanes side by side, one symbol of every lane per step."""
    freq, bias, symbol = lookup
    streams = sorted(streams, key=lambda s: -s.count)  # so the ones still running are always the first ones
    steps = [-(-s.count // lanes) for s in streams]
    index = np.full((steps[0], len(streams), lanes), len(freq) - 4096, np.uint32)
    for i, s in enumerate(streams):
        padded = np.full(steps[i] * lanes, len(freq) - 4096, np.uint32)
        padded[:s.count] = s.tables * 4096
        index[:steps[i], i] = padded.reshape(-1, lanes)
    words = np.concatenate([s.words for s in streams] + [[0]]).astype(np.uint32)
    sizes = np.array([[s.size] for s in streams])
    last = np.cumsum(sizes, axis=0) - 1
    at, states, active = last - sizes, np.array([s.states for s in streams], np.uint32), len(streams)
    for t in range(steps[0]):
        while steps[active - 1] <= t:
            active -= 1
        x, where = states[:active], index[t, :active]
        where += x & 4095  # from now on the index says which symbol was decoded
        x = freq[where] * (x >> 12) + bias[where]
        low = x < 65536
        # Words are taken in symbol order: a lane takes the next word that no lane before it took.
        word = at[:active] + np.cumsum(low, axis=1)
        # A stream that takes more words than it has is found below; until then it gets some word.
        states[:active] = np.where(low, (x << 16) | words.take(word, mode="clip"), x)
        at[:active] = word[:, -1:]
    must((at == last).all() and (states >> 16 == 1).all(), "a rANS stream does not end well")
    for i, s in enumerate(streams):
        s.symbols = symbol[index[:steps[i], i].reshape(-1)[:s.count]]
        s.carry = (states[i] & 65535).astype("<u2").tobytes()


def run_blocks(lookup, blocks):
    """[(streams, table of each symbol)] -> [(symbols, carry)]."""
    for streams, tables in blocks:
        for s, part in zip(streams, np.split(tables, [streams[0].count])):
            s.tables = part
    for lanes in (1, 32):
        same = [s for streams, _ in blocks for s in streams if s.lanes == lanes]
        if same:
            run_streams(lookup, same, lanes)
    return [(np.concatenate([s.symbols for s in b]), b"".join(s.carry for s in b)) for b, _ in blocks]


def read_residuals(cur, carry, symbols, kind):
    """Per symbol the bits of z that it stands for, joined with its raw bits; of a jump the raw bits only."""
    head, width = np.zeros(256, U64), np.full(256, -1)
    for s in range(256 if kind.exp else 176):
        if s < 16:
            b, lead, raw = 0, s, 0
        elif s < 176:
            first, b, kept = (16, 5, 3) if s < 48 else (48, 9, 2) if s < 144 else (144, 33, 0)
            b += (s - first) >> kept
            lead, raw = (1 << kept) | ((s - first) & ((1 << kept) - 1)), b - 1 - kept
        else:
            b, lead, raw = 0, 0, kind.bits - 1 if (s - 176) % 40 in (0, 39) else kind.man
        if b <= kind.bits:
            head[s], width[s] = lead << raw, raw
    must((width[symbols] >= 0).all(), "symbol not allowed here")
    return head[symbols] | read_fields(cur, carry, width[symbols])


def exponent(kind, x):
    return ((x >> U64(kind.man)) & U64((1 << kind.exp) - 1)).astype(np.int64)


def restore(kind, p, symbols, z):
    """The elements, from the predictions p and the residuals. The values of w bits are kept in u64."""
    mask, top, one = U64((1 << kind.bits) - 1), U64(1 << (kind.bits - 1)), U64(1)
    d = (z >> one) ^ (-(z & one) & mask)
    negative = (p & top) != 0
    if kind.signed:
        d = np.where(negative, -d & mask, d)
    if not kind.exp:
        flip = top if kind.signed else U64(0)
        return (((p ^ flip) + d) & mask) ^ flip
    o = (np.where(negative, p ^ mask, p ^ top) + d) & mask
    t = np.where((o & top) != 0, o ^ top, o ^ mask)
    jump = np.flatnonzero(symbols >= 176)
    flip, j = np.divmod(symbols[jump].astype(np.int64) - 176, 40)
    sign = (p[jump] & top) ^ (flip.astype(U64) * top)
    e = ((exponent(kind, p[jump]) + j - 12) & ((1 << kind.exp) - 1)).astype(U64)
    t[jump] = sign | z[jump] | np.where((j == 0) | (j == 39), U64(0), e << U64(kind.man))
    return t


# The three decoders below are generators: they yield a rANS job (streams, table of each symbol) and are sent its
# (symbols, carry). That way the rANS streams of many chunks run side by side.

def tables_of(t, g, p, cur):
    """The table of every element; reads the row scales."""
    key = 4 * exponent(t.kind, p).reshape(-1, t.cols) - max(-1 << 40, min(g.offset, 1 << 40))
    if g.scales & 1:
        key -= read_scales(cur, len(key))[:, None]
    return g.set.table_of_key()[np.clip(key - g.columns, 0, 255)].reshape(-1)


def decode_ulp(t, g, p, cur):
    tables = tables_of(t, g, p, cur)
    symbols, carry = yield read_block(cur, len(p)), tables
    return restore(t.kind, p, symbols, read_residuals(cur, carry, symbols, t.kind))


def decode_sparse(t, g, p, cur):
    tables, count = tables_of(t, g, p, cur), cur.varint()
    must(1 <= count <= len(p), "bad number of changed elements")
    # The second block can only be read after the gaps: they say where it starts and which tables it uses.
    symbols, carry = yield read_block(cur, count), np.zeros(count, np.int64)
    gaps = read_residuals(cur, carry, symbols, Type(32, 0, 0, False))
    at = np.cumsum(gaps.astype(np.int64) + 1) - 1
    must(at[-1] < len(p), "gaps go beyond the chunk")
    symbols, carry = yield read_block(cur, count), tables[at]
    out = p.copy()
    out[at] = restore(t.kind, p[at], symbols, read_residuals(cur, carry, symbols, t.kind))
    return out


def decode_float(t, g, p, cur):
    top_bits, rest = (t.kind.exp + g.m, t.kind.man - g.m) if t.kind.exp else (8, 0)
    zero_bits = cur.u8()
    must(zero_bits <= rest, "too many zero bits")
    symbols, carry = yield read_block(cur, len(p)), np.zeros(len(p), np.int64)
    escape = symbols == 255
    raw = read_fields(cur, carry, np.where(escape, top_bits, 0))
    top = np.where(escape, raw, symbols.astype(U64) + U64(g.lo))
    must(int(top.max()) >> top_bits == 0, "top bits out of range")
    if not t.kind.exp:
        return top
    low = rest - zero_bits
    field = read_fields(cur, b"", np.full(len(p), 1 + low))
    mantissa = (field & U64((1 << low) - 1)) << U64(zero_bits)
    return (field >> U64(low) << U64(t.kind.bits - 1)) | (top << U64(rest)) | mantissa


def decode_planes(p, cur, size):
    total = p.copy()
    for i, v in enumerate([cur.varint() for _ in range(size)]):
        stored = cur.take(v >> 1)
        plane = stored if v & 1 else unzstd(stored, len(p))
        must(len(plane) == len(p), "wrong size of a byte plane")
        total += np.frombuffer(plane, np.uint8).astype(U64) << U64(8 * i)
    return total  # modulo 2^64; the caller keeps the low bits


def decode_chunk(t, g, codec, p, payload):
    cur, size = Bytes(payload), t.kind.bits // 8
    must(len(payload) <= size * len(p), "payload longer than the elements")
    if codec == SAME:
        out = p
    elif codec == CONSTANT:
        out = np.full(len(p), int.from_bytes(cur.take(size), "little"), U64)
    elif codec == RAW:
        out = np.frombuffer(cur.take(size * len(p)), f"<u{size}")
    elif codec == PLANES:
        out = decode_planes(p, cur, size)
    else:
        out = yield from {FLOAT: decode_float, ULP: decode_ulp, SPARSE: decode_sparse}[codec](t, g, p, cur)
    cur.end("a chunk payload")
    return out.astype(f"<u{size}")


def run_chunks(lookup, decoders):
    """Run the generators of chunks together; what each of them returns, in order."""
    out, waiting = {}, [(i, d, None) for i, d in enumerate(decoders)]
    while waiting:
        jobs = []
        for i, decoder, answer in waiting:
            try:
                jobs.append((i, decoder, decoder.send(answer)))
            except StopIteration as stop:
                out[i] = stop.value
        answers = run_blocks(lookup, [job for _, _, job in jobs])
        waiting = [(i, decoder, answer) for (i, decoder, _), answer in zip(jobs, answers)]
    return [out[i] for i in range(len(out))]


class Tensor:
    def __init__(self, name, dtype, shape, begin, end, target):
        self.name, self.dtype, self.shape, self.begin, self.end, self.groups = name, dtype, shape, begin, end, []
        self.digest = None
        self.kind = TYPES.get(dtype, OPAQUE)
        bits = self.kind.bits if dtype in TYPES else OPAQUE_BITS.get(dtype)  # None: its size cannot be checked
        must(begin <= end and (bits is None or math.prod(shape) * bits == 8 * (end - begin)), f"bad size of {name}")
        self.n = (end - begin) * 8 // self.kind.bits
        self.matrix = dtype in TYPES and len(shape) >= 2 and 0 < shape[-1] <= target
        self.cols = shape[-1] if self.matrix else 1
        rows = self.n // self.cols
        self.step = -(-rows // max(1, (self.n + target // 2) // target))  # rows of a chunk
        self.chunks = -(-rows // self.step) if self.n else 0


def safetensors_tensors(header, target):
    """The tensors of a safetensors header in the order of their bytes."""
    pairs = json.loads(header.decode("utf-8"), object_pairs_hook=tuple)  # a dict would hide names that come twice
    must(isinstance(pairs, tuple) and len({name for name, _ in pairs}) == len(pairs), "bad safetensors header")
    tensors = []
    for name, entry in pairs:
        if name != "__metadata__":
            entry = dict(entry)
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            must(isinstance(dtype, str) and isinstance(shape, list) and len(shape) <= 16, "bad safetensors entry")
            must(all(type(v) is int and 0 <= v < 1 << 63 for v in [begin, end, *shape]), "bad safetensors entry")
            tensors.append(Tensor(name, dtype, shape, begin, end, target))
    tensors.sort(key=lambda t: (t.begin, t.end, t.name.encode("utf-8")))
    must(all(t.begin == end for t, end in zip(tensors, [0] + [t.end for t in tensors])), "overlap or hole")
    return tensors


def find_bases(paths):
    """All tensors of the bases by name. Another file of a directory is one tensor."""
    named = {}
    for path in map(Path, paths):
        for file in sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]:
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            data = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.zeros(0, np.uint8)
            tensors = [Tensor(name, "U8", [len(data)], 0, len(data), 1 << 20)]
            if name.endswith(".safetensors"):
                start = 8 + int.from_bytes(data[:8].tobytes(), "little")
                must(8 <= start <= len(data), f"{file} is not a safetensors file")
                tensors, data = safetensors_tensors(data[8:start].tobytes(), 1 << 17), data[start:]
            for t in tensors:
                must(t.end <= len(data), f"{file} is too short")
                t.data = data[t.begin:t.end].view(f"<u{t.kind.bits // 8}")
                named.setdefault(t.name, []).append(t)
    return named


def rounded(x, dtype):
    """F32 bits to BF16 or F16 bits."""
    if dtype == "BF16":
        out = (x.astype(U64) + U64(0x7FFF) + ((x >> 16) & 1)) >> U64(16)
        nan = (x >> 16) | 0x40
    else:
        with np.errstate(all="ignore"):
            out = x.view("<f4").astype("<f2").view("<u2")  # to nearest even, overflow to infinity
        nan = ((x >> 16) & 0x8000) | 0x7E00 | ((x >> 13) & 0x3FF)
    return np.where((x & 0x7FFFFFFF) > 0x7F800000, nan, out).astype("<u2")


def read_group(t, cur, sets):
    g = SimpleNamespace(count=cur.varint(), family=cur.u8())
    must(g.count >= 1 and g.family <= 3, "bad group")
    if g.family:
        number = cur.varint()
        must(number < len(sets) and sets[number].family in (None, g.family), "bad table set number")
        g.set = sets[number]
        g.set.family = g.family
    if g.family == FLOAT - 3:
        g.m, g.lo = cur.u8(), cur.varint()
        must(g.m <= min(3, t.kind.man) and (t.kind.exp or t.kind.bits == 8), "family float does not fit the tensor")
        must(g.lo >> (t.kind.exp + g.m if t.kind.exp else 8) == 0 and len(g.set.first) == 1, "bad float group")
    elif g.family:
        g.scales, g.offset = cur.u8(), cur.zigzag()
        must(g.scales <= (3 if t.matrix else 0), "bad scale mode")
        must(g.family == ULP - 3 or len(g.set.first) >= 2, "a sparse table set has at least two tables")
        g.columns = read_scales(cur, t.cols) if g.scales & 2 else 0
    g.codecs = []
    for _ in range(g.count):
        g.codecs.append((cur.u8(), cur.varint()))
        must(g.codecs[-1][0] <= PLANES or g.family and g.codecs[-1][0] == g.family + 3, "codec not allowed here")
    return g


class Loom:
    """The index of a file; tensors are decoded when they are needed."""
    def __init__(self, data, bases):
        self.data, self.bases, self.members, self.tensors = data, bases, [], []
        must(len(data) >= 64 and data[:16] == b"\x89LOOM\r\n\x1a\1" + bytes(7), "not a loom file of version 1")
        start, meta_packed, meta_len, tables_packed, tables_len, checks_len, zero, crc, trailer_crc, magic = \
            struct.unpack("<Q8I8s", data[-48:])
        must(magic == b"LOOMEND\n" and zlib.crc32(data[-48:-12]) == trailer_crc and zero == 0, "bad trailer")
        must(start >= 16 and start + meta_packed + tables_packed + checks_len + 48 == len(data), "bad index offset")
        must(zlib.crc32(data[start:-48]) == crc, "wrong CRC of the index")
        must(max(meta_len, tables_len, checks_len) <= 1 << 28, "an index part is over the limit of 256 MiB")
        index = Bytes(data[start:-48])
        meta = Bytes(unzstd(index.take(meta_packed), meta_len))
        tables = Bytes(unzstd(index.take(tables_packed), tables_len))
        self.read_members(meta)
        sets = [TableSet(tables) for _ in range(meta.varint())]
        tables.end("tables")
        self.read_predictors(meta, sets)
        meta.end("meta")
        self.read_checks(Bytes(index.take(checks_len)), start)

    def read_members(self, meta):
        self.layout, log2, count = meta.u8(), meta.u8(), meta.varint()
        must(self.layout <= 1 and 10 <= log2 <= 20 and count <= 1 << 16 and (self.layout or count == 1), "bad meta")
        for _ in range(count):
            path, kind, header = meta.text(), meta.u8(), None
            must(not {"", ".", ".."} & set(path.split("/")) and not {"\0", "\\"} & set(path), f"bad path {path!r}")
            must(kind <= 1, "unknown kind of member")
            if kind == 0:
                size = meta.varint()
                tensors = [Tensor(path, "U8", [size], 0, size, 1 << 20)]
            else:
                header = meta.take(meta.varint())
                tensors = safetensors_tensors(header, 1 << log2)
            self.members.append((path, header, tensors))
            self.tensors += tensors
        must(len(self.tensors) <= 1 << 20, "too many tensors")
        must(sum(t.chunks for t in self.tensors) <= 1 << 22, "too many chunks")
        paths = {path for path, _, _ in self.members}
        folders = {path[:i] for path in paths for i, c in enumerate(path) if c == "/"}
        must(len(paths) == count and not paths & folders, "paths clash")

    def read_predictors(self, meta, sets):
        for t in self.tensors:
            t.predictor = meta.u8()
            must(t.predictor < CAST or t.predictor <= CAST_INTERNAL and t.dtype in ("BF16", "F16"), "bad predictor")
            if t.predictor in (REFERENCE, IDENTICAL, CAST):
                t.reference = meta.text() or t.name
            elif t.predictor != ZERO:
                t.target = meta.varint()
            if t.predictor in (ZERO, REFERENCE):
                t.changed = meta.varint() if t.predictor == REFERENCE else None
                t.groups = [read_group(t, meta, sets) for _ in range(meta.varint())]
                must(sum(g.count for g in t.groups) == t.chunks, "groups do not add up to the chunks")
        for t in self.tensors:
            if t.predictor in (TIED, CAST_INTERNAL):
                must(t.target < len(self.tensors), "tensor number out of range")
                other, dtype = self.tensors[t.target], t.dtype if t.predictor == TIED else "F32"
                must(other.predictor <= IDENTICAL, "a target has a target or is cast")
                must((other.dtype, other.shape) == (dtype, t.shape), "wrong dtype or shape of a target")

    def read_checks(self, checks, index_offset):
        """Take the BLAKE3 digests, for when tensors are decoded, and check the CRC-32 of every payload."""
        for t in self.tensors:
            t.digest = checks.take(32) if t.predictor not in (IDENTICAL, TIED) else None
            t.reference_digest = checks.take(32) if t.predictor in (REFERENCE, IDENTICAL, CAST) else None
        payloads = Bytes(self.data[16:index_offset])
        for g in (g for t in self.tensors for g in t.groups):
            g.payloads = [payloads.take(size) for _, size in g.codecs]
            for payload in g.payloads:
                must(zlib.crc32(payload) == int.from_bytes(checks.take(4), "little"), "wrong CRC of a chunk")
        payloads.end("the payloads")
        checks.end("checks")

    def values(self, t):
        """The elements of a tensor as unsigned numbers."""
        out = self.decoded(t)
        must(t.digest in (None, blake3(out)), f"tensor {t.name!r} does not have its digest")
        return out

    def decoded(self, t):
        if t.predictor in (TIED, CAST_INTERNAL):
            other = self.values(self.tensors[t.target])
            return other if t.predictor == TIED else rounded(other, t.dtype)
        if t.predictor == ZERO:
            return self.chunk_values(t, None)
        found = self.reference_of(t)
        if t.predictor == REFERENCE:
            out = self.chunk_values(t, found)
            must(np.count_nonzero(out != found) == t.changed, "wrong number of changed elements")
            return out
        return found if t.predictor == IDENTICAL else rounded(found, t.dtype)

    def reference_of(self, t):
        """The tensor of a base with the digest of the reference; those of its name are looked at first."""
        key = ("F32" if t.predictor == CAST else t.dtype, t.shape)
        named = self.bases.get(t.reference, [])
        for other in (*named, *(other for others in self.bases.values() if others is not named for other in others)):
            if (other.dtype, other.shape) == key:
                other.digest = other.digest or blake3(other.data)
                if other.digest == t.reference_digest:
                    return other.data
        raise Corrupt(f"no base has the tensor {t.reference!r} as {key[0]} {key[1]} with the right digest")

    def chunk_values(self, t, reference):
        parts, stop, size = [np.zeros(0, f"<u{t.kind.bits // 8}")], 0, t.step * t.cols
        batch = max(1, (1 << 22) // max(1, size))  # chunks at once: many for speed, not all for the memory they take
        for g in t.groups:
            lookup = g.set.lookup() if g.family else None
            for i in range(0, g.count, batch):
                decoders = []
                for (codec, _), payload in zip(g.codecs[i:i + batch], g.payloads[i:i + batch]):
                    start, stop = stop, min(stop + size, t.n)
                    p = np.zeros(stop - start, U64) if reference is None else reference[start:stop].astype(U64)
                    decoders.append(decode_chunk(t, g, codec, p, payload))
                parts += run_chunks(lookup, decoders)
        return np.concatenate(parts)

    def files(self, root):
        """Every file of the layout, and its bytes piece by piece."""
        for path, header, tensors in self.members:
            start = [] if header is None else [struct.pack("<Q", len(header)) + header]
            yield root / path if self.layout else root, (b for part in (start, map(self.values, tensors)) for b in part)


def restore_to(loom, out):
    for path, pieces in loom.files(out):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.writelines(pieces)


def same_as(loom, original):
    if loom.layout and {f for f in original.rglob("*") if f.is_file()} != {path for path, _ in loom.files(original)}:
        return False
    for path, pieces in loom.files(original):
        with open(path, "rb") as file:
            if not all(file.read(memoryview(p).nbytes) == bytes(p) for p in pieces) or file.read(1):
                return False
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--base", action="append", default=[], help=".safetensors file or directory; may be repeated")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("-o", dest="out", type=Path, help="restore to this file or directory")
    action.add_argument("--check", type=Path, metavar="ORIGINAL", help="compare with it; exit code 1 when different")
    args = parser.parse_args()
    try:
        loom = Loom(args.file.read_bytes(), find_bases(args.base))
        if args.check:
            return 0 if same_as(loom, args.check) else 1
        restore_to(loom, args.out)
        return 0
    except (Corrupt, zstandard.ZstdError, struct.error, ValueError, TypeError, LookupError, ArithmeticError, OSError,
            MemoryError, RecursionError) as e:
        what = str(e) if isinstance(e, (Corrupt, OSError)) else f"malformed input ({type(e).__name__}: {e})"
        print(f"error: {what}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
