"""Runs `deltaloom serve` for checks: starts it on a free port of this machine and ends it."""

import contextlib
import json
import pathlib
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Server:
    """A server that listens."""

    url: str
    pid: int
    # What it printed when it listened: sizes of its memory, names of fine-tunes.
    announced: dict

    def anonymous_bytes(self) -> int:
        """Memory that is no mapped file."""
        for line in pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        return 0

    def open_files(self) -> int:
        return len(list(pathlib.Path(f"/proc/{self.pid}/fd").iterdir()))


@contextlib.contextmanager
def serving(program: str, *arguments: str) -> Iterator[Server]:
    """A server. It must end in time, and with success."""
    command = [program, "serve", *arguments, "--port", "0", "--json", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            # One object over some lines.
            lines = []
            for line in process.stdout:
                lines.append(line)
                if line.startswith("}"):
                    break
            announced = json.loads("".join(lines))
            yield Server(announced["url"], process.pid, announced)
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(60)
    assert status == 0, f"the server ended with {status}"


def metric(text: str, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = [line for line in text.splitlines() if line.startswith(f"deltaloom:{name}")]
    return sum(float(line.split()[-1]) for line in lines)
