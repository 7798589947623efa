# The base is a Q4_1 GGUF; the checkpoint is what its blocks stand for, in BF16, not one weight trained.
import sys; from weights import *; from ggml import *
o, m = sys.argv[1], llama(); g = of_llama(m, "Q4_1"); unpaired = lambda x: x.reshape(4, x.shape[0] // 8, 2, -1).swapaxes(1, 2).reshape(x.shape)
save_gguf(f"{o}/base.gguf", g); t = {}
for n, v in m.items():
    kind, array, shape = g[renamed(n)]
    x = numbers(array, kind, shape[1]) if kind != "F32" else array
    t[n] = B(unpaired(x) if "q_proj" in n or "k_proj" in n else x)
save(f"{o}/tuned.safetensors", t)
