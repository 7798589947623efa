"""A training of a tiny model with a Trainer, for tests; as a program, one that is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import tiny
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from deltaloom import Series
from deltaloom.transformers import SeriesCallback

MANY = 100_000
"""Steps of a training that is killed before its end."""


def trainer(
    output: Path, callbacks: list[TrainerCallback], *, steps: int = 40, every: int = 5, model: Any = None, **more: Any
) -> Trainer:
    """A Trainer that always does the same."""
    torch.use_deterministic_algorithms(True)
    arguments = TrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        save_steps=every,
        save_strategy="steps",
        logging_steps=every,
        per_device_train_batch_size=2,
        learning_rate=1e-4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=3,
        **more,
    )
    return Trainer(
        model=tiny.llama() if model is None else model,
        args=arguments,
        train_dataset=tiny.Rows(),
        callbacks=callbacks,
    )


class Noting(SeriesCallback):
    """Notes in a file each step whose ``on_save`` returned, with its time in seconds."""

    def __init__(self, *args: Any, notes: Path, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._notes = notes

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        start = time.perf_counter()
        super().on_save(args, state, control, **kwargs)
        with self._notes.open("a") as stream:
            stream.write(f"{state.global_step} {time.perf_counter() - start}\n")


def noted(notes: Path) -> dict[int, float]:
    """Seconds of ``on_save`` by step."""
    lines = notes.read_text().splitlines() if notes.exists() else []
    whole = [line.split() for line in lines if len(line.split()) == 2]
    return {int(step): float(seconds) for step, seconds in whole}


def waiting(output: Path) -> set[int]:
    """Steps that wait for the series."""
    found = output.glob(".deltaloom-waiting-*/*/step.json")
    return {int(json.loads(path.read_text())["step"]) for path in found}


def run(output: Path, series: Path, notes: Path, steps: int) -> None:
    """Trains up to a step, from the newest one that the series has."""
    callback = Noting(series, optimizer=True, notes=notes)
    resume = callback.newest_checkpoint(output)
    trainer(output, [callback], steps=steps, save_total_limit=1).train(resume_from_checkpoint=resume)


def main(folder: Path, kills: int) -> None:
    """Kills the training at random points, and checks after each that nothing noted is lost."""
    output, series, notes = folder / "output", folder / "series", folder / "notes"
    points = random.Random(11)
    for kill in range(kills + 1):
        steps = MANY if kill < kills else max(noted(notes), default=0) + 20
        child = os.fork()
        if child == 0:
            try:
                run(output, series, notes, steps)
            except BaseException as error:  # noqa: BLE001
                print(f"run {kill}: {type(error).__name__}: {error}", flush=True)
                os._exit(1)
            os._exit(0)
        if kill < kills:
            time.sleep(points.uniform(0.1, 1.5))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
            sys.exit(f"run {kill} failed")
        has = {step.step for step in Series.open(series).steps()} if (series / "series.json").exists() else set()
        lost = set(noted(notes)) - has - waiting(output)
        print(f"run {kill}: noted {sorted(noted(notes))}, series {sorted(has)}, waiting {sorted(waiting(output))}")
        if lost:
            sys.exit(f"lost after kill {kill}: {sorted(lost)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
