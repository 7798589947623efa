# The checkpoint is a Q4_K GGUF of the BF16 base, with the names and the order of rows that llama.cpp wants.
import sys; from weights import *; from ggml import *
o, m = sys.argv[1], llama()
save(f"{o}/base.safetensors", bf(m)); save_gguf(f"{o}/tuned.gguf", of_llama(m, "Q4_K"))
