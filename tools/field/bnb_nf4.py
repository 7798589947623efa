"""A plain writer of 4-bit weights as bitsandbytes has them, with nested scales (numpy only)."""
import json
import numpy as np
from weights import B, S, T

F = np.float32
NF4 = np.array([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
                -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
                0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], F)

def dynamic_map():
    """256 numbers: of each size ten times smaller than the next, twice as many; both signs, 0 and 1."""
    numbers = []
    for i in range(7):
        edges = np.linspace(0.1, 1, 2 ** i + 1); middles = (edges[1:] + edges[:-1]) / 2 * 10.0 ** (i - 6)
        numbers += [*middles, *-middles]
    return np.sort(np.array([*numbers, 0, 1.0], F))

def nearest(numbers, x):
    return np.searchsorted((numbers[1:] + numbers[:-1]) / F(2), x).astype(np.uint8)

def quantised(name, v):
    """The tensors of a weight, and the numbers that they stand for."""
    g = v.reshape(-1, 64); a = np.abs(g).max(1); c = nearest(NF4, g * (F(1) / a)[:, None]).reshape(-1)
    table, offset = dynamic_map(), F(a.mean()); n = np.zeros(-(-len(a) // 256) * 256, F); n[:len(a)] = a - offset
    outer = np.abs(n.reshape(-1, 256)).max(1); inner = nearest(table, (n.reshape(-1, 256) / outer[:, None]).astype(F)).reshape(-1)[:len(a)]
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(v.shape), "nested_blocksize": 256,
             "nested_dtype": "float32", "nested_offset": float(offset)}
    tensors = {name: T("U8", (c[0::2] << 4 | c[1::2])[:, None]), f"{name}.absmax": T("U8", inner), f"{name}.quant_map": S(NF4),
               f"{name}.nested_absmax": S(outer), f"{name}.nested_quant_map": S(table),
               f"{name}.quant_state.bitsandbytes__nf4": T("U8", np.frombuffer(json.dumps(state).encode(), np.uint8))}
    scales = table[inner] * outer.repeat(256)[:len(a)] + offset
    return tensors, (NF4[c].reshape(-1, 64) * scales[:, None]).reshape(v.shape)

def of_state(state):
    """Projections in 4 bits, all else in BF16; and the same in BF16 only."""
    packed, plain = {}, {}
    for name, v in state.items():
        tensors, numbers = quantised(name, v) if "_proj" in name else ({name: B(v)}, v)
        packed |= tensors; plain[name] = B(numbers)
    return packed, plain
