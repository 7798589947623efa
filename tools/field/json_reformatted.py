# Tokenizer, vocabulary and a list whose tokens are the same and whose layout is not: indentation, separators, escapes.
import sys, os, json; o = sys.argv[1]
os.makedirs(o + "/base"), os.makedirs(o + "/tuned")
letters = "abcdefghijklmnopqrstuvwxyzäöüßéèñçабвгдежз你好世界模型学习"
state = 7
def rand(n):
    global state
    state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
    return (state >> 33) % n
word = lambda: ("Ġ" if rand(2) else "") + "".join(letters[rand(len(letters))] for _ in range(2 + rand(7)))
words = list(dict.fromkeys(word() for _ in range(30000)))
merges = [f"{words[rand(len(words))]} {words[rand(len(words))]}" for _ in range(20000)]
added = [{"id": i, "content": f"<|special_{i}|>", "special": True, "normalized": False} for i in range(60)]
tokenizer = {"version": "1.0", "truncation": None, "added_tokens": added,
             "model": {"type": "BPE", "dropout": None, "vocab": {w: i for i, w in enumerate(words)}, "merges": merges}}
vocab, notes = {w: i for i, w in enumerate(words)}, [{"text": w, "score": i / 7} for i, w in enumerate(words[:8000])]
def save(name, value, base, tuned):
    for where, options in (("base", base), ("tuned", tuned)):
        with open(f"{o}/{where}/{name}", "w") as f: json.dump(value, f, **options)
save("tokenizer.json", tokenizer, {"indent": 2, "ensure_ascii": False}, {"ensure_ascii": False, "separators": (",", ":")})
save("vocab.json", vocab, {}, {"indent": 1, "ensure_ascii": False})
save("notes.json", notes, {"indent": 4, "ensure_ascii": False}, {"indent": "\t"})
# One record a line, as writers of lists of records do.
with open(o + "/base/added.json", "w") as f: json.dump(added, f)
with open(o + "/tuned/added.json", "w") as f: f.write("[\n  " + ",\n  ".join(json.dumps(a, separators=(",", ":")) for a in added) + "\n]\n")
