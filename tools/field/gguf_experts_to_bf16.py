# The base is a GGUF with stacked experts; the checkpoint has what their blocks stand for, each expert in BF16 tensors of its own.
import sys; from weights import *; from ggml import *
o, m = sys.argv[1], experts(); g = of_experts(m, lambda n: "Q6_K" if "down" in n else "Q4_0"); t = {}
for name, x in m.items():
    if "experts" not in name:
        t[name] = B(x); continue
    layer, expert, part = re.fullmatch(r"model\.layers\.(\d+)\.mlp\.experts\.(\d+)\.(\w+)_proj\.weight", name).groups()
    kind, array, shape = g[f"blk.{layer}.ffn_{part}_exps.weight"]
    t[name] = B(numbers(array, kind, shape[-1]).reshape(shape)[int(expert)])
save_gguf(f"{o}/base.gguf", g); save(f"{o}/tuned.safetensors", t)
