"""Open files: tensors one by one, slices, rows into given memory."""

from __future__ import annotations

import itertools
import pickle
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from conftest import Arrays, random_bits, same

import deltaloom
from deltaloom import Container, safe_open
from deltaloom.numpy import save_file


@pytest.fixture
def packed(tuned: Arrays, base_file: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tuned.loom"
    save_file(tuned, path, base=base_file, metadata={"format": "pt", "step": "3"})
    return path


def test_tensors_and_texts(packed: Path, base_file: Path, tuned: Arrays) -> None:
    with safe_open(packed, "np", base=base_file) as f:
        assert f.keys() == sorted(tuned)
        assert sorted(f.offset_keys()) == sorted(tuned)
        assert f.metadata() == {"format": "pt", "step": "3"}
        assert "embed.weight" in f and len(f) == len(tuned)
        assert all(same(f.get_tensor(name), tuned[name]) for name in f.keys())
        info = f.info("embed.weight")
        assert (info.dtype, info.shape, info.original_bytes) == ("BF16", (257, 64), 257 * 64 * 2)
        assert info.packed_bytes is not None and info.packed_bytes < info.original_bytes
        assert info.digest is not None and len(info.digest) == 64
        with pytest.raises(KeyError):
            f.get_tensor("none")
        with pytest.raises(TypeError):
            pickle.dumps(f)
    with pytest.raises(ValueError, match="closed"):
        f.get_tensor("embed.weight")


def test_a_plain_file_is_opened_alike(base_file: Path, base: Arrays) -> None:
    with safe_open(base_file, "np") as ours, safetensors.safe_open(base_file, "np") as theirs:
        assert ours.keys() == sorted(theirs.keys())
        assert ours.metadata() == theirs.metadata()
        assert same(ours.get_tensor("embed.weight"), base["embed.weight"])
        assert ours.info("embed.weight").digest is None
        assert ours.files() == ["base.safetensors"]
        assert ours.read_file("base.safetensors") == base_file.read_bytes()


KEYS: list[Any] = [
    (),
    ...,
    slice(None),
    0,
    -1,
    200,
    slice(3, 90),
    slice(250, 400),
    slice(90, 3),
    slice(None, None, 7),
    slice(None, None, -3),
    slice(-5, None),
    (slice(10, 20), slice(5, 9)),
    (slice(None), slice(None, None, 2)),
    (4, 5),
    (slice(0, 0), slice(None)),
    (..., 3),
    (None, slice(2, 4)),
    (slice(8, 2, -2), 1),
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_slices_are_those_of_the_whole_tensor(key: Any, packed: Path, base_file: Path, tuned: Arrays) -> None:
    whole = tuned["embed.weight"]
    for path, base in [(packed, base_file), (base_file, None)]:
        with safe_open(path, "np", base=base) as f:
            part = f.get_slice("embed.weight")
            assert part.get_shape() == [257, 64] and part.get_dtype() == "BF16"
            expected = (whole if path == packed else f.get_tensor("embed.weight"))[key]
            assert same(np.asarray(part[key]), np.array(expected))


def test_indices_outside_are_errors(packed: Path, base_file: Path) -> None:
    with safe_open(packed, "np", base=base_file) as f:
        part = f.get_slice("embed.weight")
        for key in [257, -258]:
            with pytest.raises(IndexError):
                part[key]
        with pytest.raises(IndexError):
            part[0, 64]


def test_slices_of_large_tensors_cross_chunks(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    arrays = {"wide": rng.normal(0, 1, (300, 3000)).astype(np.float32), "long": rng.bytes(0) or np.arange(400_000)}
    path = tmp_path / "a.loom"
    save_file(arrays, path)
    with safe_open(path, "np") as f:
        for name, (start, stop) in itertools.product(arrays, [(0, 1), (17, 299), (43, 44), (0, 300)]):
            assert same(f.get_slice(name)[start:stop], arrays[name][start:stop])


def test_shapes_without_rows(tmp_path: Path) -> None:
    arrays = {"scalar": np.array(3.5), "empty": np.zeros((0, 4), np.float32)}
    save_file(arrays, tmp_path / "a.loom")
    with safe_open(tmp_path / "a.loom", "np") as f:
        assert f.get_slice("scalar")[()] == 3.5
        assert f.get_slice("scalar")[...].shape == ()
        assert f.get_slice("empty")[:].shape == (0, 4)
        assert f.get_slice("empty")[0:0, 1:].shape == (0, 3)


def test_reading_into_memory_that_is_there(packed: Path, base_file: Path, tuned: Arrays) -> None:
    whole = tuned["embed.weight"]
    with safe_open(packed, "np", base=base_file) as f:
        for out in [np.zeros_like(whole), np.zeros(whole.nbytes, np.uint8), bytearray(whole.nbytes)]:
            f.read_into("embed.weight", out)
            assert bytes(memoryview(np.asarray(out).reshape(-1).view(np.uint8))) == whole.tobytes()
        rows = np.zeros((10, 64), ml_dtypes.bfloat16)
        f.read_into("embed.weight", rows, slice(100, 110))
        assert same(rows, whole[100:110])
        bad: list[tuple[Any, type[Exception]]] = [
            (bytearray(whole.nbytes - 1), ValueError),
            (bytearray(whole.nbytes + 1), ValueError),
            (bytes(whole.nbytes), ValueError),
            (np.zeros(whole.shape, np.float16), TypeError),
            (np.zeros((257, 128), whole.dtype)[:, ::2], ValueError),
            (whole.tobytes(), ValueError),
            ("text", TypeError),
        ]
        for out, kind in bad:
            with pytest.raises(kind):
                f.read_into("embed.weight", out)
        with pytest.raises(ValueError, match="step"):
            f.read_into("embed.weight", rows, slice(0, 20, 2))


def test_raw_gives_bytes_of_any_dtype(tmp_path: Path) -> None:
    array = random_bits(ml_dtypes.float8_e4m3fn, (8, 4))
    save_file({"t": array}, tmp_path / "a.loom")
    with safe_open(tmp_path / "a.loom", "raw") as f:
        assert f.get_tensor("t") == array.tobytes()
        assert f.get_slice("t")[2:4] == array[2:4].tobytes()
        with pytest.raises(TypeError):
            f.get_slice("t")[2:4, 1:]
    with pytest.raises(ValueError, match="framework"):
        safe_open(tmp_path / "a.loom", "jax").get_tensor("t")  # type: ignore[arg-type]


def test_one_buffer_has_one_writer(tmp_path: Path, big: Arrays) -> None:
    save_file(big, tmp_path / "big.loom")
    container = Container.open(tmp_path / "big.loom", "np")
    out = np.zeros((2048, 2048), np.float32)
    refused: list[BaseException] = []
    barrier = threading.Barrier(4)

    def read() -> None:
        barrier.wait()
        try:
            container.read_into("w0", out)
        except RuntimeError as error:
            refused.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same(out, big["w0"])
    assert refused and all(str(error) == "buffer is in use" for error in refused)
    container.read_into("w0", out)


def test_a_folder_of_hugging_face(base: Arrays, tuned: Arrays, tmp_path: Path) -> None:
    for name, arrays in [("base", base), ("tuned", tuned)]:
        folder = tmp_path / name
        folder.mkdir()
        names = sorted(arrays)
        half = len(names) // 2
        for shard, part in enumerate([names[:half], names[half:]]):
            safetensors.numpy.save_file({n: arrays[n] for n in part}, folder / f"model-{shard}.safetensors")
        (folder / "config.json").write_text('{"model_type": "llama"}')
    deltaloom.pack(tmp_path / "tuned", tmp_path / "tuned.loom", base=tmp_path / "base")
    with safe_open(tmp_path / "tuned.loom", "np", base=tmp_path / "base") as f:
        assert f.keys() == sorted(tuned)
        assert "config.json" in f.files()
        assert f.read_file("config.json") == b'{"model_type": "llama"}'
        assert f.read_file("model-0.safetensors") == (tmp_path / "tuned/model-0.safetensors").read_bytes()
        with pytest.raises(KeyError):
            f.read_file("none")
    with safe_open(tmp_path / "tuned", "np") as f:
        assert all(same(f.get_tensor(name), tuned[name]) for name in tuned)
    deltaloom.unpack(tmp_path / "tuned.loom", tmp_path / "out", base=tmp_path / "base")
    for file in (tmp_path / "tuned").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_a_name_in_several_files(base: Arrays, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file, value in (("a", 1.0), ("b", 2.0)):
        tensors = {"state": np.full((4, 3), value, np.float32), file: np.ones(2, np.float32)}
        safetensors.numpy.save_file(tensors, folder / f"{file}.safetensors")
    deltaloom.pack(folder, tmp_path / "m.loom")
    for source in (folder, tmp_path / "m.loom"):
        with safe_open(source, "np") as f:
            assert f.keys() == ["a", "a.safetensors:state", "b", "b.safetensors:state"]
            assert f.get_tensor("b.safetensors:state")[0, 0] == 2.0
            assert f.get_slice("a.safetensors:state")[1:2].tolist() == [[1.0] * 3]
            assert f.get_slice("b.safetensors:state")[...].shape == (4, 3)
            with pytest.raises(KeyError):
                f.get_tensor("state")
