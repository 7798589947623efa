"""Writes crates/deltaloom-lm/tests/assets/tiny/mistral.gguf: the tiny model beside it as llama.cpp converts it, with a
tokenizer whose tokens are the characters of ASCII up to }, and `th`. Needs numpy and gguf. Argument: the folder `tiny`."""

import json
import sys
from pathlib import Path

import gguf
import numpy as np

from check_divergence import read

PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GLOBALS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
TEMPLATE = "{% for message in messages %}[{{ message.content }}]{% endfor %}{% if add_generation_prompt %}:{% endif %}"


def renamed(name):
    if name in GLOBALS:
        return GLOBALS[name]
    _, _, layer, rest = name.split(".", 3)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{PARTS[part]}.{kind}"


def in_pairs(x, heads):
    """Rows of queries or keys in the order of llama.cpp: the two halves of a head alternate."""
    return x.reshape(heads, 2, x.shape[0] // heads // 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape)


def main():
    folder = Path(sys.argv[1])
    config = json.loads((folder / "mistral/config.json").read_text())
    writer = gguf.GGUFWriter(folder / "mistral.gguf", "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["\u0120"] + [chr(code) for code in range(33, 126)] + ["th", "<end>"])
    writer.add_token_types([gguf.TokenType.NORMAL] * 95 + [gguf.TokenType.CONTROL])
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(95)
    writer.add_chat_template(TEMPLATE)
    for name, x in read(folder / "mistral/model.safetensors").items():
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            x = in_pairs(x, config[heads]) if part in name else x
        if x.ndim == 1:
            writer.add_tensor(renamed(name), np.ascontiguousarray(x))
        else:
            halves = (np.ascontiguousarray(x).view("<u4") >> 16).astype("<u2")
            writer.add_tensor(renamed(name), halves.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
