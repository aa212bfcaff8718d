"""Auto-Regressive Masked Diffusion (arXiv 2601.16971): train, score and write text in any order."""

from armd.baselines import Autoregressive, MaskedDiffusion, sample_masked_diffusion
from armd.checkpoint import load, save
from armd.decode import Generation, collect, generate, stream
from armd.errors import UserError
from armd.model import Armd, ArmdConfig
from armd.objective import any_order_nll, loss, nll
from armd.orders import Family, Order, OrderSchedule
from armd.request import Request, make_request
from armd.writer import Event

__version__ = "0.1.0"

__all__ = [
    "Armd",
    "ArmdConfig",
    "Autoregressive",
    "Event",
    "Family",
    "Generation",
    "MaskedDiffusion",
    "Order",
    "OrderSchedule",
    "Request",
    "UserError",
    "any_order_nll",
    "collect",
    "generate",
    "load",
    "loss",
    "make_request",
    "nll",
    "sample_masked_diffusion",
    "save",
    "stream",
]
