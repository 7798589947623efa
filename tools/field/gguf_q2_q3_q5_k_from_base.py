# The checkpoint is a GGUF of the BF16 base with Q2_K, Q3_K and Q5_K.
import sys; from weights import *; from ggml import *
o, m = sys.argv[1], llama()
kind = lambda n: "Q5_K" if "attn" in n else "Q3_K" if "down" in n else "Q2_K"
save(f"{o}/base.safetensors", bf(m)); save_gguf(f"{o}/tuned.gguf", of_llama(m, kind))
