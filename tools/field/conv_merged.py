# The update of lora_conv, without its adapter: merged 3x3 convolutions, one of them with a pair of factors for each place.
import sys, numpy as np; from weights import *
o = sys.argv[1]; rng = np.random.default_rng(11); names = [f"down_blocks.{i}.conv1.weight" for i in range(3)]
b = {n: (0.02 * rng.standard_normal((320, 320, 3, 3))).astype(np.float16).astype(np.float32) for n in names}
def product(rows, cols, r): return (0.02 * rng.standard_normal((rows, r)) @ (0.02 * rng.standard_normal((r, cols)))).astype(np.float32)
t = {n: v + 4 * product(320, 320 * 9, 8).reshape(v.shape) for n, v in b.items()}
t[names[2]] = b[names[2]] + 4 * product(960, 960, 6).reshape(320, 320, 3, 3)
save(f"{o}/base.safetensors", {n: H(v) for n, v in b.items()}); save(f"{o}/tuned.safetensors", {n: H(v) for n, v in t.items()})
