"""The publishable folder: what is saved is loaded, and anything else is refused in one line."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import armd
from armd import Autoregressive, Order, UserError, files
from armd.checkpoint import LATER
from armd.data import get_tokenizer
from armd.files import json_text
from conftest import QUERIES, make_config, make_model, remade


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


def test_a_folder_from_before_a_field_is_what_its_default_says(tmp_path: Path) -> None:
    model = make_model()
    armd.save(model, tmp_path / "m")
    change_config(activation="drop", zero_init_residual="drop")(tmp_path / "m")
    assert armd.load(tmp_path / "m")[0].config == model.config


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
    "hidden_size=True must be an integer": change_config(hidden_size=True),
    "hidden_size=1000000000000 must be at least 1 and at most 65536": change_config(hidden_size=10**12),
    "num_hidden_layers=1000000000 must be": change_config(num_hidden_layers=10**9),
    "rope_theta=inf must be a finite number": change_config(rope_theta=float("inf")),
    "dropout=nan must be a finite number": change_config(dropout=float("nan")),
    "embed.weight has shape (11, 16), config.json says (9999999, 16)": change_config(vocab_size=9999999),
    "this version of armd": change_config(architecture=["armd"]),
    "it holds no JSON object": lambda f: (f / "config.json").write_text("[]"),
    "is damaged or no JSON file": lambda f: (f / "config.json").write_text("[" * 100_000),
    "damaged or no JSON": lambda f: (f / "config.json").write_text("1" * 5000),
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


@pytest.mark.parametrize(("field", "value", "wanted"), [
    ("hidden_size", "big", "an integer"), ("hidden_size", 16.0, "an integer"), ("hidden_size", True, "an integer"),
    ("qk_norm", 1, "true or false"), ("norm", ["rmsnorm"], "a string"), ("eos_token_id", 1.5, "an integer or none"),
    ("rope_theta", 10**400, "a finite number"), ("rope_theta", None, "a finite number"),
])  # fmt: skip
def test_a_field_holds_what_its_annotation_says(field: str, value: object, wanted: str) -> None:
    with pytest.raises(UserError, match=rf"^{field}=.* must be {wanted}$"):
        remade(make_config(), **{field: value})


def test_a_folder_from_before_a_field_was_added_is_read(tmp_path: Path) -> None:
    model = make_model()
    armd.save(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in LATER}))
    assert config.keys() >= LATER and armd.load(tmp_path)[0].config == model.config


def test_missing_folder_and_unfitting_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        armd.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="257 tokens but the model only 11"):
        armd.save(make_model(), tmp_path / "m", tokenizer=get_tokenizer("byte"))


def test_what_is_not_ours_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model is a Linear and cannot be saved; it must be one of Armd, Autoreg"):
        armd.save(torch.nn.Linear(2, 2), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_the_tokenizer_of_another_model_does_not_stay(tmp_path: Path) -> None:
    armd.save(make_model(vocab_size=257), tmp_path, tokenizer=get_tokenizer("byte"))
    armd.save(make_model(), tmp_path)
    assert armd.load(tmp_path)[1] is None


def test_a_shape_too_large_is_refused_before_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    armd.save(make_model(), tmp_path)
    change_config(vocab_size=2**24)(tmp_path)
    monkeypatch.setattr(torch.nn.Embedding, "__init__", on_meta(torch.nn.Embedding.__init__))
    with pytest.raises(UserError, match=r"embed\.weight has shape"):
        armd.load(tmp_path)


def on_meta(make):
    def check(*args: object, **options: object) -> None:
        make(*args, **options)
        assert args[0].weight.is_meta

    return check


@pytest.mark.parametrize("place", ["file/m", "file", "/dev/null/m", "x" * 300, "/proc/m"])
def test_an_impossible_folder_is_one_line(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write") as caught:
        armd.save(make_model(), tmp_path / place)
    assert "\n" not in str(caught.value)


def test_what_a_killed_process_left_is_written_over(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from armd.files import write_atomically\n"
        "def dies(path): path.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(Path(sys.argv[1]), dies)"
    )
    assert subprocess.run([sys.executable, "-c", program, tmp_path / "config.json"]).returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    armd.save(make_model(), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_json_has_no_nan() -> None:
    values = {"a": [1.5, math.nan, (math.inf,)], "b": {"c": -math.inf, "d": "NaN", "e": True}}
    text = '{"a": [1.5, null, [null]], "b": {"c": null, "d": "NaN", "e": true}}'
    assert json_text(values) == text


def test_a_failed_save_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = make_model()
    armd.save(old, tmp_path)

    def full(tensors: object, path: str) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        armd.save(make_model(seed=5), tmp_path)
    loaded, _ = armd.load(tmp_path)
    assert torch.equal(loaded.bos, old.bos) and len(list(tmp_path.iterdir())) == 2


def test_config_json_is_the_config(tmp_path: Path) -> None:
    model = make_model()
    armd.save(model, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert {k: v for k, v in values.items() if k not in ("format", "architecture")} == dataclasses.asdict(model.config)
