# The base is a Q6_K GGUF; the checkpoint is what its blocks stand for, in BF16, not one weight trained.
import sys; from weights import *; from ggml import *
o, m = sys.argv[1], llama(); g = of_llama(m, "Q6_K")
save_gguf(f"{o}/base.gguf", g); save(f"{o}/tuned.safetensors", of_gguf(m, g))
