# The checkpoint is a GGUF whose experts are stacked, in Q8_0 and Q4_K; the BF16 base has each in a tensor of its own.
import sys; from weights import *; from ggml import *
o, m = sys.argv[1], experts()
save(f"{o}/base.safetensors", bf(m)); save_gguf(f"{o}/tuned.gguf", of_experts(m, lambda n: "Q4_K" if "down" in n else "Q8_0"))
