"""Blocks of numbers (docs/format.md section 3.9), for the plain reader in loom_reader.py."""
import math, types
import numpy as np

BLOCKS = 17
SINGLES = ("F32", "BF16", "F16")
EACH, FUSED, DOUBLE = range(3)
PART = 4096

class Kind:
    """Numbers of a block and of a group, where d and m are, where other bytes of scales are, L and H as (start, bits, codes that follow each other), and z."""
    def __init__(self, numbers, group, size, d, m, scales, low, high=None, zero=0):
        self.numbers, self.group, self.size, self.d, self.m, self.scales = numbers, group, size, d, m, scales
        self.low, self.high, self.zero = low, high, zero
        self.bits = low[1] + (high[1] if high else 0)
        coded = {at for field in (low, high) if field for at in range(field[0], field[0] + numbers * field[1] // 8)}
        self.scale_bytes = [at for at in range(size) if at not in coded]

Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS = KINDS = [
    Kind(32, 32, 18, 0, None, None, (2, 4, 16), zero=8), Kind(32, 32, 20, 0, 2, None, (4, 4, 16)),
    Kind(32, 32, 22, 0, None, None, (6, 4, 16), (2, 1, 1), 16), Kind(32, 32, 24, 0, 2, None, (8, 4, 16), (4, 1, 1)),
    Kind(32, 32, 34, 0, None, None, (2, 8, 32), zero=128), Kind(256, 16, 84, 80, 82, 0, (16, 2, 32)),
    Kind(256, 16, 110, 108, None, 96, (32, 2, 32), (0, 1, 32), 4), Kind(256, 32, 144, 0, 2, 4, (16, 4, 32)),
    Kind(256, 32, 176, 0, 2, 4, (48, 4, 32), (16, 1, 32)), Kind(256, 16, 210, 208, None, 192, (0, 4, 64), (128, 2, 32), 32),
    Kind(32, 32, 18, 0, None, None, (2, 4, 16)), Kind(256, 32, 136, 0, None, 4, (8, 4, 16))]
TABLE = np.float32([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
# The ggml_type of each kind, as GGUF files have it.
GGML_TYPES = dict(zip((2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 20, 23), KINDS))

def must(ok, what):
    if not ok:
        raise ValueError(what)

def read(cur, t, payloads, read_view):
    """`read_view` is that of loom_predictors."""
    rule, form = types.SimpleNamespace(view=None), cur.u8()
    form, viewed = form & 3, form >> 2
    must(viewed < (1 if form == 2 else 2), "a form that does not exist")
    name = None if viewed else cur.take(cur.varint()).decode("utf-8") or t.name
    dtype = cur.take(cur.varint()).decode("utf-8")
    shape = tuple(cur.varint() for _ in range(cur.varint()))
    t.references, t.rule, rule.form = [(name, dtype, shape)], rule, form
    if form == 2:
        return read_scales(cur, t, dtype, shape)
    if viewed:
        rule.view = types.SimpleNamespace(name=t.name, dtype=dtype, shape=shape, n=math.prod(shape), kind=types.SimpleNamespace(bits=8 if dtype == "U8" else 32 if dtype == "F32" else 16))
        read_view(cur, rule.view, [])
        t.references = rule.view.references
    (number_dtype, numbers), (block_dtype, blocks) = [((t.dtype, t.shape), (dtype, shape))[i] for i in ((0, 1) if form == 1 else (1, 0))]
    kind, rule.arithmetic, rule.head = cur.u8(), cur.u8(), cur.varint()
    must(kind < (5 if form == 0 else 12) and rule.arithmetic < (3 if form == 0 else 1), "a kind or an arithmetic that does not exist")
    rule.kind = kind = KINDS[kind]
    must(number_dtype in SINGLES and block_dtype == "U8" and numbers and numbers[-1] and numbers[-1] % kind.numbers == 0, "not blocks of numbers")
    rule.rows, rule.number_dtype = math.prod(numbers) // numbers[-1], number_dtype
    must(rule.rows and math.prod(blocks) == rule.rows * numbers[-1] // kind.numbers * kind.size, "blocks of another size")
    must(not rule.head or (rule.head % 2 == 0 and rule.rows % rule.head == 0 and rule.head <= 1 << 16), "bad heads")
    if form == 3:
        t.factors = payloads.take(cur.varint())

def read_scales(cur, t, dtype, shape):
    rule, flags = t.rule, cur.u8()
    rule.transposed, rule.divided, rule.group = flags & 1, flags & 2, (cur.varint(), cur.varint())
    rule.measure, rule.factor, rule.rounding = cur.u8(), np.frombuffer(cur.take(4), "<f4")[0], SINGLES[cur.u8()]
    must(flags < 4 and rule.measure < 3 and dtype in SINGLES and np.isfinite(rule.factor) and shape, "bad scales")
    rule.matrices = (math.prod(shape[:-2]), *((1,) + shape)[-2:])
    count, rows, cols = rule.matrices if not rule.transposed else np.take(rule.matrices, [0, 2, 1])
    (p, q) = rule.group
    must(1 <= p <= rows and 1 <= q <= cols and math.prod(t.shape) == count * -(-rows // p) * -(-cols // q), "other groups")

def scales(t, reference, convert, rounded):
    rule, (p, q) = t.rule, t.rule.group
    x = convert(reference.reshape(-1), t.references[0][1], "F32").view(np.float32).reshape(rule.matrices)
    x = x.swapaxes(1, 2) if rule.transposed else x
    extreme = lambda f, fill: f.reduceat(f.reduceat(np.where(np.isnan(x), fill, x), np.arange(0, x.shape[1], p), 1), np.arange(0, x.shape[2], q), 2)
    least, greatest = extreme(np.minimum, np.float32(np.inf)), extreme(np.maximum, np.float32(-np.inf))
    none = least > greatest
    with np.errstate(all="ignore"):
        found = [lambda: np.maximum(np.abs(least), np.abs(greatest)), lambda: greatest - least,
                 lambda: np.where(greatest > 0, greatest, 0) - np.where(least < 0, least, 0)][rule.measure]()
        found = np.where(none, np.float32(0), found).astype(np.float32)
        found = found / rule.factor if rule.divided else found * rule.factor
        found = rounded(np.ascontiguousarray(found, np.float32).reshape(-1), rule.rounding).view(np.uint32)
    if t.dtype in ("U8", "F8_E8M0"):
        return (found >> 23 & 255).astype(np.uint8)
    return convert(found, "F32", t.dtype)

def product_and_sum(arithmetic, a, b, c):
    """a b + c, rounded as the arithmetic says; as F64."""
    if arithmetic == EACH:
        return (a * b + c).astype(np.float64)
    out = a.astype(np.float64) * b.astype(np.float64) + np.asarray(c, np.float64)
    return out.astype(np.float32).astype(np.float64) if arithmetic == FUSED else out

def limited(x, least, greatest):
    return np.trunc(np.clip(np.nan_to_num(x, nan=0.0, posinf=greatest, neginf=least), least, greatest)).astype(np.int64)

def spread(codes, field, shift, blocks):
    """Sets these bits of blocks to those of codes from bit `shift` on."""
    start, bits, run = field
    q = (codes >> shift & (1 << bits) - 1).reshape(len(codes), -1, 8 // bits, run)
    packed = (q << (np.arange(8 // bits) * bits)[:, None]).sum(2).reshape(len(codes), -1)
    blocks[:, start:start + packed.shape[1]] = packed

def gathered(blocks, field, count):
    start, bits, run = field
    b = blocks[:, start:start + count * bits // 8].reshape(len(blocks), -1, 1, run)
    return (b >> (np.arange(8 // bits, dtype=np.uint8) * bits)[:, None] & (1 << bits) - 1).reshape(len(blocks), count)

def groups_of(blocks, kind):
    """s and b of every group of blocks; b may be None."""
    f16 = lambda at: np.ascontiguousarray(blocks[:, at:at + 2]).view(np.float16).astype(np.float32)
    S = lambda i: blocks[:, kind.scales + i]
    columns = lambda of, count: np.stack([of(i) for i in range(count)], 1).astype(np.float32)
    count = kind.numbers // kind.group
    if kind.scales is None:
        return f16(kind.d), None if kind.m is None else f16(kind.m)
    if kind is Q2_K:
        return f16(kind.d) * columns(lambda i: S(i) & 15, count), -(f16(kind.m) * columns(lambda i: S(i) >> 4, count))
    if kind is Q6_K:
        return f16(kind.d) * np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32), None
    if kind is Q3_K:
        u = columns(lambda i: (S(i % 8) >> i // 8 * 4 & 15) + 16 * (S(8 + i % 4) >> i // 4 * 2 & 3), count)
        return f16(kind.d) * (u - np.float32(32)), None
    if kind is IQ4_XS:
        u = columns(lambda i: (S(i // 2) >> i % 2 * 4 & 15) + 16 * (blocks[:, 2 + i // 4] >> i % 4 * 2 & 3), count)
        return f16(kind.d) * (u - np.float32(32)), None
    u = columns(lambda i: S(i) & 63 if i < 4 else (S(4 + i) & 15) + 16 * (S(i - 4) >> 6), count)
    v = columns(lambda i: S(4 + i) & 63 if i < 4 else (S(4 + i) >> 4) + 16 * (S(i) >> 6), count)
    return f16(kind.d) * u, -(f16(kind.m) * v)

def quantised(x, rule):
    """The blocks of rows of 32 numbers."""
    kind, known = rule.kind, np.where(np.isnan(x), np.float32(0), x)
    none, f16 = np.isnan(x).all(1), lambda d: d.astype(np.float16).view(np.uint8)
    blocks, bits = np.zeros((len(x), kind.size), np.uint8), kind.bits
    if kind.m is not None:
        # Of equal numbers the first: 0 has two signs.
        first = lambda at: np.where(none[:, None], np.float32(0), np.take_along_axis(x, at[:, None], 1))
        m = first(np.where(np.isnan(x), np.float32(np.inf), x).argmin(1))
        h = first(np.where(np.isnan(x), np.float32(-np.inf), x).argmax(1))
        d = ((h - m) / np.float32((1 << bits) - 1)).astype(np.float32)
        x = x - m
        blocks[:, 2:4] = f16(m)
    else:
        a = np.take_along_axis(known, np.abs(known).argmax(1)[:, None], 1)
        a = np.where(a == 0, np.float32(0), a)
        d = np.abs(a) / np.float32(127) if kind is Q8_0 else a / np.float32(-(1 << (bits - 1)))
    blocks[:, :2] = f16(d)
    r = np.where(d == 0, np.float32(0), np.float32(1) / d)
    if kind is Q8_0:
        y = x.astype(np.float64) * r if rule.arithmetic == DOUBLE else (x * r).astype(np.float64)
        codes = limited(np.copysign(np.floor(np.abs(y)) + (np.abs(y) % 1 >= 0.5), y), -128, 127) & 255
    else:
        middle = np.float32(0.5 if kind.m is not None else (1 << (bits - 1)) + 0.5)
        codes = limited(product_and_sum(rule.arithmetic, x, r, middle), 0, (1 << bits) - 1)
    return with_codes(blocks, codes, kind)

def with_codes(blocks, codes, kind):
    spread(codes.astype(np.int64), kind.low, 0, blocks)
    if kind.high:
        spread(codes.astype(np.int64), kind.high, kind.low[1], blocks)
    return blocks

def stored_scales(payload, kind, count, unzstd):
    """Blocks with scales and without codes, from the payload of a tensor."""
    blocks, at = np.zeros((count, kind.size), np.uint8), 0
    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = payload[at]; at += 1
            value |= (byte & 127) << shift; shift += 7
            if byte < 128:
                return value
    for start in range(0, count, PART):
        part = blocks[start:start + PART]
        stored = [varint() for _ in kind.scale_bytes]
        for place, v in zip(kind.scale_bytes, stored):
            plane = payload[at:at + (v >> 1)]; at += v >> 1
            plane = plane if v & 1 else unzstd(plane, len(part))
            must(len(plane) == len(part), "a plane of another length")
            part[:, place] = np.frombuffer(plane, np.uint8)
    must(at == len(payload), "bytes left over behind scales")
    return blocks

def nearest(x, blocks, kind):
    """Blocks that have scales, with codes of numbers."""
    each = lambda v: v.repeat(kind.group, 1)
    s, b = groups_of(blocks, kind)
    s, b = each(s), np.float32(0) if b is None else each(b)
    if kind in (IQ4_NL, IQ4_XS):
        y = x * (np.float32(1) / s)
        below = lambda low, high: (y >= high) | ((y > low) & (y - low >= high - y))
        codes = sum(below(low, high).astype(np.int64) for low, high in zip(TABLE, TABLE[1:]))
    else:
        y = np.nan_to_num(np.rint((x - b) / s), nan=0.0, posinf=np.inf, neginf=-np.inf)
        codes = limited(y.astype(np.float64) + kind.zero, 0, (1 << kind.bits) - 1)
        codes = codes ^ 128 if kind is Q8_0 else codes
    return with_codes(blocks, np.where(s == 0, 0, codes), kind)

def numbers_of(blocks, kind):
    codes = gathered(blocks, kind.low, kind.numbers)
    if kind.high:
        codes = codes | gathered(blocks, kind.high, kind.numbers) << kind.low[1]
    each = lambda v: v.repeat(kind.group, 1)
    s, b = groups_of(blocks, kind)
    if kind in (IQ4_NL, IQ4_XS):
        q = TABLE[codes]
    else:
        q = codes.astype(np.uint8).view(np.int8).astype(np.float32) if kind is Q8_0 else codes.astype(np.float32) - np.float32(kind.zero)
    x = q * each(s) if b is None else q * each(s) + each(b)
    return np.where(np.isnan(x), np.uint32(0x7FC00000).view(np.float32), x).astype(np.float32)

def predict(t, references, computed, unzstd):
    """`computed` is loom_predictors."""
    convert, reference = computed.convert, references[0]
    if t.rule.form == 2:
        return scales(t, reference, convert, computed.rounded)
    rule, kind, rows = t.rule, t.rule.kind, np.arange(t.rule.rows)
    if rule.view:
        reference = computed.view(rule.view, *references)
    if rule.head:
        half, place = rule.head // 2, rows % rule.head
        rows = rows - place + (place % half * 2 + place // half if rule.form == 1 else place % 2 * half + place // 2)
    reference = reference.reshape(rule.rows, -1)[rows]
    with np.errstate(all="ignore"):
        if rule.form == 1:
            x = np.ascontiguousarray(numbers_of(reference.reshape(-1, kind.size), kind), np.float32)
            return convert(x.reshape(-1).view(np.uint32), "F32", t.dtype)
        x = convert(reference.reshape(-1), rule.number_dtype, "F32").view(np.float32).reshape(-1, kind.numbers)
        if rule.form == 3:
            return nearest(x, stored_scales(t.factors, kind, len(x), unzstd), kind).reshape(-1)
        return quantised(x, rule).reshape(-1)
