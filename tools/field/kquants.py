"""A plain quantiser of the K-quants of GGUF (numpy only), as ggml's reference searches for scales."""
import numpy as np

F = np.float32
# Numbers that share a scale, codes, whether groups have a minimum, the greatest scale.
KINDS = {"Q2_K": (16, 4, True, 15), "Q3_K": (16, 8, False, 32), "Q4_K": (32, 16, True, 63), "Q5_K": (32, 32, True, 63),
         "Q6_K": (16, 64, False, 128)}

def with_minimum(x, w, codes, first, steps, absolute):
    """Of each row: the scale and the minimum with the least weighted error, over some ranges of codes."""
    top = F(codes - 1); low = np.minimum(x.min(1, keepdims=True), F(0)); span = x.max(1, keepdims=True) - low
    total = lambda y: y.sum(1, keepdims=True, dtype=F)
    error = lambda scale, low, q: total(w * (np.abs(scale * q + low - x) if absolute else (scale * q + low - x) ** 2))
    fit = lambda f: np.rint(f / span * (x - low)).clip(0, top)
    scale, best = span / top, None
    best = error(scale, low, fit(top)); least = low
    for step in range(steps + 1):
        q = fit(F(first) + F(0.1) * F(step) + top)
        l, l2, xl = total(w * q), total(w * q * q), total(w * q * x); d = total(w) * l2 - l * l
        s = (total(w) * xl - total(w * x) * l) / d; m = (l2 * total(w * x) - l * xl) / d
        s, m = np.where(m > 0, xl / l2, s), np.minimum(m, F(0))
        now = error(s, m, q); better = (d > 0) & (now < best)
        scale, least, best = np.where(better, s, scale), np.where(better, m, least), np.where(better, now, best)
    zero = span == 0
    return np.where(zero, F(0), scale), np.where(zero, -low, -least)

def around_zero(x, half):
    """Of each row: the scale with the least error weighted by squares."""
    at = np.abs(x).argmax(1)[:, None]; most = np.take_along_axis(x, at, 1); w = x * x; scale = best = None
    for step in [0, *range(-9, 0), *range(1, 10)]:
        q = np.rint(-(F(half) + F(0.1) * F(step)) / most * x).clip(-half, half - 1)
        xl, l2 = (w * x * q).sum(1, keepdims=True, dtype=F), (w * q * q).sum(1, keepdims=True, dtype=F)
        better = (l2 > 0) & (xl * xl > best * l2) if step else np.ones_like(l2, bool)
        now = np.where(l2 > 0, xl / l2, F(0)); scale = np.where(better, now, F(0) if scale is None else scale)
        best = np.where(better, now * xl, F(0) if best is None else best)
    return np.where(most == 0, F(0), scale)

def scaled(all_scales, greatest):
    """Scales of groups as small integers, and the F16 that they are multiples of."""
    most = all_scales.max(1, keepdims=True); unit = most / F(greatest)
    q = np.where(most > 0, np.rint(np.divide(all_scales, unit, where=unit != 0, out=np.zeros_like(all_scales))), 0).clip(0, greatest)
    return q.astype(np.uint8), unit.astype(np.float16)

def scaled_signed(all_scales, greatest):
    at = np.abs(all_scales).argmax(1)[:, None]; most = np.take_along_axis(all_scales, at, 1); unit = most / F(-greatest)
    q = np.rint(np.divide(all_scales, unit, where=unit != 0, out=np.zeros_like(all_scales))).clip(-greatest, greatest - 1)
    return q.astype(np.int8), unit.astype(np.float16)

def spread(codes, bits, run, shift=0):
    """Some bits of 256 codes: those of `run` codes in the lowest bits of as many bytes, the next ones above them."""
    q = (codes >> shift & ((1 << bits) - 1)).reshape(len(codes), -1, 8 // bits, run)
    return (q << (np.arange(8 // bits, dtype=np.uint8) * bits)[:, None]).sum(2, dtype=np.uint8).reshape(len(codes), -1)

def blocks(x, kind):
    x = np.ascontiguousarray(x, F).reshape(-1, 256); n = len(x); group, codes, has_minimum, greatest = KINDS[kind]
    g = x.reshape(-1, group); bytes_of = lambda d: np.ascontiguousarray(d).view(np.uint8).reshape(n, -1)
    with np.errstate(all="ignore"):
        if has_minimum:
            w = np.abs(g) if kind == "Q2_K" else np.sqrt((g * g).mean(1, keepdims=True, dtype=F)) + np.abs(g)
            first, steps = {"Q2_K": (-0.5, 15), "Q4_K": (-1, 20), "Q5_K": (-0.5, 15)}[kind]
            s, m = (v.reshape(n, -1) for v in with_minimum(g, w, codes, first, steps, kind == "Q2_K"))
            (s, d), (m, least) = scaled(s, greatest), scaled(m, greatest)
            scale, minimum, zero = d.astype(F) * s.astype(F), least.astype(F) * m.astype(F), 0
        else:
            s, d = scaled_signed(around_zero(g, codes // 2).reshape(n, -1), greatest)
            scale, minimum, zero = d.astype(F) * s.astype(F), np.zeros(s.shape, F), codes // 2
        q = np.rint((g + minimum.reshape(-1, 1)) / scale.reshape(-1, 1)) + zero
    q = np.where(scale.reshape(-1, 1) == 0, 0, q.clip(0, codes - 1)).astype(np.uint8).reshape(n, 256)
    if kind == "Q2_K":
        return np.concatenate([s | m << 4, spread(q, 2, 32), bytes_of(d), bytes_of(least)], 1)
    if kind == "Q3_K":
        u = (s.astype(np.int16) + 32).astype(np.uint8); low, high = u & 15, u >> 4
        packed = [low[:, :8] | low[:, 8:] << 4, (high.reshape(n, 4, 4) << (np.arange(4, dtype=np.uint8) * 2)[:, None]).sum(1, dtype=np.uint8)]
        return np.concatenate([spread(q, 1, 32, 2), spread(q, 2, 32), *packed, bytes_of(d)], 1)
    if kind == "Q6_K":
        return np.concatenate([spread(q, 4, 64), spread(q, 2, 32, 4), s.view(np.uint8), bytes_of(d)], 1)
    packed = [s[:, :4] | s[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6, s[:, 4:] & 15 | (m[:, 4:] & 15) << 4]
    high = [spread(q, 1, 32, 4)] if kind == "Q5_K" else []
    return np.concatenate([bytes_of(d), bytes_of(least), *packed, *high, spread(q, 4, 32)], 1)

def gathered(block_bytes, bits, run):
    """What `spread` was given."""
    b = block_bytes.reshape(len(block_bytes), -1, 1, run) >> (np.arange(8 // bits, dtype=np.uint8) * bits)[:, None]
    return (b & ((1 << bits) - 1)).reshape(len(block_bytes), 256)

def numbers(rows, kind):
    size = {"Q2_K": 84, "Q3_K": 110, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}[kind]; b = rows.reshape(-1, size); n = len(b)
    f16 = lambda at: np.ascontiguousarray(b[:, at:at + 2]).view(np.float16).astype(F)
    each = lambda v: v.astype(F).repeat(KINDS[kind][0], 1)
    if kind == "Q2_K":
        return gathered(b[:, 16:80], 2, 32).astype(F) * each(f16(80) * (b[:, :16] & 15).astype(F)) - each(f16(82) * (b[:, :16] >> 4).astype(F))
    if kind == "Q3_K":
        s = np.concatenate([b[:, 96:104] & 15, b[:, 96:104] >> 4], 1) | np.concatenate([b[:, 104:108] >> i & 3 for i in (0, 2, 4, 6)], 1) << 4
        q = gathered(b[:, 32:96], 2, 32) | gathered(b[:, :32], 1, 32) << 2
        return (q.astype(F) - F(4)) * each(f16(108) * (s.astype(F) - F(32)))
    if kind == "Q6_K":
        q = gathered(b[:, :128], 4, 64) | gathered(b[:, 128:192], 2, 32) << 4
        return (q.astype(F) - F(32)) * each(f16(208) * np.ascontiguousarray(b[:, 192:208]).view(np.int8).astype(F))
    p, r, t = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    s = np.concatenate([p & 63, t & 15 | p >> 6 << 4], 1); m = np.concatenate([r & 63, t >> 4 | r >> 6 << 4], 1)
    q = gathered(b[:, -128:], 4, 32) | (gathered(b[:, 16:48], 1, 32) << 4 if kind == "Q5_K" else 0)
    return q.astype(F) * each(f16(0) * s.astype(F)) - each(f16(2) * m.astype(F))
