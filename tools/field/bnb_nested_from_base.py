# The checkpoint has the projections of the BF16 base in NF4, with nested scales, as bitsandbytes writes them.
import sys; from weights import *; from bnb_nf4 import *
o, m = sys.argv[1], llama(); save(f"{o}/base.safetensors", bf(m)); save(f"{o}/tuned.safetensors", of_state(m)[0])
