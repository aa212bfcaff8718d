"""Speed on this machine. What is compared is measured in turn, in one process; quote the ratios."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from armd.baselines import Autoregressive
from armd.decode import generate
from armd.model import Armd, Transformer
from armd.objective import loss
from armd.orders import Order
from armd.train import TrainConfig
from armd.train import optim as optimisers


def machine() -> str:
    """Processor, cores, torch: what a figure needs beside it."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return f"{device}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def run(
    config: TrainConfig, streams: Sequence[int], length: int, repeats: int, device: torch.device
) -> list[dict[str, Any]]:
    """Tokens per second of training (AR, ARMD) and of decoding (by number of streams), medians over the repeats."""
    model = Armd(config.model).to(device)
    baseline = Autoregressive(config.model).to(device)
    training = {"train, AR": _training(baseline, config), "train, ARMD": _training(model, config)}
    decoding = {f"decode, S = {s}": _decoding(model, s, length) for s in streams}
    rows = []
    for group in (training, decoding):
        rates: dict[str, list[float]] = {name: [] for name in group}
        for repeat in range(repeats + 1):
            for name, job in group.items():
                began = time.perf_counter()
                tokens = job()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if repeat:  # the first round warms up
                    rates[name].append(tokens / (time.perf_counter() - began))
        first = next(iter(rates.values()))
        for name, values in rates.items():
            ratio = statistics.median(a / b for a, b in zip(values, first, strict=True))
            rows.append({"what": name, "tokens_per_second": statistics.median(values), "ratio": ratio, "all": values})
    return rows


def _training(model: Transformer, config: TrainConfig) -> Callable[[], int]:
    optimiser = optimisers.build(model, config.optim)
    rows = config.micro_batch_size or config.batch_size
    order = Order.left_to_right(rows, config.text_length)
    tokens = torch.randint(config.model.vocab_size, (rows, config.text_length)).to(model.device)

    def step() -> int:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            value = loss(model, tokens, order)
        value.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return tokens.numel()

    return step


def _decoding(model: Armd, streams: int, length: int) -> Callable[[], int]:
    return lambda: generate(model, length=length, streams=streams, mode="parallel").tokens.numel()
