"""Progress of long calls, for people or for a function."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

__all__ = ["Progress", "reporting"]


@runtime_checkable
class Progress(Protocol):
    """Is called with the bytes that are done and their total, at most ten times a second.

    An exception that it raises stops the call and comes out of it.
    """

    def __call__(self, done: int, total: int, /) -> None: ...


@contextlib.contextmanager
def reporting(progress: bool | Progress | None, what: str) -> Iterator[Progress | None]:
    """Gives the function to call: for True a bar of tqdm, or a line on stderr without tqdm."""
    if progress is None or progress is False:
        yield None
    elif progress is True:
        with _shown(what) as shown:
            yield shown
    elif callable(progress):
        yield progress
    else:
        raise TypeError(f"progress is True, False, None or a function, not {type(progress).__name__}")


@contextlib.contextmanager
def _shown(what: str) -> Iterator[Progress]:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        yield _Line(what)
        return
    with tqdm(desc=what, unit="B", unit_scale=True) as bar:

        def show(done: int, total: int, /) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        yield show


class _Line:
    """A line per second on standard error."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.next = time.monotonic() + 1

    def __call__(self, done: int, total: int, /) -> None:
        now = time.monotonic()
        if now >= self.next:
            self.next = now + 1
            print(f"{self.what}: {done / total:.0%} of {total / 1e6:.0f} MB", file=sys.stderr)
