"""Makes the SYNTHETIC model of assets/recall: 0.8 M parameters that find numbers in their context and can do little
else, so that retrieval can be tested without a large model. Needs torch, tokenizers, safetensors and transformers.
Argument: the folder to write, which becomes a folder of Hugging Face.

Its texts are facts in the words of `deltaloom context test --retrieval`, between parts of this project's documents
and stories. Heads that find what stood behind the same token earlier form late in training, so the model starts with
a rough form of them. The same seed gives the same files on one machine, while the documents are the same."""

import argparse
import json
import pathlib
import random
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

import speaker_stories

ROOT = pathlib.Path(__file__).resolve().parent.parent
# As in crates/deltaloom-lm/src/context/tester/retrieval.rs.
NAMES = ["apple", "bridge", "candle", "dragon", "engine", "forest", "garden", "hammer"]
LENGTH = 256
# Without tokens of digits.
VOCABULARY = 490
WIDTH, HEAD = 128, 32
# Small, so that each pair of numbers of a head turns visibly within LENGTH tokens, and goes on behind them.
THETA = 500.0
# Steps, texts of a step, and tokens of a text: easy ones first. The last one has more questions about missing names.
LESSONS = [(100, 32, 64), (100, 16, 128), (500, 8, LENGTH), (300, 8, LENGTH)]
RATE = 2e-3
# What a token counts in the loss: an answer that can be known or cannot, other tokens of questions, other text. Where
# nothing can be known, all numbers should be equally probable: what is out of sight is at chance.
KNOWN, UNKNOWN, QUESTION, TEXT = 1.0, 0.99, 0.1, 0.05


def documents(rng):
    paths = sorted(ROOT.glob("docs/*.md")) + sorted(ROOT.glob("docs/adr/*.md"))
    texts = [path.read_text() for path in paths if path.name != "cli.md"]
    stories = [speaker_stories.story(rng) for _ in range(1000)]
    return "\n".join(texts + stories)


def make_tokenizer(text):
    """Every name is one token, and every number of four digits two."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    facts = "".join(f"\nThe number of the {name} is .\nThe pass key is . Remember it." for name in NAMES) * 2000
    words = "".join(letter for letter in text if not letter.isdigit())
    tokenizer.train_from_iterator([words, facts], trainer)
    described = json.loads(tokenizer.to_str())
    digits = "0123456789"
    # "Ġ" stands for a space.
    pairs = [("Ġ", a) for a in digits] + [("Ġ" + a, b) for a in digits for b in digits]
    pairs += [(a, b) for a in digits for b in digits]
    vocabulary = described["model"]["vocab"]
    for a, b in pairs:
        vocabulary[a + b] = len(vocabulary)
    described["model"]["merges"] = [list(pair) for pair in pairs] + described["model"]["merges"]
    return Tokenizer.from_str(json.dumps(described))


class Texts:
    """Texts as lists of ids, and what each id counts in the loss."""

    def __init__(self, tokenizer, filler, rng):
        encode = lambda text: tokenizer.encode(text).ids
        self.vocabulary, self.rng = tokenizer.get_vocab_size(), rng
        self.filler = encode(filler)
        self.question = {name: encode(f"\nThe number of the {name} is") for name in NAMES}
        self.pass_key = encode("\nThe pass key is")
        self.value = {value: encode(f" {value}") for value in range(1000, 10000)}
        self.end, self.again, self.last = encode(".\n"), encode(". Remember it."), encode(" is the pass key.\n")
        assert {len(ids) for ids in self.question.values()} == {7} and len(self.value[1000]) == 2

    def copies(self, tokens):
        """Random tokens, parts of which come again."""
        rng = self.rng
        letters = rng.choices(range(self.vocabulary), k=rng.choice([8, 16, 64, self.vocabulary]))
        part = rng.choices(letters, k=rng.randrange(4, tokens // 2))
        ids, counts = list(part), [0.0] * len(part)
        while len(ids) < tokens:
            other = rng.choices(letters, k=rng.randrange(8))
            copy = part if rng.random() < 0.7 else part[rng.randrange(len(part) - 3) :]
            ids += other + copy
            # The first tokens of a copy cannot be known.
            counts += [0.0] * (len(other) + 2) + [KNOWN] * (len(copy) - 2)
        return ids[:tokens], counts[:tokens]

    def facts(self, tokens, planted, absent, asked):
        """Facts about some names between other text, then questions with their answers."""
        rng = self.rng
        names = rng.sample(NAMES, planted)
        if rng.random() < 0.5:
            names.sort()
        values = dict(zip(NAMES, map(self.value.get, rng.sample(range(1000, 10000), len(NAMES)))))
        facts = [self.question[name] + values[name] + self.end for name in names]
        questions = [(self.question[name], values[name], KNOWN) for name in names]
        missing = [name for name in NAMES if name not in names]
        for name in rng.sample(missing, min(len(missing), absent)):
            questions.append((self.question[name], values[name], UNKNOWN))
        return self.planted(tokens, facts, questions, asked)

    def key(self, tokens, asked):
        """A pass key, alone or with facts."""
        numbers = self.rng.sample(range(1000, 10000), 4)
        value, *others = map(self.value.get, numbers)
        facts = [self.pass_key + value + self.again + value + self.last]
        questions = [(self.pass_key, value, KNOWN)]
        if self.rng.random() < 0.5:
            for name, other in zip(self.rng.sample(NAMES, 3), others):
                facts.append(self.question[name] + other + self.end)
                questions.append((self.question[name], other, KNOWN))
        return self.planted(tokens, facts, questions, asked)

    def planted(self, tokens, facts, questions, asked):
        rng = self.rng
        room = tokens - sum(map(len, facts))
        tail, of_tail = [], []
        for question, value, counts in rng.sample(questions, len(questions))[:asked]:
            if len(tail) + len(question + value + self.end) <= room:
                tail += question + value + self.end
                of_tail += [QUESTION] * len(question) + [counts] * len(value) + [QUESTION] * len(self.end)
        room -= len(tail)
        start = rng.randrange(len(self.filler) - room)
        filler, ids, used = self.filler[start : start + room], [], 0
        for fact, cut in zip(facts, sorted(rng.choices(range(room + 1), k=len(facts)))):
            ids += filler[used:cut] + fact
            used = cut
        ids += filler[used:]
        return ids + tail, [TEXT] * len(ids) + of_tail

    def of_lesson(self, lesson, tokens):
        rng = self.rng
        if rng.random() < [0.6, 0.25, 0.1, 0.03][lesson]:
            return self.copies(tokens)
        if lesson >= 2 and rng.random() < 0.1:
            return self.key(tokens, 4)
        planted = rng.choice([[2, 3], [3, 5], [8, 8, 8, 8, 6, 3], [8, 8, 8, 6, 3, 2, 1, 0]][lesson])
        absent = rng.choice([[0, 1], [0, 1], [0, 1], [2, 4]][lesson])
        return self.facts(tokens, planted, absent, [4, 6, rng.choice([1, 4, 8, 8]), 8][lesson])

    def batch(self, lesson, count, tokens):
        ids, counts = zip(*(self.of_lesson(lesson, tokens) for _ in range(count)))
        return torch.tensor(ids), torch.tensor(counts)


@torch.no_grad()
def start(model):
    """Two heads of the first layer look one and two tokens back and write what they see beside the token. The heads of
    the second look for a place behind the same token, or two behind it, and say what stands there. It is rough, for
    training to finish."""
    for name, value in model.named_parameters():
        if value.dim() == 2:
            deep = 0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            torch.nn.init.normal_(value, std=0.05 if "embed" in name else 0.7 * deep * value.shape[1] ** -0.5)
    eye, pair = torch.eye(HEAD), torch.arange(HEAD // 2)
    speed = THETA ** (-pair / len(pair))
    heads = [slice(HEAD * head, HEAD * (head + 1)) for head in range(WIDTH // HEAD)]
    # A token is in the first half of the numbers; the first number is the same for all, so that a head can attend to a
    # distance alone.
    embedding = model.model.embed_tokens.weight
    embedding[:, WIDTH // 2 :] *= 0.1
    embedding[:, 0] = 0.3
    at = model.model.layers[0].self_attn
    near = torch.where(pair < 6, 0.8, 0.0)
    for rows, back, to in [(heads[0], 1, heads[2]), (heads[1], 2, heads[3])]:
        for weight in [at.q_proj.weight[rows], at.k_proj.weight[rows], at.v_proj.weight[rows], at.o_proj.weight[:, rows]]:
            weight *= 0.1
        at.q_proj.weight[rows, 0] = torch.cat([near, 0 * near])
        at.k_proj.weight[rows, 0] = torch.cat([near * (back * speed).cos(), near * (back * speed).sin()])
        at.v_proj.weight[rows, heads[1]] += eye
        at.o_proj.weight[to, rows] += 0.044 * eye
    at = model.model.layers[1].self_attn
    # Pairs that turn slowly compare tokens at any distance.
    slow = torch.diag((speed < 0.025).float().repeat(2))
    first = slice(1, HEAD + 1)
    for rows, q, k, v in zip(heads, [1, 2, 2, 1], [2, 3, 3, 2], [first, first, heads[1], heads[1]]):
        for weight in [at.q_proj.weight[rows], at.k_proj.weight[rows], at.v_proj.weight[rows], at.o_proj.weight[:, rows]]:
            weight *= 0.2
        at.q_proj.weight[rows, heads[q]] += 2.2 * slow
        at.k_proj.weight[rows, heads[k]] += 2.2 * slow
        at.v_proj.weight[rows, v] += eye
        at.o_proj.weight[v, rows] += 0.15 * eye
    model.model.norm.weight *= 2


def train(model, texts, skipped):
    """AdamW in FP32; the rate falls in the last third. The first `skipped` steps are left out."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    steps = [lesson for lesson, (count, _, _) in enumerate(LESSONS) for _ in range(count)]
    begun, right = time.monotonic(), 0.0
    for step, lesson in enumerate(steps[skipped:], skipped):
        warm, left = min(1, (step - skipped + 1) / 50), 1 - step / len(steps)
        for group in optimizer.param_groups:
            group["lr"] = RATE * warm * min(1, max(0.02, 3 * left))
        ids, counts = texts.batch(lesson, *LESSONS[lesson][1:])
        logits, wanted, counts = model(ids, use_cache=False).logits[:, :-1], ids[:, 1:], counts[:, 1:]
        losses = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view_as(counts)
        loss = (losses * counts).sum() / counts.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            found = (logits.argmax(-1) == wanted)[counts == KNOWN].float().mean().item()
        right = 0.95 * right + 0.05 * (found if found == found else right)
        if step % 50 == 49:
            print(
                f"step {step + 1} of {len(steps)}, lesson {lesson}: loss {loss.item():.3f}, {100 * right:.1f} % of what can be known, "
                f"{time.monotonic() - begun:.0f} s",
                flush=True,
            )


def save(model, tokenizer, out):
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: value.data.to(torch.bfloat16) for name, value in model.named_parameters()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": WIDTH,
        "intermediate_size": model.config.intermediate_size,
        "num_hidden_layers": model.config.num_hidden_layers,
        "num_attention_heads": WIDTH // HEAD,
        "num_key_value_heads": WIDTH // HEAD,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "max_position_embeddings": LENGTH,
        "rms_norm_eps": model.config.rms_norm_eps,
        "rope_theta": THETA,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": None,
        "eos_token_id": 0,
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "tokenizer.json").write_text(tokenizer.to_str())
    about = {"eos_token": "<|end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (out / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path, help="folder of the model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--earlier", type=pathlib.Path, help="folder of a model that had all lessons but the last")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    rng = random.Random(arguments.seed)
    text = documents(rng)
    earlier = arguments.earlier
    tokenizer = Tokenizer.from_file(str(earlier / "tokenizer.json")) if earlier else make_tokenizer(text)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=WIDTH,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=WIDTH // HEAD,
        num_key_value_heads=WIDTH // HEAD,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        bos_token_id=None,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    skipped = 0
    if earlier:
        missing, _ = model.load_state_dict(load_file(earlier / "model.safetensors"), strict=False)
        assert missing in ([], ["lm_head.weight"]), missing
        skipped = sum(count for count, _, _ in LESSONS[:-1])
    else:
        start(model)
    print(f"{sum(value.numel() for value in model.parameters()):,} parameters", flush=True)
    train(model, Texts(tokenizer, text, rng), skipped)
    save(model, tokenizer, arguments.out)


if __name__ == "__main__":
    main()
