"""PyTorch's distributed checkpoints in containers: any ranks save, any ranks load, no pickle."""

from __future__ import annotations

import json
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.distributed.checkpoint as dcp
from ranks import on_ranks
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import deltaloom
from deltaloom.dcp import LoomStorageReader, LoomStorageWriter, LoomStream

warnings.filterwarnings("ignore", message="torch.distributed is disabled")

ROWS, COLUMNS = 300, 70
REFUSED = (Exception, dcp.CheckpointException)
"""What torch raises around the errors of a storage is no Exception."""
VALUES = {
    "step": 7,
    "lr": 1e-3,
    "note": "ü",
    "none": None,
    "flag": True,
    "betas": (0.9, 0.999),
    "bytes": b"\0\xff",
    "best": float("inf"),
    "names": ["a", "b"],
}


def weights(step: int = 0) -> dict[str, torch.Tensor]:
    """The whole tensors of a step; each step moves them a little."""
    generator = torch.Generator().manual_seed(4)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    made = {
        "rows": random(ROWS, COLUMNS).to(torch.bfloat16),
        "columns": random(ROWS, COLUMNS),
        "both": random(64, 48).to(torch.float16),
        "few": random(2, 5),
        "whole": random(40),
        "number": random(),
        "empty": torch.zeros(0, 3),
        "counts": torch.arange(60).reshape(20, 3),
    }
    for _ in range(step):
        for name, value in made.items():
            if value.is_floating_point():
                made[name] = value + (random(*value.shape) * 1e-4).to(value.dtype)
    return made


PLACEMENTS = {"rows": Shard(0), "columns": Shard(1), "both": Shard(0), "few": Shard(0), "counts": Shard(0)}


def sharded(full: dict[str, torch.Tensor], ranks: int) -> dict[str, Any]:
    """The state of one of several ranks."""
    if ranks == 1:
        model: dict[str, Any] = dict(full)
    else:
        mesh = init_device_mesh("cpu", (ranks,))
        model = {
            name: distribute_tensor(value, mesh, [PLACEMENTS.get(name, Replicate())]) for name, value in full.items()
        }
    return {"model": model, "values": dict(VALUES)}


def gathered(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    whole = {}
    for name, value in state["model"].items():
        whole[name] = value.full_tensor() if isinstance(value, DTensor) else value
    return whole


def save_on(rank: int, ranks: int, folder: str, step: int, base: str | None) -> None:
    dcp.save(sharded(weights(step), ranks), storage_writer=LoomStorageWriter(folder, base=base))


def load_on(rank: int, ranks: int, folder: str, step: int, base: str | None) -> None:
    zeros = {name: torch.zeros_like(value) for name, value in weights().items()}
    state = sharded(zeros, ranks)
    state["values"] = dict.fromkeys(VALUES)
    dcp.load(state, storage_reader=LoomStorageReader(folder))
    expected = weights(step)
    for name, value in gathered(state).items():
        assert tiny.same_bits(value, expected[name]), (rank, name)
    assert state["values"] == VALUES


def async_on(rank: int, ranks: int, folder: str, step: int, base: str | None) -> None:
    for number, kind in enumerate((AsyncCheckpointerType.THREAD, AsyncCheckpointerType.PROCESS)):
        state = sharded(weights(step), ranks)
        writer = LoomStorageWriter(f"{folder}-{number}", base=base)
        future = dcp.async_save(state, storage_writer=writer, async_checkpointer_type=kind)
        future.result()
        load_on(rank, ranks, f"{folder}-{number}", step, base)


def test_two_ranks_save_and_one_and_three_load(tmp_path: Path) -> None:
    first, second = str(tmp_path / "step-0"), str(tmp_path / "step-1")
    on_ranks(2, save_on, first, 0, None)
    on_ranks(2, save_on, second, 1, first)
    names = {path.name for path in Path(second).iterdir()}
    assert names == {"rank-00000.loom", "rank-00001.loom", "deltaloom-dcp.json"}
    load_on(0, 1, second, 1, None)
    on_ranks(3, load_on, second, 1, None)
    # Another number of ranks stands on it, and that on all three.
    third = str(tmp_path / "step-2")
    on_ranks(3, save_on, third, 2, second)
    on_ranks(2, load_on, third, 2, None)

    def size(folder: str) -> int:
        return sum(path.stat().st_size for path in Path(folder).glob("*.loom"))

    assert size(second) < 0.75 * size(first)


def test_async_save_in_a_thread_and_in_a_process(tmp_path: Path) -> None:
    base = str(tmp_path / "step-0")
    on_ranks(2, save_on, base, 0, None)
    on_ranks(2, async_on, str(tmp_path / "step-1"), 1, base)


def test_both_folders_may_be_moved(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    save_on(0, 1, str(tmp_path / "a" / "step-0"), 0, None)
    save_on(0, 1, str(tmp_path / "a" / "step-1"), 1, str(tmp_path / "a" / "step-0"))
    (tmp_path / "a").rename(tmp_path / "b")
    load_on(0, 1, str(tmp_path / "b" / "step-1"), 1, None)
    (tmp_path / "b" / "step-0").rename(tmp_path / "elsewhere")
    with pytest.raises(REFUSED, match="step-0|base"):
        load_on(0, 1, str(tmp_path / "b" / "step-1"), 1, None)
    state: dict[str, Any] = {"model": {"whole": torch.zeros(40)}}
    dcp.load(state, storage_reader=LoomStorageReader(tmp_path / "b" / "step-1", base=tmp_path / "elsewhere"))
    assert tiny.same_bits(state["model"]["whole"], weights(1)["whole"])


def test_a_file_of_weights_is_a_base(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    base, tuned = weights(0), weights(1)
    save_file({f"model.{name}": value for name, value in base.items()}, tmp_path / "base.safetensors")
    dcp.save({"model": tuned}, storage_writer=LoomStorageWriter(tmp_path / "tuned", base=tmp_path / "base.safetensors"))
    state = {"model": {name: torch.zeros_like(value) for name, value in base.items()}}
    dcp.load(state, storage_reader=LoomStorageReader(tmp_path / "tuned"))
    assert all(tiny.same_bits(value, tuned[name]) for name, value in state["model"].items())


class Quarter(dcp.DefaultLoadPlanner):
    """Loads the rows from a quarter on to a half of the one tensor."""

    def create_local_plan(self) -> Any:
        plan = super().create_local_plan()
        (item,) = plan.items
        rows = item.lengths[0] // 4
        part = {"dest_offsets": torch.Size((0, 0)), "storage_offsets": torch.Size((rows, 0))}
        from dataclasses import replace

        plan.items = [replace(item, lengths=torch.Size((rows, item.lengths[1])), **part)]
        return plan


def test_a_quarter_of_the_rows_reads_under_thirty_percent(tmp_path: Path) -> None:
    """What is read is found by damage: every piece of the file in turn, and only some matter."""
    rows, pieces = 4096, 60
    weight = torch.randn(rows, 256, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    dcp.save({"w": weight}, storage_writer=LoomStorageWriter(tmp_path / "step"))
    (file,) = (tmp_path / "step").glob("*.loom")
    whole = file.read_bytes()
    payload = len(whole) - deltaloom.inspect(file).index_bytes

    def loads() -> bool:
        state = {"w": torch.zeros_like(weight)}
        try:
            dcp.load(state, storage_reader=LoomStorageReader(tmp_path / "step"), planner=Quarter())
        except REFUSED:
            return False
        assert tiny.same_bits(state["w"][: rows // 4], weight[rows // 4 : rows // 2])
        assert not state["w"][rows // 4 :].any()
        return True

    assert loads()
    needed = 0
    for piece in range(pieces):
        place = 64 + (payload - 64) * piece // pieces
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        needed += not loads()
    assert 0.2 <= needed / pieces < 0.3


def test_there_is_no_pickle(tmp_path: Path) -> None:
    save_on(0, 1, str(tmp_path / "step"), 0, None)
    assert not (tmp_path / "step" / ".metadata").exists()
    for file in (tmp_path / "step").iterdir():
        assert file.suffix in (".json", ".loom")
        assert not file.read_bytes()[:2] in (b"PK", b"\x80\x02", b"\x80\x04")
    state = {"model": weights()}
    with pytest.raises(REFUSED, match=r"\.metadata"):
        dcp.load(state, storage_reader=dcp.FileSystemReader(tmp_path / "step"))

    class Odd:
        pass

    for odd in (Odd(), print, {1j: Odd()}):
        with pytest.raises(REFUSED, match="without pickle"):
            dcp.save({"odd": odd}, storage_writer=LoomStorageWriter(tmp_path / "odd"))
    assert not list((tmp_path / "odd").glob("*.json"))


def test_a_checkpoint_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    save_on(0, 1, str(tmp_path / "step"), 0, None)
    with pytest.raises(REFUSED, match="overwrite"):
        save_on(0, 1, str(tmp_path / "step"), 1, None)
    load_on(0, 1, str(tmp_path / "step"), 0, None)
    on_ranks(2, save_on, str(tmp_path / "two"), 0, None)
    dcp.save(sharded(weights(1), 1), storage_writer=LoomStorageWriter(tmp_path / "two", overwrite=True))
    assert [path.name for path in (tmp_path / "two").glob("*.loom")] == ["rank-00000.loom"]
    load_on(0, 1, str(tmp_path / "two"), 1, None)
    with pytest.raises(REFUSED, match="its own base"):
        dcp.save({}, storage_writer=LoomStorageWriter(tmp_path / "two", base=tmp_path / "two", overwrite=True))


def fully_sharded(rank: int, ranks: int, folder: str, seed: int) -> None:
    """Trains a model of FSDP2 and saves it with its optimizer; then loads it into another one."""
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.fsdp import fully_shard

    def made(seed: int) -> tuple[Any, Any]:
        torch.manual_seed(seed)
        layers = [torch.nn.Linear(33, 20), torch.nn.Tanh(), torch.nn.Linear(20, 7)]
        model = fully_shard(torch.nn.Sequential(*layers), mesh=init_device_mesh("cpu", (ranks,)))
        return model, torch.optim.AdamW(model.parameters(), lr=1e-3)

    def train(model: Any, optimizer: Any) -> torch.Tensor:
        torch.manual_seed(9)
        for _ in range(3):
            loss = model(torch.randn(4, 33)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    model, optimizer = made(seed)
    train(model, optimizer)
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, storage_writer=LoomStorageWriter(folder))
    other, its_optimizer = made(seed + 1)
    weights, state = get_state_dict(other, its_optimizer)
    loaded = {"model": weights, "optimizer": state}
    dcp.load(loaded, storage_reader=LoomStorageReader(folder))
    set_state_dict(
        other, its_optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"]
    )
    assert tiny.same_bits(train(model, optimizer), train(other, its_optimizer))


def test_fsdp2_goes_on_with_the_same_loss(tmp_path: Path) -> None:
    on_ranks(2, fully_sharded, str(tmp_path / "fsdp"), 1)


def test_ranks_that_do_not_talk(tmp_path: Path) -> None:
    full = {"w": torch.arange(12.0).reshape(3, 4), "step": 3}
    writer = LoomStorageWriter(tmp_path / "alone")
    on_ranks(2, save_alone, str(tmp_path / "alone"))
    assert sorted(path.name for path in (tmp_path / "alone").iterdir()) == [
        "deltaloom-dcp-0.json",
        "deltaloom-dcp-1.json",
        "rank-00000.loom",
        "rank-00001.loom",
    ]
    on_ranks(2, load_alone, str(tmp_path / "alone"))
    assert writer.validate_checkpoint_id(tmp_path) and not writer.validate_checkpoint_id("s3://bucket")
    assert full["step"] == 3


def save_alone(rank: int, ranks: int, folder: str) -> None:
    state = {"w": torch.full((3, 4), float(rank)), "rank": rank}
    dcp.save(state, storage_writer=LoomStorageWriter(folder), use_collectives=False)


def load_alone(rank: int, ranks: int, folder: str) -> None:
    state: dict[str, Any] = {"w": torch.zeros(3, 4), "rank": None}
    dcp.load(state, storage_reader=LoomStorageReader(folder))
    assert state["rank"] == rank and bool((state["w"] == rank).all())


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(described: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        place: Any = described
        for parent in parents:
            place = place[int(parent) if isinstance(place, list) else parent]
        place[int(last) if isinstance(place, list) else last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("format", "x"),
        _set("version", 2),
        _set("files", ["../rank-00000.loom"]),
        _set("files", ["/etc/passwd"]),
        _set("files", []),
        _set("files", 7),
        _set("bases", [None]),
        _set("tensors", []),
        _set("tensors/w/dtype", "save"),
        _set("tensors/w/dtype", 7),
        _set("tensors/w/shape", [-1, 4]),
        _set("tensors/w/shape", [1 << 70]),
        _set("tensors/w/shape", [6, 2]),
        _set("tensors/w/shape", [2, 4]),
        _set("tensors/w/chunks", []),
        _set("tensors/w/chunks/0/offsets", [1, 0]),
        _set("tensors/w/chunks/0/offsets", [0]),
        _set("tensors/w/chunks/0/shape", [3.5, 4]),
        _set("tensors/w/chunks/0/file", 1),
        _set("tensors/w/chunks/0/file", True),
        _set("tensors/w/chunks/0/name", "v"),
        _set("tensors/w/chunks/0/name", 3),
        _set("values/w", 1),
        _set("values/step", {"python": "os.system"}),
        _set("values/step", {"bytes": "%"}),
        _set("values/step", {"dict": [[1]]}),
        _set("values/step", {"dict": [[[], 1]]}),
        _set("values/step", {"float": "1"}),
        _set("values/step", {"torch.dtype": "load"}),
        _set("planner", {"dict": [["w", {"tuple": ["w", 1 << 40]}]]}),
        _set("planner", 1.5),
    ],
)
def test_metadata_that_lies_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    dcp.save({"w": torch.ones(3, 4), "step": 3}, storage_writer=LoomStorageWriter(tmp_path / "c"))
    path = tmp_path / "c" / "deltaloom-dcp.json"
    described = json.loads(path.read_text())
    change(described)
    path.write_text(json.dumps(described))
    with pytest.raises(REFUSED) as caught:
        dcp.load({"w": torch.zeros(3, 4), "step": 0}, storage_reader=LoomStorageReader(tmp_path / "c"))
    assert "RecursionError" not in str(caught.value) and "MemoryError" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"format": "deltaloom dcp"}', "\0"])
def test_metadata_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "deltaloom-dcp.json").write_text(text)
    with pytest.raises(ValueError, match="deltaloom-dcp"):
        LoomStorageReader(tmp_path).read_metadata()
    with pytest.raises(FileNotFoundError):
        LoomStorageReader(tmp_path / "missing").read_metadata()


def test_bases_in_a_circle_end(tmp_path: Path) -> None:
    save_on(0, 1, str(tmp_path / "a"), 0, None)
    save_on(0, 1, str(tmp_path / "b"), 0, str(tmp_path / "a"))
    path = tmp_path / "a" / "deltaloom-dcp.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bases": ["../b"]}))
    load_on(0, 1, str(tmp_path / "a"), 0, None)


def test_the_state_of_an_optimizer_and_nested_values(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    model = tiny.llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        model(tiny.ids(), labels=tiny.ids()).loss.backward()
        optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "extra": OrderedDict(a=[1, {"b": 2}])}
    dcp.save(state, storage_writer=LoomStorageWriter(tmp_path / "c"))
    other = tiny.llama(seed=8)
    target = torch.optim.AdamW(other.parameters(), lr=1.0)
    other(tiny.ids(), labels=tiny.ids()).loss.backward()
    target.step()
    loaded: dict[str, Any] = {
        "model": other.state_dict(),
        "optimizer": target.state_dict(),
        "extra": OrderedDict(a=[0, {"b": 0}]),
    }
    dcp.load(loaded, storage_reader=LoomStorageReader(tmp_path / "c"))
    target.load_state_dict(loaded["optimizer"])
    assert all(tiny.same_bits(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert target.param_groups[0]["lr"] == 1e-3 and loaded["extra"]["a"][1]["b"] == 2
    moments = optimizer.state_dict()["state"][0], target.state_dict()["state"][0]
    assert tiny.same_bits(moments[0]["exp_avg"], moments[1]["exp_avg"])


def test_the_stream_of_torchs_own_writer(tmp_path: Path) -> None:
    from torch.distributed.checkpoint._extension import ExtensionRegistry

    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    state = {"w": weight, "step": 9}
    dcp.save(state, storage_writer=dcp.FileSystemWriter(tmp_path / "s", _extensions=[LoomStream()]))
    registry = ExtensionRegistry()
    registry.register(LoomStream)
    loaded = {"w": torch.zeros_like(weight), "step": 0}
    dcp.load(loaded, storage_reader=dcp.FileSystemReader(tmp_path / "s", _extension_registry=registry))
    assert tiny.same_bits(loaded["w"], weight) and loaded["step"] == 9
    packed = sum(path.stat().st_size for path in (tmp_path / "s").glob("*.distcp"))
    assert packed < 0.9 * weight.nbytes
    with pytest.raises(ValueError, match="version"):
        LoomStream.from_descriptor("2")
