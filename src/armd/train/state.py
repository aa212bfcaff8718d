"""Checkpoints of a run: everything needed to go on bit for bit.

    RUN/run.json                        the resolved config and the data it belongs to
    RUN/metrics.jsonl                   one line per logged step and per validation
    RUN/config.json, model.safetensors, tokenizer.json      the publishable model
    RUN/checkpoints/step-00000250/      weights, average, optimiser state, step

All randomness of a run is a function of (seed, step), so no generator state has to be saved.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from armd.checkpoint import check_shapes
from armd.errors import UserError
from armd.fields import is_integer
from armd.files import read_json, read_tensors, write_json, write_tensors

FORMAT = 1


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints, oldest first. A folder still being written has another name."""
    return sorted((run / "checkpoints").glob("step-[0-9]*"))


def save(
    run: Path, step: int, model: nn.Module, average: list[Tensor], optimiser: torch.optim.Optimizer, keep: int
) -> Path:
    """Write the checkpoint of `step` completed steps, then drop all but the newest `keep`.

    The folder gets its name only when it is whole: a crash or a full disk leaves the previous checkpoint as the newest.
    """
    final = run / "checkpoints" / f"step-{step:08d}"
    partial = final.with_name(f"partial-{step:08d}")
    for left in final.parent.glob("partial-*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    try:
        write_tensors(partial / "weights.safetensors", model.state_dict())
        write_tensors(partial / "average.safetensors", {str(i): mean for i, mean in enumerate(average)})
        write_tensors(partial / "optimiser.safetensors", _flatten(optimiser))
        write_json(partial / "state.json", {"format": FORMAT, "step": step})
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    except (OSError, UserError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        newest = next(iter(checkpoints(run)[::-1]), None)
        raise UserError(f"checkpoint of step {step} could not be saved ({error}); last good one: {newest}") from error
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def restore_newest(
    run: Path, model: nn.Module, average: list[Tensor], optimiser: torch.optim.Optimizer
) -> tuple[int, list[str]]:
    """Load the newest checkpoint that is whole; returns its step (0: there is none yet) and what is wrong with others.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    wrong: list[str] = []
    for folder in reversed(checkpoints(run)):
        try:
            return restore(folder, model, average, optimiser), wrong
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError(f"{run} has no checkpoint to go on from: {wrong[0]}")
    return 0, wrong


def restore(folder: Path, model: nn.Module, average: list[Tensor], optimiser: torch.optim.Optimizer) -> int:
    """Load a checkpoint into model, average and optimiser; returns the number of completed steps."""
    state = read_json(folder / "state.json")
    step: Any = state.get("step")
    if state.get("format") != FORMAT or not is_integer(step) or step < 1:
        raise UserError(f"{folder} is damaged, or was not written by this version of armd")
    weights = read_tensors(folder / "weights.safetensors")
    check_shapes(model, weights, folder / "weights.safetensors")
    model.load_state_dict(weights)
    means = read_tensors(folder / "average.safetensors")
    if {name: mean.shape for name, mean in means.items()} != {str(i): mean.shape for i, mean in enumerate(average)}:
        raise UserError(f"{folder / 'average.safetensors'} does not match optim.ema of this run")
    for i, mean in enumerate(average):
        mean.copy_(means[str(i)])
    _unflatten(optimiser, read_tensors(folder / "optimiser.safetensors"), folder)
    return step


def _flatten(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimiser.state_dict()["state"]
    return {f"{index}.{name}": torch.as_tensor(value) for index, slot in state.items() for name, value in slot.items()}


def _unflatten(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], folder: Path) -> None:
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    shapes = {
        f"{i}.{name}": torch.Size([]) if name == "step" else weight.shape
        for i, weight in enumerate(weights)
        for name in ("step", "exp_avg", "exp_avg_sq")  # of AdamW
    }
    if {key: tensor.shape for key, tensor in tensors.items()} != shapes:
        raise UserError(f"{folder / 'optimiser.safetensors'} does not belong to this network")
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
