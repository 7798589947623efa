"""Every checkpoint of a Trainer in a series: whole, in the background, and after kills."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

import tiny  # noqa: E402
import torch  # noqa: E402
import training  # noqa: E402
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments  # noqa: E402

from deltaloom import Series, transformers  # noqa: E402
from deltaloom.transformers import SeriesCallback  # noqa: E402


class Copies(TrainerCallback):
    """The digests of all files of each checkpoint when it is saved."""

    def __init__(self) -> None:
        self.files: dict[int, dict[str, str]] = {}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        self.files[step] = tiny.files(Path(args.output_dir, f"checkpoint-{step}"))


@pytest.mark.parametrize("mode", ["background", "inline"])
def test_each_checkpoint_comes_back_byte_for_byte(tmp_path: Path, mode: Any) -> None:
    copies = Copies()
    callback = SeriesCallback(tmp_path / "series", optimizer=True, mode=mode)
    training.trainer(tmp_path / "out", [copies, callback], steps=15, save_total_limit=1).train()
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-15"]
    series = Series.open(tmp_path / "series")
    assert [step.step for step in series.steps()] == [5, 10, 15]
    assert training.waiting(tmp_path / "out") == set()
    for step in series.steps():
        series.get(step.step, tmp_path / f"restored-{step.step}")
        assert tiny.files(tmp_path / f"restored-{step.step}") == copies.files[step.step]
        assert float(step.meta["loss"]) > 0 and "epoch" in step.meta


def test_without_the_optimizer_only_the_model_is_stored(tmp_path: Path) -> None:
    copies = Copies()
    callback = SeriesCallback(tmp_path / "series", meta=lambda state: {"note": f"step {state.global_step}"})
    training.trainer(tmp_path / "out", [copies, callback], steps=10).train()
    series = Series.open(tmp_path / "series")
    series.get(10, tmp_path / "restored")
    restored = tiny.files(tmp_path / "restored")
    assert "model.safetensors" in restored and "config.json" in restored
    assert not [name for name in restored if name.startswith(("optimizer", "rng_state", "trainer_state"))]
    assert restored.items() <= copies.files[10].items()
    assert series.steps()[-1].meta["note"] == "step 10"


def test_a_restored_step_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole = training.trainer(tmp_path / "whole", [], steps=20)
    whole.train()
    first = training.trainer(tmp_path / "first", [SeriesCallback(tmp_path / "series", optimizer=True)], steps=20)
    first.train()
    series = Series.open(tmp_path / "series")
    series.get(10, tmp_path / "first" / "from-10")
    callback = SeriesCallback(tmp_path / "series", optimizer=True)
    second = training.trainer(tmp_path / "first", [callback], steps=20)
    second.train(resume_from_checkpoint=str(tmp_path / "first" / "from-10"))
    for (name, value), other in zip(
        whole.model.state_dict().items(), second.model.state_dict().values(), strict=True
    ):
        assert tiny.same_bits(value, other), name
    assert [step.step for step in Series.open(tmp_path / "series").steps()] == [5, 10, 15, 20]


def test_delete_after_leaves_the_series_only(tmp_path: Path) -> None:
    callback = SeriesCallback(tmp_path / "series", optimizer=True, delete_after=True)
    training.trainer(tmp_path / "out", [callback], steps=10).train()
    assert list((tmp_path / "out").glob("checkpoint-*")) == []
    assert len(Series.open(tmp_path / "series").steps()) == 2
    partly = SeriesCallback(tmp_path / "weights", delete_after=True)
    training.trainer(tmp_path / "partly", [partly], steps=10).train()
    left = {file.name for file in (tmp_path / "partly" / "checkpoint-10").iterdir()}
    assert "model.safetensors" not in left and {"optimizer.pt", "rng_state.pth", "trainer_state.json"} <= left
    with pytest.raises(ValueError, match="optimizer=True"):
        partly.newest_checkpoint(tmp_path / "partly")
    best = TrainingArguments(
        str(tmp_path / "best"), load_best_model_at_end=True, save_strategy="steps", eval_strategy="steps", use_cpu=True
    )
    with pytest.raises(ValueError, match="has to read"):
        partly.on_train_begin(best, TrainerState(is_world_process_zero=True), TrainerControl())


class Adding(TrainerCallback):
    """Adds a file to a checkpoint after it was saved, and changes another."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        (folder / "scores.json").write_text("{}")
        (folder / "config.json").unlink()
        (folder / "config.json").write_text('{"edited": true}')


def test_delete_after_keeps_what_the_series_does_not_have(tmp_path: Path) -> None:
    callback = SeriesCallback(tmp_path / "series", optimizer=True, delete_after=True)
    # The thread has to wait until the files were changed.
    with transformers._DRAINING:
        run = training.trainer(tmp_path / "out", [callback, Adding()], steps=5)
        run.remove_callback(callback)
        run.train()
        state, control = run.state, TrainerControl()
        checkpoint = tmp_path / "out" / "checkpoint-5"
        (checkpoint / "scores.json").unlink()
        callback.on_save(run.args, state, control)
        Adding().on_save(run.args, state, control)
    callback.on_train_end(run.args, state, control)
    assert {file.name for file in checkpoint.iterdir()} == {"scores.json", "config.json"}
    assert (checkpoint / "config.json").read_text() == '{"edited": true}'


def test_resuming_leaves_other_folders_alone(tmp_path: Path) -> None:
    callback = SeriesCallback(tmp_path / "series", optimizer=True)
    training.trainer(tmp_path / "out", [callback], steps=5).train()
    own = tmp_path / "out" / "resumed"
    own.mkdir()
    (own / "notes.txt").write_text("mine")
    for _ in range(2):
        folder = callback.newest_checkpoint(tmp_path / "out")
        assert folder is not None and tiny.files(Path(folder)).keys() >= {"model.safetensors", "optimizer.pt"}
    assert (own / "notes.txt").read_text() == "mine"


class Damaging(TrainerCallback):
    """Takes the manifest of a series away at a step."""

    def __init__(self, manifest: Path) -> None:
        self._manifest = manifest

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 6:
            self._manifest.rename(self._manifest.with_suffix(".away"))


def test_a_failure_in_the_background_is_raised_and_the_step_waits(tmp_path: Path) -> None:
    manifest = tmp_path / "series" / "series.json"
    callback = SeriesCallback(tmp_path / "series", optimizer=True, mode="background")
    run = training.trainer(tmp_path / "out", [callback, Damaging(manifest)], steps=40)
    with pytest.raises(Exception, match="series"):
        run.train()
    assert 10 in training.waiting(tmp_path / "out")
    manifest.with_suffix(".away").rename(manifest)
    again = training.trainer(tmp_path / "out", [SeriesCallback(tmp_path / "series", optimizer=True)], steps=5)
    again.train()
    steps = [step.step for step in Series.open(tmp_path / "series").steps()]
    assert 5 in steps and training.waiting(tmp_path / "out") == set()


def test_a_checkpoint_that_is_gone_is_an_error(tmp_path: Path) -> None:
    callback = SeriesCallback(tmp_path / "series", optimizer=True)
    arguments = TrainingArguments(str(tmp_path / "out"), use_cpu=True)
    state = TrainerState(global_step=5, is_world_process_zero=True)
    with pytest.raises(FileNotFoundError, match="save_total_limit"):
        callback.on_save(arguments, state, TrainerControl())


def test_nothing_is_lost_by_ten_kills(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("training.py")), str(tmp_path), "10"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert training.waiting(tmp_path / "output") == set()
    series = Series.open(tmp_path / "series")
    steps = [step.step for step in series.steps()]
    assert steps == list(range(5, steps[-1] + 1, 5)) and steps[-1] == max(training.noted(tmp_path / "notes"))
    series.verify(deep=True)


def test_on_save_returns_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.llama(hidden=512, layers=6)
    callback = training.Noting(tmp_path / "series", optimizer=True, notes=tmp_path / "notes")
    training.trainer(tmp_path / "out", [callback], steps=3, every=1, model=model).train()
    size = sum(file.stat().st_size for file in (tmp_path / "out" / "checkpoint-3").iterdir())
    seconds = sorted(training.noted(tmp_path / "notes").values())
    with capsys.disabled():
        print(f"\non_save of {size / 1e6:.0f} MB: {[f'{1e3 * one:.1f} ms' for one in seconds]}")
    assert size > 75e6
    assert seconds[0] < 0.020
    assert len(Series.open(tmp_path / "series").steps()) == 3


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mode"):
        SeriesCallback(tmp_path, mode="later")  # type: ignore[arg-type]
    assert torch.get_num_threads() == 1
