"""Blocks of numbers (docs/format.md section 3.9), for the plain reader in loom_reader.py."""
import math, types
import numpy as np

BLOCKS = 17
SINGLES = ("F32", "BF16", "F16")
# Of each kind: bytes, bits of a code, whether a block has its least number.
KINDS = [(18, 4, False), (20, 4, True), (22, 5, False), (24, 5, True), (34, 8, False)]
EACH, FUSED, DOUBLE = range(3)

def must(ok, what):
    if not ok:
        raise ValueError(what)

def read(cur, t):
    rule, form = types.SimpleNamespace(), cur.u8()
    must(form < 3, "a form that does not exist")
    name = cur.take(cur.varint()).decode("utf-8") or t.name
    dtype = cur.take(cur.varint()).decode("utf-8")
    shape = tuple(cur.varint() for _ in range(cur.varint()))
    t.references, t.rule, rule.form = [(name, dtype, shape)], rule, form
    if form == 2:
        return read_scales(cur, t, dtype, shape)
    (number_dtype, numbers), (block_dtype, blocks) = [((t.dtype, t.shape), (dtype, shape))[i] for i in (1 - form, form)]
    kind, rule.arithmetic, rule.head = cur.u8(), cur.u8(), cur.varint()
    must(kind < 5 and rule.arithmetic < 3 - form, "a kind or an arithmetic that does not exist")
    rule.bytes, rule.bits, rule.has_least = KINDS[kind]
    must(number_dtype in SINGLES and block_dtype == "U8" and numbers and numbers[-1] and numbers[-1] % 32 == 0, "not blocks of numbers")
    rule.rows, rule.number_dtype = math.prod(numbers) // numbers[-1], number_dtype
    must(rule.rows and math.prod(blocks) == rule.rows * numbers[-1] // 32 * rule.bytes, "blocks of another size")
    must(not rule.head or (rule.head % 2 == 0 and rule.rows % rule.head == 0 and rule.head <= 1 << 16), "bad heads")

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

def quantised(x, rule):
    """The blocks of rows of 32 numbers."""
    bits, known = rule.bits, np.where(np.isnan(x), np.float32(0), x)
    none, f16 = np.isnan(x).all(1), lambda d: d.astype(np.float16).view(np.uint8)
    if rule.has_least:
        # Of equal numbers the first: 0 has two signs.
        first = lambda at: np.where(none[:, None], np.float32(0), np.take_along_axis(x, at[:, None], 1))
        m = first(np.where(np.isnan(x), np.float32(np.inf), x).argmin(1))
        h = first(np.where(np.isnan(x), np.float32(-np.inf), x).argmax(1))
        d = ((h - m) / np.float32((1 << bits) - 1)).astype(np.float32)
        x = x - m
    else:
        a = np.take_along_axis(known, np.abs(known).argmax(1)[:, None], 1)
        a = np.where(a == 0, np.float32(0), a)
        d = np.abs(a) / np.float32(127) if bits == 8 else a / np.float32(-(1 << (bits - 1)))
    r = np.where(d == 0, np.float32(0), np.float32(1) / d)
    if bits == 8:
        y = x.astype(np.float64) * r if rule.arithmetic == DOUBLE else (x * r).astype(np.float64)
        y = np.copysign(np.floor(np.abs(y)) + (np.abs(y) % 1 >= 0.5), y)
        return np.concatenate([f16(d), (limited(y, -128, 127) & 255).astype(np.uint8)], 1)
    middle = np.float32(0.5 if rule.has_least else (1 << (bits - 1)) + 0.5)
    codes = limited(product_and_sum(rule.arithmetic, x, r, middle), 0, (1 << bits) - 1).astype(np.uint32)
    high = ((codes >> 4) << np.arange(32, dtype=np.uint32)).sum(1, dtype=np.uint32)[:, None].view(np.uint8)
    low = (codes[:, :16] & 15 | (codes[:, 16:] & 15) << 4).astype(np.uint8)
    return np.concatenate([f16(d)] + ([f16(m)] if rule.has_least else []) + ([high] if bits == 5 else []) + [low], 1)

def numbers_of(blocks, rule):
    f16 = lambda at: np.ascontiguousarray(blocks[:, at:at + 2]).view(np.float16).astype(np.float32)
    d, bits = f16(0), rule.bits
    if bits == 8:
        return blocks[:, 2:].view(np.int8).astype(np.float32) * d
    low = blocks[:, -16:]
    codes = np.concatenate([low & 15, low >> 4], 1).astype(np.uint32)
    if bits == 5:
        high = np.ascontiguousarray(blocks[:, -20:-16]).view("<u4")
        codes |= (high >> np.arange(32, dtype=np.uint32) & 1) << 4
    codes = codes.astype(np.float32)
    if rule.has_least:
        return product_and_sum(rule.arithmetic, codes, d, f16(2)).astype(np.float32)
    return (codes - np.float32(1 << (bits - 1))) * d

def predict(t, reference, convert, rounded):
    """`convert` and `rounded` are those of loom_predictors."""
    if t.rule.form == 2:
        return scales(t, reference, convert, rounded)
    rule, rows = t.rule, np.arange(t.rule.rows)
    if rule.head:
        half, place = rule.head // 2, rows % rule.head
        rows = rows - place + (place % 2 * half + place // 2 if rule.form == 0 else place % half * 2 + place // half)
    reference = reference.reshape(rule.rows, -1)[rows]
    with np.errstate(all="ignore"):
        if rule.form == 0:
            x = convert(reference.reshape(-1), rule.number_dtype, "F32").view(np.float32)
            return quantised(x.reshape(-1, 32), rule).reshape(-1)
        x = np.ascontiguousarray(numbers_of(reference.reshape(-1, rule.bytes), rule), np.float32)
    return convert(x.reshape(-1).view(np.uint32), "F32", t.dtype)
