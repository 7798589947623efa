"""Ranks of torch.distributed that talk over loopback."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _start(rank: int, ranks: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(ranks))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    try:
        function(rank, ranks, *arguments)
    finally:
        dist.destroy_process_group()


def on_ranks(ranks: int, function: Callable[..., None], *arguments: Any) -> None:
    """Runs a function on some ranks, which talk over loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_start, (ranks, port, function, arguments), nprocs=ranks)
