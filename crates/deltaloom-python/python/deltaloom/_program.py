"""The program `deltaloom` inside this process."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence

from deltaloom import _lib

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program, and returns its exit code.

    Args:
        argv: The arguments, without the name of the program. Without them, those of this process
            are taken, and Ctrl-C stops the program as it does outside Python.

    Raises:
        RuntimeError: The program runs in this process already.
    """
    is_process = argv is None
    arguments = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if is_process and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    start = [sys.executable, "-m", "deltaloom"]
    return _lib.run(["deltaloom", *map(os.fspath, arguments)], start, is_process)
