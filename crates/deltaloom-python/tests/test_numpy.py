"""Round trips against safetensors 0.8, and input that is refused."""

from __future__ import annotations

import hashlib
import sys
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from conftest import DTYPES, Arrays, random_bits, same
from hypothesis import given, settings
from hypothesis import strategies as st

import deltaloom
from deltaloom.numpy import load, load_file, save, save_file

SHAPES = [(), (0,), (1,), (7,), (0, 5), (3, 0, 2), (2**17 + 1,), (129, 65), (2, 3, 4, 5)]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_every_dtype_and_shape_comes_back_and_is_the_file_of_safetensors(dtype: Any, tmp_path: Path) -> None:
    arrays = {f"t{i}": random_bits(dtype, shape, i) for i, shape in enumerate(SHAPES)}
    packed, theirs, ours = tmp_path / "a.loom", tmp_path / "theirs.safetensors", tmp_path / "a.safetensors"
    report = save_file(arrays, packed, metadata={"format": "np"})
    assert report.packed_bytes == packed.stat().st_size
    loaded = load_file(packed)
    assert set(loaded) == set(arrays)
    assert all(same(loaded[name], arrays[name]) for name in arrays)
    safetensors.numpy.save_file(arrays, theirs, metadata={"format": "np"})
    deltaloom.unpack(packed, ours)
    assert sha256(ours) == sha256(theirs)
    plain = load_file(theirs)
    assert all(same(plain[name], arrays[name]) for name in arrays)


def layouts() -> dict[str, Any]:
    array = random_bits("float32", (33, 17))
    return {
        "transposed": array.T,
        "strided": array[::2, ::3],
        "backwards": array[::-1],
        "fortran": np.asfortranarray(array),
        "broadcast": np.broadcast_to(array[0], (5, 17)),
        "read-only": np.frombuffer(array.tobytes(), np.float32).reshape(33, 17),
        "big-endian": array.astype(">f4"),
        "offset": array.reshape(-1)[3:500],
        "bf16 strided": random_bits(ml_dtypes.bfloat16, (20, 20))[:, ::2],
    }


@pytest.mark.parametrize("name", layouts())
def test_every_layout_is_saved_as_its_elements(name: str) -> None:
    array = layouts()[name]
    (loaded,) = load(save({"t": array})).values()
    assert loaded.shape == array.shape
    assert loaded.tobytes() == np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).tobytes()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
            st.sampled_from(DTYPES),
            st.lists(st.integers(0, 9), max_size=4),
        ),
        max_size=5,
        unique_by=lambda entry: entry[0],
    )
)
def test_any_names_and_shapes_come_back(entries: list[tuple[str, Any, list[int]]]) -> None:
    arrays = {name: random_bits(dtype, tuple(shape)) for name, dtype, shape in entries}
    if "__metadata__" in arrays:
        return
    loaded = load(save(arrays))
    assert set(loaded) == set(arrays)
    assert all(same(loaded[name], arrays[name]) for name in arrays)


def test_a_base_may_be_anything_that_has_its_tensors(
    base: Arrays, tuned: Arrays, base_file: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "tuned.loom"
    alone = save_file(tuned, tmp_path / "alone.loom")
    report = save_file(tuned, packed, base=base_file)
    assert report.packed_bytes < alone.packed_bytes / 2
    base_packed = tmp_path / "base.loom"
    save_file(base, base_packed)
    series = deltaloom.Series.init(tmp_path / "run")
    step = series.add(base, step=1)
    with deltaloom.safe_open(base_packed, "np") as opened:
        givens = [base_file, str(base_file), bytes(base_file), [base_file], base, base_packed, opened, [step]]
        for given in givens:
            loaded = load_file(packed, base=given)
            assert all(same(loaded[name], tuned[name]) for name in tuned)
            assert save(tuned, base=given) == save(tuned, base=given)
    with pytest.raises(TypeError, match="a base is"):
        load_file(packed, base=3)  # type: ignore[arg-type]


def test_names_choose_tensors(tuned: Arrays, tmp_path: Path) -> None:
    packed = tmp_path / "tuned.loom"
    save_file(tuned, packed)
    assert list(load_file(packed, names=["layers.1.up", "embed.weight"])) == ["layers.1.up", "embed.weight"]
    assert load_file(packed, names=[]) == {}
    with pytest.raises(deltaloom.TensorNotFoundError, match="no such"):
        load_file(packed, names=["no such"])
    with pytest.raises(KeyError):
        load_file(packed, names=["no such"])
    with pytest.raises(TypeError):
        load_file(packed, names="embed.weight")


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (np.array([object()]), TypeError),
        (np.array(["text"]), TypeError),
        (np.zeros(3, dtype="complex128"), TypeError),
        (np.zeros(3, dtype="M8[s]"), TypeError),
        (np.zeros(3, dtype=[("a", "f4")]), TypeError),
        (np.zeros(3, dtype=ml_dtypes.int4), TypeError),
        ([1.0, 2.0], TypeError),
        (None, TypeError),
    ],
)
def test_what_safetensors_does_not_have_is_refused(array: Any, kind: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(kind):
        save_file({"t": array}, tmp_path / "a.loom")
    assert list(tmp_path.iterdir()) == []


def test_odd_mappings_are_refused() -> None:
    array = np.zeros(3)
    with pytest.raises(TypeError):
        save([("a", array)])  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        save({1: array})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="__metadata__"):
        save({"__metadata__": array})
    with pytest.raises(UnicodeEncodeError):
        save({"\ud800": array})
    with pytest.raises(TypeError):
        save({"a": array}, metadata={"k": object()})  # type: ignore[dict-item]


def test_a_target_is_not_replaced(tuned: Arrays, tmp_path: Path) -> None:
    packed = tmp_path / "tuned.loom"
    save_file(tuned, packed)
    before = packed.read_bytes()
    with pytest.raises(FileExistsError) as caught:
        save_file({}, packed)
    assert isinstance(caught.value, deltaloom.ExistsError)
    assert "overwrite=True" in str(caught.value.hint)
    assert packed.read_bytes() == before
    save_file({}, packed, overwrite=True)
    assert load_file(packed) == {}


def test_ten_thousand_tensors_and_names_that_differ_in_case(tmp_path: Path) -> None:
    arrays = {f"{'A' if i % 2 else 'a'}{i // 2}": np.full(3, i, np.int16) for i in range(10_000)}
    packed = tmp_path / "many.loom"
    save_file(arrays, packed)
    loaded = load_file(packed)
    assert all(same(loaded[name], arrays[name]) for name in arrays)


def test_a_mapping_that_changes_while_it_is_saved(tuned: Arrays) -> None:
    mapping = dict(tuned)
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            mapping["extra"] = np.zeros(3)
            mapping.pop("extra", None)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(5):
            loaded = load(save(mapping))
            assert all(same(loaded[name], tuned[name]) for name in tuned)
    finally:
        stop.set()
        thread.join()


def test_a_held_buffer_cannot_be_resized(tuned: Arrays) -> None:
    data = bytearray(save(tuned))
    assert same(load(data)["embed.weight"], tuned["embed.weight"])
    data.extend(b"x")  # nothing holds it any more


def test_bf16_without_ml_dtypes_is_an_error(tuned: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    data = save(tuned)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match=r"deltaloom\[numpy\]"):
        load(data)


def test_another_device_is_refused(tuned: Arrays) -> None:
    with pytest.raises(ValueError, match="cuda"):
        load(save(tuned), device="cuda:0")


def test_results_do_not_depend_on_threads(tuned: Arrays, base: Arrays) -> None:
    assert save(tuned, base=base, threads=1) == save(tuned, base=base, threads=3)
    with pytest.raises(ValueError, match="preset"):
        save(tuned, preset="best")  # type: ignore[arg-type]


def test_importing_loads_neither_numpy_nor_torch(run_script: Any) -> None:
    script = "import sys, deltaloom\nassert not {'numpy', 'torch'} & set(sys.modules)\nprint(deltaloom.__version__)"
    done = run_script(script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == deltaloom.__version__
