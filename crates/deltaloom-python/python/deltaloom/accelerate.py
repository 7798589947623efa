"""Keeps the models of an Accelerator's states in a series.

```python
from deltaloom.accelerate import register

register(accelerator, "runs/7b")
accelerator.save_state("states/latest")     # the models go to the series
accelerator.load_state("states/latest")     # and come from it
```

Optimizers, schedulers and random states stay in the folder, as accelerate writes them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator, DistributedType

from deltaloom import Series
from deltaloom._values import loads
from deltaloom._waiting import open_or_create

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

__all__ = ["register"]

_FILE = "deltaloom-step.json"
_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def register(
    accelerator: Accelerator, series: Series | str | os.PathLike[str]
) -> tuple[RemovableHandle, RemovableHandle]:
    """Makes `save_state` add the models to a series, and `load_state` take them from it.

    In the folder of a state is then `deltaloom-step.json`, which says which step it is, instead of
    the weights. Only the main process adds; all processes read.

    Args:
        accelerator: The accelerator.
        series: A series, or its folder or URL. It is created if it does not exist.

    Returns:
        Two handles; `remove()` of each undoes the part for saving or loading.

    Raises:
        ValueError: accelerate writes sharded models itself: use :mod:`deltaloom.dcp` there.
    """
    if accelerator.distributed_type in _SHARDED:
        kind = accelerator.distributed_type.value
        raise ValueError(f"with {kind}, accelerate writes the models itself: use deltaloom.dcp")
    opened = open_or_create(series) if accelerator.is_main_process else None
    accelerator.wait_for_everyone()
    where = opened if opened is not None else open_or_create(series)

    def save(models: list[torch.nn.Module], weights: list[dict[str, torch.Tensor]], output_dir: str) -> None:
        plain = [accelerator.unwrap_model(model).state_dict() for model in models]
        weights.clear()
        if not accelerator.is_main_process:
            return
        step = where.add(_merged(plain))
        described = {"format": "deltaloom step", "version": 1, "step": step.step, "models": len(models)}
        path = Path(output_dir, _FILE)
        path.with_suffix(".new").write_text(json.dumps(described), encoding="utf-8")
        path.with_suffix(".new").replace(path)

    def load(models: list[torch.nn.Module], input_dir: str) -> None:
        path = Path(input_dir, _FILE)
        if not path.is_file():
            return  # A state from before the series: accelerate has its weights.
        step = _step(path, len(models))
        tensors = where.load(step, framework="pt", device="cpu")
        for number, model in enumerate(models):
            mark = _mark(number, len(models))
            own = {name.removeprefix(mark): value for name, value in tensors.items() if name.startswith(mark)}
            accelerator.unwrap_model(model).load_state_dict(own)
        models.clear()

    return (
        accelerator.register_save_state_pre_hook(save),
        accelerator.register_load_state_pre_hook(load),
    )


def _mark(number: int, count: int) -> str:
    return "" if count == 1 else f"model_{number}."


def _merged(states: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The tensors of all models; if there are several, with the number of the model in their names."""
    merged = {}
    for number, state in enumerate(states):
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                merged[_mark(number, len(states)) + name] = value
    return merged


def _step(path: Path, count: int) -> int:
    described = loads(path.read_bytes(), where=str(path))
    if not isinstance(described, dict) or described.get("format") != "deltaloom step":
        raise ValueError(f"{path} does not name a step")
    step, models = described.get("step"), described.get("models")
    if described.get("version") != 1 or type(step) is not int:
        raise ValueError(f"{path} does not name a step that this deltaloom can read")
    if models != count:
        raise ValueError(f"{path}: {models!r} models were saved, and {count} are prepared")
    return step
