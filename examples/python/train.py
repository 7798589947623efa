"""Trains a tiny language model and keeps every checkpoint in a series.

    pip install 'deltaloom[transformers]' accelerate
    python train.py --series runs/tiny --steps 40

Run it again with more steps, and it goes on from the newest step of the series. Then:

    deltaloom series ls  runs/tiny
    deltaloom series get  runs/tiny --step 20 -o restored
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from deltaloom import Series
from deltaloom.transformers import SeriesCallback


class Counting(Dataset[dict[str, torch.Tensor]]):
    """Rows that count up from some number, which is easy to learn."""

    def __len__(self) -> int:
        return 256

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = (index + torch.arange(32)) % 128
        return {"input_ids": ids, "labels": ids}


def tiny_model() -> LlamaForCausalLM:
    """A model of LLaMA's shape with 0.2 M weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=Path, default=Path("runs/tiny"), help="folder of the series")
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for the Trainer's files")
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()

    arguments = TrainingArguments(
        str(options.output),
        max_steps=options.steps,
        save_steps=5,
        save_total_limit=1,
        logging_steps=5,
        learning_rate=3e-4,
        report_to=[],
    )
    callback = SeriesCallback(options.series, optimizer=True)
    trainer = Trainer(tiny_model(), arguments, train_dataset=Counting(), callbacks=[callback])
    trainer.train(resume_from_checkpoint=callback.newest_checkpoint(options.output))
    for step in Series.open(options.series).steps():
        print(f"step {step.step:4}  loss {step.meta.get('loss', '-'):>8}  {step.ratio:6.2f} times smaller")


if __name__ == "__main__":
    main()
