"""Impossible arguments are one-line errors that name the argument and its value."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from armd import Order, UserError, generate
from conftest import make_config, make_model

BAD = {
    "length=0": {"length": 0},
    "length=None": {},
    "length=-3": {"length": -3},
    "prompt 20 + length 8": {"length": 8, "prompt": [1] * 20},
    "streams=0": {"length": 8, "streams": 0},
    "streams=9": {"length": 8, "streams": 9},
    "streams=3 does not divide": {"length": 8, "streams": 3},
    "mode='fast'": {"length": 8, "mode": "fast"},
    "temperature=-1": {"length": 8, "temperature": -1.0},
    "temperature=nan": {"length": 8, "temperature": float("nan")},
    "top_p=0": {"length": 8, "top_p": 0.0},
    "top_p=1.5": {"length": 8, "top_p": 1.5},
    "top_k=-1": {"length": 8, "top_k": -1},
    "batch_size=0": {"length": 8, "batch_size": 0},
    "prompt holds token 99": {"length": 8, "prompt": [99]},
    "prompt holds token -1": {"length": 8, "prompt": [-1]},
    "prompt is": {"length": 8, "prompt": torch.zeros(3, 2, dtype=torch.long), "batch_size": 2},
    "template has no hole": {"template": [1, 2, 3]},
    "template cannot be combined": {"template": [1, -1], "length": 3},
    "template of 30": {"template": [-1] * 30},
    "template holds token": {"template": [-2, 1]},
    "temperature=1e-320": {"length": 8, "temperature": 1e-320},
    "length 20000000000 tokens exceed": {"length": 2 * 10**10},
    "must fit in 64 bits": {"length": 8, "seed": 2**63},
    "drafts=-1": {"length": 8, "drafts": -1},
    "drafts=2 must be >= 0, and needs mode='exact'": {"length": 8, "drafts": 2, "mode": "parallel"},
    "check='luck' is unknown": {"length": 8, "check": "luck"},
    "check='rejection' is a way to check drafts": {"length": 8, "check": "rejection", "mode": "parallel"},
    "tolerance=0.1": {"length": 8, "tolerance": 0.1},
    "tolerance=1.5": {"length": 8, "tolerance": 1.5, "check": "rejection"},
    "stop=11 must be a token": {"length": 8, "stop": [11]},
    "rows=0": {"length": 8, "rows": 0},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_argument(message: str) -> None:
    with pytest.raises(ValueError) as caught:
        generate(make_model(), **BAD[message])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_types_are_named() -> None:
    """In a process of its own: here the shape checks of the tests would speak first."""
    program = """
import armd
model = armd.Armd(armd.ArmdConfig(vocab_size=11, hidden_size=16, num_attention_heads=2, num_hidden_layers=1))
for name in ("length", "streams", "drafts", "top_k", "seed", "batch_size", "temperature", "top_p", "tolerance"):
    for value in ("x", 1.5, True, [2]):
        if value == 1.5 and name in ("temperature", "top_p", "tolerance"):
            continue
        try:
            armd.generate(model, **{"length": 8, name: value})
        except armd.UserError as error:
            assert str(error).startswith(f"{name}={value!r} must be"), error
        else:
            raise AssertionError((name, value))
for prompt in ([1.7], "abc", [[1], [2, 3]]):
    try:
        armd.generate(model, length=8, prompt=prompt)
    except armd.UserError as error:
        assert "prompt must be token ids" in str(error)
    else:
        raise AssertionError(prompt)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(("field", "value"), [
    ("vocab_size", 0), ("hidden_size", 15), ("num_attention_heads", 3), ("num_two_stream_layers", 4),
    ("num_two_stream_layers", 0), ("query", "magic"), ("norm", "batch"), ("dropout", 1.0), ("eos_token_id", 11),
    ("kernel_width", 0), ("max_position_embeddings", 0), ("rope_theta", 0.0),
])  # fmt: skip
def test_bad_config_names_field_and_value(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field}={value!r}") as caught:
        make_config(**{field: value})
    assert "\n" not in str(caught.value)


def test_bad_shapes() -> None:
    model = make_model()
    with pytest.raises(UserError, match="tokens are"):
        model(torch.zeros(2, 8, dtype=torch.long), Order.left_to_right(2, 9))
    with pytest.raises(UserError, match="max_position_embeddings=24"):
        model(torch.zeros(1, 25, dtype=torch.long), Order.left_to_right(1, 25))
