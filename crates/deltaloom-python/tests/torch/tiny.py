"""Tiny models and texts that the tests make themselves."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

if TYPE_CHECKING:  # Processes that need no model start faster without it.
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.set_num_threads(1)

VOCABULARY = 96


def llama(seed: int = 0, *, hidden: int = 32, layers: int = 2, tied: bool = False) -> LlamaForCausalLM:
    """A model of LLaMA's shape with random weights in BF16."""
    from transformers import LlamaConfig

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return _in_bfloat16(config)


def _in_bfloat16(config: LlamaConfig) -> LlamaForCausalLM:
    from transformers import LlamaForCausalLM

    # As loading makes it: to(torch.bfloat16) would also round the frequencies of the positions.
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model


def tuned(model: LlamaForCausalLM, seed: int = 1) -> LlamaForCausalLM:
    """A copy whose weights moved a little."""
    copy = _in_bfloat16(model.config)
    copy.load_state_dict(model.state_dict())
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter += (torch.randn(parameter.shape) * 1e-3).to(torch.bfloat16)
    return copy


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of single characters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {chr(32 + i): i for i in range(VOCABULARY)}
    built = Tokenizer(models.BPE(vocab=letters, merges=[], unk_token=" "))
    built.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=built, unk_token=" ", pad_token="~")


def ids(count: int = 24, seed: int = 5) -> torch.Tensor:
    """Token ids of shape [2, count]."""
    return torch.randint(3, VOCABULARY, (2, count), generator=torch.Generator().manual_seed(seed))


def logits(model: Any) -> torch.Tensor:
    """Logits of these ids."""
    with torch.no_grad():
        result: torch.Tensor = model(ids()).logits
    return result


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8))


def files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, by relative path."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Rows of token ids that are easy to learn."""

    def __init__(self, count: int = 64) -> None:
        generator = torch.Generator().manual_seed(7)
        starts = torch.randint(3, 40, (count, 1), generator=generator)
        self.ids = starts + torch.arange(16)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}
