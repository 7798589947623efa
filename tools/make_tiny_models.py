"""Makes the tiny random models of crates/deltaloom-lm/tests/assets/tiny and the logits that transformers computes
for them in FP32. Needs torch, transformers and safetensors. Argument: the folder to write.

Each family has a folder with config.json and BF16 weights, and beside it a file with token ids and their logits."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)

TOKENS = 50
COMMON = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=10000.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
LINEAR = dict(rope_type="linear", rope_theta=10000.0, factor=2.5)
GEMMA_ROPE = {
    "full_attention": dict(rope_type="linear", rope_theta=1000000.0, factor=2.0),
    "sliding_attention": dict(rope_type="default", rope_theta=10000.0),
}
MODELS = {
    "llama3": LlamaConfig(**COMMON, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True),
    "llama_linear": LlamaConfig(**COMMON, rope_parameters=LINEAR, tie_word_embeddings=True),
    "mistral": MistralConfig(**COMMON, sliding_window=24, head_dim=12),
    "qwen2": Qwen2Config(
        **COMMON, use_sliding_window=True, sliding_window=20, max_window_layers=1, tie_word_embeddings=True
    ),
    "qwen3": Qwen3Config(**COMMON, head_dim=16),
    "gemma3": Gemma3TextConfig(
        **COMMON,
        head_dim=16,
        sliding_window=18,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters=GEMMA_ROPE,
        query_pre_attn_scalar=20,
    ),
    "gpt2": GPT2Config(vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=128),
    "opt": OPTConfig(
        vocab_size=96,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
    ),
}


def randomise(model):
    """Weights of about the size that training gives, also of norms and biases, as BF16."""
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape)
        if name.endswith("bias"):
            value.data = 0.2 * noise
        elif "norm" in name or "ln_" in name:
            # Gemma stores weights of norms less 1.
            value.data = (0 if model.config.model_type == "gemma3_text" else 1) + 0.2 * noise
        else:
            value.data = noise * 1.5 / value.shape[-1] ** 0.5
        value.data = value.data.to(torch.bfloat16).to(torch.float32)


def main():
    out = Path(sys.argv[1])
    for seed, (name, config) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(torch.float32).eval()
        randomise(model)
        model.tie_weights()
        ids = torch.randint(0, config.vocab_size, (1, TOKENS))
        with torch.no_grad():
            logits = model(ids).logits[0]
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        config.architectures = [type(model).__name__]
        (folder / "config.json").write_text(config.to_json_string())
        weights = {
            key: value.to(torch.bfloat16).contiguous()
            for key, value in model.state_dict().items()
            if not (config.tie_word_embeddings and key == "lm_head.weight")
        }
        save_file(weights, folder / "model.safetensors")
        golden = {"ids": ids[0].to(torch.int32), "logits": logits.contiguous()}
        save_file(golden, out / f"{name}.safetensors")
        print(name, sum(value.numel() for value in weights.values()), float(logits.abs().max()))


if __name__ == "__main__":
    main()
