"""Measuring trained models."""

from armd.evals.likelihood import Score, evaluate, parse_orders
from armd.evals.meter import CANDIDATES, Meter, Offer, choose_streams, read_meter

__all__ = ["CANDIDATES", "Meter", "Offer", "Score", "choose_streams", "evaluate", "parse_orders", "read_meter"]
