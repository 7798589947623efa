# Two Q8_0 GGUF files: of a model, and of its fine-tune.
import sys; from weights import *; from ggml import *
o, m = sys.argv[1], llama()
save_gguf(f"{o}/base.gguf", of_llama(m, "Q8_0")); save_gguf(f"{o}/tuned.gguf", of_llama(tune(m), "Q8_0"))
