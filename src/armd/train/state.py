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

import torch
from torch import Tensor, nn

from armd.checkpoint import check_shapes
from armd.errors import UserError
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
    shutil.rmtree(partial, ignore_errors=True)
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


def restore(folder: Path, model: nn.Module, average: list[Tensor], optimiser: torch.optim.Optimizer) -> int:
    """Load a checkpoint into model, average and optimiser; returns the number of completed steps."""
    state = read_json(folder / "state.json")
    if state.get("format") != FORMAT:
        raise UserError(f"{folder} was not written by this version of armd")
    weights = read_tensors(folder / "weights.safetensors")
    check_shapes(model, weights, folder / "weights.safetensors")
    model.load_state_dict(weights)
    means = read_tensors(folder / "average.safetensors")
    if means.keys() != {str(i) for i in range(len(average))}:
        raise UserError(f"{folder / 'average.safetensors'} does not match optim.ema of this run")
    for i, mean in enumerate(average):
        mean.copy_(means[str(i)])
    _unflatten(optimiser, read_tensors(folder / "optimiser.safetensors"), folder)
    return int(state["step"])


def _flatten(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimiser.state_dict()["state"]
    return {f"{index}.{name}": torch.as_tensor(value) for index, slot in state.items() for name, value in slot.items()}


def _unflatten(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], folder: Path) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    count = sum(len(group["params"]) for group in optimiser.param_groups)
    if set(state) != set(range(count)):
        raise UserError(f"{folder / 'optimiser.safetensors'} does not belong to this network")
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
