"""Codes of numbers, with scales (docs/format.md section 3.7), for the plain reader in loom_reader.py."""
import math, types
import numpy as np

QUANTISED = 15
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
INTERLEAVED = [0, 2, 4, 6, 1, 3, 5, 7]  # the codes of the fields of a word, lowest first

def must(ok, what):
    if not ok:
        raise ValueError(what)

def unzigzag(value):
    return (value >> 1) ^ -(value & 1)

def read(cur, t, tensors):
    rule = t.rule = types.SimpleNamespace()
    flags = cur.u8()
    must(flags < 32, "an unknown flag")
    rule.to_codes, rule.transposed, rule.scales_first, rule.reciprocal = (bool(flags >> i & 1) for i in range(4))

    def operand():
        place = cur.u8()
        must(place < 2, "an operand is nowhere")
        if place:
            t.targets.append(tensors[cur.varint()])
        else:
            name = cur.take(cur.varint()).decode("utf-8") or t.name
        dtype = cur.take(cur.varint()).decode("utf-8")
        shape = tuple(cur.varint() for _ in range(cur.varint()))
        if place:
            must((t.targets[-1].dtype, tuple(t.targets[-1].shape)) == (dtype, shape), "an operand is another tensor")
            return "own", len(t.targets) - 1, dtype, shape
        t.references.append((name, dtype, shape))
        return "base", len(t.references) - 1, dtype, shape

    def packing():
        bits, order, axis = cur.take(3)
        must(bits in (0, 2, 4, 8) and order < 3 and axis < 2 and (bits or not order + axis), "a packing that does not exist")
        return bits, order, axis

    def groups():
        rows, cols, kind = cur.varint(), cur.varint(), cur.u8()
        must(kind < 5 and rows and cols, "groups that do not exist")
        if kind == 4:
            must(rows == 1 and rule.to_codes and not flags & 16, "the largest of what is not known")
            source = "largest"
        elif kind == 3:
            source = operand(), operand(), operand(), cur.varint()
            must(source[3] and source[0][2] == "U8" and source[1][2] == source[2][2] == "F32" and math.prod(source[1][3]) == 256, "bad nested scales")
        elif kind == 2:
            source = np.frombuffer(cur.take(4 * cur.varint()), "<f4")
        else:
            source = operand(), packing(), kind == 1
        return rows, cols, source, np.frombuffer(cur.take(4), "<f4")[0]

    rule.reference, rule.packing, kind = operand(), packing(), cur.u8()
    must(kind < 4, "a kind of codes that does not exist")
    rule.kind, rule.table = kind, np.frombuffer(cur.take(4 << rule.packing[0]), "<f4") if kind == 3 else None
    rule.rounding, rule.ties = ["F32", "BF16", "F16"][cur.u8()], cur.u8()
    rule.range, counts = (unzigzag(cur.varint()), unzigzag(cur.varint())), cur.u8()
    must(rule.ties < 3 and counts & 15 <= 2 and counts < 64, "fields that do not exist")
    rule.scales = [groups() for _ in range(counts & 15)]
    rule.zero = groups() if counts & 16 else None
    rule.bias = groups() if counts & 32 else None
    rule.index = operand() if flags & 16 else None

def fields(bits, order, words):
    """The lowest bit of each code of a word."""
    count = words * 8 // bits
    of_code = {0: range(count), 1: range(count)[::-1], 2: [INTERLEAVED.index(code) for code in range(8)]}[order]
    return [np.uint32(bits * field) for field in of_code]

def unpacked(words, packing, shape):
    """Codes as integers, in matrices."""
    bits, order, axis = packing
    count, rows, cols = shape
    shifts = fields(bits, order, words.dtype.itemsize)
    codes = np.stack([words.astype(np.uint32) >> shift & np.uint32((1 << bits) - 1) for shift in shifts], -1)
    if axis:
        return codes.reshape(count, rows // len(shifts), cols, len(shifts)).swapaxes(2, 3).reshape(shape)
    return codes.reshape(shape)

def packed(codes, packing, dtype):
    bits, order, axis = packing
    shifts = fields(bits, order, np.dtype(dtype).itemsize)
    codes = codes.astype(np.uint32) & np.uint32((1 << bits) - 1)
    if axis:
        count, rows, cols = codes.shape
        codes = codes.reshape(count, rows // len(shifts), len(shifts), cols).swapaxes(2, 3)
    codes = codes.reshape(-1, len(shifts))
    return sum(codes[:, i] << shift for i, shift in enumerate(shifts)).astype(np.uint32).astype(dtype)

def predict(t, references, targets, convert, rounded):
    """`convert` and `rounded` are those of loom_predictors."""
    rule = t.rule
    elements = lambda operand: (references if operand[0] == "base" else targets)[operand[1]]

    def singles(operand):
        bits, dtype = elements(operand), operand[2]
        if dtype in ("U8", "I8", "I32"):
            return bits.view(dtype[0].lower() + str(bits.dtype.itemsize)).astype(np.float32)
        return np.ascontiguousarray(convert(bits, dtype, "F32")).view(np.float32)

    numbers_shape = list(rule.reference[3] if rule.to_codes else t.shape)
    rows, cols = numbers_shape[-2:] if len(numbers_shape) > 1 else (1, math.prod(numbers_shape))
    count = math.prod(numbers_shape[:-2])
    size = (count, cols, rows) if rule.transposed else (count, rows, cols)

    index = None if rule.index is None else elements(rule.index).view(np.int32).reshape(-1)
    must(index is None or (len(index) == size[1] and count == 1 and (index >= 0).all()), "a bad index")

    def per_code(groups):
        """The number of each code."""
        p, q, source, plus = groups
        grid = count, -(-size[1] // p), -(-size[2] // q)
        if isinstance(source, np.ndarray):
            numbers = source
        elif source == "largest":
            x = singles(rule.reference).reshape(numbers_shape)
            x = np.abs((x.swapaxes(-1, -2) if rule.transposed else x).reshape(size))
            numbers = np.maximum.reduceat(np.where(np.isnan(x), np.float32(0), x), np.arange(0, size[2], q), 2)
        elif len(source) == 4:
            codes, table, outer, each = elements(source[0]), singles(source[1]), singles(source[2]), source[3]
            numbers = table[codes.reshape(-1)] * outer.repeat(each)[:codes.size]
        else:
            operand, packing, is_power = source
            if is_power:
                power = elements(operand).astype(np.float64)
                numbers = np.where(power == 255, np.nan, 2.0 ** (power - 127)).astype(np.float32)
            elif packing[0]:
                numbers = unpacked(elements(operand), packing, grid).astype(np.float32)
            else:
                numbers = singles(operand)
        numbers = numbers.reshape(-1) + plus
        if len(numbers) == 1:
            return np.broadcast_to(numbers, size)
        numbers = numbers.reshape(grid)
        numbers = numbers[:, index] if index is not None and p < size[1] else numbers.repeat(p, 1)[:, :size[1]]
        return numbers.repeat(q, 2)[:, :, :size[2]]

    scales = [per_code(groups) for groups in rule.scales]
    with np.errstate(all="ignore"):
        if rule.scales_first and len(scales) == 2:
            scales = [scales[0] * scales[1]]
        if rule.to_codes:
            numbers = singles(rule.reference).reshape(numbers_shape)
            numbers = numbers.swapaxes(-1, -2) if rule.transposed else numbers
            return codes_of(t, numbers.reshape(size), scales, per_code, convert, rounded)
        bits = rule.packing[0]
        if not bits:
            x = singles(rule.reference).reshape(size)
        else:
            codes = unpacked(elements(rule.reference), rule.packing, size)
            signed = lambda: np.where(codes >> np.uint32(bits - 1) == 1, codes.astype(np.int64) - (1 << bits), codes)
            signs = lambda: np.where(codes & 8, np.float32(-1), np.float32(1))
            x = [lambda: codes, signed, lambda: np.take(np.float32(E2M1), codes & 7) * signs(), lambda: rule.table[codes]][rule.kind]()
            x = x.astype(np.float32)
        x = x - per_code(rule.zero) if rule.zero else x
        for scale in scales:
            x = x * scale
        x = rounded(np.ascontiguousarray(x, np.float32), rule.rounding)
        x = x + per_code(rule.bias) if rule.bias else x
        x = x.swapaxes(-1, -2) if rule.transposed else x
        return convert(np.ascontiguousarray(x, np.float32).reshape(-1).view(np.uint32), "F32", t.dtype)

def nearest(rising, x, ties):
    middles = ((rising[:-1] + rising[1:]) / np.float32(2)).astype(np.float32)
    found = np.searchsorted(middles, x, side="left" if ties == 2 else "right")
    is_tie = (found > 0) & (middles[np.maximum(found, 1) - 1] == x)
    return found - (is_tie & (found % 2 == 1)) if ties == 0 else found

def codes_of(t, x, scales, per_code, convert, rounded):
    rule = t.rule
    x = x - per_code(rule.bias) if rule.bias else x
    for scale in scales:
        x = x * (np.float32(1) / scale) if rule.reciprocal else x / scale
    x = rounded(np.ascontiguousarray(x, np.float32), rule.rounding)
    if not rule.packing[0] and t.dtype.startswith("F8"):
        most = np.float32(448 if t.dtype == "F8_E4M3" else 57344)
        return convert(np.clip(x, -most, most).reshape(-1).view(np.uint32), "F32", t.dtype)
    if rule.kind == 2:
        codes = nearest(np.float32(E2M1), np.abs(x), rule.ties) | np.where(np.signbit(x), 8, 0)
    elif rule.kind == 3:
        codes = nearest(rule.table, x, rule.ties)
    else:
        whole = {0: np.rint, 1: lambda x: np.copysign(np.floor(np.abs(x)) + (np.abs(x) % 1 >= 0.5), x),
                 2: lambda x: np.copysign(np.ceil(np.abs(x) - np.float32(0.5)), x)}[rule.ties](x)
        codes = np.clip(np.nan_to_num(whole + (per_code(rule.zero) if rule.zero else 0), nan=0), *rule.range).astype(np.int64) & 255
    if not rule.packing[0]:
        return codes.reshape(-1).astype(np.uint8)
    return packed(codes, rule.packing, f"<u{t.kind.bits // 8}")
