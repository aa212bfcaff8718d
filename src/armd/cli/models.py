"""Models and texts that several commands read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from armd import checkpoint
from armd.baselines import Denoiser
from armd.data import Manifest, TokenDataset, Tokenizer
from armd.errors import UserError
from armd.evals import parse_orders
from armd.model import Armd, Transformer
from armd.train.loop import pick_device


def load_reader(folder: Path, device: str) -> tuple[Transformer, Tokenizer]:
    """Any model that has a tokenizer."""
    model, tokenizer = checkpoint.load(folder, pick_device(device))
    if tokenizer is None:
        raise UserError(f"{folder} has no tokenizer.json, so text cannot be read or written")
    return model, tokenizer


def load_writer(folder: Path, device: str, task: str) -> tuple[Armd, Tokenizer]:
    """A model that fills holes."""
    model, tokenizer = load_reader(folder, device)
    return as_armd(model, folder, task), tokenizer


def as_armd(model: Transformer, folder: Path, task: str) -> Armd:
    if not isinstance(model, Armd):
        raise UserError(f"{folder} is a {type(model).__name__}; {task} needs an armd model")
    return model


def orders_for(model: Transformer, given: str | None, usual: str) -> list[str]:
    """The orders to score a model in: those given, else the usual ones if it knows them, of a denoiser its bound."""
    if given is None:
        given = "bound:8" if isinstance(model, Denoiser) else usual if model.any_order else "left_to_right"
    return parse_orders(given)


BY_STEPS = "steps", "schedule"
"""Options of masked and block diffusion, which every other model does without."""


def check_fits(args: Any, model: Transformer, by_order: Sequence[str]) -> None:
    """Refuse options that mean nothing to the model; those of `by_order` are for models that write in an order."""
    denoises = isinstance(model, Denoiser)
    for name in by_order if denoises else BY_STEPS:
        if getattr(args, name) != getattr(type(args), name):
            kind = f"{args.model} is of class {type(model).__name__}"
            needs = "an armd model" if denoises else "a model of masked or block diffusion"
            other = ", which writes by --steps and --schedule" if denoises else ""
            raise UserError(f"--{name.replace('_', '-')} needs {needs}; {kind}{other}")


def held_out(folder: Path, name: Path, model: Transformer, tokenizer: Tokenizer | None, length: int) -> TokenDataset:
    """Held-out texts for a model, made with its tokenizer."""
    dataset = TokenDataset(folder, "valid", length)
    if tokenizer is not None and tokenizer.sha256 != Manifest.load(folder).tokenizer_sha256:
        raise UserError(f"{folder} was made with another tokenizer than {name}: the vocabulary does not match")
    if dataset.vocab_size > model.config.vocab_size:
        sizes = f"{dataset.vocab_size} tokens, above vocab_size={model.config.vocab_size} of {name}"
        raise UserError(f"{folder} has {sizes}: the vocabulary does not match")
    dataset.verify()
    return dataset
