"""Models of Hugging Face transformers, and every checkpoint of a Trainer.

```python
from transformers import AutoModelForCausalLM, Trainer
from deltaloom.transformers import SeriesCallback, from_pretrained, save_pretrained

save_pretrained(model, "tuned.loom", base="./base-model", tokenizer=tokenizer)
model = from_pretrained(AutoModelForCausalLM, "tuned.loom", base="./base-model")

trainer = Trainer(..., callbacks=[SeriesCallback("runs/7b", optimizer=True)])
```
"""

from __future__ import annotations

import math
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel, TrainerCallback
from transformers.models.auto import auto_factory

from deltaloom import Base, ExistsError, PackReport, Series, pack, safe_open
from deltaloom._format import is_container
from deltaloom._hub import resolve, resolve_model
from deltaloom._ranks import from_first, wait_for_all
from deltaloom._waiting import drain, open_or_create, snapshot, waiting_folder

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

__all__ = ["SeriesCallback", "from_pretrained", "save_pretrained"]

_MAX_OPAQUE_BYTES = 1 << 30
_TENSOR_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_OF_PACK = ("preset", "threads", "overwrite", "progress")


def from_pretrained(
    auto_class: Any, container: str | os.PathLike[str], *, base: Base | None = None, **kwargs: Any
) -> PreTrainedModel:
    """Loads a model from a container, without unpacking it to disk.

    Tensors are decoded one by one while transformers takes them, in their stored dtypes; `dtype=`
    converts them as it does for any model. Configuration and generation settings come from the
    container, or from the base if the container has weights only.

    Args:
        auto_class: `AutoModelForCausalLM`, `LlamaForCausalLM` or any class with `from_pretrained`.
        container: A `.loom` container, or a model that is not packed: a folder, `hf://org/name`,
            or `org/name` if it is in the cache of Hugging Face.
        base: The base model: a folder, a file, several of them, or `hf://org/name@revision`.
        **kwargs: As for `auto_class.from_pretrained`: `dtype`, `device_map`, `config` and so on.

    Returns:
        The model, in evaluation mode, with the bits that were packed.

    Raises:
        BaseMismatchError: The base is missing or another one.
        CorruptError: The container is damaged.
        FileNotFoundError: There is no such file, or the cache does not have the model.
        ValueError: There is no `config.json`, or the model needs code of its own.
    """
    path = resolve_model(container)
    if not is_container(path):
        model: PreTrainedModel = auto_class.from_pretrained(path, **kwargs)
        return model
    base = resolve(base)
    with safe_open(path, "pt", base=base) as packed, tempfile.TemporaryDirectory() as folder:
        _write_opaque_files(packed, folder)
        source = _folder_with_config(folder, base)
        config, kwargs = _configuration(auto_class, source, path, kwargs)
        if source is not None and "generation_config" not in kwargs:
            if os.path.exists(os.path.join(source, "generation_config.json")):
                kwargs["generation_config"] = GenerationConfig.from_pretrained(source)
        tensors = _weights(packed)
        if config.dtype is None and kwargs.get("dtype", kwargs.get("torch_dtype", "auto")) == "auto":
            kwargs.pop("torch_dtype", None)
            kwargs["dtype"] = _first_float(tensors)
        if _needs_tensors():
            tensors = {name: part[...] for name, part in tensors.items()}
        model_class, config = _model_class(auto_class, config)
        loaded = model_class.from_pretrained(None, config=config, state_dict=tensors, **kwargs)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.name_or_path = model.config.name_or_path = path
    result: PreTrainedModel = loaded
    return result


def save_pretrained(
    model: PreTrainedModel,
    target: str | os.PathLike[str],
    *,
    base: Base | None = None,
    tokenizer: Any = None,
    **kwargs: Any,
) -> PackReport:
    """Packs a model with its configuration, and its tokenizer if given, into one container.

    The container restores the very files that `model.save_pretrained` writes, byte for byte. They
    are written beside `target` first, so this needs room for the model once.

    Args:
        model: The model.
        target: The container to write, for example `tuned.loom`.
        base: What to store differences from: a folder, a file, several, or `hf://org/name`.
        tokenizer: A tokenizer or processor, saved with it.
        **kwargs: `preset`, `threads`, `overwrite` and `progress` as for :func:`deltaloom.pack`;
            all others as for `model.save_pretrained`, such as `max_shard_size`.

    Raises:
        ExistsError: `target` exists and `overwrite` is not given.
    """
    packing = {name: kwargs.pop(name) for name in _OF_PACK if name in kwargs}
    target = Path(target)
    if target.exists() and not packing.get("overwrite", False):
        raise ExistsError(f"{target} exists; overwrite=True replaces it")
    with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=".deltaloom-") as folder:
        model.save_pretrained(folder, **kwargs)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        return pack(folder, target, base=resolve(base) or (), **packing)


class SeriesCallback(TrainerCallback):
    """Adds every checkpoint of a `Trainer` to a series.

    `on_save` links the files of the checkpoint into a waiting folder in `output_dir` and returns;
    a thread packs them. So a step whose `on_save` returned survives a killed process: it is in the
    series, or waits and is added when the training starts again. `save_total_limit` may delete the
    original at once.

    With several processes, all have the callback. Rank 0 stores the checkpoint once every rank has
    written its part of it.

    After `resume_from_checkpoint` the run may go back. Steps that the series has with the same
    content stay; if they differ, the old ones are kept as a branch of the series.

    Args:
        series: A series, or its folder or URL. It is created if it does not exist.
        optimizer: Also store optimizer, scheduler, random states and the state of the Trainer, so
            that the restored folder resumes the training. Otherwise the series has the model only.
        meta: Returns texts to store with a step. By default the newest numbers of the log are stored.
        mode: `"background"`, or `"inline"` to pack within `on_save`.
        delete_after: Delete the files of a checkpoint once the series has them. Files that the series
            does not have, or that changed since, stay. Needs `load_best_model_at_end=False`.

    Raises:
        Exception: What failed in the thread is raised by the next `on_save` and at the end of the
            training. The steps keep waiting.
    """

    def __init__(
        self,
        series: Series | str | os.PathLike[str],
        *,
        optimizer: bool = False,
        meta: Callable[[TrainerState], Mapping[str, str]] | None = None,
        mode: Literal["background", "inline"] = "background",
        delete_after: bool = False,
    ) -> None:
        if mode not in ("background", "inline"):
            raise ValueError(f'mode is "background" or "inline", not {mode!r}')
        self._where = series
        self._optimizer = optimizer
        self._meta = meta or _newest_numbers
        self._mode = mode
        self._delete_after = delete_after
        self._series: Series | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._running: list[Future[None]] = []

    def newest_checkpoint(self, output_dir: str | os.PathLike[str]) -> str | None:
        """Restores the newest step, for `trainer.train(resume_from_checkpoint=...)`.

        Adds what waits since the last run first. With several processes, all call it, once they have
        their `TrainingArguments`: rank 0 restores, and the others wait for it.

        Args:
            output_dir: That of the training. The step is restored in its folder
                `.deltaloom-resumed`, where nothing but restored steps is kept.

        Returns:
            The folder, or None if there is no step yet.

        Raises:
            ValueError: Without `optimizer=True` a step does not resume a training.
        """
        if not self._optimizer:
            raise ValueError("a step resumes a training only with optimizer=True")
        return from_first(lambda: self._restore_newest(output_dir))

    def _restore_newest(self, output_dir: str | os.PathLike[str]) -> str | None:
        series = self._open()
        with _DRAINING:
            drain(series, waiting_folder(output_dir, series))
        newest = series.newest
        if newest is None:
            return None
        target = Path(output_dir, _RESUMED, f"checkpoint-{newest.step}")
        shutil.rmtree(target.parent, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        series.get(newest, target)
        return str(target)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Opens the series, and adds what waits since the last run."""
        if not state.is_world_process_zero:
            return
        if self._delete_after and args.load_best_model_at_end:
            raise ValueError("delete_after deletes what load_best_model_at_end=True has to read")
        series = self._open()
        # Files that wait are links: a run that goes back may write to them again.
        with _DRAINING:
            drain(series, waiting_folder(str(args.output_dir), series))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Makes the checkpoint that was just saved wait for the series."""
        # Every rank writes its random state into the checkpoint.
        wait_for_all()
        if not state.is_world_process_zero:
            return
        checkpoint = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
        if not checkpoint.is_dir():
            what = (
                "the Trainer deleted this checkpoint before on_save: with save_total_limit, output_dir "
                "must have no checkpoints of later steps"
            )
            raise FileNotFoundError(2, what, str(checkpoint))
        series = self._open()
        waiting = waiting_folder(str(args.output_dir), series)
        snapshot(
            waiting,
            checkpoint,
            step=state.global_step,
            meta=dict(self._meta(state)),
            exclude=() if self._optimizer else _STATE_FILES,
        )
        # This step waits already, so a failure of an earlier one does not lose it.
        self._raise_failures()
        saved = _Saved(state.global_step, checkpoint, _stamps(checkpoint) if self._delete_after else {})
        if self._mode == "inline":
            self._drain(series, waiting, saved)
            return
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "deltaloom-series")
        self._running.append(self._worker.submit(self._drain, series, waiting, saved))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Waits until the series has every step."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.shutdown(wait=True)
        self._raise_failures()

    def _open(self) -> Series:
        if self._series is None:
            self._series = open_or_create(self._where)
        return self._series

    def _drain(self, series: Series, waiting: Path, saved: _Saved) -> None:
        with _DRAINING:
            drain(series, waiting)
        if self._delete_after:
            with series.open_step(saved.step, "raw") as stored:
                _delete(saved, stored.files())

    def _raise_failures(self) -> None:
        done = [future for future in self._running if future.done()]
        self._running = [future for future in self._running if not future.done()]
        for future in done:
            future.result()


_DRAINING = threading.Lock()
"""Held while steps are packed, so that two callbacks of one process do not share the cores."""

_RESUMED = ".deltaloom-resumed"
"""Where steps are restored to resume from."""

_STATE_FILES = (
    "optimizer*",
    "scheduler*",
    "scaler*",
    "rng_state*",
    "trainer_state.json",
    "training_args.bin",
    "global_step*/**",
    "pytorch_model_fsdp*/**",
)
"""Files of a checkpoint that only serve to resume."""


def _newest_numbers(state: TrainerState) -> dict[str, str]:
    """The finite numbers that were logged last, without times."""
    newest = state.log_history[-1].get("step") if state.log_history else None
    lines = [line for line in state.log_history[-4:] if line.get("step") == newest]
    return {
        name: f"{value:.10g}"
        for line in lines
        for name, value in line.items()
        if isinstance(value, (int, float))
        and math.isfinite(value)
        and name not in ("step", "total_flos")
        and not name.endswith(("_runtime", "_per_second"))
    }


@dataclass(frozen=True)
class _Saved:
    """A checkpoint, and what its files were when it was saved."""

    step: int
    folder: Path
    stamps: Mapping[str, tuple[int, int]]


def _stamp(file: Path) -> tuple[int, int] | None:
    """Size and time of change; None for what is no plain file any more."""
    try:
        found = file.lstat()
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    files = (file for file in folder.rglob("*") if not file.is_dir())
    found = {file.relative_to(folder).as_posix(): _stamp(file) for file in files}
    return {name: stamp for name, stamp in found.items() if stamp is not None}


def _delete(saved: _Saved, stored: Iterable[str]) -> None:
    """Deletes the files that the series has, if they are what was stored, and folders left empty."""
    for name in stored:
        file = saved.folder / name
        stamp = saved.stamps.get(name)
        if stamp is not None and _stamp(file) == stamp:
            file.unlink(missing_ok=True)
    folders = [folder for folder in saved.folder.rglob("*") if folder.is_dir() and not folder.is_symlink()]
    for folder in (*sorted(folders, reverse=True), saved.folder):
        try:
            folder.rmdir()
        except OSError:
            # It has other files.
            continue


def _write_opaque_files(packed: Any, folder: str) -> None:
    """Writes the small files of a container, such as `config.json`, into a folder."""
    total = 0
    for name in packed.files():
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or place.suffix in _TENSOR_FILES:
            continue
        data = packed.read_file(name)
        total += len(data)
        if total > _MAX_OPAQUE_BYTES:
            raise ValueError("the files beside the weights take more than 1 GiB: unpack the container")
        target = Path(folder, place)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def _folder_with_config(folder: str, base: Any) -> str | None:
    bases = base if isinstance(base, (list, tuple)) else [base]
    candidates = [folder, *(os.fspath(one) for one in bases if isinstance(one, (str, os.PathLike)))]
    return next((one for one in candidates if os.path.exists(os.path.join(one, "config.json"))), None)


def _configuration(
    auto_class: Any, source: str | None, path: str, kwargs: dict[str, Any]
) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """The configuration, and the arguments that are not about it."""
    config = kwargs.pop("config", None)
    if isinstance(config, PreTrainedConfig):
        return config, kwargs
    where = config if config is not None else source
    if where is None:
        raise ValueError(f"{path} has no config.json, nor has its base: pass config=")
    # The loader of models wants these, the one of configurations would take them.
    of_model = {name: kwargs.pop(name) for name in _NOT_OF_CONFIG if name in kwargs}
    config_class = getattr(auto_class, "config_class", None) or AutoConfig
    config, rest = config_class.from_pretrained(where, return_unused_kwargs=True, **kwargs)
    if getattr(auto_class, "__name__", "") in (getattr(config, "auto_map", None) or {}):
        if kwargs.get("trust_remote_code"):
            raise ValueError(f"{path} has code of its own: unpack it, and load the folder with transformers")
    return config, {**rest, **of_model}


def _model_class(auto_class: Any, config: PreTrainedConfig) -> tuple[Any, PreTrainedConfig]:
    """The class that an auto class stands for, which itself cannot load without a name."""
    mapping = getattr(auto_class, "_model_mapping", None)
    if mapping is None:
        return auto_class, config
    if type(config) not in mapping:
        raise ValueError(f"{auto_class.__name__} does not know models with a {type(config).__name__}")
    factory: Any = auto_factory
    model_class = factory._get_model_class(config, mapping)
    # The text part of a model of text and pictures, as the auto class takes it.
    text = config.get_text_config()
    is_part = text is not config and model_class.config_class is type(text)
    return model_class, text if is_part else config


_NOT_OF_CONFIG = ("dtype", "torch_dtype", "quantization_config", "generation_config", "state_dict")


def _weights(packed: Any) -> dict[str, Any]:
    """The tensors of the model by name, not decoded yet. Those of an optimizer are left out."""
    found: dict[str, Any] = {}
    for key in packed.keys():
        file = packed.info(key).file
        # What the key of a name that an optimizer has, too, begins with.
        name = key.removeprefix(f"{file}:")
        if not _is_weight(file):
            continue
        if name in found:
            raise ValueError(f"tensor {name!r} is in several files")
        found[name] = packed.get_slice(key)
    return found


def _is_weight(file: str) -> bool:
    return not PurePosixPath(file).name.startswith(("optimizer", "scheduler", "rng_state", "training_args"))


def _first_float(tensors: Mapping[str, Any]) -> torch.dtype:
    for part in tensors.values():
        if part.get_dtype() in _FLOATS:
            return _FLOATS[part.get_dtype()]
    return torch.get_default_dtype()


_FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


def _needs_tensors() -> bool:
    """DeepSpeed's third stage copies from the tensors themselves."""
    from transformers.integrations import deepspeed

    module: Any = deepspeed
    return bool(module.is_deepspeed_zero3_enabled())
