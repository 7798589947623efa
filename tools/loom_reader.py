"""A second, independent reader of deltaloom containers (.loom), written from docs/format.md alone.

It restores the packed file or directory, or compares it with the original. It verifies every CRC-32 and BLAKE3 digest,
but not every MUST, and no limit of section 11: the Rust reader is the strict one.
"""
import argparse, collections, copy, json, pathlib, re, struct, sys, types, zlib
import numpy as np
import loom_history as history
import loom_predictors as computed
import loom_quantised as quantised
import loom_blocks as blocks
import loom_texts as texts
from blake3_numpy import digest as blake3
from loom_files import TYPES, Bytes, Tensor, Type, assemble, files_of, find_bases, framed_tensors, must, safetensors_tensors
from mixed_numpy import decode_mixed
from zstandard import DICT_TYPE_RAWCONTENT, ZstdCompressionDict, ZstdDecompressor, ZstdError

ZERO, REFERENCE, IDENTICAL, TIED, CAST, CAST_INTERNAL, COMPANION = *range(6), 9
COMPUTED, CONVERTED = (computed.LOW_RANK, computed.ADAPTER, computed.BLEND, computed.ADAM, computed.VIEW,
                       computed.ADAPTERS, computed.LOW_RANKS, computed.DRIFT), 13
SAME, CONSTANT, RAW, PLANES, FLOAT, ULP, SPARSE, MIXED, GRID, SCALED, PATCH = range(11)  # from FLOAT on they belong to the family codec - 3
NIBBLES = 8  # a family whose codecs are ULP and SPARSE
TEXT, LAID_OUT = 16, 19

def unzigzag(value):
    return (value >> 1) ^ -(value & 1)

def unzstd(frame, size):
    out = ZstdDecompressor().decompress(frame, max_output_size=max(size, 1), allow_extra_data=False)
    must(len(out) == size, "wrong size of a zstd frame")
    return out

def unpatch(cur, reference, size):
    """A chunk that refers to a part of a file (section 17)."""
    start, length = cur.varint(), cur.varint()
    must(start + length <= len(reference) and length <= 1 << 23, "a part that the reference does not have")
    part = reference[start:start + length].tobytes()
    prefix = {"dict_data": ZstdCompressionDict(part, dict_type=DICT_TYPE_RAWCONTENT)} if part else {}
    out = ZstdDecompressor(**prefix).decompress(cur.read(), max_output_size=size, allow_extra_data=False)
    must(len(out) == size, "wrong size of a patch")
    return np.frombuffer(out, np.uint8)

def read_fields(cur, carry, widths):
    """A bit stream of fields, which starts with the carried bytes and goes on with just the bytes it still needs."""
    starts, total = np.cumsum(widths) - widths, int(np.sum(widths))
    data = carry + cur.take(max(0, (total + 7) // 8 - len(carry)))
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    must(not bits[total:].any(), "unused bits are not 0")
    out = np.zeros(len(widths), np.uint64)
    for bit in range(widths.max()):
        wide = np.flatnonzero(widths > bit)
        out[wide] |= bits[starts[wide] + bit].astype(np.uint64) << np.uint64(bit)
    return out

def read_scales(cur, count):
    base, k, data = unzigzag(cur.varint()), cur.u8(), cur.take(cur.varint())
    bits = f"{int.from_bytes(data, 'little'):0{8 * len(data)}b}"[::-1]
    codes = re.findall(f"(1*)0([01]{{{k}}})", bits)[:count]  # the last byte may end with unused bits
    return np.array([base + unzigzag(len(ones) << k | int("0" + low[::-1], 2)) for ones, low in codes])

def read_table_set(cur):
    """First keys; frequency, slot - c and symbol, each at index 4096 * table + slot."""
    count, parts = cur.u8(), []
    if count > 128:  # a set that serves cells: the first ones of its runs, and their tables
        count -= 128
        runs = cur.varint()
        first = np.cumsum([0, *[cur.varint() for _ in range(runs - 1)]]), np.array([*cur.take(runs)])
        must((np.diff(first[0]) > 0).all() and first[0][-1] < 65536 and first[1].max() < count, "bad cells")
    else:
        first = [0, *cur.take(count - 1)]
    for _ in range(count):
        mode, size = cur.u8(), cur.u8() + 1
        freq = [c if c <= 32 else (17 + (c - 33) % 16) << ((c - 33) // 16 + 1) for c in cur.take(size)]
        must(freq[mode] == 0 and sum(freq) < 4096, "bad frequency table")
        freq[mode] = 4096 - sum(freq)
        symbol = np.repeat(np.arange(size), freq)
        parts.append((np.take(freq, symbol), np.arange(4096) - (np.cumsum(freq) - freq)[symbol], symbol))
    return first, np.concatenate(parts, axis=1).astype(np.uint16)

def read_block(cur, slots, tables):
    """Decode a rANS block with one symbol per table, one symbol of every lane per step: symbols, carried bytes."""
    lanes, (freq, bias, symbol) = cur.u8(), slots
    must(lanes in (1, 32, 64) and len(tables), "bad number of lanes or an empty block")
    half = [(len(tables) + 63) // 64 * 32] if lanes == 64 else []  # 32 ceil(ceil(n / 2) / 32)
    streams = np.split((tables * 4096).astype(np.uint32), half)
    sizes = [cur.varint() for _ in streams]
    states = np.frombuffer(cur.take(4 * lanes), "<u4").astype(np.uint32).reshape(len(streams), -1)
    for index, state, size in zip(streams, states, sizes):
        words, at = np.frombuffer(cur.take(2 * size), "<u2"), 0
        for start in range(0, len(index), len(state)):
            where = index[start:start + len(state)]
            x = state[:len(where)]  # the last step may have fewer symbols than lanes
            where += x & 4095  # from now on the index says which symbol was decoded
            x[:] = freq.take(where) * (x >> 12) + bias.take(where)
            low = np.flatnonzero(x < 65536)
            x[low] = x[low] << 16 | words[at:at + len(low)]  # words are taken in symbol order
            at += len(low)
        must(at == size and (state >> 16 == 1).all(), "a rANS stream does not end well")
    return symbol[np.concatenate(streams)], (states & 65535).astype("<u2").tobytes()

def read_residuals(cur, slots, tables, kind):
    """Symbols, and for each the leading bits it stands for (none for jumps) followed by its raw bits."""
    lead = [*range(16), *[*range(8, 16)] * 4, *[*range(4, 8)] * 24, *[1] * 32, *[0] * 80]
    raw = [0] * 16 + [b - 4 for b in range(5, 9) for _ in range(8)] + [b - 3 for b in range(9, 33) for _ in range(4)]
    raw += [b - 1 for b in range(33, 65)] + [kind.bits - 1, *[kind.man] * 38, kind.bits - 1] * 2
    symbols, carry = read_block(cur, slots, tables)
    widths = np.array(raw)[symbols]
    return symbols, np.array(lead, np.uint64)[symbols] << widths.astype(np.uint64) | read_fields(cur, carry, widths)

def read_drift(t):
    """Unit, steps and numbers of a product of small integers (section 3.12)."""
    cur, rank, rows = Bytes(t.factors), t.rule.rank, t.n // t.cols
    must((rows + t.cols) * rank <= 8 * len(t.factors), "too few bytes of factors")
    unit = np.frombuffer(cur.take(4), "<f4")[0]
    must(2.0 ** -126 <= unit < 2.0 ** 56, "a bad unit")
    steps = np.array([cur.varint() for _ in range(rank)])
    must(steps.min() >= 1, "a step is 0")
    keys = np.repeat(np.frombuffer(cur.take(2 * rank), np.uint8), [rows] * rank + [t.cols] * rank)
    first, slots = read_table_set(cur)
    must(isinstance(first, list), "tables serve cells")
    symbols, z = read_residuals(cur, slots, np.searchsorted(first, keys, side="right") - 1, Type(16))
    must((symbols < 176).all() and (z < 65536).all() and not cur.read(1), "bad numbers")
    return unit, steps, unzigzag(z.astype(np.int64))

def apply_residuals(kind, p, exponents, symbols, z):
    """The elements, from the predictions p, their exponents, and what read_residuals gives (section 8)."""
    mask, top = (1 << kind.bits) - 1, 1 << (kind.bits - 1)
    negative, d = (p & top) != 0, z >> 1 ^ -(z & 1)
    d = np.where(negative & kind.signed, -d, d)
    if not kind.exp:
        return p + d  # for integers o(x) only flips the top bit, or adds 2^(w-1): it cancels
    o = np.where(negative, p ^ mask, p ^ top) + d & mask
    t = np.where(o & top, o ^ top, o ^ mask)
    jump = np.flatnonzero(symbols >= 176)
    flip, j = np.divmod(symbols[jump].astype(np.int64) - 176, 40)
    e = (exponents[jump] + j - 12) % (1 << kind.exp)
    e[(j == 0) | (j == 39)] = 0  # a far jump has the exponent among its raw bits
    t[jump] = (p[jump] ^ flip.astype(np.uint64) << kind.bits - 1) & top | e.astype(np.uint64) << kind.man | z[jump]
    return t

def decode_ulp_or_sparse(t, g, p, cur, classes):
    """Residuals of all elements (ulp), or of those that the gaps lead to (sparse)."""
    exponents = (p >> t.kind.man & (1 << t.kind.exp) - 1).astype(np.int64)
    key = 4 * exponents.reshape(-1, t.cols) - g.offset - g.columns
    key -= read_scales(cur, len(key))[:, None] if g.scales & 1 else 0
    skip = int(g.family == SPARSE - 3)  # table 0 of a sparse set is for gaps, the next one begins at key 0
    key = key.reshape(-1).clip(0, 255)
    if g.family == history.FAMILY:
        tables = g.first[1][np.searchsorted(g.first[0], 256 * classes(g.kind) + key, side="right") - 1]
    else:
        tables = skip + np.searchsorted(g.first[skip + 1:], key, side="right")
    at, out = slice(None), p.copy()
    if skip:
        _, gaps = read_residuals(cur, g.slots, np.zeros(cur.varint(), np.int64), Type(32))
        at = np.cumsum(gaps.astype(np.int64) + 1) - 1
    out[at] = apply_residuals(t.kind, p[at], exponents[at], *read_residuals(cur, g.slots, tables[at], t.kind))
    return out

def read_floats(cur, slots, tables, kind, m, lo, signs=1):
    """Stand-alone elements (section 9), one per table."""
    top_bits, rest, zeros = kind.exp + m or 8, kind.man - m, cur.u8()
    symbols, carry = read_block(cur, slots, tables)
    escaped = symbols == 255
    top = np.where(escaped, read_fields(cur, carry, escaped * top_bits), symbols.astype(np.uint64) + lo)
    must(int(top.max()) >> top_bits == 0 and zeros <= rest, "top or zero bits out of range")
    if not kind.exp:
        return top
    low = rest - zeros
    field = read_fields(cur, b"", np.full(len(tables), signs + low))
    return field >> low << kind.bits - 1 | top << rest | (field & (1 << low) - 1) << zeros

def decode_float(t, g, p, cur, signs=1):
    return read_floats(cur, g.slots, np.zeros(len(p), np.int64), t.kind, g.m, g.lo, signs)

def decode_grid(t, g, p, cur):
    """Elements of a palette, or multiples of a step per block from an origin if there is one (section 14)."""
    at = np.arange(len(p))
    if g.kind:
        cols = t.cols if t.cols > 1 else len(p)
        block = at // cols * -(-cols // g.block) + at % cols // g.block
        numbers = [read_floats(cur, g.slots, np.full(block[-1] + 1, i + 1), TYPES["F32"], 3, lo).astype("<u4").view("<f4")
                   for i, lo in enumerate(g.lows)]
        must(all(np.isfinite(n).all() for n in numbers), "a step or an origin is not finite")
    symbols, carry = read_block(cur, g.slots, np.zeros(len(p), np.int64))
    escaped = symbols == 255
    stored = read_fields(cur, carry, escaped * t.kind.bits)
    if not g.kind:
        must(symbols[~escaped].max(initial=0) < len(g.palette), "a symbol is beyond the end of its palette")
        out = np.resize(g.palette, 256)[symbols]
    else:
        with np.errstate(all="ignore"):  # each operation is rounded on its own
            x = numbers[0][block] * (symbols.astype("<f4") - np.float32(127 if g.kind == 1 else 0))
            x = x + numbers[1][block] if g.kind == 2 else x
        out = x.view("<u4") if t.dtype == "F32" else rounded(x.view("<u4"), t.dtype)
    return np.where(escaped, stored, out.astype(np.uint64))

def decode_scaled(t, g, p, cur):
    """Elements relative to an expected magnitude (section 9.1)."""
    top, unit = 1 << t.kind.bits - 1, t.kind.man - 3
    must(t.kind.exp and unit >= 0, "a dtype that cannot be scaled")
    s = ((p & (top - 1)) >> unit).astype(np.int64).reshape(-1, t.cols) * g.slope // 16 + g.offset + g.columns
    s += read_scales(cur, len(s))[:, None] if g.scales & 1 else 0
    k = (s.reshape(-1) % (1 << t.kind.exp + 3)).astype(np.uint64) << unit
    x = decode_float(t, g, p, cur, g.signs)
    a = (x & (top - 1)) + k & (top - 1)
    return x & top | np.where(x & (top - 1), np.where(a, a, k), 0)

def decode_chunk(t, g, codec, p, cur, classes, references):
    """The elements of a chunk. Up to here elements of w bits are kept in u64, modulo 2^64."""
    out, size = p, t.kind.bits // 8
    if codec == PATCH:
        must(g.family == 0 and t.predictor in (TEXT, LAID_OUT), "codec not allowed here")
        return unpatch(cur, references[0], len(p))
    if codec in (CONSTANT, RAW):
        stored = cur.take(size if codec == CONSTANT else size * len(p))
        out = np.broadcast_to(np.frombuffer(stored, f"<u{size}"), len(p))
    elif codec == PLANES:
        lengths = [cur.varint() for _ in range(size)]
        planes = [cur.take(v >> 1) if v & 1 else unzstd(cur.take(v >> 1), len(p)) for v in lengths]
        out = p + np.frombuffer(b"".join(planes), np.uint8).reshape(size, -1).T.copy().view(f"<u{size}")[:, 0]
    elif codec in (ULP, SPARSE) and g.family == NIBBLES:
        return decode_nibbles(t, g, codec, p, cur)
    elif codec != SAME:
        must(g.family and codec == (ULP if g.family == history.FAMILY else g.family + 3), "codec not allowed here")
        if codec == MIXED:
            return decode_mixed(t.kind, t.cols, p, cur.read()).astype(f"<u{size}")
        decode = {FLOAT: decode_float, GRID: decode_grid, SCALED: decode_scaled}.get(codec)
        out = decode(t, g, p, cur) if decode else decode_ulp_or_sparse(t, g, p, cur, classes)
    must(not cur.read(1), "bytes left over in a chunk")
    return out.astype(f"<u{size}")

def decode_nibbles(t, g, codec, p, cur):
    """Words of 4-bit codes, each code as a U8 (section 8.1)."""
    must(codec == (ULP, SPARSE)[g.inner], "codec not allowed here")
    count = t.kind.bits // 4
    codes = (p[:, None] >> np.arange(0, t.kind.bits, 4, dtype=np.uint64) & np.uint64(15)).reshape(-1)
    inner = types.SimpleNamespace(kind=Type(8), cols=t.cols * count, dtype="U8")
    group = types.SimpleNamespace(family=codec - 3, first=g.first, slots=g.slots, scales=0, offset=0, columns=0)
    codes = decode_chunk(inner, group, codec, codes, cur, None, None).astype(np.uint64)
    must((codes < 16).all(), "a code has more than 4 bits")
    words = codes.reshape(-1, count) << np.arange(0, t.kind.bits, 4, dtype=np.uint64)
    return words.sum(1, dtype=np.uint64).astype(f"<u{t.kind.bits // 8}")

def read_identity(meta):
    """The parts behind the last tensor (section 16): names and digests of bases, and texts."""
    identity, last = {"bases": [], "texts": {}}, 0
    text = lambda part, most: part.take(size).decode("utf-8") if (size := part.varint()) <= most else must(False, "too long")
    while key := meta.read(1):
        must(last < key[0] <= 2, "a part is unknown, or comes after one that it belongs before")
        last, part = key[0], Bytes(meta.take(meta.varint()))
        count = part.varint()
        must(count, "a part is empty")
        for _ in range(count):
            name = text(part, 1024 if last == 1 else 256)
            must(name, "a name or a key is empty")
            if last == 1:
                identity["bases"].append({"name": name, "digest": part.take(16).hex()})
            else:
                must(all(other.encode() < name.encode() for other in identity["texts"]), "texts are not in order")
                identity["texts"][name] = text(part, 1 << 20)
        must(not part.read(1), "bytes left over in a part")
    return identity

def rounded(x, dtype):
    """F32 bits to BF16 or F16 bits."""
    if dtype == "BF16":
        out, nan = (x.astype(np.uint64) + 0x7FFF + (x >> 16 & 1)) >> 16, x >> 16 | 0x40
    else:
        with np.errstate(all="ignore"):  # numpy rounds to nearest even, overflow gives infinity
            out, nan = x.view("<f4").astype("<f2").view("<u2"), x >> 16 & 0x8000 | 0x7E00 | x >> 13 & 0x3FF
    return np.where((x & 0x7FFFFFFF) > 0x7F800000, nan, out).astype("<u2")

def read_tensor(t, meta, sets, tensors, payloads):
    """The predictor of a tensor and its chunks, each as (group, codec, payload)."""
    t.predictor, t.coded, t.references, t.targets, t.factors, t.inner = meta.u8(), [], [], [], None, None
    if t.predictor == CONVERTED:
        dtype = computed.VIEWED[meta.u8() - 1]
        must(dtype != t.dtype and t.dtype in computed.VIEWED, "a conversion between dtypes that are not converted")
        t.inner = inner = copy.copy(t)
        inner.dtype, inner.kind = dtype, TYPES[dtype]
        read_tensor(inner, meta, sets, tensors, payloads)
        must(inner.predictor in (REFERENCE, IDENTICAL, computed.LOW_RANK, computed.ADAPTER, computed.BLEND, computed.VIEW,
                                computed.ADAPTERS, computed.LOW_RANKS), "a predictor that is not converted")
        t.references, t.factors, t.coded, inner.digest = inner.references, inner.factors, inner.coded, None
        return
    if t.predictor in (TIED, CAST_INTERNAL, COMPANION):
        t.targets = [tensors[meta.varint()]]
    elif t.predictor == quantised.QUANTISED:
        quantised.read(meta, t, tensors)
    elif t.predictor == blocks.BLOCKS:
        blocks.read(meta, t, payloads, computed.read_view)
    elif t.predictor in COMPUTED:
        computed.read_fields(meta, t.predictor, t, payloads, tensors)
    elif t.predictor in (TEXT, LAID_OUT):
        must(t.dtype == "U8", "a text that is not bytes")
        name, length = meta.take(meta.varint()).decode("utf-8") or t.name, meta.varint()
        must(1 <= length < 1 << 56, "bad length of a text")
        t.references = [(name, "U8", (length,))]
        if t.predictor == LAID_OUT:
            t.layout = meta.u8(), meta.u8(), meta.varint(), meta.varint()
            must(length <= 1 << 26 and texts.is_layout(*t.layout), "a bad layout")
    elif t.predictor != ZERO:
        name = meta.take(meta.varint()).decode("utf-8") or t.name
        hops = meta.varint() if t.predictor == history.HISTORY else 0
        must((1 <= hops <= 16) == (t.predictor == history.HISTORY), "bad number of ancestors")
        t.references = [(name, "F32" if t.predictor == CAST else t.dtype, tuple(t.shape))] * (hops + 1)
    if t.predictor in (ZERO, REFERENCE, COMPANION, history.HISTORY, quantised.QUANTISED, TEXT, LAID_OUT, blocks.BLOCKS,
                       *COMPUTED):
        t.changed = None if t.predictor in (ZERO, COMPANION, TEXT, LAID_OUT) else meta.varint()
        for _ in range(meta.varint()):
            g = types.SimpleNamespace(count=meta.varint(), family=meta.u8())
            if g.family not in (0, MIXED - 3):
                g.first, g.slots = sets[meta.varint()]
            if g.family in (FLOAT - 3, SCALED - 3):
                g.m, g.lo = meta.u8(), meta.varint()
            elif g.family == GRID - 3:
                g.kind = meta.u8()
                must(t.kind.bits > 8 if g.kind == 0 else t.dtype in ("BF16", "F16", "F32") and g.kind < 3, "bad kind of grid")
                if g.kind:
                    g.block, g.lows = meta.varint(), [meta.varint() for _ in range(g.kind)]
                else:
                    g.palette = np.frombuffer(meta.take(meta.u8() * t.kind.bits // 8), f"<u{t.kind.bits // 8}")
            if g.family == SCALED - 3:
                g.slope, g.signs = meta.u8(), meta.u8()
                must(g.signs <= 1, "signs are 0 or 1")
            if g.family == history.FAMILY:
                g.kind = meta.u8()
                must(g.kind < 2 and t.predictor == history.HISTORY, "bad kind of history")
            if g.family in (ULP - 3, SPARSE - 3, SCALED - 3, history.FAMILY):
                g.scales, g.offset = meta.u8(), unzigzag(meta.varint())
                g.columns = read_scales(meta, t.cols) if g.scales & 2 else 0
            if g.family == NIBBLES:
                g.inner = meta.u8()
                must(g.inner < 2 and t.dtype in TYPES and not t.kind.exp and t.kind.bits in (8, 32), "nibbles of other elements")
            t.coded += [(g, meta.u8(), payloads.take(meta.varint())) for _ in range(g.count)]
        must(len(t.coded) == len(t.chunks), "groups do not add up to the chunks")

def read_loom(data):
    """The layout, of every member its path, the bytes before its first tensor (None if it is framed), and its tensors; and what the file says of itself."""
    must(data[:8] == b"\x89LOOM\r\n\x1a" and data[8] in (1, 2, 3, 4) and data[9:16] == bytes(7), "not a loom file of versions 1 to 4")
    start, meta_packed, meta_len, tables_packed, tables_len, checks_len, _, crc, trailer_crc, magic = \
        struct.unpack("<Q8I8s", data[-48:])
    must(magic == b"LOOMEND\n" and zlib.crc32(data[-48:-12]) == trailer_crc, "bad trailer")
    head = data[:16] if data[8] >= 3 else b""
    must(zlib.crc32(head + data[start:-48]) == crc, "wrong CRC of the index")
    payloads, index = Bytes(data[16:start]), Bytes(data[start:-48])
    meta = Bytes(unzstd(index.take(meta_packed), meta_len))
    tables = Bytes(unzstd(index.take(tables_packed), tables_len))
    checks = Bytes(index.take(checks_len))
    layout, target, members, tensors = meta.u8(), 1 << meta.u8(), [], []
    for _ in range(meta.varint()):
        path, kind = meta.take(meta.varint()).decode("utf-8"), meta.u8()
        must(kind <= (3 if data[8] >= 4 else 1) and not {"", ".", ".."} & set(path.split("/")) and "\\" not in path, f"bad member {path!r}")
        if kind == 3:
            members.append((path, None, framed_tensors(path, meta, target)))
            tensors += members[-1][2]
            continue
        size = meta.varint()
        head = meta.take(size) if kind else b""
        tail = meta.varint() if kind == 2 else 0
        must(tail or kind != 2, "an empty tail")
        of_member = safetensors_tensors(head, target, tail) if kind else [Tensor(path, "U8", [size], 0, size, 1 << 20)]
        members.append((path, struct.pack("<Q", size) + head if kind else b"", of_member))
        tensors += of_member
    sets = [read_table_set(tables) for _ in range(meta.varint())]
    for t in tensors:
        read_tensor(t, meta, sets, tensors, payloads)
        must(t.predictor <= (computed.DRIFT if data[8] >= 4 else history.HISTORY), "unknown predictor")
        t.digest = checks.take(32) if t.predictor not in (IDENTICAL, TIED) else None
        ancestors = len(t.references) - 1 if t.predictor == history.HISTORY else 0  # only 8 bytes of their digests
        t.reference_digests = [checks.take(8 if ancestors and i else 32) for i in range(len(t.references))]
    identity = read_identity(meta) if data[8] >= 4 else None
    payloads_of = lambda t: ([] if t.factors is None else [t.factors]) + [payload for _, _, payload in t.coded]
    crcs = [zlib.crc32(payload) for t in tensors for payload in payloads_of(t)]
    must(checks.read() == struct.pack(f"<{len(crcs)}I", *crcs), "wrong CRC of a chunk")
    must(not any(part.read(1) for part in (index, meta, tables, payloads)), "bytes left over")
    return layout, members, identity

def level(t):
    """A tensor comes from tensors of lower levels only."""
    if t.predictor in (computed.VIEW, quantised.QUANTISED):
        return int(bool(t.targets))
    return t.rule.form + 1 if t.predictor == computed.ADAM else 3 * (t.predictor in (TIED, CAST, CAST_INTERNAL, COMPANION))

def values(t, bases):
    """The elements of a tensor as unsigned numbers."""
    if t.inner:
        t.inner.reference_digests = t.reference_digests
        out = computed.convert(values(t.inner, bases), t.inner.dtype, t.dtype)
        must(t.digest == blake3(out), f"tensor {t.name!r} does not have its digest")
        return out
    p = np.zeros(t.n, f"<u{t.kind.bits // 8}")
    must(all(level(target) < level(t) for target in t.targets), "a target is not of a lower level")
    targets = [values(target, bases) for target in t.targets]
    references = []
    if t.predictor in (TIED, CAST_INTERNAL, COMPANION):
        p = targets[0]
    elif t.predictor != ZERO:
        for digest, (name, dtype, shape) in zip(t.reference_digests, t.references):
            fits = [key for key in bases if key[0].startswith(digest) and key[1:] in ((dtype, shape), (None, None))]
            must(fits, f"no base has the right tensor {name!r}, {dtype} {shape}")
            references.append(bases[fits[0]].view(f"<u{TYPES.get(dtype, Type(8)).bits // 8}"))
        as_it_is = t.predictor <= CAST_INTERNAL or t.predictor == history.HISTORY
        if t.predictor == quantised.QUANTISED:
            p = quantised.predict(t, references, targets, computed.convert, computed.rounded)
        elif t.predictor == blocks.BLOCKS:
            p = blocks.predict(t, references, computed, unzstd)
        elif t.predictor == LAID_OUT:
            references = [np.frombuffer(texts.laid_out(references[0].tobytes(), *t.layout), np.uint8)]
        elif t.predictor != TEXT:
            t.drift = read_drift(t) if t.predictor == computed.DRIFT else None
            p = references[0] if as_it_is else computed.predict(t, references + targets)
    classes_of = lambda begin, end: lambda kind: history.CLASSES[kind]([r[begin:end] for r in references], t.kind)
    parts = [decode_chunk(t, g, codec, p[begin:end].astype(np.uint64), Bytes(payload), classes_of(begin, end), references)
             for (begin, end), (g, codec, payload) in zip(t.chunks, t.coded)]
    out = np.concatenate(parts) if parts else rounded(p, t.dtype) if t.predictor in (CAST, CAST_INTERNAL) else p
    must(t.predictor in (ZERO, IDENTICAL, TIED, CAST, CAST_INTERNAL, COMPANION, TEXT, LAID_OUT) or np.count_nonzero(out != p) == t.changed, "wrong number of changed elements")
    must(t.digest in (None, blake3(out)), f"tensor {t.name!r} does not have its digest")
    return out

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--base", action="append", default=[], type=pathlib.Path, help="file or directory; repeatable")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("-o", dest="out", type=pathlib.Path, help="restore to this file or directory")
    action.add_argument("--check", type=pathlib.Path, metavar="ORIGINAL", help="compare; exit code 1 when different")
    action.add_argument("--identity", action="store_true", help="print the names and digests of its bases and its texts as JSON")
    args = parser.parse_args()
    try:
        layout, members, identity = read_loom(args.file.read_bytes())
        if args.identity:
            print(json.dumps(identity))
            return 0
        bases, root = dict(find_bases(args.base)), args.check or args.out
        files = {}
        for path, head, tensors in members:
            parts = [values(t, bases).tobytes() for t in tensors]
            files[root / path if layout else root] = assemble(tensors, parts) if head is None else head + b"".join(parts)
        if args.check:
            return int(files != {file: file.read_bytes() for file in files_of(root)})
        for file, data in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
    except (ValueError, LookupError, TypeError, OverflowError, MemoryError, OSError, struct.error, ZstdError) as error:
        print(f"error: {error or type(error).__name__}", file=sys.stderr)
        return 2

if __name__ == "__main__":
    sys.exit(main())
