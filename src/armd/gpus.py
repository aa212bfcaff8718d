"""What accelerators can do at most, and what this machine's own processor reaches."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch

from armd.errors import UserError


@dataclass(frozen=True)
class Accelerator:
    """One device.

    Attributes:
        name: how it is called.
        flops: dense bfloat16 operations per second with float32 sums, at most.
        memory: bytes.
    """

    name: str
    flops: float
    memory: float


# Dense peaks and memory of the vendor's data sheets, SXM boards (NVIDIA A100, H100 and H200 Tensor Core GPU Datasheet);
# the latter two print 1,979 TFLOP/s with sparsity, twice the dense figure.
GPUS = {
    "a100": Accelerator("NVIDIA A100 SXM 80 GB", 312e12, 80e9),
    "h100": Accelerator("NVIDIA H100 SXM 80 GB", 989e12, 80e9),
    "h200": Accelerator("NVIDIA H200 SXM 141 GB", 989e12, 141e9),
}
# What the driver calls them -> key. PCIe and NVL boards have other peaks and are not known.
DRIVER_NAMES = {"NVIDIA A100-SXM4-80GB": "a100", "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200"}


def get_accelerator(name: str) -> Accelerator:
    """The accelerator of a name: a100, h100, h200, or cpu, whose peak is measured on the spot."""
    if name == "cpu":
        return this_cpu()
    if name not in GPUS:
        raise UserError(f"gpu={name!r} is unknown; choose one of {', '.join(GPUS)} or cpu")
    return GPUS[name]


def peak_of(device: torch.device) -> float | None:
    """Operations per second of a device at most, where a data sheet says it; None for all others."""
    if device.type != "cuda":
        return None
    key = DRIVER_NAMES.get(torch.cuda.get_device_name(device))
    return GPUS[key].flops if key else None


def prefers_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices clearly faster in bfloat16 than in float32: a CPU is timed."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    rounds = [(_seconds(512, 2, torch.bfloat16), _seconds(512, 2, torch.float32)) for _ in range(5)]
    return 1.2 * min(half for half, _ in rounds) < min(whole for _, whole in rounds)


def this_cpu(size: int = 1024, repeats: int = 8) -> Accelerator:
    """This machine: the fastest of some bfloat16 and float32 matrix products with all threads, and its memory."""
    fastest = min(_seconds(size, repeats, dtype) for dtype in (torch.bfloat16, torch.float32))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    threads = torch.get_num_threads()
    return Accelerator(f"this CPU, {threads} threads, peak measured", 2 * size**3 / fastest, memory)


def _seconds(size: int, repeats: int, dtype: torch.dtype) -> float:
    a, b = torch.randn(2, size, size).to(dtype)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - began)
    return min(times)
