"""The script `deltaloom` of the wheel beside the program itself: the same answers to every command.

`DELTALOOM_PROGRAM` names the program, as tools/python.sh does. Durations, speeds and dates are left
out of the comparison; bytes of files are not.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAM = os.environ.get("DELTALOOM_PROGRAM", "")
SCRIPT = str(Path(sys.executable).with_name("deltaloom"))
REFERENCE = Path(__file__).parents[3] / "docs" / "cli.md"

pytestmark = pytest.mark.skipif(not PROGRAM, reason="DELTALOOM_PROGRAM does not name the program")


@dataclass(frozen=True)
class Ended:
    """What a run left."""

    code: int
    out: bytes
    err: bytes


def run(program: str, words: list[str], folder: Path) -> Ended:
    # Help is wrapped for this width, whatever terminal the tests run in.
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "HOME": str(folder)}
    done = subprocess.run(
        [program, *words], cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=240
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def both(words: list[str], folders: list[Path]) -> list[Ended]:
    return [run(program, words, folder) for program, folder in zip((PROGRAM, SCRIPT), folders, strict=True)]


def commands() -> list[list[str]]:
    """Every command of the reference."""
    found = re.findall(r"^## (deltaloom.*)\n\n```text", REFERENCE.read_text(), re.MULTILINE)
    return [name.split()[1:] for name in found]


def test_help_of_every_command(tmp_path: Path) -> None:
    assert len(commands()) > 50
    for command in commands():
        for word in ("--help", "-h"):
            ours, theirs = both([*command, word], [tmp_path, tmp_path])
            assert ours.code == 0 and b"Usage: deltaloom" in ours.out, command
            assert ours == theirs, command


# Commands of one folder, in order. Those after "~" print measurements: there, numbers may differ. What
# a process in the background says of the step that it adds may come before or after "series flush".
RUNS = """
--version
completions bash
completions fish
man
demo
demo --write speaker
pack tuned.safetensors --base base.safetensors -o tuned.loom
pack tuned.safetensors --base base.safetensors -o tuned.loom
pack tuned.safetensors --base base.safetensors -o max.loom --preset max --json
pack tuned.safetensors --base-dir models --dry-run
pack base.safetensors -o alone.loom --meta run=7 --threads 1
unpack tuned.loom --base base.safetensors -o restored.safetensors
unpack tuned.loom --base models/other.safetensors -o wrong.safetensors
unpack tuned.loom --in-place target.safetensors --json
inspect tuned.loom --tensors
inspect tuned.loom --json
inspect missing.loom
inspect damaged.loom
verify tuned.loom --base base.safetensors
verify tuned.loom --json
verify damaged.loom --base base.safetensors
diff base.safetensors tuned.safetensors
diff base.safetensors tuned.safetensors --json
lineage tuned.safetensors base.safetensors --tensors
cat tuned.loom layers.1.up --base base.safetensors
cat tuned.loom none --base base.safetensors
~ bench tuned.safetensors --base base.safetensors --rounds 1 --only deltaloom --only memcpy
context layers base.safetensors tuned.safetensors
context test demo --text demo:text --lengths 64 --sequences 2 --recipe window.yaml
context apply speaker/base --recipe window.yaml -o longer.loom
context limit demo --memory 64M --recipe window.yaml
~ estimate speaker/base --tenants 10
eval perplexity demo demo:text --limit 64
eval divergence demo demo:pirate --tokens demo:text --limit 64 --json
eval choices demo demo:questions --limit 4
eval generate demo demo:problems --limit 1
generate demo Once --max-tokens 4
generate demo Once --max-tokens 4 --temperature 0.8 --seed 7 --tenant demo:pirate --json
serve none
series init run --keyframe-every 8
series add run base.safetensors --step 1 --meta loss=2.5
series add run tuned.safetensors --step 2 --meta loss=2.25 --json
series add run base.safetensors --step 2
series add run tuned.safetensors --step 3 --background
series flush run
~ series ls run
series log run
series show run --step 2
series health run
series plot run -o run.html
series set run --step 2 --meta note=kept
series get run --step 2 -o step-2.safetensors
series get run --step 9 -o step-9.safetensors
series watch run out --once --interval 1s
series verify run --deep
series repack run --keyframe-every 4
series rm run --step 3
series prune run --keep last\\ 1 --dry-run
series gc run
shrink run recipe.yaml --teacher speaker/base -o student --json
shrink plan missing.yaml --teacher speaker/base --ratio 2
shrink curve recipe.yaml --teacher speaker --ratios 2,3
shrink eval speaker/base student --tokens held-out.txt
shrink ablate recipe.yaml --teacher missing --state ablation
shrink materialise student -o dense
shrink quick-test
~ lab layer --tokens 1 --repeats 1 --threads 1
~ lab matmul --rows 48 --cols 80 --changed 0.2 --tokens 1 --rounds 1
~ lab mixed missing --fast
~ lab positions --size 64KiB --pattern clustered --methods ours --seed 7
~ lab serve --seconds 1
~ lab simhash --bits 64 --tokens 2
~ lab tenants missing tuned.safetensors
~ lab tpde base.safetensors tuned.safetensors --methods P1 -o lossy
no-such-command
pack --no-such-option --json
"""


def runs() -> Iterator[tuple[bool, list[str]]]:
    for line in RUNS.strip().splitlines():
        is_measured = line.startswith("~ ")
        words = line.removeprefix("~ ").replace("\\ ", "\0").split()
        yield is_measured, [word.replace("\0", " ") for word in words]


def prepare(folder: Path, base_file: Path, tuned_file: Path) -> None:
    """The files that the commands read."""
    (folder / "models").mkdir(parents=True)
    (folder / "out").mkdir()
    base, tuned = base_file.read_bytes(), tuned_file.read_bytes()
    for name, data in {
        "base.safetensors": base,
        "tuned.safetensors": tuned,
        "target.safetensors": base,
        "models/m.safetensors": base,
        "models/other.safetensors": base[:-1] + bytes([base[-1] ^ 1]),
        "out/step-4.safetensors": tuned,
        "window.yaml": b"context: 1\ndefault: { reach: { window: 16 } }\n",
        "recipe.yaml": RECIPE.encode(),
        "fit.txt": TEXT.encode(),
        "held-out.txt": TEXT[::2].encode(),
    }.items():
        (folder / name).write_bytes(data)


TEXT = "Once upon a time there was a small fox. It lived in a wood and liked to sing to the stars. " * 8
RECIPE = """version: 1
data: {calibrate: {path: fit.txt}, evaluate: {path: held-out.txt}, seq_len: 64}
targets: {kl: {limit: null}}
planner: {mode: fixed}
branches: {quantise: {bits: 4}}
logging: {tensorboard: false}
"""

_TIMED = re.compile(
    r"""(?x) "(?:[a-z_]*(?:seconds|unix|_ms|_us|_ns|per_second|bytes_read|peak)[a-z_]*|output)":\s*[\d.e+-]+   # in JSON
    | \d[\d.,]* \s* (?:[num\u00b5]?s|min|h|[kMG]?B/s|per\s+second|tokens\s+per\s+second|tok/s)\b      # in text
    | \d{4}-\d\d-\d\d[T\x20]\d\d:\d\d(?::\d\d)?(?:Z|\x20UTC)?"""
)
_NUMBER = re.compile(r"[+-]?\d[\d.,]*(?:e[+-]?\d+)?|\b(?:inf|nan|NaN)\b")


def told(data: bytes, is_measured: bool) -> str:
    """A text without its times, and columns that are as wide as the numbers in them. Of measurements,
    whose rows depend on speed, the words."""
    text = _TIMED.sub("#", data.decode("utf-8", "surrogateescape"))
    if is_measured:
        words = re.findall(r"\w+", _NUMBER.sub("#", text))
        return " ".join(sorted(set(words) - {"best", "fastest"}))
    return re.sub(r"[ \u2500-\u259f]+|-{2,}", " ", text)


@pytest.fixture
def folders(tmp_path: Path, base_file: Path, tuned: dict[str, object]) -> list[Path]:
    import safetensors.numpy

    tuned_file = tmp_path / "tuned.safetensors"
    safetensors.numpy.save_file(tuned, tuned_file)
    # Names of one length, as paths are in some of the texts.
    found = [tmp_path / "ours", tmp_path / "them"]
    for folder in found:
        prepare(folder, base_file, tuned_file)
    return found


def test_every_command_runs_as_the_program_does(folders: list[Path]) -> None:
    ran = {tuple(words[: len(command)]) for _, words in runs() for command in commands()}
    leaves = [c for c in commands() if c and not any(o[: len(c)] == c and o != c for o in commands())]
    assert [command for command in leaves if tuple(command) not in ran] == []
    codes, differ = [], []
    for is_measured, words in runs():
        if words[0] == "inspect" and words[1] == "damaged.loom":
            for folder in folders:
                whole = (folder / "tuned.loom").read_bytes()
                (folder / "damaged.loom").write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
        ours, theirs = both(words, folders)
        for a, b in ((ours.out, theirs.out), (ours.err, theirs.err)):
            b = b.replace(str(folders[1]).encode(), str(folders[0]).encode())
            if words[:2] == ["series", "flush"]:
                continue
            is_same = a == b if words[0] == "cat" else told(a, is_measured) == told(b, is_measured)
            if not is_same or ours.code != theirs.code:
                differ.append(f"{' '.join(words)}: {ours.code} {theirs.code}\n{a!r}\n{b!r}")
        codes.append(ours.code)
    assert not differ, "\n\n".join(differ)
    assert {0, 1, 2, 3} <= set(codes)
    ours, theirs = (written(folder) for folder in folders)
    assert ours == theirs


def written(folder: Path) -> dict[str, bytes | None]:
    """The files of a folder. Those that have times in them, or in their names, have no content."""
    found: dict[str, bytes | None] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        has_bytes = path.suffix in (".loom", ".safetensors", ".bin", ".txt", ".yaml") and "student" not in name
        found[name] = path.read_bytes() if has_bytes else None
    return found


def test_a_server_that_is_interrupted(folders: list[Path]) -> None:
    ended = [served(program, folder) for program, folder in zip((PROGRAM, SCRIPT), folders, strict=True)]
    assert ended[0] == ended[1]


def served(program: str, folder: Path) -> tuple[int, str]:
    """Starts a server, interrupts it once it says where it is, and returns what it said."""
    server = subprocess.Popen(
        [program, "serve", "demo", "--port", "0"], cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert server.stderr is not None
    end = threading.Timer(120, server.kill)
    end.start()
    said = b""
    while b"http://" not in said and (line := server.stderr.readline()):
        said += line
    # It answers, so it is past its start.
    (address,) = re.findall(rb"http://[0-9.:]+", said)
    with urllib.request.urlopen(address.decode() + "/v1/models", timeout=60) as answer:
        assert answer.status == 200
    # One that comes right after the start may be lost.
    while server.poll() is None:
        server.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(5)
    said += server.stderr.read()
    code = server.wait()
    end.cancel()
    return code, told(re.sub(rb":\d{4,5}\b", b":PORT", said), True)
