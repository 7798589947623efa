"""Weights for the tests: made by numpy, with the statistics of trained ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

Arrays = dict[str, Any]

# Every dtype that numpy and safetensors share, with the types of ml_dtypes.
DTYPES = [
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
    "complex64",
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e8m0fnu,
]


def random_bits(dtype: Any, shape: tuple[int, ...], seed: int = 0) -> Any:
    """Arrays of any bits, NaN payloads included."""
    dtype = np.dtype(dtype)
    rng = np.random.default_rng(seed)
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(np.bool_)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return np.frombuffer(rng.bytes(size), dtype=dtype).reshape(shape).copy()


def weights(seed: int = 0, layers: int = 3, width: int = 64) -> Arrays:
    rng = np.random.default_rng(seed)
    found: Arrays = {"embed.weight": rng.normal(0, 0.02, (257, width)).astype(ml_dtypes.bfloat16)}
    for layer in range(layers):
        found[f"layers.{layer}.up"] = rng.normal(0, 0.02, (width, 2 * width)).astype(ml_dtypes.bfloat16)
        found[f"layers.{layer}.norm"] = np.ones(width, dtype=np.float32)
    return found


def tuned_from(base: Arrays, seed: int = 1, step: float = 1e-4) -> Arrays:
    rng = np.random.default_rng(seed)
    moved = {
        name: (array.astype(np.float32) + step * rng.normal(0, 1, array.shape)).astype(array.dtype)
        for name, array in base.items()
    }
    return moved


def same(a: Any, b: Any) -> bool:
    """Same dtype, shape and bits."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.fixture
def base() -> Arrays:
    return weights()


@pytest.fixture
def tuned(base: Arrays) -> Arrays:
    return tuned_from(base)


@pytest.fixture
def base_file(base: Arrays, tmp_path: Path) -> Path:
    path = tmp_path / "base.safetensors"
    safetensors.numpy.save_file(base, path)
    return path


@pytest.fixture
def big() -> Arrays:
    """48 MB that take long enough to be interrupted."""
    rng = np.random.default_rng(5)
    return {f"w{i}": rng.normal(0, 0.02, (2048, 2048)).astype(np.float32) for i in range(3)}


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[..., Any]:
    """Runs a script in an interpreter of its own."""
    import subprocess
    import sys

    def run(text: str, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "script.py"
        path.write_text(text)
        return subprocess.run(
            [sys.executable, str(path), *args], capture_output=True, text=True, timeout=120, **options
        )

    return run
