"""Makes assets/trainer: two consecutive checkpoints as the Trainer of transformers writes them.

Needs torch, transformers and accelerate (the files in the repository were made with torch 2.4.1, transformers 4.46.3 and
accelerate 1.1.1, on the CPU). Usage: make_trainer_steps.py FOLDER
"""
import pathlib, shutil, sys, tempfile
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "config.json"]

torch.manual_seed(5)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
                     num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True)
data = [{"input_ids": (tokens := torch.randint(0, 64, (16,))), "labels": tokens} for _ in range(64)]
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(folder, max_steps=12, save_steps=1, per_device_train_batch_size=4, logging_steps=4,
                                  learning_rate=1e-3, report_to=[], use_cpu=True)
    Trainer(LlamaForCausalLM(config), arguments, train_dataset=data).train()
    # Not training_args.bin: it has no tensors, and names the machine.
    for step in (11, 12):
        target = pathlib.Path(sys.argv[1]) / f"step-{step}"
        target.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copy(pathlib.Path(folder) / f"checkpoint-{step}" / name, target / name)
