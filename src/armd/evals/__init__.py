"""Measuring trained models. `docs/evaluation.md` says what each number means."""

from armd.evals.humaneval import Code, infill_code, read_problems
from armd.evals.judge import Judge, judge_name, load_judge, own_judge
from armd.evals.lambada import LastWord, last_words
from armd.evals.likelihood import Score, draws_of, evaluate, held_out_protocol, parse_orders
from armd.evals.mauve import Human, check_mauve, held_out_texts
from armd.evals.meter import CANDIDATES, Meter, Offer, choose_streams, read_meter
from armd.evals.protocol import Protocol
from armd.evals.quality import (
    Judged,
    Quality,
    Writing,
    check_temperatures,
    frontier,
    judge_texts,
    plot,
    quality_protocol,
    write_and_judge,
)
from armd.evals.sandbox import Limits
from armd.evals.stories import Stories, check_missing, infill_stories, read_stories
from armd.evals.zeroshot import PACKINGS, SETS, ZeroShot, pack, read_set, zero_shot, zero_shot_protocol

__all__ = [
    "CANDIDATES",
    "PACKINGS",
    "SETS",
    "Code",
    "Human",
    "Judge",
    "Judged",
    "LastWord",
    "Limits",
    "Meter",
    "Offer",
    "Protocol",
    "Quality",
    "Score",
    "Stories",
    "Writing",
    "ZeroShot",
    "check_mauve",
    "check_missing",
    "check_temperatures",
    "choose_streams",
    "draws_of",
    "evaluate",
    "frontier",
    "held_out_protocol",
    "held_out_texts",
    "infill_code",
    "infill_stories",
    "judge_name",
    "judge_texts",
    "last_words",
    "load_judge",
    "own_judge",
    "pack",
    "parse_orders",
    "plot",
    "quality_protocol",
    "read_meter",
    "read_problems",
    "read_set",
    "read_stories",
    "write_and_judge",
    "zero_shot",
    "zero_shot_protocol",
]
