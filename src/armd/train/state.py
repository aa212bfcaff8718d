"""Checkpoints of a run: everything needed to go on bit for bit.

    RUN/run.json                        the resolved config, its data, and the texts and versions it was begun with
    RUN/metrics.jsonl                   one line per logged step and per validation
    RUN/config.json, model.safetensors, tokenizer.json      the publishable model
    RUN/checkpoints/step-00000250/      weights, average, optimiser state; state.json: the step, sizes and hashes

All randomness of a run is a function of (seed, step), so no generator state has to be saved. Tensors are saved whole:
a checkpoint does not know how many processes wrote it, and any number of them may read it.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from armd.checkpoint import check_shapes
from armd.errors import UserError
from armd.fields import is_integer
from armd.files import json_text, read_json, read_tensors, sync_folder, write_json, write_tensors
from armd.train.parallel import ALONE, Ranks, own, share, whole

FORMAT = 2


@dataclass
class Progress:
    """What a checkpoint holds besides tensors.

    Attributes:
        step: completed steps.
        valid: the validation at this step, if there was one: order family -> nats per token.
        guard: what `Guard` remembers.
    """

    step: int
    valid: dict[str, float] = field(default_factory=dict)
    guard: dict[str, Any] = field(default_factory=dict)


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints, oldest first. A folder still being written has another name."""
    return sorted((run / "checkpoints").glob("step-[0-9]*"))


def best(run: Path, order: str) -> tuple[Path | None, float]:
    """The checkpoint with the lowest held-out loss in an order family, and that loss; infinite if there is none."""
    found: list[tuple[float, Path]] = []
    for folder in checkpoints(run):
        try:
            valid = read_state(folder)["valid"]
        except UserError:  # damaged: named when it is loaded
            continue
        found += [(valid[order], folder)] if order in valid else []
    return min(found)[::-1] if found else (None, math.inf)


# ---- writing ---------------------------------------------------------------------------------------------------------


def save(
    run: Path,
    progress: Progress,
    model: nn.Module,
    average: list[Tensor],
    optimiser: torch.optim.Optimizer,
    *,
    keep_last: int,
    keep_best: str | None = None,
    ranks: Ranks = ALONE,
) -> Path:
    """Write a checkpoint, then drop all but the newest `keep_last` and the best in the order family `keep_best`.

    The folder gets its name only when it is whole: a crash or a full disk leaves the previous checkpoint as the newest.
    Only the first process writes; the others hand it their shares, tensor by tensor.
    """
    final = run / "checkpoints" / f"step-{progress.step:08d}"
    draft = final.with_name(f"partial-{progress.step:08d}")
    slots, numbers = _flatten(optimiser)
    parts = {
        "weights": model.state_dict(),
        "average": {str(i): mean for i, mean in enumerate(average)},
        "optimiser": slots,
    }
    try:
        ranks.on_first(partial(_clear, final.parent))
        for name, tensors in parts.items():
            dense = gather(tensors, ranks)
            ranks.on_first(partial(write_tensors, draft / f"{name}.safetensors", dense))
        ranks.on_first(partial(_finish, draft, final, progress, numbers))
    except UserError as error:
        if ranks.first:
            shutil.rmtree(draft, ignore_errors=True)
        error.args = (f"checkpoint of step {progress.step} could not be saved ({error})",)
        raise
    if ranks.first:
        kept = [best(run, keep_best)[0]] if keep_best else []
        for old in checkpoints(run)[:-keep_last]:
            if old not in kept:
                shutil.rmtree(old, ignore_errors=True)
    return final


def _clear(folder: Path) -> None:
    """Remove what a killed process left half written."""
    for left in folder.glob("partial-*"):
        shutil.rmtree(left, ignore_errors=True)


def gather(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Whole tensors, on the first process; on the others nothing."""
    dense = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if ranks.first:
            dense[name] = full if ranks.size == 1 else full.cpu()
    return dense


def _finish(draft: Path, final: Path, progress: Progress, numbers: dict[str, Any]) -> None:
    """Write state.json, and give the folder its name."""
    try:
        files = {file.name: _fingerprint(file) for file in sorted(draft.glob("*.safetensors"))}
        state = {"step": progress.step, "valid": progress.valid, "guard": progress.guard}
        content = {**state, "optimiser": numbers, "files": files}
        write_json(draft / "state.json", {"format": FORMAT, "state": content, "sha256": _hash(content)})
        sync_folder(draft)
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
        for folder in (final.parent, final.parent.parent):  # the first checkpoint makes a name in both
            sync_folder(folder)
    except OSError as error:
        raise UserError(f"cannot write {final}: {error}") from error


def _fingerprint(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json_text(content).encode()).hexdigest()


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_state(folder: Path) -> dict[str, Any]:
    """The content of state.json, which carries its own hash."""
    values = read_json(folder / "state.json")
    state: Any = values.get("state")
    if values.get("format") != FORMAT or not isinstance(state, dict) or values.get("sha256") != _hash(state):
        raise UserError(f"{folder / 'state.json'} is damaged, or was not written by this version of armd")
    if not is_integer(state["step"]) or folder.name != f"step-{state['step']:08d}":
        raise UserError(f"{folder} is not the checkpoint of step {state['step']} that its state.json says")
    return state


def verify(folder: Path) -> None:
    """Compare every file of a checkpoint with its size and its hash."""
    for name, wanted in read_state(folder)["files"].items():
        file = folder / name
        if not file.is_file():
            raise UserError(f"{file} is missing")
        try:
            found = _fingerprint(file)
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error}") from None
        if found["bytes"] != wanted["bytes"]:
            raise UserError(f"{file} is damaged: it has {found['bytes']} bytes, not {wanted['bytes']}")
        if found != wanted:
            raise UserError(f"{file} is damaged: its hash is not the one in state.json")


def restore_newest(
    run: Path, model: nn.Module, average: list[Tensor], optimiser: torch.optim.Optimizer, ranks: Ranks = ALONE
) -> tuple[Progress, list[str]]:
    """Load the newest checkpoint that is whole; returns its progress (step 0: there is none yet), and what is wrong
    with newer ones, which are set aside.

    Raises:
        UserError: there are checkpoints, and all of them are damaged; or it is that of another network.
    """
    folder, wrong = ranks.on_first(partial(_newest, run))
    return (restore(folder, model, average, optimiser) if folder else Progress(0)), wrong


def _newest(run: Path) -> tuple[Path | None, list[str]]:
    wrong: dict[Path, str] = {}
    for folder in reversed(checkpoints(run)):
        try:
            verify(folder)
        except UserError as error:
            wrong[folder] = str(error)
        else:
            for damaged in wrong:
                _set_aside(damaged)
            return folder, list(wrong.values())
    if wrong:
        raise UserError(f"{run} has no checkpoint to go on from: {next(iter(wrong.values()))}")
    return None, []


def _set_aside(damaged: Path) -> None:
    """Give it another name: as the newest it would be kept in place of what is saved from here on."""
    aside = damaged.with_name(damaged.name.replace("step", "damaged"))
    with suppress(OSError):  # a folder that cannot be changed takes no new checkpoint either, which will be said
        shutil.rmtree(aside, ignore_errors=True)
        damaged.rename(aside)


@torch.no_grad()
def restore(folder: Path, model: nn.Module, average: list[Tensor], optimiser: torch.optim.Optimizer) -> Progress:
    """Load a checkpoint into model, average and optimiser, or this process's shares of them."""
    state = read_state(folder)
    weights = read_tensors(folder / "weights.safetensors")
    check_shapes(model, weights, folder / "weights.safetensors")
    for name, weight in model.state_dict().items():
        _fill(weight, weights[name])
    means = read_tensors(folder / "average.safetensors")
    if {name: mean.shape for name, mean in means.items()} != {str(i): mean.shape for i, mean in enumerate(average)}:
        raise UserError(f"{folder / 'average.safetensors'} does not match optim.ema of this run")
    for i, mean in enumerate(average):
        _fill(mean, means[str(i)])
    _unflatten(optimiser, read_tensors(folder / "optimiser.safetensors"), state["optimiser"], folder)
    return Progress(state["step"], state["valid"], state["guard"])


def _fill(target: Tensor, value: Tensor) -> None:
    for mine, given in zip(own([target]), own([share(value, target)]), strict=True):
        mine.copy_(given)


# ---- the state of an optimiser ---------------------------------------------------------------------------------------


def _flatten(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of every weight: tensors, and what else an optimiser keeps, by `weight.name`."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, slot in optimiser.state_dict()["state"].items():
        for name, value in slot.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{index}.{name}"] = value
    return tensors, numbers


def _unflatten(
    optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any], folder: Path
) -> None:
    state: dict[int, dict[str, Any]] = {}
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    for key, value in {**numbers, **tensors}.items():
        index, _, name = key.partition(".")
        try:
            weight = weights[int(index)]
        except (IndexError, ValueError):
            raise UserError(f"{folder / 'optimiser.safetensors'} does not belong to this network: {key}") from None
        if isinstance(value, Tensor) and value.shape == weight.shape:
            value = share(value, weight)
        if isinstance(value, Tensor):
            value = value.clone()  # what was read may lie in a map of the file
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
