"""Models of transformers in containers: the same files, the same logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")

import tiny  # noqa: E402
import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: E402

import deltaloom  # noqa: E402
from deltaloom.transformers import from_pretrained, save_pretrained  # noqa: E402


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A base and its fine-tune as folders of Hugging Face, three shards each."""
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    model = tiny.llama()
    for folder, one in ((base, model), (tuned, tiny.tuned(model))):
        one.save_pretrained(folder, max_shard_size="20KB")
        tiny.tokenizer().save_pretrained(folder)
        assert len(list(folder.glob("model-*.safetensors"))) >= 3
    return base, tuned


def test_a_folder_comes_back_byte_for_byte(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = folders
    packed, restored = tmp_path / "tuned.loom", tmp_path / "restored"
    deltaloom.pack(tuned, packed, base=base)
    deltaloom.unpack(packed, restored, base=base)
    assert tiny.files(restored) == tiny.files(tuned)
    assert packed.stat().st_size < 0.8 * sum(file.stat().st_size for file in tuned.iterdir())


@pytest.mark.parametrize("auto_class", [AutoModelForCausalLM, LlamaForCausalLM])
def test_logits_are_the_same(folders: tuple[Path, Path], tmp_path: Path, auto_class: type) -> None:
    base, tuned = folders
    packed = tmp_path / "tuned.loom"
    deltaloom.pack(tuned, packed, base=base)
    expected = auto_class.from_pretrained(tuned)
    model = from_pretrained(auto_class, packed, base=base)
    assert type(model) is type(expected) and not model.training
    for (name, value), other in zip(expected.state_dict().items(), model.state_dict().values(), strict=True):
        assert tiny.same_bits(value, other), name
    assert tiny.same_bits(tiny.logits(model), tiny.logits(expected))
    assert model.generation_config.to_dict() == expected.generation_config.to_dict()


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    model = tiny.llama(tied=True)
    save_pretrained(model, tmp_path / "tied.loom")
    loaded = from_pretrained(AutoModelForCausalLM, tmp_path / "tied.loom")
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()
    assert tiny.same_bits(tiny.logits(loaded), tiny.logits(model))


def test_save_pretrained_packs_what_the_model_saves(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = folders
    packed, restored = tmp_path / "tuned.loom", tmp_path / "restored"
    model = LlamaForCausalLM.from_pretrained(tuned)
    report = save_pretrained(
        model, packed, base=base, tokenizer=AutoTokenizer.from_pretrained(tuned), max_shard_size="20KB"
    )
    assert report.packed_bytes == packed.stat().st_size < report.original_bytes
    deltaloom.unpack(packed, restored, base=base)
    assert {name for name in tiny.files(tuned) if "safetensors" in name} <= set(tiny.files(restored))
    assert tiny.same_bits(tiny.logits(LlamaForCausalLM.from_pretrained(restored)), tiny.logits(model))
    text = "a small test"
    assert AutoTokenizer.from_pretrained(restored)(text) == AutoTokenizer.from_pretrained(tuned)(text)
    with pytest.raises(FileExistsError):
        save_pretrained(model, packed, base=base)
    save_pretrained(model, packed, base=base, overwrite=True)
    assert list(tmp_path.glob(".deltaloom-*")) == []


def test_weights_alone_take_the_configuration_of_the_base(tmp_path: Path) -> None:
    from deltaloom.torch import save_file

    model = tiny.llama()
    model.save_pretrained(tmp_path / "base")
    other = tiny.tuned(model)
    packed = tmp_path / "tuned.loom"
    save_file(other.state_dict(), packed, base=tmp_path / "base")
    loaded = from_pretrained(AutoModelForCausalLM, packed, base=tmp_path / "base")
    assert tiny.same_bits(tiny.logits(loaded), tiny.logits(other))
    alone = tmp_path / "alone.loom"
    save_file(other.state_dict(), alone)
    with pytest.raises(ValueError, match=r"config\.json"):
        from_pretrained(AutoModelForCausalLM, alone)
    loaded = from_pretrained(AutoModelForCausalLM, alone, config=model.config)
    assert tiny.same_bits(tiny.logits(loaded), tiny.logits(other))


def test_states_with_the_names_of_weights_are_left_out(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = tiny.llama()
    model.save_pretrained(tmp_path / "model")
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    save_file(state, tmp_path / "model" / "optimizer.safetensors")
    deltaloom.pack(tmp_path / "model", tmp_path / "model.loom")
    loaded = from_pretrained(AutoModelForCausalLM, tmp_path / "model.loom")
    assert tiny.same_bits(tiny.logits(loaded), tiny.logits(model))


def test_arguments_reach_transformers(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = folders
    packed = tmp_path / "tuned.loom"
    deltaloom.pack(tuned, packed, base=base)
    model, info = from_pretrained(
        AutoModelForCausalLM, packed, base=base, dtype=torch.float32, output_loading_info=True, use_cache=False
    )
    assert model.dtype == torch.float32 and model.config.use_cache is False
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert tiny.same_bits(model.model.norm.weight, LlamaForCausalLM.from_pretrained(tuned).model.norm.weight.float())


def test_a_folder_that_is_not_packed_works_too(folders: tuple[Path, Path]) -> None:
    _, tuned = folders
    model = from_pretrained(AutoModelForCausalLM, tuned)
    assert tiny.same_bits(tiny.logits(model), tiny.logits(LlamaForCausalLM.from_pretrained(tuned)))


def test_a_wrong_base_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = folders
    packed, other = tmp_path / "tuned.loom", tmp_path / "other"
    deltaloom.pack(tuned, packed, base=base)
    tiny.llama(seed=99).save_pretrained(other)
    for wrong in (other, None):
        with pytest.raises(deltaloom.BaseMismatchError):
            from_pretrained(AutoModelForCausalLM, packed, base=wrong)
    with pytest.raises(FileNotFoundError):
        from_pretrained(AutoModelForCausalLM, tmp_path / "missing.loom")


def make_cache(root: Path, model: Path, commit: str = "0123456789abcdef" * 2 + "01234567") -> Path:
    """A model in a cache of Hugging Face, with links as it makes them."""
    folder = root / "models--tiny--llama"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    for file in model.iterdir():
        blob = folder / "blobs" / f"blob-{file.name}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(blob)
    return folder


def test_a_base_in_the_cache(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as constants

    base, tuned = folders
    packed = tmp_path / "tuned.loom"
    deltaloom.pack(tuned, packed, base=base)
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    folder = make_cache(cache, base)
    expected = tiny.logits(LlamaForCausalLM.from_pretrained(tuned))
    snapshot = next((folder / "snapshots").iterdir())
    for name in ("hf://tiny/llama", "hf://tiny/llama@main", f"hf://tiny/llama@{snapshot.name}", folder, snapshot):
        model = from_pretrained(AutoModelForCausalLM, packed, base=name)
        assert tiny.same_bits(tiny.logits(model), expected), name
    own = from_pretrained(AutoModelForCausalLM, "tiny/llama")
    assert tiny.same_bits(tiny.logits(own), tiny.logits(LlamaForCausalLM.from_pretrained(base)))
    with pytest.raises(FileNotFoundError):
        from_pretrained(AutoModelForCausalLM, packed, base="hf://tiny/unknown")
    with pytest.raises(FileNotFoundError):
        from_pretrained(AutoModelForCausalLM, "tiny/unknown")
    with pytest.raises(ValueError, match="org/name"):
        from_pretrained(AutoModelForCausalLM, packed, base="hf://llama")


def test_a_model_with_code_of_its_own_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = folders
    config = json.loads((tuned / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Model"}
    (tuned / "config.json").write_text(json.dumps(config))
    (tuned / "modeling.py").write_text("raise SystemExit('this must not run')\n")
    packed = tmp_path / "tuned.loom"
    deltaloom.pack(tuned, packed, base=base)
    with pytest.raises(ValueError, match="code of its own"):
        from_pretrained(AutoModelForCausalLM, packed, base=base, trust_remote_code=True)
