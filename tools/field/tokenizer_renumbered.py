# Directory: 500 tokens in the middle of a vocabulary of 60000 are replaced by others, and 300 merges move to the front.
import sys, os, json, numpy as np
o = sys.argv[1]; rng = np.random.default_rng(0)
words = ["".join(chr(97 + c) for c in rng.integers(0, 26, 7)) for i in range(60000)]
merges = [f"{a} {c}" for a, c in zip(words[:50000], words[1:])]
other = words[:1000] + [f"<extra_{i}>" for i in range(520)] + words[1500:]
for d, vocab, pairs in (("base", words, merges), ("tuned", other, merges[20000:20300] + merges[:20000] + merges[20300:])):
    os.makedirs(f"{o}/{d}", exist_ok=True)
    json.dump({"model": {"vocab": {w: i for i, w in enumerate(vocab)}, "merges": pairs}}, open(f"{o}/{d}/tokenizer.json", "w"), indent=1)
