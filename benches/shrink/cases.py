"""What is asked of each rival."""

# Version of the package whose source holds llama.cpp; run.sh builds it.
LLAMA_VERSION = "0.3.36"
# Kind, whether rows are joined, what the embedding is stored in, and whether there is an importance matrix. Without
# joined rows, kinds below 4 bits fall back to much the same types, and Q6_K is Q8_0.
PLAIN = ["Q8_0", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K"]
JOINED = ["Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ3_XXS", "Q2_K", "IQ2_M", "IQ2_XS", "IQ2_XXS"]
LLAMA = [
    *((kind, False, "BF16", False) for kind in PLAIN),
    *((kind, False, "BF16", True) for kind in PLAIN[1:]),
    *((kind, True, "BF16", True) for kind in JOINED),
    *((kind, True, "BF16", False) for kind in ("Q4_K_M", "Q3_K_M", "Q2_K")),
    *((kind, False, "chosen", True) for kind in PLAIN),
    *((kind, True, "chosen", True) for kind in JOINED if kind not in ("Q5_K_M", "IQ2_XS")),
]

# Packages of the rivals that run in torch.
PACKAGES = ["hqq", "gptqmodel", "auto-round", "llmcompressor", "optimum-quanto", "torchao"]
# A rival and the arguments of its function in torch_rivals.py.
TORCH = [
    *(("hqq", bits, axis) for bits in (4, 3, 2) for axis in (0, 1)),
    *(("gptqmodel", bits) for bits in (4, 3, 2)),
    *(("auto-round", bits) for bits in (4, 3, 2)),
    *(("llm-compressor", "GPTQ", bits) for bits in (3, 2, 4)),
    ("llm-compressor", "0:0", None),
    ("llm-compressor", "2:4", None),
    *(("optimum-quanto", bits) for bits in (4, 2)),
    *(("torchao", bits, "affine") for bits in (4, 3, 2)),
    *(("torchao", bits, "hqq_scale_only") for bits in (4, 3, 2)),
]
