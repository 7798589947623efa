# The checkpoint is a GGUF of the BF16 base as `Q4_K_M` mixes them: Q4_K, but Q6_K for half of the values and down projections.
import sys; from weights import *; from ggml import *
o, m = sys.argv[1], llama(layers=4)
half = lambda n: any(f"layers.{i}." in n for i in (0, 2)) and ("v_proj" in n or "down_proj" in n)
save(f"{o}/base.safetensors", bf(m)); save_gguf(f"{o}/tuned.gguf", of_llama(m, lambda n: "Q6_K" if half(n) or "embed" in n else "Q4_K"))
