"""Baselines on the same layers and with the same call signature, their losses and samplers."""

from armd.baselines.autoregressive import Autoregressive, PrefixAutoregressive
from armd.baselines.block_diffusion import BlockDiffusion, block_denoising, sample_block_diffusion
from armd.baselines.denoiser import Bound, Denoiser, Sample, bound, estimate_bound
from armd.baselines.losses import Draw, nats, training_loss
from armd.baselines.masked_diffusion import MaskedDiffusion, denoising, sample_masked_diffusion

__all__ = [
    "Autoregressive",
    "BlockDiffusion",
    "Bound",
    "Denoiser",
    "Draw",
    "MaskedDiffusion",
    "PrefixAutoregressive",
    "Sample",
    "block_denoising",
    "bound",
    "denoising",
    "estimate_bound",
    "nats",
    "sample_block_diffusion",
    "sample_masked_diffusion",
    "training_loss",
]
