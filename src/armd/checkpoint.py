"""The publishable folder: config.json, model.safetensors, tokenizer.json. No pickle anywhere."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from armd.baselines import Autoregressive
from armd.data import Tokenizer
from armd.errors import UserError
from armd.model import Armd, ArmdConfig, Transformer

FORMAT = 1
ARCHITECTURES: dict[str, type[Transformer]] = {"armd": Armd, "ar": Autoregressive}


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its final place and move it there: a crash or a full disk leaves the old file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {error}; what was there before is untouched") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_json(path: Path, values: Any) -> None:
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file; a missing or damaged one is a one-line error."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; is {path.parent} the right folder?") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is damaged or no JSON file: {error}") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    dense = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    write_atomically(path, lambda file: save_file(dense, str(file)))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; a missing, truncated or foreign one is a one-line error."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; is {path.parent} the right folder?")
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged, truncated or no safetensors file: {error}") from None


def load_weights(model: torch.nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy tensors into the model after checking every name and shape."""
    wanted = model.state_dict()
    missing, foreign = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or foreign:
        parts = [f"lacks {_some(missing)}"] * bool(missing) + [f"has unknown {_some(foreign)}"] * bool(foreign)
        raise UserError(f"{source} does not fit its config.json: it {' and '.join(parts)}")
    for name, tensor in wanted.items():
        if tensors[name].shape != tensor.shape:
            shapes = f"{tuple(tensors[name].shape)}, config.json says {tuple(tensor.shape)}"
            raise UserError(f"{source}: {name} has shape {shapes}")
    model.load_state_dict(dict(tensors))


def save(model: Transformer, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
    """Write the publishable folder; each file replaces its predecessor atomically.

    Raises:
        UserError: the folder cannot be written, or the tokenizer has more tokens than the model.
    """
    folder = Path(folder)
    if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
        sizes = f"{tokenizer.vocab_size} tokens but the model only {model.config.vocab_size}"
        raise UserError(f"tokenizer does not fit the model: it has {sizes}")
    write_tensors(folder / "model.safetensors", model.state_dict())
    if tokenizer is not None:
        write_atomically(folder / "tokenizer.json", lambda file: tokenizer.save(file))
    name = next(name for name, kind in ARCHITECTURES.items() if type(model) is kind)
    write_json(folder / "config.json", {"format": FORMAT, "architecture": name, **dataclasses.asdict(model.config)})


def load(folder: str | Path, device: str | torch.device = "cpu") -> tuple[Transformer, Tokenizer | None]:
    """Read a publishable folder: the model in evaluation mode, and its tokenizer (None if there is none).

    Raises:
        UserError: a file is missing, damaged or from another program, or keys, shapes or vocabulary do not match.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"model folder {folder} does not exist")
    values = read_json(folder / "config.json")
    ours = isinstance(values, dict) and values.get("format") == FORMAT
    if not ours or values.get("architecture") not in ARCHITECTURES:
        raise UserError(f"{folder / 'config.json'} was not written by this version of armd")
    kind = ARCHITECTURES[values["architecture"]]
    fields = {name: value for name, value in values.items() if name not in ("format", "architecture")}
    known = {field.name for field in dataclasses.fields(ArmdConfig)}
    if fields.keys() != known:
        raise UserError(f"{folder / 'config.json'} has the wrong fields: {_some(sorted(fields.keys() ^ known))}")
    try:
        model = kind(ArmdConfig(**fields))
    except (TypeError, UserError) as error:
        raise UserError(f"{folder / 'config.json'} is invalid: {str(error).splitlines()[0]}") from None
    load_weights(model, read_tensors(folder / "model.safetensors"), folder / "model.safetensors")
    tokenizer = None
    if (folder / "tokenizer.json").exists():
        tokenizer = Tokenizer.load(folder / "tokenizer.json")
        if tokenizer.vocab_size > model.config.vocab_size:
            sizes = f"{tokenizer.vocab_size} tokens, the model {model.config.vocab_size}"
            raise UserError(f"{folder / 'tokenizer.json'} does not belong to this model: it has {sizes}")
    return model.to(device).eval(), tokenizer


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
