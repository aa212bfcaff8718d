"""Speed of training steps: autoregressive against ARMD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from armd.baselines import Autoregressive
from armd.bench.timing import Job, Work, alternate
from armd.model import Armd, Transformer
from armd.objective import loss
from armd.orders import Order
from armd.train import TrainConfig
from armd.train import optim as optimisers


def training(
    config: TrainConfig, repeats: int, device: torch.device, tell: Callable[[str], object] = lambda name: None
) -> list[dict[str, Any]]:
    """Tokens per second of whole training steps; the reference is AR."""
    jobs = {
        "train, AR": _steps(Autoregressive(config.model).to(device), config),
        "train, ARMD": _steps(Armd(config.model).to(device), config),
    }
    times = alternate(jobs, repeats, device, tell)
    return [{"what": name, **timing.fields(times["train, AR"])} for name, timing in times.items()]


def _steps(model: Transformer, config: TrainConfig) -> Job:
    optimiser = optimisers.build(model, config.optim)
    rows = config.micro_batch_size or config.batch_size
    order = Order.left_to_right(rows, config.text_length)
    tokens = torch.randint(config.model.vocab_size, (rows, config.text_length)).to(model.device)

    def step() -> Work:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            value = loss(model, tokens, order)
        value.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return Work(tokens.numel())

    return step
