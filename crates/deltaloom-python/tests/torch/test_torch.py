"""The torch layer, on a real torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import deltaloom
from deltaloom.torch import (
    apply_,
    load,
    load_file,
    load_into,
    load_model,
    save,
    save_file,
    save_model,
)

Tensors = dict[str, torch.Tensor]
DTYPES = [
    torch.bool,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
]
SHAPES = [(), (0,), (7,), (0, 5), (2**17 + 1,), (129, 65), (2, 3, 4, 5)]


def random_bits(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    maker = torch.Generator().manual_seed(seed)
    count = int(torch.Size(shape).numel())
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=maker).bool()
    raw = torch.randint(0, 256, (count * dtype.itemsize,), generator=maker, dtype=torch.uint8)
    if dtype == torch.complex64:
        return torch.view_as_complex(raw.view(torch.float32).reshape(*shape, 2).clone())
    return raw.view(dtype).reshape(shape).clone()


def bits(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous().cpu()
    plain = torch.view_as_real(plain) if plain.is_complex() else plain
    return bytes(plain.reshape(-1).view(torch.uint8).numpy()) if plain.numel() else b""


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)


@pytest.fixture
def base() -> Tensors:
    maker = torch.Generator().manual_seed(0)
    return {
        "embed": torch.randn(300, 64, generator=maker).bfloat16(),
        "up": torch.randn(64, 128, generator=maker).bfloat16(),
        "norm": torch.ones(64),
    }


@pytest.fixture
def tuned(base: Tensors) -> Tensors:
    maker = torch.Generator().manual_seed(1)
    move = {name: 1e-3 * torch.randn(tensor.shape, generator=maker) for name, tensor in base.items()}
    return {name: (tensor.float() + move[name]).to(tensor.dtype) for name, tensor in base.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back_and_is_the_file_of_safetensors(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {f"t{i}": random_bits(dtype, shape, i) for i, shape in enumerate(SHAPES)}
    save_file(tensors, tmp_path / "a.loom", metadata={"format": "pt"})
    loaded = load_file(tmp_path / "a.loom")
    assert all(same(loaded[name], tensors[name]) for name in tensors)
    deltaloom.unpack(tmp_path / "a.loom", tmp_path / "ours.safetensors")
    safetensors.torch.save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    ours, theirs = (hashlib.sha256((tmp_path / f"{n}.safetensors").read_bytes()) for n in ("ours", "theirs"))
    assert ours.digest() == theirs.digest()
    plain = load_file(tmp_path / "theirs.safetensors")
    assert all(same(plain[name], tensors[name]) for name in tensors)


def layouts() -> Tensors:
    tensor = random_bits(torch.float32, (32, 16))
    image = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    conjugated = random_bits(torch.complex64, (5,)).conj()
    return {
        "transposed": tensor.T,
        "strided": tensor[::2, 1::3],
        "expanded": tensor[:1].expand(8, 16),
        "offset": tensor.reshape(-1)[3:200],
        "channels last": image,
        "parameter": torch.nn.Parameter(tensor.clone()),
        "conjugated": conjugated,
        "requires grad": tensor.clone().requires_grad_(),
    }


@pytest.mark.parametrize("name", layouts())
def test_every_layout_is_saved_as_its_elements(name: str) -> None:
    tensor = layouts()[name]
    (loaded,) = load(save({"t": tensor})).values()
    assert same(loaded, tensor.detach())
    assert not loaded.requires_grad and loaded.is_contiguous()


def test_shared_memory(tmp_path: Path) -> None:
    storage = torch.randn(100_000)
    tied = save({"a": storage, "b": storage})
    assert len(tied) < len(save({"a": storage})) + 2000
    assert same(load(tied)["a"], load(tied)["b"])
    save({"q": storage[:500], "k": storage[500:]})
    with pytest.raises(ValueError, match="share a part"):
        save({"a": storage, "b": storage[10:20]})


def odd() -> dict[str, tuple[Any, type[Exception]]]:
    return {
        "meta": (torch.empty(3, device="meta"), ValueError),
        "sparse": (torch.eye(3).to_sparse(), TypeError),
        "csr": (torch.eye(3).to_sparse_csr(), TypeError),
        "complex128": (torch.zeros(3, dtype=torch.complex128), TypeError),
        "list": ([1.0], TypeError),
        "none": (None, TypeError),
    }


@pytest.mark.parametrize("name", odd())
def test_what_cannot_be_saved_is_refused(name: str, tmp_path: Path) -> None:
    tensor, kind = odd()[name]
    with pytest.raises(kind):
        save_file({"good": torch.zeros(2), "t": tensor}, tmp_path / "a.loom")
    assert list(tmp_path.iterdir()) == []


def test_a_base_of_tensors(base: Tensors, tuned: Tensors, tmp_path: Path) -> None:
    report = save_file(tuned, tmp_path / "t.loom", base=base)
    assert report.needs_base
    loaded = load_file(tmp_path / "t.loom", base=base)
    assert all(same(loaded[name], tuned[name]) for name in tuned)
    with deltaloom.safe_open(tmp_path / "t.loom", "pt", base=base) as f:
        assert same(f.get_slice("embed")[10:20, 3:5], tuned["embed"][10:20, 3:5])
        out = torch.zeros(300, 64, dtype=torch.bfloat16)
        f.read_into("embed", out)
        assert same(out, tuned["embed"])
        with pytest.raises(TypeError):
            f.read_into("embed", torch.zeros(300, 64, dtype=torch.float16))
        with pytest.raises(ValueError):
            f.read_into("embed", torch.zeros(64, 300, dtype=torch.bfloat16).T)


def test_loading_into_tensors(base: Tensors, tuned: Tensors, tmp_path: Path) -> None:
    save_file(tuned, tmp_path / "t.loom", base=base)
    target: Tensors = {
        "embed": torch.zeros(300, 64, dtype=torch.bfloat16),
        "up": torch.zeros(128, 64, dtype=torch.bfloat16).T,
        "norm": torch.zeros(64, dtype=torch.float64),
    }
    pointer = target["embed"].data_ptr()
    report = load_into(target, tmp_path / "t.loom", base=base)
    assert (report.tensors, report.missing, report.unexpected) == (3, (), ())
    assert target["embed"].data_ptr() == pointer
    assert all(torch.equal(target[name].to(tuned[name].dtype), tuned[name]) for name in tuned)
    del target["up"]
    target["more"] = torch.zeros(3)
    with pytest.raises(KeyError, match="more"):
        load_into(target, tmp_path / "t.loom", base=base)
    report = load_into(target, tmp_path / "t.loom", base=base, strict=False)
    assert (report.missing, report.unexpected) == (("more",), ("up",))
    with pytest.raises(ValueError, match="shape"):
        load_into({"norm": torch.zeros(65)}, tmp_path / "t.loom", base=base, strict=False)


class Tied(torch.nn.Module):
    """A model whose head is its embedding."""

    _tied_weights_keys = ["head.weight"]

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 16)
        self.head = torch.nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("steps", torch.tensor(3))


def test_models_with_tied_weights(tmp_path: Path) -> None:
    model, other = Tied(), Tied()
    save_model(model, tmp_path / "m.loom")
    assert sorted(load_file(tmp_path / "m.loom")) == ["embed.weight", "steps"]
    report = load_model(other, tmp_path / "m.loom")
    assert report.missing == () and report.unexpected == ()
    assert other.head.weight is other.embed.weight
    assert torch.equal(other.embed.weight, model.embed.weight)
    safetensors.torch.save_model(model, str(tmp_path / "theirs.safetensors"))
    third = Tied()
    load_model(third, tmp_path / "theirs.safetensors")
    assert torch.equal(third.head.weight, model.embed.weight)
    save_file(model.state_dict(), tmp_path / "both.loom")
    fourth = Tied()
    load_into(fourth, tmp_path / "both.loom")
    assert torch.equal(fourth.head.weight, model.embed.weight)
    compiled = torch.compile(Tied())
    load_into(compiled._orig_mod, tmp_path / "both.loom")  # type: ignore[attr-defined]


def test_applying_in_memory(base: Tensors, tuned: Tensors, tmp_path: Path) -> None:
    save_file(tuned, tmp_path / "t.loom", base=base)
    weights = {name: tensor.clone() for name, tensor in base.items()}
    report = apply_(weights, tmp_path / "t.loom")
    assert report.tensors == 3 and report.changed_tensors == 3
    assert all(same(weights[name], tuned[name]) for name in tuned)
    with pytest.raises(deltaloom.BaseMismatchError):
        apply_(weights, tmp_path / "t.loom")
    assert all(same(weights[name], tuned[name]) for name in tuned)
    data = bytearray((tmp_path / "t.loom").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bad.loom").write_bytes(data)
    weights = {name: tensor.clone() for name, tensor in base.items()}
    with pytest.raises(ValueError):
        apply_(weights, tmp_path / "bad.loom")
    assert all(same(weights[name], base[name]) for name in base)


def test_applying_holds_what_changes(tmp_path: Path) -> None:
    base = {
        "a": (torch.randn(64, 4096) * 0.02).to(torch.bfloat16),
        "b": torch.randn(100, 300),
        "c": torch.randn(5000).to(torch.complex64),
        "same": torch.randn(2000),
        "dense": torch.randn(400),
    }
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    where = {"a": torch.randperm(64 * 4096)[:2000], "b": torch.randperm(30_000)[:70], "c": torch.arange(9)}
    for name, places in where.items():
        tuned[name].view(-1)[places] *= 1.5
    tuned["dense"] += 1
    save_file(tuned, tmp_path / "t.loom", base=base)
    weights = {name: tensor.clone() for name, tensor in base.items()}
    # One that does not lie together, and one with another owner.
    weights["b"] = base["b"].t().contiguous().t()
    weights["a"] = torch.nn.Parameter(weights["a"])
    assert not weights["b"].is_contiguous()
    before = {name: tensor.data_ptr() for name, tensor in weights.items()}
    report = apply_(weights, tmp_path / "t.loom")
    changed = sum(int((tuned[name] != base[name]).sum()) for name in ("a", "b", "c", "dense"))
    held = 6 * int((tuned["a"] != base["a"]).sum()) + 8 * 70 + 4 * 400
    assert (report.changed_tensors, report.changed_elements) == (4, changed)
    assert held < report.staged_bytes <= held + 5 * 8 * 9 < 0.04 * sum(t.nbytes for t in base.values())
    assert all(same(weights[name].detach(), tuned[name]) for name in tuned)
    assert before == {name: tensor.data_ptr() for name, tensor in weights.items()}


def test_series_and_saver(base: Tensors, tuned: Tensors, tmp_path: Path) -> None:
    series = deltaloom.Series.init(tmp_path / "run")
    with deltaloom.AsyncSaver(series) as saver:
        saver.save(base, step=1)
        saver.save(tuned, step=2)
    loaded = series.load(2)
    assert all(same(loaded[name], tuned[name]) for name in tuned)
    with series.open_step(2) as f:
        assert same(f.get_tensor("norm"), tuned["norm"])


def test_optimizers_run_on(base: Tensors, tmp_path: Path) -> None:
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    save_file(model.state_dict(), tmp_path / "0.loom")
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    save_file(model.state_dict(), tmp_path / "1.loom", base=tmp_path / "0.loom")
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_into(model, tmp_path / "0.loom")
    load_into(model, tmp_path / "1.loom", base=tmp_path / "0.loom")
    assert all(torch.equal(model.state_dict()[name], expected[name]) for name in expected)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_pairs_of_four_bits(tmp_path: Path) -> None:
    tensor = torch.arange(48, dtype=torch.uint8).view(torch.float4_e2m1fn_x2).reshape(4, 12)
    save_file({"t": tensor}, tmp_path / "a.loom")
    (loaded,) = load_file(tmp_path / "a.loom").values()
    assert same(loaded, tensor)
    deltaloom.unpack(tmp_path / "a.loom", tmp_path / "ours.safetensors")
    safetensors.torch.save_file({"t": tensor}, tmp_path / "theirs.safetensors")
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    with deltaloom.safe_open(tmp_path / "a.loom") as f:
        assert f.get_slice("t").get_shape() == [4, 24]
    with pytest.raises(TypeError):
        save({"t": torch.zeros((), dtype=torch.uint8).view(torch.float4_e2m1fn_x2)})


def test_bytes_that_are_fetched_part_by_part() -> None:
    from deltaloom import _lib

    tensor = torch.randn(100_000)
    flat = tensor.view(torch.uint8)
    asked: list[int] = []

    def fetch(start: int, stop: int) -> Any:
        asked.append(stop - start)
        return flat[start:stop].clone().numpy()

    made = _lib.Tensors("t.safetensors", [("t", "F32", [100_000], fetch)], {})
    data = _lib.pack_tensors_to_bytes(made, [], "default", 0)
    assert same(load(data)["t"], tensor)
    assert len(asked) > 1
