"""Measuring trained models."""

from armd.evals.judge import Judge, load_judge, own_judge
from armd.evals.lambada import LastWord, last_words
from armd.evals.likelihood import Score, evaluate, held_out_protocol, parse_orders
from armd.evals.meter import CANDIDATES, Meter, Offer, choose_streams, read_meter
from armd.evals.protocol import Protocol
from armd.evals.quality import Quality, Writing, check_temperatures, frontier, plot, quality_protocol
from armd.evals.zeroshot import PACKINGS, SETS, ZeroShot, pack, read_set, zero_shot, zero_shot_protocol

__all__ = [
    "CANDIDATES",
    "PACKINGS",
    "SETS",
    "Judge",
    "LastWord",
    "Meter",
    "Offer",
    "Protocol",
    "Quality",
    "Score",
    "Writing",
    "ZeroShot",
    "check_temperatures",
    "choose_streams",
    "evaluate",
    "frontier",
    "held_out_protocol",
    "last_words",
    "load_judge",
    "own_judge",
    "pack",
    "parse_orders",
    "plot",
    "quality_protocol",
    "read_meter",
    "read_set",
    "zero_shot",
    "zero_shot_protocol",
]
