# Merged LoRA of rank 32 without its adapter, 512 x 512: ranks above 21 were not found.
import sys, numpy as np; from weights import *
o = sys.argv[1]; d, r = 512, 32; rng = np.random.default_rng(1); w = f32(bf16(matrix(rng, d, d))); save(f"{o}/base.safetensors", {"w": B(w)})
A = (0.02 * rng.standard_normal((r, d))).astype(np.float32); Bm = (0.02 * rng.standard_normal((d, r))).astype(np.float32); save(f"{o}/tuned.safetensors", {"w": B(w + 2 * (Bm @ A))})
