"""Baselines on the same layers and with the same call signature, their losses and their sampler."""

from armd.baselines.autoregressive import Autoregressive, PrefixAutoregressive
from armd.baselines.block_diffusion import BlockDiffusion
from armd.baselines.denoiser import Bound, Denoiser, bound, estimate_bound
from armd.baselines.losses import Draw, nats, training_loss
from armd.baselines.masked_diffusion import MaskedDiffusion, PrefixMaskedDiffusion
from armd.baselines.sampler import SCHEDULES, denoise, denoising

__all__ = [
    "SCHEDULES",
    "Autoregressive",
    "BlockDiffusion",
    "Bound",
    "Denoiser",
    "Draw",
    "MaskedDiffusion",
    "PrefixAutoregressive",
    "PrefixMaskedDiffusion",
    "bound",
    "denoise",
    "denoising",
    "estimate_bound",
    "nats",
    "training_loss",
]
