"""What needs no other package, for every interpreter that is at hand: `python plain.py ASSETS`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import deltaloom


def main(assets: Path) -> None:
    base, tuned = assets / "base.safetensors", assets / "ft_bf16.safetensors"
    with tempfile.TemporaryDirectory() as made:
        packed, restored = Path(made, "a.loom"), Path(made, "a.safetensors")
        assert deltaloom.pack(tuned, packed, base=base).ratio > 5
        deltaloom.unpack(packed, restored, base=base)
        assert restored.read_bytes() == tuned.read_bytes()
        assert deltaloom.verify(packed, base=base)
        with deltaloom.safe_open(packed, "raw", base=base) as f:
            name = f.keys()[0]
            whole = f.get_tensor(name)
            assert len(whole) == f.info(name).original_bytes
            assert f.get_slice(name)[0:1] == whole[: len(whole) // f.get_slice(name).get_shape()[0]]
        for call, kind in [
            (lambda: deltaloom.safe_open(packed), deltaloom.BaseMismatchError),
            (lambda: deltaloom.safe_open(Path(made, "none")), FileNotFoundError),
            (lambda: deltaloom.pack(tuned, packed), FileExistsError),
        ]:
            try:
                call()
            except kind:
                continue
            raise AssertionError(kind)
        series = deltaloom.Series.init(Path(made, "run"))
        series.add(base, step=0)
        assert series.add(tuned, step=1, meta={"loss": 2}).ratio > 5
        assert deltaloom.main(["series", "verify", series.location]) == 0
    assert not {"numpy", "torch"} & set(sys.modules)
    print(f"Python {sys.version.split()[0]}: passed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
