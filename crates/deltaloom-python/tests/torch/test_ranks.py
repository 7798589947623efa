"""Two ranks of torch.distributed: rank 0 stores, and the others wait where they must."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

import tiny  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import training  # noqa: E402
from ranks import on_ranks  # noqa: E402
from transformers import Trainer  # noqa: E402

from deltaloom import AsyncSaver, Series, transformers  # noqa: E402
from deltaloom._ranks import from_first, is_first  # noqa: E402
from deltaloom.transformers import SeriesCallback  # noqa: E402


def train_on(rank: int, ranks: int, folder: str) -> None:
    """Trains, and resumes at the step that rank 0 restored."""
    root = Path(folder)
    save_states, snapshots = Trainer._save_rng_state, []

    def late(self: Any, output_dir: str) -> None:
        # Rank 1 is the last to write its part of the checkpoint.
        time.sleep(0.3 * rank)
        save_states(self, output_dir)

    def noted(*arguments: Any, **options: Any) -> None:
        snapshots.append(rank)
        snapshot(*arguments, **options)

    snapshot = transformers.snapshot
    Trainer._save_rng_state, transformers.snapshot = late, noted  # type: ignore[method-assign]
    callback = SeriesCallback(root / "series", optimizer=True)
    training.trainer(root / "out", [callback], steps=10, ddp_backend="gloo").train()
    assert snapshots == ([0, 0] if rank == 0 else [])
    dist.barrier()
    # Each step has the random states of both ranks.
    with Series.open(root / "series").open_step(10, "raw") as step:
        assert {f"rng_state_{one}.pth" for one in range(ranks)} <= set(step.files())
    again = SeriesCallback(root / "series", optimizer=True)
    second = training.trainer(root / "out", [again], steps=15, ddp_backend="gloo")
    resume = again.newest_checkpoint(root / "out")
    assert resume is not None and Path(resume, "model.safetensors").is_file()
    second.train(resume_from_checkpoint=resume)
    dist.barrier()
    assert [step.step for step in Series.open(root / "series").steps()] == [5, 10, 15]


def test_a_trainer_on_two_ranks(tmp_path: Path) -> None:
    on_ranks(2, train_on, str(tmp_path))


def save_on(rank: int, ranks: int, folder: str) -> None:
    """Saves the same tensors on all ranks, then others on each."""
    if rank == 0:
        Series.init(folder + "/shared")
    Series.init(f"{folder}/own-{rank}")
    dist.barrier()
    tensors = {"w": torch.arange(1000, dtype=torch.float32)}
    with AsyncSaver(folder + "/shared") as saver:
        futures = [saver.save(tensors, step=step) for step in (1, 2)]
        saver.wait()
        assert [future.cancelled() for future in futures] == [rank != 0] * 2
        assert (saver._series is None) == (rank != 0)
    with AsyncSaver(f"{folder}/own-{rank}", every_rank=True) as own:
        own.save({"w": tensors["w"] + rank}, step=7)
    dist.barrier()
    series = Series.open(folder + "/shared")
    assert [step.step for step in series.steps()] == [1, 2]
    assert tiny.same_bits(series.load(2)["w"], tensors["w"])
    for other in range(ranks):
        loaded = Series.open(f"{folder}/own-{other}").load(7)
        assert tiny.same_bits(loaded["w"], tensors["w"] + other)


def test_a_saver_on_two_ranks(tmp_path: Path) -> None:
    on_ranks(2, save_on, str(tmp_path))


def fail_on(rank: int, ranks: int) -> None:
    def fail() -> None:
        raise KeyError("nothing")

    with pytest.raises(KeyError if rank == 0 else RuntimeError, match="nothing"):
        from_first(fail)
    assert from_first(lambda: f"made by {dist.get_rank()}") == "made by 0"


def test_what_fails_on_rank_0_fails_on_all() -> None:
    on_ranks(2, fail_on)


def test_ranks_that_cannot_talk_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="TrainingArguments"):
        from_first(lambda: None)
    assert is_first()
