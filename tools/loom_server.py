"""Runs `deltaloom serve` for checks: starts it on a free port of this machine and ends it."""

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator


@contextlib.contextmanager
def serving(program: str, *arguments: str) -> Iterator[str]:
    """The address of a server. It must end in time, and with success."""
    command = [program, "serve", *arguments, "--port", "0", "--json", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            # One object over some lines.
            lines = []
            for line in server.stdout:
                lines.append(line)
                if line.startswith("}"):
                    break
            yield json.loads("".join(lines))["url"]
        finally:
            server.send_signal(signal.SIGTERM)
            status = server.wait(60)
    assert status == 0, f"the server ended with {status}"
