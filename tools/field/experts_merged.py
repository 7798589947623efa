# Merged updates of stacked experts [E, out, in] without their adapter: a product of its own for each expert, one expert untouched.
import sys, numpy as np; from weights import *
o = sys.argv[1]; rng = np.random.default_rng(12); E, r, n = 8, 4, "model.layers.0.mlp.experts.gate_up_proj"
b = f32(bf16(np.stack([matrix(rng, 512, 256) for _ in range(E)]))); t = b.copy()
for e in range(E - 1): t[e] += 2 * ((0.02 * rng.standard_normal((512, r))) @ (0.02 * rng.standard_normal((r, 256)))).astype(np.float32)
save(f"{o}/base.safetensors", {n: B(b)}); save(f"{o}/tuned.safetensors", {n: B(t)})
