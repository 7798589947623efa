"""Files that are damaged or of another kind, and the exceptions that tell."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from conftest import Arrays, same

import deltaloom
from deltaloom.numpy import load, load_file, save, save_file


@pytest.fixture
def data(tuned: Arrays, base: Arrays) -> bytes:
    return save(tuned, base=base)


def test_a_wrong_or_missing_base(data: bytes, tuned: Arrays) -> None:
    for base in [None, tuned, [tuned]]:
        with pytest.raises(deltaloom.BaseMismatchError) as caught:
            load(data, base=base)
        error = caught.value
        assert isinstance(error, ValueError)
        assert error.tensor in tuned and error.expected and len(error.expected) == 64 and error.found
        assert "base=" in str(error.hint)
        assert any("hint:" in note for note in error.__notes__)


def test_every_truncation_and_a_thousand_flips_are_errors(data: bytes, base: Arrays, tuned: Arrays) -> None:
    rng = random.Random(7)
    for length in [*range(0, 200, 7), *rng.sample(range(len(data)), 60), len(data) - 1]:
        with pytest.raises((ValueError, OSError)):
            load(data[:length], base=base)
    places = [*range(64), *range(len(data) - 200, len(data)), *rng.sample(range(len(data)), 100)]
    for place in places:
        bad = bytearray(data)
        bad[place] ^= 1 << rng.randrange(8)
        try:
            loaded = load(bad, base=base)
        except (ValueError, OSError):
            continue
        assert all(same(loaded[name], tuned[name]) for name in tuned), f"a flip at {place} was not noticed"


def test_files_of_other_kinds(tmp_path: Path, tuned: Arrays, base: Arrays) -> None:
    packed, plain = tmp_path / "packed.safetensors", tmp_path / "plain.loom"
    save_file(tuned, packed)
    safetensors.numpy.save_file(tuned, plain)
    for path in [packed, plain]:
        assert all(same(array, tuned[name]) for name, array in load_file(path).items())
    for text in [b"", b"{}", b"<html>", os.urandom(100), b"\0" * 1000]:
        path = tmp_path / "odd.loom"
        path.write_bytes(text)
        with pytest.raises(ValueError):
            load_file(path)
        with pytest.raises(ValueError):
            load(text)
    with pytest.raises(deltaloom.CorruptError) as caught:
        load_file(tmp_path / "odd.loom")
    assert caught.value.path == str(tmp_path / "odd.loom")


def test_a_newer_version(tmp_path: Path, data: bytes) -> None:
    bad = bytearray(data)
    at = next(i for i in range(4, 16) if 0 < bad[i] < 16)
    bad[at] = 99
    with pytest.raises((deltaloom.VersionError, deltaloom.CorruptError)):
        load(bad)


def test_errors_of_the_system_are_oserror(tmp_path: Path, tuned: Arrays) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load_file(tmp_path / "none.loom")
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == str(tmp_path / "none.loom")
    with pytest.raises(OSError):
        save_file(tuned, tmp_path / "no folder" / "a.loom")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError):
        load_file(tmp_path / "pipe")
    with pytest.raises(OSError):
        deltaloom.inspect(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_device_is_not_replaced(tuned: Arrays) -> None:
    with pytest.raises(OSError):
        save_file(tuned, "/dev/full", overwrite=True)


def test_paths_of_all_kinds(tmp_path: Path, tuned: Arrays) -> None:
    class Lies:
        def __fspath__(self) -> Any:
            return 3

    odd = os.fsencode(tmp_path) + b"/\xff\xfe.loom"
    for path in [odd, os.fsencode(tmp_path / "b.loom"), str(tmp_path / "c.loom"), tmp_path / "d.loom"]:
        save_file(tuned, path)
        assert same(load_file(path)["embed.weight"], tuned["embed.weight"])
    for bad in [Lies(), 3, None]:
        with pytest.raises(TypeError):
            save_file(tuned, bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="zero"):
        load_file("a\0b")


def test_outputs_never_replace_inputs(tmp_path: Path, tuned: Arrays, base_file: Path) -> None:
    with pytest.raises(FileExistsError):
        save_file(tuned, base_file, base=base_file, overwrite=True)
    link = tmp_path / "link.loom"
    link.symlink_to(base_file)
    with pytest.raises(FileExistsError):
        save_file(tuned, link, base=base_file, overwrite=True)


def test_messages_are_texts_and_not_representations() -> None:
    error = deltaloom.TensorNotFoundError("tensor 'a' not found")
    assert str(error) == "tensor 'a' not found"
    assert issubclass(deltaloom.StepNotFoundError, KeyError)
    assert issubclass(deltaloom.InPlaceError, RuntimeError)
    assert issubclass(deltaloom.NotASeriesError, deltaloom.SeriesError)


def test_a_hostile_size_is_no_crash() -> None:
    header = b'{"t":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,4611686018427387904]}}'
    with pytest.raises(ValueError):
        load(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError):
        load((1 << 62).to_bytes(8, "little") + b"{}")


def test_memory_that_is_not_bytes() -> None:
    with pytest.raises(TypeError):
        load("text")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        load(3)  # type: ignore[arg-type]
    view = np.zeros((4, 4), np.uint8)[:, ::2]
    with pytest.raises((TypeError, ValueError)):
        load(view)


def test_an_exception_while_bytes_are_fetched_comes_out(tmp_path: Path) -> None:
    from deltaloom import _lib

    class FetchError(Exception):
        pass

    def fail(start: int, stop: int) -> bytes:
        raise FetchError

    def lie(start: int, stop: int) -> bytes:
        return bytes(stop - start - 1)

    for fetch, kind in [(fail, FetchError), (lie, ValueError)]:
        tensors = _lib.Tensors("t.safetensors", [("t", "F32", [100_000], fetch)], {})
        with pytest.raises(kind):
            _lib.pack_tensors(tensors, str(tmp_path / "t.loom"), [], "default", 0, False, None)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="bytes"):
        _lib.Tensors("t.safetensors", [("t", "F32", [3], b"short")], {})


def test_memory_of_an_open_file_cannot_be_resized(data: bytes, base: Arrays) -> None:
    from deltaloom import _inputs, _lib

    held = bytearray(data)
    reader = _lib.Reader.of_bytes(held, _inputs.bases_of(base), 0)
    with pytest.raises(BufferError):
        held.extend(b"x")
    del reader
    held.extend(b"x")


def test_the_package_may_be_imported_again() -> None:
    import importlib

    kept = deltaloom.CorruptError
    importlib.reload(deltaloom)
    assert deltaloom.CorruptError is kept
    with pytest.raises(kept):
        load(b"no container at all")


def test_subinterpreters_are_refused(run_script: Any) -> None:
    script = """
try:
    import _xxsubinterpreters as interpreters
except ImportError:
    import _interpreters as interpreters
import deltaloom
inner = interpreters.create()
found = None
try:
    found = interpreters.run_string(inner, "import deltaloom")
except Exception as error:
    found = error
assert "ubinterpreter" in repr(found), found
"""
    done = run_script(script)
    assert done.returncode == 0, done.stderr
