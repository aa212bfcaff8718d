"""What accelerators can do at most, and what this machine's own processor reaches."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch

from armd.errors import UserError

CLEARLY = 1.2
"""Times the speed of float32 from which bfloat16 is worth its rounding."""


@dataclass(frozen=True)
class Accelerator:
    """One device.

    Attributes:
        name: how it is called.
        bf16: dense bfloat16 operations per second with float32 sums, at most.
        fp32: the same of float32, which is not rounded to TF32: armd never asks for that.
        memory: bytes.
    """

    name: str
    bf16: float
    fp32: float
    memory: float

    def peak(self, precision: str) -> float:
        """Operations per second at most, in the matrix products of a precision: bf16 or fp32."""
        return self.bf16 if precision == "bf16" else self.fp32

    @property
    def faster(self) -> str:
        """What the precision `auto` means here: bf16 where it is clearly faster, or else fp32."""
        return "bf16" if self.bf16 > CLEARLY * self.fp32 else "fp32"


# Dense peaks and memory of the vendor's data sheets, SXM boards (NVIDIA A100, H100 and H200 Tensor Core GPU Datasheet);
# the latter two print 1,979 TFLOP/s with sparsity, twice the dense figure.
GPUS = {
    "a100": Accelerator("NVIDIA A100 SXM 80 GB", 312e12, 19.5e12, 80e9),
    "h100": Accelerator("NVIDIA H100 SXM 80 GB", 989e12, 67e12, 80e9),
    "h200": Accelerator("NVIDIA H200 SXM 141 GB", 989e12, 67e12, 141e9),
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


def peak_of(device: torch.device, precision: str) -> float | None:
    """Operations per second of a device at most, where a data sheet says it; None for all others."""
    if device.type != "cuda":
        return None
    key = DRIVER_NAMES.get(torch.cuda.get_device_name(device))
    return GPUS[key].peak(precision) if key else None


def prefers_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices clearly faster in bfloat16 than in float32: a CPU is timed."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    rounds = [(_seconds(512, 2, torch.bfloat16), _seconds(512, 2, torch.float32)) for _ in range(5)]
    return CLEARLY * min(half for half, _ in rounds) < min(whole for _, whole in rounds)


def this_cpu(size: int = 1024, repeats: int = 8) -> Accelerator:
    """This machine: the fastest of some matrix products of either precision with all threads, and its memory."""
    bf16, fp32 = (2 * size**3 / _seconds(size, repeats, dtype) for dtype in (torch.bfloat16, torch.float32))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    threads = torch.get_num_threads()
    return Accelerator(f"this CPU, {threads} threads, peak measured", bf16, fp32, memory)


def _seconds(size: int, repeats: int, dtype: torch.dtype) -> float:
    a, b = torch.randn(2, size, size).to(dtype)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - began)
    return min(times)
