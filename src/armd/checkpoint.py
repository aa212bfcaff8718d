"""The publishable folder: config.json, model.safetensors, tokenizer.json. No pickle anywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from armd.baselines import (
    Autoregressive,
    BlockDiffusion,
    MaskedDiffusion,
    PrefixAutoregressive,
    PrefixMaskedDiffusion,
)
from armd.data import Tokenizer
from armd.errors import UserError
from armd.files import read_json, read_tensors, write_atomically, write_json, write_tensors
from armd.model import Armd, ArmdConfig, Transformer

FORMAT = 1
WEIGHTS = "model.safetensors"
LATER = {"activation", "zero_init_residual", "block_size"}
"""Fields that the first folders lack; their defaults are what those models are."""
ARCHITECTURES: dict[str, type[Transformer]] = {
    "armd": Armd,
    "ar": Autoregressive,
    "ar+prefix": PrefixAutoregressive,
    "mdlm": MaskedDiffusion,
    "mdlm+prefix": PrefixMaskedDiffusion,
    "bd3lm": BlockDiffusion,
}


def name_of(model: Transformer) -> str:
    """The architecture of a model, by which `ARCHITECTURES` knows it."""
    for name, kind in ARCHITECTURES.items():
        if type(model) is kind:
            return name
    kinds = ", ".join(kind.__name__ for kind in ARCHITECTURES.values())
    raise UserError(f"model is a {type(model).__name__} and cannot be saved; it must be one of {kinds}")


def check_shapes(model: torch.nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Refuse tensors that are not, name by name and shape by shape, those of the model."""
    wanted = model.state_dict()
    missing, foreign = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or foreign:
        parts = [f"lacks {_some(missing)}"] * bool(missing) + [f"has unknown {_some(foreign)}"] * bool(foreign)
        raise UserError(f"{source} does not fit its config.json: it {' and '.join(parts)}")
    for name, tensor in wanted.items():
        if tensors[name].shape != tensor.shape:
            shapes = f"{tuple(tensors[name].shape)}, config.json says {tuple(tensor.shape)}"
            raise UserError(f"{source}: {name} has shape {shapes}")


def save(
    model: Transformer,
    folder: str | Path,
    tokenizer: Tokenizer | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the publishable folder; each file replaces its predecessor atomically.

    Args:
        weights: instead of the model's own, which several processes may share.

    Raises:
        UserError: the folder cannot be written, the model is not ours, or the tokenizer has more tokens than it.
    """
    folder = Path(folder)
    architecture = name_of(model)
    if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
        sizes = f"{tokenizer.vocab_size} tokens but the model only {model.config.vocab_size}"
        raise UserError(f"tokenizer does not fit the model: it has {sizes}")
    write_tensors(folder / WEIGHTS, weights or model.state_dict())
    if tokenizer is not None:
        write_atomically(folder / "tokenizer.json", lambda file: tokenizer.save(file))
    else:  # that of another model, saved here before
        (folder / "tokenizer.json").unlink(missing_ok=True)
    values = {"format": FORMAT, "architecture": architecture, **dataclasses.asdict(model.config)}
    write_json(folder / "config.json", values)


def load(folder: str | Path, device: str | torch.device = "cpu") -> tuple[Transformer, Tokenizer | None]:
    """Read a publishable folder: the model in evaluation mode, and its tokenizer (None if there is none).

    Raises:
        UserError: a file is missing, damaged or from another program, or keys, shapes or vocabulary do not match.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"model folder {folder} does not exist")
    values = read_json(folder / "config.json")
    kind = ARCHITECTURES.get(str(values.get("architecture")))
    if values.get("format") != FORMAT or kind is None:
        raise UserError(f"{folder / 'config.json'} was not written by this version of armd")
    fields = {name: value for name, value in values.items() if name not in ("format", "architecture")}
    known = {field.name for field in dataclasses.fields(ArmdConfig)}
    if fields.keys() | LATER != known:
        raise UserError(
            f"{folder / 'config.json'} has the wrong fields: {_some(sorted((fields.keys() | LATER) ^ known))}"
        )
    try:
        config = ArmdConfig(**fields)
    except UserError as error:
        raise UserError(f"{folder / 'config.json'} is invalid: {error}") from None
    weights = read_tensors(folder / WEIGHTS)
    with torch.device("meta"):  # shapes without memory: a wrong size is found before it is allocated
        check_shapes(kind(config), weights, folder / WEIGHTS)
    model = kind(config)
    model.load_state_dict(weights)
    tokenizer = None
    if (folder / "tokenizer.json").exists():
        tokenizer = Tokenizer.load(folder / "tokenizer.json")
        if tokenizer.vocab_size > model.config.vocab_size:
            sizes = f"{tokenizer.vocab_size} tokens, the model {model.config.vocab_size}"
            raise UserError(f"{folder / 'tokenizer.json'} does not belong to this model: it has {sizes}")
    return model.to(device).eval(), tokenizer


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
