"""Auto-Regressive Masked Diffusion (arXiv 2601.16971): train, score and write text in any order."""

from armd.adaptive import Adaptive, generate_adaptive
from armd.baselines import (
    Autoregressive,
    BlockDiffusion,
    MaskedDiffusion,
    PrefixAutoregressive,
    PrefixMaskedDiffusion,
    denoise,
)
from armd.checkpoint import load, save
from armd.decode import Generation, collect, generate, stream
from armd.errors import UserError
from armd.families import Family, OrderSchedule
from armd.infill import Filling, fill
from armd.model import Armd, ArmdConfig
from armd.objective import any_order_nll, loss, nll
from armd.orders import Order
from armd.precision import cast
from armd.request import Request, make_request
from armd.writer import Event

__version__ = "0.1.0"

__all__ = [
    "Adaptive",
    "Armd",
    "ArmdConfig",
    "Autoregressive",
    "BlockDiffusion",
    "Event",
    "Family",
    "Filling",
    "Generation",
    "MaskedDiffusion",
    "Order",
    "OrderSchedule",
    "PrefixAutoregressive",
    "PrefixMaskedDiffusion",
    "Request",
    "UserError",
    "any_order_nll",
    "cast",
    "collect",
    "denoise",
    "fill",
    "generate",
    "generate_adaptive",
    "load",
    "loss",
    "make_request",
    "nll",
    "save",
    "stream",
]
