# The checkpoint is an MXFP4 version of the BF16 base: codes and exponents of blocks of 32 follow from the base.
import sys, numpy as np; from weights import *
o, m = sys.argv[1], llama(); t = {}; levels = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6]); middles = (levels[1:] + levels[:-1]) / 2
for n, v in m.items():
    if "_proj" in n:
        b = v.reshape(v.shape[0], -1, 32); e = np.floor(np.log2(np.abs(b).max(2))).astype(np.int32) - 2
        x = b * np.exp2(-e.astype(np.float32))[:, :, None]; q = (np.searchsorted(middles, np.abs(x)) | np.signbit(x) * 8).astype(np.uint8)
        t[n + "_blocks"] = T("U8", q[..., ::2] | q[..., 1::2] << 4); t[n + "_scales"] = T("U8", (e + 127).astype(np.uint8))
    else: t[n] = B(v)
save(f"{o}/base.safetensors", bf(m)); save(f"{o}/tuned.safetensors", t)
