"""Training runs: steps in and out, and saving in the background."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from conftest import Arrays, same, tuned_from

import deltaloom
from deltaloom import AsyncSaver, Series, Step


@pytest.fixture
def steps(base: Arrays) -> list[Arrays]:
    found = [base]
    for seed in range(4):
        found.append(tuned_from(found[-1], seed + 10, 2e-5))
    return found


@pytest.fixture
def series(tmp_path: Path) -> Series:
    return Series.init(tmp_path / "run", keyframe_every=8, max_chain=4)


def test_steps_come_back(series: Series, steps: list[Arrays], tmp_path: Path) -> None:
    for number, arrays in enumerate(steps):
        step = series.add(arrays, step=10 * number, meta={"loss": 3 - number, "note": "a"})
        assert (step.step, step.metrics, step.meta["note"]) == (10 * number, {"loss": 3 - number}, "a")
    assert [step.step for step in series.steps()] == [0, 10, 20, 30, 40]
    assert [step.step for step in series.steps(last=2)] == [30, 40]
    assert series.newest is not None and series.newest.step == 40
    assert series.steps()[0].is_keyframe and not series.steps()[1].is_keyframe
    assert series.steps()[3].ratio > 2
    for number, arrays in enumerate(steps):
        loaded = series.load(10 * number, framework="np")
        assert loaded.keys() == arrays.keys()
        assert all(same(loaded[name], arrays[name]) for name in arrays)
    report = series.get(20, tmp_path / "out.safetensors")
    assert report.files == 1
    assert safetensors.numpy.load_file(tmp_path / "out.safetensors").keys() == steps[2].keys()
    with series.open_step(30, "np") as f:
        assert same(f.get_slice("embed.weight")[5:9], steps[3]["embed.weight"][5:9])
    again = Series.open(series.location)
    assert [step.step for step in again.steps()] == [0, 10, 20, 30, 40]
    assert again.summary().newest == 40
    assert series.verify(deep=True)


def test_tensors_of_the_step_before_are_not_decoded(tmp_path: Path, big: Arrays) -> None:
    later = tuned_from(big, 3, 1e-5)
    plain, held = (Series.init(tmp_path / name) for name in ("plain", "held"))
    for series, previous in ((plain, None), (held, big)):
        series.add(big, step=1)
        series.add(later, step=2, previous=previous)
    assert [step.object for step in plain.steps()] == [step.object for step in held.steps()]
    # Tensors that are not those of the step do no harm.
    held.add(big, step=3, previous=big)
    plain.add(big, step=3)
    assert plain.newest is not None and held.newest is not None
    assert plain.newest.object == held.newest.object
    with pytest.raises(TypeError):
        held.add(big, step=4, previous="model.safetensors")  # type: ignore[arg-type]


def test_optimizer_and_files(series: Series, steps: list[Arrays], tmp_path: Path) -> None:
    moments = {"exp_avg.embed": np.zeros((257, 64), np.float32)}
    path = tmp_path / "m.safetensors"
    safetensors.numpy.save_file(steps[0], path)
    series.add(path, step=1, optimizer=moments)
    assert same(series.load(1, framework="np", part="optimizer")["exp_avg.embed"], moments["exp_avg.embed"])
    assert "exp_avg.embed" not in series.load(1, framework="np")
    series.get(1, tmp_path / "all", part="all")
    assert (tmp_path / "all/model/m.safetensors").read_bytes() == path.read_bytes()


def test_errors(series: Series, steps: list[Arrays], tmp_path: Path) -> None:
    series.add(steps[0], step=5)
    with pytest.raises(deltaloom.StepTakenError):
        series.add(steps[1], step=5)
    with pytest.raises(deltaloom.OutOfOrderError):
        series.add(steps[1], step=4)
    with pytest.raises(deltaloom.SeriesError):
        series.add({"other": np.zeros(9)}, step=6)
    with pytest.raises(KeyError):
        series.load(7, framework="np")
    with pytest.raises(deltaloom.StepNotFoundError):
        series.get(5, tmp_path / "o", part="optimizer")
    with pytest.raises(ValueError, match="part"):
        series.get(5, tmp_path / "o", part="weights")  # type: ignore[arg-type]
    with pytest.raises(deltaloom.NotASeriesError):
        Series.open(tmp_path / "nothing")
    with pytest.raises(FileExistsError):
        Series.init(series.location)
    with pytest.raises(ValueError):
        series.prune("last none")
    assert series.find(6) is None


def test_looking_after(series: Series, steps: list[Arrays]) -> None:
    for number, arrays in enumerate(steps):
        series.add(arrays, step=number)
    assert series.prune("last 2", dry_run=True).kept == 2
    assert series.prune("last 2").dropped == (0, 1, 2)
    assert series.gc(timedelta(0), dry_run=True).removed > 0
    assert series.gc(timedelta(0)).removed > 0
    series.repack(keyframe_every=2)
    assert series.summary().options.keyframe_every == 2
    assert same(series.load(4, framework="np")["embed.weight"], steps[4]["embed.weight"])
    assert series.verify(deep=True)
    assert "<iframe" in series.plot()._repr_html_()


def test_saving_in_the_background(series: Series, steps: list[Arrays]) -> None:
    with AsyncSaver(series, max_pending=2) as saver:
        futures = []
        for number, arrays in enumerate(steps):
            given = {name: array.copy() for name, array in arrays.items()}
            futures.append(saver.save(given, step=number, meta={"n": number}))
            for array in given.values():
                array[...] = 0  # the copy was made
        saver.wait(60)
        assert [future.result().step for future in futures] == [0, 1, 2, 3, 4]
    for number, arrays in enumerate(steps):
        assert same(series.load(number, framework="np")["embed.weight"], arrays["embed.weight"])


class Slow(Series):
    """A series whose additions wait for a signal."""

    def __init__(self, inner: Series) -> None:
        super().__init__(inner._handle)
        self.may_go = threading.Event()
        self.began = threading.Event()

    def add(self, *args: Any, **options: Any) -> Step:
        self.began.set()
        assert self.may_go.wait(60)
        return super().add(*args, **options)


def test_a_full_saver(series: Series, steps: list[Arrays]) -> None:
    slow = Slow(series)
    skipping = AsyncSaver(slow, on_full="skip")
    first = skipping.save(steps[0], step=0)
    assert slow.began.wait(60)
    second: Future[Step] = skipping.save(steps[1], step=1)
    assert second.cancelled() and not first.done()
    with pytest.raises(TimeoutError):
        skipping.wait(0)
    slow.may_go.set()
    skipping.close()
    assert [step.step for step in series.steps()] == [0]
    with pytest.raises(RuntimeError):
        skipping.save(steps[1], step=1)
    slow.may_go.clear()
    refusing = AsyncSaver(slow, on_full="error")
    refusing.save(steps[1], step=1)
    with pytest.raises(RuntimeError, match="too many"):
        refusing.save(steps[2], step=2)
    slow.may_go.set()
    refusing.close()
    for bad in [{"max_pending": 0}, {"on_full": "drop"}]:
        with pytest.raises(ValueError):
            AsyncSaver(series, **bad)  # type: ignore[arg-type]


def test_errors_of_the_thread_are_told(series: Series, steps: list[Arrays]) -> None:
    saver = AsyncSaver(series)
    saver.save(steps[1], step=5)
    saver.wait()
    future = saver.save(steps[0], step=4)
    with pytest.raises(deltaloom.OutOfOrderError):
        saver.wait()
    assert isinstance(future.exception(), deltaloom.OutOfOrderError)
    saver.close()
    with pytest.raises(deltaloom.OutOfOrderError), AsyncSaver(series) as other:
        other.save(steps[0], step=3)
    with pytest.raises(TypeError), AsyncSaver(series) as third:
        third.save({"a": "no array"}, step=9)


def test_a_saver_that_nobody_closes_still_saves(run_script: Any, tmp_path: Path) -> None:
    script = """
import sys, numpy as np, deltaloom
series = deltaloom.Series.init(sys.argv[1])
saver = deltaloom.AsyncSaver(series, max_pending=4)
for step in range(3):
    saver.save({"w": np.full((100, 100), step, np.float32)}, step=step)
"""
    done = run_script(script, str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert [step.step for step in Series.open(tmp_path / "run").steps()] == [0, 1, 2]
