"""BLAKE3-256 (O'Connor, Aumasson, Neves, Wilcox-O'Hearn 2020) with numpy: all chunks of the input side by side.

For loom_reader.py, since Python's standard library has no BLAKE3. Unkeyed, 32 bytes of output, input in memory.
"""
import numpy as np

IV = np.array([0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19], np.uint32)
ORDER = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8]
QUARTERS = [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
            (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]
START, END, PARENT, ROOT = 1, 2, 4, 8
CHUNK, BLOCK = 1024, 64


def turned(x, bits):
    return (x >> np.uint32(bits)) | (x << np.uint32(32 - bits))


def compress(chaining, words, counters, length, flags):
    """Chaining values (8, n) and blocks (16, n) to chaining values; length and flags are the same for all n."""
    n = words.shape[1]
    v = np.empty((16, n), np.uint32)
    v[:8], v[8:12] = chaining, IV[:4, None]
    v[12], v[13], v[14], v[15] = counters & 0xFFFFFFFF, counters >> 32, length, flags
    order = list(range(16))
    for _ in range(7):
        for i, (a, b, c, d) in enumerate(QUARTERS):
            for word, first, second in ((words[order[2 * i]], 16, 12), (words[order[2 * i + 1]], 8, 7)):
                v[a] += v[b] + word
                v[d] = turned(v[d] ^ v[a], first)
                v[c] += v[d]
                v[b] = turned(v[b] ^ v[c], second)
        order = [order[i] for i in ORDER]
    return v[:8] ^ v[8:]


def chunk_values(data, first, is_only):
    """Chaining values (8, n) of chunks: n whole ones, or one of at most 1024 bytes. `first` is the number of the first."""
    n = max(1, len(data) // CHUNK)
    blocks = max(1, -(-min(len(data), CHUNK) // BLOCK))
    padded = np.zeros(n * blocks * BLOCK, np.uint8)
    padded[:len(data)] = data
    words = padded.view("<u4").reshape(n, blocks, 16).astype(np.uint32)
    counters = np.arange(first, first + n, dtype=np.uint64)
    values = np.repeat(IV[:, None], n, axis=1)
    for i in range(blocks):
        last = i + 1 == blocks
        flags = START * (i == 0) | END * last | ROOT * (last and is_only)
        length = BLOCK if not last or n > 1 else len(data) - i * BLOCK
        values = compress(values, words[:, i].T, counters, length, flags)
    return values


def digest(array):
    """The 32 bytes of the digest of an array's bytes."""
    data = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
    whole = max(0, len(data) - 1) // CHUNK  # chunks before the last, which may be shorter
    parts = [chunk_values(data[i * CHUNK:min(whole, i + 4096) * CHUNK], i, False) for i in range(0, whole, 4096)]
    values = np.concatenate(parts + [chunk_values(data[whole * CHUNK:], whole, whole == 0)], axis=1)
    while (n := values.shape[1]) > 1:
        pairs, odd = values[:, :n // 2 * 2], values[:, n // 2 * 2:]
        words = np.concatenate([pairs[:, ::2], pairs[:, 1::2]])
        parents = compress(IV[:, None], words, np.zeros(n // 2, np.uint64), BLOCK, PARENT | ROOT * (n == 2))
        values = np.concatenate([parents, odd], axis=1)
    return values[:, 0].astype("<u4").tobytes()
