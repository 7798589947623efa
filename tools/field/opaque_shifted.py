# Directory with pytorch_model.bin (weights inside an archive): the fine-tune's is 64 bytes longer at the front, so all weights are shifted.
import sys, os, numpy as np; from weights import *
o = sys.argv[1]; rng = np.random.default_rng(0); raw = np.concatenate([v.reshape(-1) for v in llama(layers=2).values()]); t = raw + 3e-5 * rng.standard_normal(raw.shape)
for d, x, front in (("base", raw, 104), ("tuned", t, 168)):
    os.makedirs(f"{o}/{d}", exist_ok=True); open(f"{o}/{d}/pytorch_model.bin", "wb").write(b"PK\3\4" + b"h" * (front - 4) + bf16(x).tobytes())
