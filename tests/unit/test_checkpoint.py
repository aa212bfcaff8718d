"""The publishable folder: what is saved is loaded, and anything else is refused in one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import armd
from armd import Autoregressive, Order, UserError
from armd.data import get_tokenizer
from conftest import QUERIES, make_model


@pytest.mark.parametrize("query", QUERIES)
def test_round_trip(query: str, tmp_path: Path) -> None:
    model = make_model(query=query)
    armd.save(model, tmp_path / "m")
    loaded, tokenizer = armd.load(tmp_path / "m")
    assert tokenizer is None and loaded.config == model.config and not loaded.training
    tokens, order = torch.randint(0, 11, (2, 9)), Order.uniform(2, 9)
    assert torch.equal(loaded(tokens, order), model(tokens, order))


def test_round_trip_with_tokenizer_and_of_the_baseline(tmp_path: Path) -> None:
    model = make_model(Autoregressive, vocab_size=257, tie_word_embeddings=False)
    armd.save(model, tmp_path / "m", tokenizer=get_tokenizer("byte"))
    loaded, tokenizer = armd.load(tmp_path / "m")
    assert type(loaded) is Autoregressive and tokenizer is not None and tokenizer.encode("A") == [65]
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


def change_config(**values: object):
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config.update(values)
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "drop"}))

    return change


def change_weights(edit):
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors")

    return change


def truncate(folder: Path) -> None:
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[: len(raw) // 2])


DAMAGE = {
    "config.json does not exist": lambda f: (f / "config.json").unlink(),
    "config.json is damaged": lambda f: (f / "config.json").write_text("{oops"),
    "was not written by this version": change_config(format=99),
    "not written by this version of armd": change_config(architecture="gpt"),
    "wrong fields: surprise": change_config(surprise=1),
    "wrong fields: query": change_config(query="drop"),
    "is invalid: hidden_size=0": change_config(hidden_size=0),
    "config.json is invalid": change_config(hidden_size="big"),
    "model.safetensors does not exist": lambda f: (f / "model.safetensors").unlink(),
    "is damaged, truncated or no safetensors file": truncate,
    "truncated or no safetensors": lambda f: (f / "model.safetensors").write_bytes(b""),
    "lacks bos": change_weights(lambda t: t.pop("bos")),
    "has unknown extra": change_weights(lambda t: t.update(extra=torch.zeros(1))),
    "bos has shape (3,), config.json says (16,)": change_weights(lambda t: t.update(bos=torch.zeros(3))),
    "tokenizer.json is damaged": lambda f: (f / "tokenizer.json").write_text("[]"),
    "does not belong to this model: it has 257 tokens": lambda f: get_tokenizer("byte").save(f / "tokenizer.json"),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damage_is_refused(message: str, tmp_path: Path) -> None:
    armd.save(make_model(), tmp_path)
    armd.load(tmp_path)
    DAMAGE[message](tmp_path)
    with pytest.raises(UserError) as caught:
        armd.load(tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_missing_folder_and_unfitting_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        armd.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="257 tokens but the model only 11"):
        armd.save(make_model(), tmp_path / "m", tokenizer=get_tokenizer("byte"))


def test_a_failed_save_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = make_model()
    armd.save(old, tmp_path)

    def full(tensors: object, path: str) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(armd.checkpoint, "save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        armd.save(make_model(seed=5), tmp_path)
    loaded, _ = armd.load(tmp_path)
    assert torch.equal(loaded.bos, old.bos) and len(list(tmp_path.iterdir())) == 2


def test_config_json_is_the_config(tmp_path: Path) -> None:
    model = make_model()
    armd.save(model, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert {k: v for k, v in values.items() if k not in ("format", "architecture")} == dataclasses.asdict(model.config)
