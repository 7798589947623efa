# The base has projections in NF4 with nested scales; the checkpoint has what they stand for in BF16.
import sys; from weights import *; from bnb_nf4 import *
o = sys.argv[1]; packed, plain = of_state(llama()); save(f"{o}/base.safetensors", packed); save(f"{o}/tuned.safetensors", plain)
