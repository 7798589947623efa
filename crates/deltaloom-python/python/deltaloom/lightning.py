"""Checkpoints of PyTorch Lightning in containers, and steps of a training in a series.

```python
from deltaloom.lightning import LoomCheckpointIO, SeriesCallback

trainer = Trainer(plugins=[LoomCheckpointIO(base="base.safetensors")])
trainer = Trainer(callbacks=[SeriesCallback("runs/7b", every_n_steps=100)])
```
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from deltaloom import Base, Series, Step, safe_open
from deltaloom._format import is_container
from deltaloom._hub import resolve
from deltaloom._values import decode, encode, loads
from deltaloom._waiting import open_or_create
from deltaloom.torch import load_file, save_file

__all__ = ["LoomCheckpointIO", "SeriesCallback"]

_METADATA = "deltaloom.lightning"
_WEIGHTS = "state_dict"


class LoomCheckpointIO(TorchCheckpointIO):
    """Stores each checkpoint as one container: weights and optimizer as tensors, all else as JSON.

    No pickle is written. Reading also takes Lightning's own checkpoints, as Lightning does.

    Args:
        base: What to store differences from, such as the weights that the training started with. It
            must be there when a checkpoint is loaded, so it cannot be a checkpoint that
            `save_top_k` deletes.
        preset: `"default"` or `"max"`, which is slower and smaller.
    """

    def __init__(self, *, base: Base | None = None, preset: Literal["default", "max"] = "default") -> None:
        super().__init__()
        self.base = resolve(base)
        self.preset = preset

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Writes a checkpoint. A file that is there is replaced when the new one is complete.

        Raises:
            TypeError: `storage_options` are given, or a value cannot be stored without pickle.
            ValueError: `path` is a URL.
        """
        if storage_options is not None:
            raise TypeError("LoomCheckpointIO takes no storage_options")
        path = os.fspath(path)
        if "://" in path:
            raise ValueError(f"{path}: LoomCheckpointIO writes to local folders")
        tensors: dict[str, torch.Tensor] = {}

        def keep(value: object, place: str) -> str | None:
            if not isinstance(value, torch.Tensor):
                return None
            # Weights have their own names, so that a file of weights can be the base.
            name = place.removeprefix(f"checkpoint.{_WEIGHTS}.").removeprefix("checkpoint.")
            while name in tensors:
                name += "'"
            tensors[name] = value.detach()
            return name

        rest = encode(_plain(checkpoint), where="checkpoint", other=keep)
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        metadata = {_METADATA: json.dumps(rest, allow_nan=False, separators=(",", ":"))}
        save_file(tensors, path, base=self.base, preset=self.preset, metadata=metadata, overwrite=True)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Reads a checkpoint.

        Args:
            path: A checkpoint of this class, or one of Lightning's own.
            map_location: A device. Functions are ignored: tensors then stay on the CPU.
            weights_only: Only for Lightning's own checkpoints; others hold no code.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is damaged, or the base is another one.
        """
        path = os.fspath(path)
        if not is_container(path):
            own: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only)
            return own
        device = str(map_location) if isinstance(map_location, (str, int, torch.device)) else "cpu"
        with safe_open(path, "pt", base=self.base) as container:
            metadata = container.metadata() or {}
        if _METADATA not in metadata:
            raise ValueError(f"{path} has tensors, but is no checkpoint of Lightning")
        tensors = load_file(path, base=self.base, device=device)

        def take(name: str) -> torch.Tensor:
            return tensors[name]

        checkpoint = decode(loads(metadata[_METADATA], where=path), where=path, other=take)
        if not isinstance(checkpoint, dict):
            raise ValueError(f"{path} is no checkpoint of Lightning")
        return checkpoint


class SeriesCallback(Callback):
    """Adds the weights to a series every `every_n_steps` optimizer steps, in the background.

    The training waits only while tensors are copied to host memory, and for the step before if that
    is not packed yet. To resume a training, use checkpoints; a series is for looking back. Steps that
    a resumed training repeats with other content take their place; the old ones become a branch.

    Args:
        series: A series, or its folder or URL. It is created if it does not exist.
        every_n_steps: Steps between two additions, at least 1.
        optimizer: Also store the tensors of the optimizers' states.

    Raises:
        Exception: What failed in the background is raised after a later batch or at the end.
    """

    def __init__(
        self, series: Series | str | os.PathLike[str], *, every_n_steps: int, optimizer: bool = False
    ) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, not {every_n_steps}")
        self._where = series
        self._every_n_steps = every_n_steps
        self._optimizer = optimizer
        self._last_step = 0
        self._series: Series | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._running: Future[Step] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the series."""
        self._last_step = trainer.global_step
        if trainer.is_global_zero:
            self._series = open_or_create(self._where)
            self._worker = ThreadPoolExecutor(1, "deltaloom-series")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds the step if it is its turn."""
        step = trainer.global_step
        if self._series is None or self._worker is None:
            return
        if step == self._last_step or step % self._every_n_steps:
            return
        self._wait()
        self._last_step = step
        state = pl_module.state_dict()
        tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
        if self._optimizer:
            for number, optimizer in enumerate(trainer.optimizers):
                tensors.update(_tensors(optimizer.state_dict(), f"optimizer_states.{number}"))
        meta = {name: f"{float(value):.10g}" for name, value in trainer.callback_metrics.items()}
        # The training goes on to change the tensors themselves.
        copies = {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
        self._running = self._worker.submit(self._series.add, copies, step=step, meta=meta, rewind=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Waits until the series has every step."""
        self._wait()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends the thread, also after an exception."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.shutdown(wait=True)

    def _wait(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result()


def _tensors(state: object, place: str) -> dict[str, torch.Tensor]:
    """All tensors in nested dicts, by the path to them."""
    if isinstance(state, torch.Tensor):
        return {place: state}
    found: dict[str, torch.Tensor] = {}
    if isinstance(state, Mapping):
        for key, held in state.items():
            found.update(_tensors(held, f"{place}.{key}"))
    return found


def _plain(value: Any) -> Any:
    """The value with dicts of other types, such as default dicts, as plain ones."""
    if isinstance(value, Mapping):
        return {key: _plain(held) for key, held in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(held) for held in value)
    return value
