# The checkpoint is a 4-bit GPTQ version of the F16 base whose rows are in groups by a permutation (act-order, `g_idx`).
import sys, numpy as np; from weights import *
o = sys.argv[1]; rng = np.random.default_rng(3)

def pack4(q):  # q [in, out] of 0..15 -> I32 [in/8, out]
    q = q.reshape(-1, 8, q.shape[1]).astype(np.uint32); return sum(q[:, j] << np.uint32(4*j) for j in range(8)).astype(np.uint32).view(np.int32)
def act_order(s, group=64):
    out, back = {}, {}
    for n, v in s.items():
        if "_proj" in n:
            w = v.T; idx = rng.permutation(w.shape[0]) // group; p = n[:-6]
            sc = np.stack([np.abs(w[idx == g]).max(0) for g in range(w.shape[0] // group)]) / 7; sc = sc.astype(np.float16).astype(np.float32)
            q = np.clip(np.rint(w / sc[idx]) + 8, 0, 15)
            out[p + "qweight"] = T("I32", pack4(q)); out[p + "scales"] = H(sc); out[p + "g_idx"] = T("I32", idx.astype(np.int32))
            out[p + "qzeros"] = T("I32", np.full((sc.shape[0], sc.shape[1] // 8), 0x77777777, np.int32)); back[n] = H(((q - 8) * sc[idx]).T)
        else: out[n] = back[n] = H(v)
    return out, back

b = {n: v.astype(np.float16).astype(np.float32) for n, v in llama().items()}
save(f"{o}/base.safetensors", {n: H(v) for n, v in b.items()}); save(f"{o}/tuned.safetensors", act_order(b)[0])
