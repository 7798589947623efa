"""The operations on files, beside the JSON of the program."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
from conftest import Arrays

import deltaloom


@pytest.fixture
def tuned_file(tuned: Arrays, tmp_path: Path) -> Path:
    path = tmp_path / "tuned.safetensors"
    safetensors.numpy.save_file(tuned, path)
    return path


@pytest.fixture
def packed(tuned_file: Path, base_file: Path, tmp_path: Path) -> Path:
    deltaloom.pack(tuned_file, tmp_path / "tuned.loom", base=base_file)
    return tmp_path / "tuned.loom"


def program(capfd: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capfd.readouterr()
    code = deltaloom.main([*words, "--json"])
    assert code in (0, 1)
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


def without_times(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in ("seconds", "threads", "output")}


def test_reports_are_those_of_the_program(
    tuned_file: Path, base_file: Path, packed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tuned, base, loom = str(tuned_file), str(base_file), str(packed)
    pairs = [
        (
            deltaloom.pack(tuned, tmp_path / "a.loom", base=base),
            ["pack", tuned, "--base", base, "-o", str(tmp_path / "b.loom")],
        ),
        (
            deltaloom.unpack(loom, tmp_path / "a.safetensors", base=base),
            ["unpack", loom, "--base", base, "-o", str(tmp_path / "b.safetensors")],
        ),
        (deltaloom.verify(loom, base=base), ["verify", loom, "--base", base]),
        (deltaloom.verify(loom), ["verify", loom]),
        (deltaloom.inspect(loom), ["inspect", loom]),
        (deltaloom.diff(base, tuned), ["diff", base, tuned]),
        (deltaloom.lineage(tuned, base), ["lineage", tuned, base]),
    ]
    for report, words in pairs:
        assert without_times(report.to_dict()) == without_times(program(capfd, *words)), words[0]


def test_operations(tuned_file: Path, base_file: Path, packed: Path, tmp_path: Path) -> None:
    report = deltaloom.inspect(packed)
    assert report.needs_base and report.ratio > 2
    assert report.bases[0].name == "base.safetensors"
    assert {tensor.name for tensor in report.tensors} >= {"embed.weight"}
    assert deltaloom.verify(packed, base=base_file)
    assert deltaloom.verify(packed).checked == "checksums"
    assert deltaloom.diff(base_file, tuned_file).total.changed_fraction > 0
    assert deltaloom.diff(tuned_file, packed, base=base_file).identical
    assert deltaloom.lineage(tuned_file, base_file).ancestors == (str(base_file),)
    models = tmp_path / "models"
    models.mkdir()
    (models / "m.safetensors").write_bytes(base_file.read_bytes())
    found = deltaloom.find_base(tuned_file, models)
    assert found.chosen == str(models / "m.safetensors")
    searched = deltaloom.pack(tuned_file, tmp_path / "s.loom", base_dir=models, meta={"run": 7})
    assert searched.base_search.chosen == found.chosen
    assert deltaloom.inspect(tmp_path / "s.loom").texts.to_dict() == {"run": "7"}
    deltaloom.unpack(tmp_path / "s.loom", tmp_path / "s.safetensors", base_dir=models)
    assert (tmp_path / "s.safetensors").read_bytes() == tuned_file.read_bytes()
    with pytest.raises(ValueError, match="not both"):
        deltaloom.pack(tuned_file, tmp_path / "t.loom", base=base_file, base_dir=models)


def test_a_container_inside_the_folder_does_not_pack_the_one_before(base: Arrays, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    safetensors.numpy.save_file(base, folder / "model.safetensors")
    first = deltaloom.pack(folder, folder / "model.loom")
    again = deltaloom.pack(folder, folder / "model.loom", overwrite=True)
    assert first.files == again.files == ("model.safetensors",)


def test_a_file_of_the_folder_is_never_the_target(base: Arrays, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    safetensors.numpy.save_file(base, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    with pytest.raises(deltaloom.ExistsError):
        deltaloom.pack(folder, folder / "config.json", overwrite=True)
    assert (folder / "config.json").read_text() == "{}"


def test_in_place(tuned_file: Path, base_file: Path, packed: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.safetensors"
    target.write_bytes(base_file.read_bytes())
    report = deltaloom.unpack(packed, target, in_place=True)
    assert target.read_bytes() == tuned_file.read_bytes()
    assert report.written_bytes > 0 and not report.already_applied
    assert deltaloom.unpack(packed, target, in_place=True, check="all").already_applied
    target.write_bytes(b"\0" * 100)
    with pytest.raises((deltaloom.InPlaceError, ValueError)):
        deltaloom.unpack(packed, target, in_place=True)
    with pytest.raises(ValueError, match="check"):
        deltaloom.unpack(packed, target, in_place=True, check="none")  # type: ignore[arg-type]


def test_a_damaged_container_is_reported(packed: Path, base_file: Path) -> None:
    data = bytearray(packed.read_bytes())
    data[len(data) // 3] ^= 4
    packed.write_bytes(data)
    report = deltaloom.verify(packed, base=base_file)
    assert not report and report.faults


def test_reports_are_frozen(packed: Path) -> None:
    report = deltaloom.inspect(packed)
    with pytest.raises(AttributeError):
        report.ratio = 3.0
    with pytest.raises(AttributeError, match="has no 'colour'"):
        report.colour
    report.to_dict()["ratio"] = 0
    assert report["ratio"] == report.ratio > 1
    for other in [copy.copy(report), copy.deepcopy(report), pickle.loads(pickle.dumps(report))]:
        assert other == report
    assert "ratio=" in repr(report)
    page = report._repr_html_()
    assert "<table>" in page and "embed.weight" in page


def test_the_program(capfd: pytest.CaptureFixture[str], packed: Path) -> None:
    assert deltaloom.main(["--version"]) == 0
    assert deltaloom.__version__ in capfd.readouterr().out
    assert deltaloom.main(["inspect", str(packed)]) == 0
    assert deltaloom.main(["no such command"]) == 2
    assert deltaloom.main(["inspect", "none.loom"]) == 3
    assert "error" in capfd.readouterr().err


def test_the_module_is_the_program(run_script: Any) -> None:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "deltaloom", "demo"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
