"""Predictions that are computed (docs/format.md sections 3.1 to 3.6 and 3.12), for the plain reader in loom_reader.py.

Elements come and go as unsigned numbers; the arithmetic is numpy's, which rounds every operation and fuses none.
"""
import struct, types
import numpy as np

DTYPES = ["F32", "BF16", "F16"]  # by the ids of roundings and adapter dtypes
VIEWED = ["F32", "BF16", "F16", "F8_E4M3", "F8_E5M2"]  # by the ids of views and conversions, minus 1
LOW_RANK, ADAPTER, BLEND, ADAM, VIEW, ADAPTERS, LOW_RANKS, DRIFT = 6, 7, 8, 10, 12, 14, 18, 20

def must(ok, what):
    if not ok:
        raise ValueError(what)

def widen(bits, dtype):
    """Elements as F32."""
    if dtype == "BF16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(np.float16).astype(np.float32) if dtype == "F16" else bits.view(np.float32)

def narrow(x, dtype):
    """F32 numbers that are no NaN as elements."""
    with np.errstate(over="ignore"):
        x = np.ascontiguousarray(x, np.float32)
    bits = x.view(np.uint32)
    if dtype == "BF16":
        return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        return x.astype(np.float16).view(np.uint16) if dtype == "F16" else bits

def rounded(x, dtype):
    return x if dtype == "F32" else widen(narrow(x, dtype), dtype)

def finite_or(x, dtype, reference):
    """The elements of x, and those of the reference where x is not finite, before or after it is rounded."""
    with np.errstate(over="ignore", invalid="ignore"):
        single = x.astype(np.float32)
    safe = narrow(np.where(np.isfinite(single), single, 0), dtype)
    return np.where(np.isfinite(single) & np.isfinite(widen(safe, dtype)), safe, reference)

def fused(a, b, c):
    """a b + c with one rounding to F32: the F64 sum is rounded to odd first, so that rounding it again does no harm."""
    product, c = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + c
    other = total - product
    error = (product - (total - other)) + (c - other)
    even = (total.view(np.int64) & 1) == 0
    odd = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where((error != 0) & even, odd, total).astype(np.float32)

# Of an F8: exponent bits, mantissa bits, and the bits of what is too large.
SMALL = {"F8_E4M3": (4, 3, 0x7F), "F8_E5M2": (5, 2, 0x7C)}

def convert(bits, own, other):
    """Elements of one dtype as elements of another, by F32 (section 3.5)."""
    if own == other:
        return bits
    nan_of = lambda x: (x & 0x7FFFFFFF) > 0x7F800000
    if own in SMALL:
        e, m, top = SMALL[own]
        magnitude, sign = bits.astype(np.uint32) & 0x7F, (bits.astype(np.uint32) & 0x80) << 24
        exponent, mantissa = (magnitude >> m).astype(np.int64), (magnitude & ((1 << m) - 1)).astype(np.float64)
        value = (np.where(exponent > 0, 1 << m, 0) + mantissa) * 2.0 ** (np.maximum(exponent, 1) - (1 << (e - 1)) + 1 - m)
        x = value.astype(np.float32).view(np.uint32)
        x = np.where(magnitude == top, 0x7FC00000 if e == 4 else 0x7F800000, x)
        x = np.where(magnitude > top, 0x7FC00000 | mantissa.astype(np.uint32) << (23 - m), x) | sign
    elif own == "F16":
        x = widen(bits, own).view(np.uint32)
        x = np.where((bits & 0x7FFF) > 0x7C00, (bits.astype(np.uint32) & 0x8000) << 16 | 0x7FC00000 | (bits.astype(np.uint32) & 0x3FF) << 13, x)
    else:
        x = bits.astype(np.uint32) << 16 if own == "BF16" else bits
        x = np.where(nan_of(x), x | 0x400000, x) if own == "BF16" else x
    x = x.astype(np.uint32)
    if other == "F32":
        return x
    if other in SMALL:
        e, m, top = SMALL[other]
        bias, value = (1 << (e - 1)) - 1, np.abs(x.view(np.float32).astype(np.float64))
        step = np.maximum((x >> 23 & 255).astype(np.int64) - 127, 1 - bias) - m
        with np.errstate(invalid="ignore", over="ignore"):
            code = np.minimum(((step + m + bias) << m) + np.rint(value * 2.0 ** -step) - (1 << m), top)
        code = np.where(nan_of(x), 0x7F if e == 4 else 0x7E | x >> 21 & 3, np.nan_to_num(code)).astype(np.uint8)
        return (x >> 24 & 0x80).astype(np.uint8) | code
    safe = narrow(np.where(nan_of(x), 0, x).astype(np.uint32).view(np.float32), other)
    nan = x >> 16 | 0x40 if other == "BF16" else x >> 16 & 0x8000 | 0x7E00 | x >> 13 & 0x3FF
    return np.where(nan_of(x), nan, safe).astype(np.uint16)

def read_view(cur, t, tensors):
    """The references and the pieces of a view: (source, start, count), in elements."""
    transposed, dtype = divmod(cur.u8(), 128)
    dtype = VIEWED[dtype - 1] if dtype else t.dtype
    must(dtype == t.dtype or {dtype, t.dtype} <= set(VIEWED), "a dtype that is not converted")
    t.references, t.targets, t.transposed, shapes = [], [], [], []
    for _ in range(cur.varint()):
        name, order = cur.take(cur.varint()).decode("utf-8"), cur.u8()
        must(order < 4 and not (order & 2 and name), "a reference that is nowhere")
        must(order & 2 or not t.targets, "a reference of a base after one of this file")
        target = tensors[cur.varint()] if order & 2 else None
        shape = tuple(cur.varint() for _ in range(cur.varint()))
        t.transposed.append(order & 1)
        shapes.append(shape)
        if target is not None:
            must((target.dtype, tuple(target.shape)) == (dtype, shape), "a reference is another tensor")
            t.targets.append(target)
        else:
            t.references.append((name or t.name, dtype, shape))
    unit, pieces, ends = cur.varint(), [], [0] * len(shapes)
    for _ in range(cur.varint()):
        source, start = cur.varint(), 0
        if source:
            zigzag = cur.varint()
            start = ends[source - 1] + ((zigzag >> 1) ^ -(zigzag & 1))
        count = cur.varint()
        must(count and start >= 0, "a bad piece")
        if source:
            ends[source - 1] = start + count
            must(ends[source - 1] * unit <= np.prod(shapes[source - 1], dtype=object), "a piece beyond its reference")
        pieces.append((source, start * unit, count * unit))
    must(sum(count for _, _, count in pieces) == t.n, "pieces do not fill the tensor")
    t.rule = types.SimpleNamespace(pieces=pieces, dtype=dtype, transposed=transposed, shapes=shapes)

def view(t, *references):
    swapped = lambda r, shape: r.reshape(shape).swapaxes(-1, -2).reshape(-1)
    references = [swapped(r, shape) if is_transposed else r
                  for r, shape, is_transposed in zip(references, t.rule.shapes, t.transposed)]
    zeros = lambda count: np.zeros(count, f"<u{t.kind.bits // 8}")
    parts = [convert(references[source - 1][start:start + count], t.rule.dtype, t.dtype) if source else zeros(count)
             for source, start, count in t.rule.pieces]
    out, shape = np.concatenate(parts), tuple(t.shape)
    return swapped(out, shape[:-2] + shape[:-3:-1]) if t.rule.transposed else out

def read_adapters(cur, t):
    """The factors, and the steps: flags, roundings, rank, scale, rows, columns, places of matrices."""
    must(t.dtype in DTYPES, "a dtype that is not computed with")
    reference, width = cur.take(cur.varint()).decode("utf-8") or t.name, cur.varint()
    must(width and t.n % width == 0, "bad width")
    factors, steps, products = [], [], 0
    for _ in range(cur.varint()):
        name, dtype = cur.take(cur.varint()).decode("utf-8"), DTYPES[cur.u8()]
        must(name or len(factors) >= 2, "a factor without a name")
        factors.append((name or factors[-2][0], dtype, tuple(cur.varint() for _ in range(cur.varint()))))
        must(len(factors[-1][2]) <= 16, "a bad factor")
    for i in range(cur.varint()):
        s = types.SimpleNamespace(flags=cur.u8(), product=DTYPES[cur.u8()], update=DTYPES[cur.u8()], rank=cur.varint())
        s.scale = np.frombuffer(cur.take(4), "<f4")[0]
        four = lambda: [cur.varint() for _ in range(4)]
        whole = s.flags & 16
        top, height, left, cols = (0, t.n // width, 0, width) if whole else four()
        must(s.flags < 32 and 1 <= s.rank <= 1024 and np.isfinite(s.scale), "a bad step")
        must(height and cols and top + height <= t.n // width and left + cols <= width, "a step beyond the tensor")
        s.rows, s.cols = slice(top, top + height), slice(left, left + cols)
        places = [(2 * i + 1, 0, s.rank, 1), (2 * i, 0, width, 1)] if whole else [four(), four()]
        places += [four()] if s.flags & 8 else []
        s.places = [(size, *place) for size, place in zip([(height, s.rank), (s.rank, cols), (height, 1)], places)]
        for (n, m), factor, start, by_row, by_col in s.places:
            elems = np.prod(factors[factor][2], dtype=object)
            must(start + (n - 1) * by_row + (m - 1) * by_col < elems and n * m <= elems, "a place beyond its factor")
        steps.append(s)
        products += s.rank * height * cols
    must(1 <= len(factors) <= 4096 and 1 <= len(steps) <= 4096 and products <= t.n << 14, "bad numbers of factors or steps")
    whole = all(s.cols == slice(0, width) for s in steps)
    must(width == t.cols and whole or not any(s.flags & 8 for s in steps), "lengths of parts of rows")
    t.references = [(reference, t.dtype, tuple(t.shape)), *factors]
    t.rule = types.SimpleNamespace(width=width, steps=steps)

def adapters(t, reference, *factors):
    x = widen(reference, t.dtype).reshape(-1, t.rule.width).copy()
    flat = [widen(bits, dtype).reshape(-1) for bits, (_, dtype, _) in zip(factors, t.references[1:])]
    place = lambda size, factor, start, by_row, by_col: \
        flat[factor][start + np.arange(size[0])[:, None] * by_row + np.arange(size[1]) * by_col]
    with np.errstate(all="ignore"):
        for s in t.rule.steps:
            u, v, *lengths = (place(*p) for p in s.places)
            u = u * s.scale if s.flags & 2 else u
            p = u[:, :1] * v[:1]
            for k in range(1, s.rank):
                p = fused(u[:, k:k + 1], v[k], p) if s.flags & 1 else p + u[:, k:k + 1] * v[k]
            p = rounded(p, s.product)
            y = x[s.rows, s.cols] + rounded(p if s.flags & 2 else p * s.scale, s.update)
            if lengths:
                squares = np.cumsum(y.astype(np.float64) ** 2, axis=1)[:, -1:]
                y = y * (lengths[0] / np.sqrt(squares).astype(np.float32))
            x[s.rows, s.cols] = y if s.flags & 4 else rounded(y, t.dtype)
        return finite_or(x.reshape(-1), t.dtype, reference)

def read_fields(cur, predictor, t, payloads, tensors):
    """What the predictor's fields say: t.references as (name, dtype, shape), t.targets, t.rule, t.factors."""
    if predictor == VIEW:
        return read_view(cur, t, tensors)
    if predictor == ADAPTERS:
        return read_adapters(cur, t)
    name = lambda: cur.take(cur.varint()).decode("utf-8")
    own = lambda: (name() or t.name, t.dtype, tuple(t.shape))
    must(t.dtype in DTYPES, "a dtype that is not computed with")
    r = t.rule = types.SimpleNamespace()
    if predictor == LOW_RANK:
        t.references = [own()]
        r.rank = cur.varint()
        must(1 <= r.rank <= 256, "bad rank")
        t.factors = payloads.take(cur.varint())
    elif predictor == DRIFT:
        t.references = [own()]
        r.rank = cur.varint()
        must(1 <= r.rank <= min(256, t.cols, t.n // t.cols), "bad rank")
        t.factors = payloads.take(cur.varint())
    elif predictor == LOW_RANKS:
        t.references = [own()]
        r.width, count = cur.varint(), cur.varint()
        must(1 <= count <= 1 << 16 and t.n and r.width and t.n % (r.width * count) == 0, "bad matrices")
        r.ranks = [cur.varint() for _ in range(count)]
        must(max(r.ranks) and max(r.ranks) <= 256, "bad ranks")
        t.factors = payloads.take(cur.varint())
    elif predictor == ADAPTER:
        reference, a, b = own(), name(), name()
        r.dtype, r.rank = DTYPES[cur.u8()], cur.varint()
        r.scale, flags = np.frombuffer(cur.take(4), "<f4")[0], cur.u8()
        r.fused, r.scale_first, r.transposed = flags & 1, flags & 2, flags & 4
        r.product, r.update = DTYPES[cur.u8()], DTYPES[cur.u8()]
        outputs, inputs = t.shape[::-1] if r.transposed else t.shape
        t.references = [reference, (a, r.dtype, (r.rank, inputs)), (b, r.dtype, (outputs, r.rank))]
    elif predictor == ADAM:
        r.form, r.precision = cur.u8(), cur.u8()
        must(t.dtype == "F32" and r.form <= 1 and r.precision <= 1, "a bad step of Adam")
        t.references = [own() for _ in range(2 - r.form)]
        t.targets = [tensors[cur.varint()] for _ in range(1 + r.form)]
        r.numbers = np.frombuffer(cur.take(8 * (2 + r.form)), "<f8")
    else:
        r.form, r.precision = cur.u8(), cur.u8()
        t.references = [own() for _ in range(cur.varint())]
        count = len(t.references)
        numbers = [count, count - 2, 2 * count - 1][r.form]
        r.numbers = np.frombuffer(cur.take(8 * numbers), "<f8")

def low_rank(t, reference):
    return add_product(t, reference, t.n // t.cols, t.cols, t.rule.rank, t.factors)

def low_ranks(t, reference):
    count, at, data, parts = len(t.rule.ranks), 0, t.factors, []
    for rank, part in zip(t.rule.ranks, reference.reshape(count, -1)):
        if rank:
            size = shift = 0
            while True:
                byte, at = data[at], at + 1
                size, shift = size | (byte & 127) << shift, shift + 7
                if byte < 128:
                    break
            must(at + size <= len(data), "factors end early")
            part = add_product(t, part, part.size // t.rule.width, t.rule.width, rank, data[at:at + size])
            at += size
        parts.append(part)
    must(at == len(data), "factors are too long")
    return np.concatenate(parts)

def add_product(t, reference, rows, cols, rank, factors):
    rule, scale = struct.unpack("<Bf", factors[:5])
    parameters, coded = factors[5:5 + 2 * rank], factors[5 + 2 * rank:]
    bits = f"{int.from_bytes(coded, 'little'):0{8 * len(coded)}b}"[::-1]
    at, numbers = 0, []
    for k in [*parameters[:rank]] * rows + [k for k in parameters[rank:] for _ in range(cols)]:
        ones = bits.index("0", at) - at
        at += ones + 1 + k
        u = ones << k | int("0" + bits[at - k:at][::-1], 2)
        numbers.append((u >> 1) ^ -(u & 1))
    must("1" not in bits[at:] and len(bits) - at < 8, "factors do not end well")
    real = np.float64 if t.dtype == "F32" else np.float32
    u = np.array(numbers[:rows * rank], np.int64).reshape(rows, rank).astype(real)
    v = (np.float64(scale) * np.array(numbers[rows * rank:], np.int64).reshape(rank, cols)).astype(real)
    p = np.zeros((rows, cols), real)
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(rank):
            p = p + u[:, k:k + 1] * v[k]
        p = rounded(p.astype(np.float32), t.dtype).astype(real) if rule else p
        x = widen(reference, t.dtype)
        out = narrow((x.astype(real) + p.reshape(-1)).astype(np.float32), t.dtype)
    return np.where(np.isfinite(x), out, reference)

def drift(t, reference):
    """t.drift has the unit, the steps, and the numbers in the order of the file."""
    (unit, steps, numbers), rank, rows = t.drift, t.rule.rank, t.n // t.cols
    u = numbers[:rows * rank].reshape(rank, rows)
    w = numbers[rows * rank:].reshape(rank, t.cols) * steps[:, None]
    largest = [np.abs(x).max(1) for x in (u, w)]
    must(max(x.max() for x in largest) <= 32767 and steps.max() <= 32767 and sum(largest[0] * largest[1]) < 1 << 31, "factors are too large")
    p = u.T @ w
    with np.errstate(over="ignore", invalid="ignore"):
        out = widen(reference, t.dtype) + p.astype(np.float32).reshape(-1) * unit
    return finite_or(out, t.dtype, reference)

def adapter(t, reference, a, b):
    r = t.rule
    a, b = widen(a, r.dtype).reshape(r.rank, -1), widen(b, r.dtype).reshape(-1, r.rank)
    u, v = (a.T, b.T) if r.transposed else (b, a)
    with np.errstate(over="ignore", invalid="ignore"):
        u = u * r.scale if r.scale_first else u
        p = u[:, :1] * v[:1]
        for k in range(1, r.rank):
            p = fused(u[:, k:k + 1], v[k], p) if r.fused else p + u[:, k:k + 1] * v[k]
        p = rounded(p, r.product)
        p = rounded(p if r.scale_first else p * r.scale, r.update)
        return finite_or(widen(reference, t.dtype) + p.reshape(-1), t.dtype, reference)

def blend(t, *references):
    r, x = t.rule, [widen(reference, t.dtype).astype(np.float64) for reference in references]
    single = lambda y: np.asarray(y).astype(np.float32)
    own = lambda y: rounded(np.atleast_1d(single(y)), t.dtype).astype(np.float64)
    rnd = [lambda y: y, lambda y: single(y).astype(np.float64), own][r.precision]
    c = r.numbers if r.precision == 0 else r.numbers.astype(np.float32).astype(np.float64)
    def weighted(terms, weights):
        total = rnd(weights[0] * terms[0])
        for term, weight in zip(terms[1:], weights[1:]):
            total = rnd(total + rnd(weight * term))
        return total
    with np.errstate(all="ignore"):
        if r.form == 0:
            out = weighted(x, c)
        elif r.form == 1:
            out = rnd(x[0] + weighted([rnd(y - x[1]) for y in x[2:]], c))
        else:
            count = len(x) - 1
            d = [rnd(y - x[0]) for y in x[1:]]
            d = [np.where(np.abs(y) < t_i, 0, y) for y, t_i in zip(d, c)]
            terms = [rnd(w * y) for y, w in zip(d, c[count:])]
            s = terms[0]
            for term in terms[1:]:
                s = rnd(s + term)
            update = weight = np.zeros(len(s))
            for term, w in zip(terms, c[count:]):
                agrees = term * s > 0
                update = np.where(agrees, rnd(update + term), update)
                weight = np.where(agrees, rnd(weight + w), weight)
            mean = np.where(weight == 0, 0, rnd(update / np.where(weight == 0, 1, weight)))
            out = rnd(x[0] + rnd(c[-1] * mean))
    return finite_or(out, t.dtype, references[0])

def adam(t, *inputs):
    real = [np.float64, np.float32][t.rule.precision]
    first, second, third = (widen(bits, t.dtype).astype(np.float64) for bits in inputs)
    with np.errstate(all="ignore"):
        if t.rule.form == 0:
            b1, b2 = t.rule.numbers
            g = ((third - b1 * second) / (1 - b1)).astype(real)
            out = real(b2) * first.astype(real) + real(1 - b2) * g * g
        else:
            d, r, e = t.rule.numbers.astype(real)
            out = d * first.astype(real) - r * second.astype(real) / (np.sqrt(third.astype(real)) + e)
    return finite_or(out, t.dtype, inputs[0])

def predict(t, references):
    rules = {LOW_RANK: low_rank, ADAPTER: adapter, BLEND: blend, ADAM: adam, VIEW: view, ADAPTERS: adapters, LOW_RANKS: low_ranks, DRIFT: drift}
    return rules[t.predictor](t, *references)
