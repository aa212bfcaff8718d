"""Models and texts that several commands read."""

from __future__ import annotations

from pathlib import Path

from armd import checkpoint
from armd.data import Manifest, TokenDataset, Tokenizer
from armd.errors import UserError
from armd.model import Armd, Transformer
from armd.train.loop import pick_device


def load_reader(folder: Path, device: str) -> tuple[Transformer, Tokenizer]:
    """Any model that has a tokenizer."""
    model, tokenizer = checkpoint.load(folder, pick_device(device))
    if tokenizer is None:
        raise UserError(f"{folder} has no tokenizer.json, so text cannot be read or written")
    return model, tokenizer


def load_writer(folder: Path, device: str, task: str = "generate") -> tuple[Armd, Tokenizer]:
    """A model that fills holes."""
    model, tokenizer = load_reader(folder, device)
    if not isinstance(model, Armd):
        raise UserError(f"{folder} is a {type(model).__name__}; {task} needs an armd model")
    return model, tokenizer


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
