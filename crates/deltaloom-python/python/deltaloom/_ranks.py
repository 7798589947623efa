"""The ranks of torch.distributed, where it runs. Nothing here imports torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["from_first", "is_first", "wait_for_all"]

T = TypeVar("T")


def _distributed() -> Any:
    """torch.distributed, if there are several ranks; else None."""
    module: Any = sys.modules.get("torch.distributed")
    if module is None or not module.is_available() or not module.is_initialized():
        return None
    return module if module.get_world_size() > 1 else None


def is_first() -> bool:
    """Whether this is rank 0, or the only process."""
    distributed = _distributed()
    return distributed is None or distributed.get_rank() == 0


def wait_for_all() -> None:
    """Waits until every rank is here."""
    distributed = _distributed()
    if distributed is not None:
        distributed.barrier()


def from_first(make: Callable[[], T]) -> T:
    """What rank 0 makes, for every rank. The others wait for it.

    Raises:
        RuntimeError: On other ranks, if rank 0 raised something; several processes run, and
            torch.distributed is not initialised.
    """
    distributed = _distributed()
    if distributed is None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise RuntimeError("the ranks cannot talk yet: make the TrainingArguments, or init_process_group, first")
        return make()
    told: list[Any] = [None, None]
    failure = None
    if distributed.get_rank() == 0:
        try:
            told[0] = make()
        except BaseException as error:
            failure, told[1] = error, f"{type(error).__name__}: {error}"
    distributed.broadcast_object_list(told, src=0)
    if failure is not None:
        raise failure
    if told[1] is not None:
        raise RuntimeError(f"rank 0 failed: {told[1]}")
    made: T = told[0]
    return made
