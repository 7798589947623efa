"""Checkpoints of Lightning in containers, and its steps in a series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from deltaloom import Series  # noqa: E402
from deltaloom.lightning import LoomCheckpointIO, SeriesCallback  # noqa: E402


class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
    """A tiny model that is trained."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = tiny.llama(hidden=width)

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        loss: torch.Tensor = self.model(**batch).loss
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 4)}


def trainer(folder: Path, steps: int, *callbacks: Any, plugins: list[Any] | None = None) -> Any:
    return lightning.Trainer(
        default_root_dir=folder,
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=list(callbacks),
        plugins=plugins,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(one, ModelCheckpoint) for one in callbacks),
    )


def rows() -> DataLoader[dict[str, torch.Tensor]]:
    return DataLoader(tiny.Rows(), batch_size=2)


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(tiny.same_bits(a, b) for a, b in pairs)


def test_a_checkpoint_resumes_to_the_same_bits(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    start = Module()
    save_file(start.state_dict(), tmp_path / "start.safetensors")
    io = LoomCheckpointIO(base=tmp_path / "start.safetensors")
    keep = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=5, save_top_k=-1, filename="{step}", save_last=True)
    first = Module()
    trainer(tmp_path, 10, keep, plugins=[io]).fit(first, rows())
    saved = tmp_path / "kept" / "step=5.ckpt"
    assert saved.read_bytes().startswith(b"\x89LOOM")
    assert (tmp_path / "kept" / "last.ckpt").exists()

    # Lightning's own checkpoint of the same step resumes to the same weights.
    own = ModelCheckpoint(tmp_path / "own", every_n_train_steps=5, save_top_k=-1, filename="{step}")
    torch.manual_seed(0)
    trainer(tmp_path / "a", 10, own).fit(Module(), rows())
    resumed = []
    for path, plugins in ((saved, [io]), (tmp_path / "own" / "step=5.ckpt", None)):
        module = Module()
        trainer(tmp_path / "b", 10, plugins=plugins).fit(module, rows(), ckpt_path=str(path), weights_only=False)
        assert not same_weights(module, start)
        resumed.append(module)
    assert same_weights(*resumed)

    loaded = io.load_checkpoint(saved)
    assert loaded["global_step"] == 5 and loaded["hyper_parameters"] == {"width": 32}
    state = loaded["optimizer_states"][0]["state"][0]
    assert state["exp_avg"].shape == next(iter(first.parameters())).shape
    io.remove_checkpoint(saved)
    assert not saved.exists()


def test_lightnings_own_checkpoints_are_read(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=3, filename="own")
    module = Module()
    trainer(tmp_path, 3, keep).fit(module, rows())
    loaded = LoomCheckpointIO().load_checkpoint(tmp_path / "own.ckpt", weights_only=False)
    assert loaded["global_step"] == 3


def test_what_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    io = LoomCheckpointIO()
    with pytest.raises(TypeError, match=r"checkpoint\.hyper\.f holds"):
        io.save_checkpoint({"state_dict": {}, "hyper": {"f": print}}, tmp_path / "x.ckpt")
    with pytest.raises(TypeError, match="storage_options"):
        io.save_checkpoint({}, tmp_path / "x.ckpt", storage_options={"a": 1})
    with pytest.raises(ValueError, match="local"):
        io.save_checkpoint({}, "s3://bucket/x.ckpt")
    assert not (tmp_path / "x.ckpt").exists()
    from deltaloom.torch import save_file

    save_file({"w": torch.ones(3)}, tmp_path / "w.loom")
    with pytest.raises(ValueError, match="no checkpoint of Lightning"):
        io.load_checkpoint(tmp_path / "w.loom")
    with pytest.raises(FileNotFoundError):
        io.load_checkpoint(tmp_path / "missing.ckpt")


def test_steps_go_to_a_series(tmp_path: Path) -> None:
    module = Module()
    callback = SeriesCallback(tmp_path / "series", every_n_steps=4, optimizer=True)
    trainer(tmp_path, 12, callback).fit(module, rows())
    series = Series.open(tmp_path / "series")
    assert [step.step for step in series.steps()] == [4, 8, 12]
    last = series.load(12)
    for name, value in module.state_dict().items():
        assert tiny.same_bits(last[name], value), name
    assert "optimizer_states.0.state.0.exp_avg" in last
    assert float(series.steps()[-1].meta["loss"]) > 0
    # A training that starts again takes the place of the old one, which is kept.
    torch.manual_seed(5)
    again = Module(16)
    trainer(tmp_path, 8, SeriesCallback(tmp_path / "other", every_n_steps=4)).fit(again, rows())
    trainer(tmp_path, 4, SeriesCallback(tmp_path / "other", every_n_steps=4)).fit(again, rows())
    other = Series.open(tmp_path / "other")
    assert [step.step for step in other.steps()] == [4]
    assert tiny.same_bits(other.load(4)["model.lm_head.weight"], again.model.lm_head.weight)
    assert len(other.summary().branches) == 1
    with pytest.raises(ValueError, match="every_n_steps"):
        SeriesCallback(tmp_path / "series", every_n_steps=0)
