# Whole hub cache repositories (blobs named by hash, snapshots/*/ are links to them): base and fine-tune; the user packs the repository folder.
import sys, os, hashlib; from weights import *
o = sys.argv[1]; b = llama(); t = tune(b)
for name, s in (("base", b), ("tuned", t)):
    r = f"{o}/{name}"; [os.makedirs(f"{r}/{x}", exist_ok=True) for x in ("blobs", "snapshots/abc123", "refs")]; open(r + "/refs/main", "w").write("abc123")
    save(f"{o}/tmp", bf(s)); h = hashlib.sha256(open(f"{o}/tmp", "rb").read()).hexdigest(); os.replace(f"{o}/tmp", f"{r}/blobs/{h}"); os.symlink(f"../../blobs/{h}", f"{r}/snapshots/abc123/model.safetensors")
