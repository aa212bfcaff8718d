"""Measuring trained models."""

from armd.evals.lambada import LastWord, last_words
from armd.evals.likelihood import Score, evaluate, held_out_protocol, parse_orders
from armd.evals.meter import CANDIDATES, Meter, Offer, choose_streams, read_meter
from armd.evals.protocol import Protocol
from armd.evals.zeroshot import PACKINGS, SETS, ZeroShot, pack, read_set, zero_shot, zero_shot_protocol

__all__ = [
    "CANDIDATES",
    "PACKINGS",
    "SETS",
    "LastWord",
    "Meter",
    "Offer",
    "Protocol",
    "Score",
    "ZeroShot",
    "choose_streams",
    "evaluate",
    "held_out_protocol",
    "last_words",
    "pack",
    "parse_orders",
    "read_meter",
    "read_set",
    "zero_shot",
    "zero_shot_protocol",
]
