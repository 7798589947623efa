# The checkpoint is an INT8 version of the BF16 base with a scale for each row: codes and scales follow from the base.
import sys, numpy as np; from weights import *
o, m = sys.argv[1], llama(); t = {}
for n, v in m.items():
    if "_proj" in n:
        s = (np.abs(v).max(1, keepdims=True) / np.float32(127)).astype(np.float32)
        t[n] = T("I8", np.clip(np.rint(v / s), -128, 127).astype(np.int8)); t[n + "_scale"] = S(s)
    else: t[n] = B(v)
save(f"{o}/base.safetensors", bf(m)); save(f"{o}/tuned.safetensors", t)
