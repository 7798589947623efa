"""Classes of elements by their history (docs/format.md section 15), for the plain reader in loom_reader.py."""
import numpy as np

HISTORY, FAMILY = 11, 7  # wire ids of the predictor and of its family

def residuals(t, p, kind):
    """d of section 8 as signed numbers, for elements p and the next ones t."""
    bits, unsigned = kind.bits, lambda x: x.astype(np.uint64)
    top, mask = np.uint64(1 << bits - 1), np.uint64((1 << bits) - 1)
    ordered = lambda x: np.where(unsigned(x) & top, unsigned(x) ^ mask, unsigned(x) | top) if kind.exp else unsigned(x) ^ top
    d = ordered(t) - ordered(p)
    d = np.where(unsigned(p) & top != 0, -d, d) if kind.signed else d
    shift = np.uint64(64 - bits)
    return (d << shift).view(np.int64) >> shift.astype(np.int64)

def changes(steps, kind):
    """Kind 0; steps are the reference and its ancestors, newest first."""
    age, count, down = (np.zeros(len(steps[0]), np.int64) for _ in range(3))
    for older, newer in reversed(list(zip(steps[1:], steps))):
        d = residuals(newer, older, kind)
        moved = d != 0
        age = np.where(moved, 1, np.where(age > 0, np.minimum(age + 1, 15), 0))
        count = np.where(moved, np.minimum(count + 1, 7), count)
        down = np.where(moved, d < 0, down)
    return 128 * down + 8 * age + count

def last_residuals(steps, kind):
    """Kind 1."""
    d = residuals(steps[0], steps[1], kind)
    size = np.where(d < 0, -d.astype(np.float64), d)  # as floats, since the lowest number has no opposite
    bits = sum((size >= 1 << b).astype(np.int64) for b in range(7))
    before = 1 + np.sign(residuals(steps[1], steps[2], kind)) if len(steps) > 2 else 1
    return 3 * np.where(d < 0, 7 - bits, 7 + bits) + before

CLASSES = (changes, last_residuals)
