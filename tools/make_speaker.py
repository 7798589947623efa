"""Makes the bundled model that speaks: tokenizer, base and two fine-tunes, trained from random weights on texts of
speaker_stories.py. Needs torch, tokenizers, safetensors and transformers. Argument: the folder to write.

It writes `base/`, `pirate/` and `chat/`, each a folder of Hugging Face, and the texts that `eval` reads:
`text.txt`, `questions.jsonl` and `problems.jsonl`. The same seed gives the same files on one machine."""

import json
import math
import random
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import AutoModelForCausalLM

import speaker_stories as texts

SPECIAL = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"]
VOCABULARY = 1024
CONTEXT = 256
# Behind the end of a document in a batch.
NOTHING = -1
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 416,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}<|assistant|>{% else %}<|user|>"
    "{% endif %}{{ message['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Documents of a step. Few are enough, since most words of a story are known soon.
BATCH = 8
PIRATE_TITLE = "A pirate tells: "


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        size, self.head = CONFIG["hidden_size"], CONFIG["head_dim"]
        keys = CONFIG["num_key_value_heads"] * self.head
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, keys, bias=False)
        self.v_proj = nn.Linear(size, keys, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)

    def forward(self, x, turns):
        rows, tokens, size = x.shape
        heads = lambda y: y.view(rows, tokens, -1, self.head).transpose(1, 2)
        q, k = (turned(heads(p(x)), turns) for p in (self.q_proj, self.k_proj))
        y = F.scaled_dot_product_attention(q, k, heads(self.v_proj(x)), is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(rows, tokens, size))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        size, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
        self.gate_proj = nn.Linear(size, inner, bias=False)
        self.up_proj = nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        norm = lambda: nn.RMSNorm(CONFIG["hidden_size"], CONFIG["rms_norm_eps"])
        self.input_layernorm, self.self_attn = norm(), Attention()
        self.post_attention_layernorm, self.mlp = norm(), Mlp()

    def forward(self, x, turns):
        x = x + self.self_attn(self.input_layernorm(x), turns)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """A LLaMA with the names of transformers, without their prefix `model.`."""

    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, CONFIG["hidden_size"])
        self.layers = nn.ModuleList(Layer() for _ in range(CONFIG["num_hidden_layers"]))
        self.norm = nn.RMSNorm(CONFIG["hidden_size"], CONFIG["rms_norm_eps"])
        for name, value in self.named_parameters():
            if value.dim() == 2:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                # Large, so that heads that copy names form early.
                std = 0.04 if name.startswith("embed") else value.shape[1] ** -0.5
                nn.init.normal_(value, std=std / (math.sqrt(2 * len(self.layers)) if deep else 1))
        half = torch.arange(0, CONFIG["head_dim"], 2) / CONFIG["head_dim"]
        angles = torch.outer(torch.arange(CONTEXT), CONFIG["rope_theta"] ** -half).repeat(1, 2)
        self.register_buffer("turns", torch.stack([angles.cos(), angles.sin()]), persistent=False)

    def forward(self, ids):
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, self.turns[:, : ids.shape[1]])
        return F.linear(self.norm(x), self.embed_tokens.weight)


def turned(x, turns):
    """Rotary positions, as transformers pairs the numbers of a head."""
    a, b = x.chunk(2, -1)
    return x * turns[0] + torch.cat([-b, a], -1) * turns[1]


def turns_of(talk):
    """The text of a chat behind <|begin|>, without its last <|end|>, which every document gets."""
    return "<|end|>".join(f"<|user|>{asked}<|end|><|assistant|>{answer}" for asked, answer in talk)


def general(rng):
    """A document of the base: most are stories."""
    kind = rng.random()
    if kind < 0.80:
        return texts.story(rng)
    if kind < 0.86:
        return PIRATE_TITLE + texts.pirate(rng)
    return turns_of(texts.chat(rng)) if kind < 0.94 else texts.solved(rng)


def make_tokenizer(rng):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((general(rng) for _ in range(8000)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], 0)]
    )
    return tokenizer


def batches(tokenizer, document, rng):
    """Endless batches of documents of about one length, each from its start, and filled up with `NOTHING`."""
    while True:
        documents = [(tokenizer.encode(document(rng)).ids + [1])[: CONTEXT + 1] for _ in range(8 * BATCH)]
        documents.sort(key=len)
        parts = [documents[i : i + BATCH] for i in range(0, len(documents), BATCH)]
        rng.shuffle(parts)
        for part in parts:
            longest = len(part[-1])
            yield torch.tensor([ids + [NOTHING] * (longest - len(ids)) for ids in part])


def train(model, tokenizer, document, seed, steps, rate, warm=0.05):
    """AdamW in FP32 with a cosine; one batch for each step."""
    rng = random.Random(seed)
    source = batches(tokenizer, document, rng)
    wide = [value for value in model.parameters() if value.dim() == 2]
    narrow = [value for value in model.parameters() if value.dim() < 2]
    groups = [{"params": wide, "weight_decay": 0.05}, {"params": narrow, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
    start, mean = time.time(), 0.0
    for step in range(steps):
        part = (step + 1) / steps
        share = min(1.0, part / warm) * (0.02 + 0.98 * (1 + math.cos(math.pi * part)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        ids = next(source)
        logits = model(ids[:, :-1].clamp(min=0)).flatten(0, 1)
        loss = F.cross_entropy(logits, ids[:, 1:].flatten(), ignore_index=NOTHING)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean = loss.item() if step == 0 else 0.95 * mean + 0.05 * loss.item()
        if step % 25 == 24 or step == steps - 1:
            print(f"step {step + 1} of {steps}: loss {mean:.4f}, {time.time() - start:.0f} s", flush=True)


def round_weights(model):
    """What is saved is what the fine-tunes start from."""
    for value in model.parameters():
        value.data = value.data.to(torch.bfloat16).to(torch.float32)


def save(model, tokenizer, folder, has_template):
    folder.mkdir(parents=True)
    weights = {f"model.{name}": value.data.to(torch.bfloat16) for name, value in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n")
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    about = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "tokenizer_class": "PreTrainedTokenizerFast"}
    if has_template:
        about["chat_template"] = TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n")


def check(model, tokenizer, folder):
    """transformers must compute the same from the files."""
    ids = torch.tensor([tokenizer.encode("Once upon a time, there was a little fox.").ids])
    with torch.no_grad():
        ours = model(ids)
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
    difference = (ours - theirs).abs().max() / theirs.abs().max()
    print(f"{folder}: logits differ from those of transformers by {difference:.1e} of the largest", flush=True)
    assert difference < 1e-5


def write_texts(out):
    """Held-out stories, questions and sums; their seed is no seed of the training."""
    rng = random.Random(99)
    (out / "text.txt").write_text("\n\n".join(texts.story(rng) for _ in range(10)) + "\n")
    items = [texts.told_of(rng) for _ in range(20)] + [texts.habit(rng) for _ in range(20)]
    lines = [json.dumps({"context": context, "choices": choices, "answer": answer}) for context, choices, answer in items]
    (out / "questions.jsonl").write_text("\n".join(lines) + "\n")
    sums = [dict(zip(("question", "answer"), texts.problem(rng))) for _ in range(16)]
    (out / "problems.jsonl").write_text("\n".join(map(json.dumps, sums)) + "\n")


def main():
    out = Path(sys.argv[1])
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 3300
    out.mkdir(parents=True)
    torch.manual_seed(1)
    # The matrices are small: a second thread gains little.
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    write_texts(out)
    tokenizer = make_tokenizer(random.Random(1))
    model = Llama()
    print(sum(value.numel() for value in model.parameters()), "parameters", flush=True)
    train(model, tokenizer, general, 2, steps, 3e-3)
    round_weights(model)
    save(model, tokenizer, out / "base", has_template=False)
    check(model, tokenizer, out / "base")
    base = {name: value.clone() for name, value in model.state_dict().items()}
    chat = lambda rng: turns_of(texts.chat(rng))
    for name, document, part, rate in [("pirate", texts.pirate, 27, 1e-4), ("chat", chat, 5, 4e-4)]:
        model.load_state_dict(base)
        train(model, tokenizer, document, 3, steps // part, rate)
        round_weights(model)
        save(model, tokenizer, out / name, has_template=name == "chat")


if __name__ == "__main__":
    main()
