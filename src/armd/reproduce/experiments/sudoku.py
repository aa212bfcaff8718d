"""Sudoku: a network trained on solved grids in every order solves puzzles; the order it writes in decides how many."""

from __future__ import annotations

import hashlib
import math
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from armd.families import OrderSchedule
from armd.model import Armd, ArmdConfig
from armd.reproduce.experiment import Experiment, Figure, Model, Section, Setting, Table, Target
from armd.reproduce.measures import mean_curve, svg
from armd.reproduce.page import spread
from armd.reproduce.paper import SUDOKU as PUBLISHED
from armd.reproduce.study import Run, Study
from armd.sudoku import GRADES, ORDERS, grade, prepare_grids, random_puzzles, read_puzzles, solve
from armd.train import OptimConfig, TrainConfig

NAME = "Sudoku"
TRAIN_GRIDS = 200_000
PUZZLES = 200
TEST_SEED = 1
TARGET, TARGET_SHARE = "easy", 0.85
FLOOR = math.log(6_670_903_752_021_072_936_960) / 81
"""Nats per cell of a random grid: the logarithm of their number (Felgenhauer and Jarvis, 2005)."""
TURN_A_ROW = (9 / (2 * math.pi)) ** 8
"""Rotary base with which the second frequency of heads of 16 turns once in 9 cells: equal in a column."""


def models(setting: Setting) -> dict[str, Model]:
    """One model, the same at both scales."""
    network = ArmdConfig(
        vocab_size=setting.vocab_size,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=6,
        max_position_embeddings=81,
        query="position",
        qk_norm=True,
        rope_theta=TURN_A_ROW,
        learned_positions=True,
    )
    config = TrainConfig(
        network,
        orders=OrderSchedule(floors={"uniform": 1.0}),
        optim=OptimConfig(name="muon", lr=4e-3, warmup_steps=50, schedule="wsd"),
        weighting="late",
        precision="fp32",
        batch_size=16,
        max_steps=12_000,
        eval_every=1000,
        eval_texts=128,
        eval_orders=("uniform", "left_to_right"),
        save_every=1000,
        keep_last=1,
    )
    return {NAME: Model(config)}


# ---- measures --------------------------------------------------------------------------------------------------------


def solving(study: Study, run: Run, *, kind: str, content: str, order: str, puzzles: int) -> dict[str, Any]:
    """Share of the puzzles of a kind solved in all cells, passes and seconds of a puzzle, 64 at once."""
    model, _ = run.load()
    assert isinstance(model, Armd)
    boards, solutions = held_out_puzzles(kind, study.puzzles if content else None, puzzles)
    found = solve(model, boards, order)
    return {
        "solved": float(found.solved(solutions).mean()),
        "passes": float(found.passes.mean()),
        "seconds": found.seconds / len(boards),
    }


def difficulty(study: Study, run: Run, *, kind: str, content: str, puzzles: int) -> dict[str, float]:
    """Mean clues of a kind of puzzles, and the branches that a solver by logic takes."""
    boards, _ = held_out_puzzles(kind, study.puzzles if content else None, puzzles)
    branches = [grade(board).branches for board in boards.tolist()]
    return {"clues": float((boards > 0).sum(axis=1).mean()), "branches": float(np.mean(branches))}


@cache
def held_out_puzzles(kind: str, file: Path | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Puzzles of a grade, or some of a file, and their solutions."""
    if file is None:
        return random_puzzles(count, kind, TEST_SEED)
    boards, solutions = read_puzzles(file)
    chosen = np.linspace(0, len(boards) - 1, min(count, len(boards))).astype(int)
    return boards[chosen], solutions[chosen]


# ---- report ----------------------------------------------------------------------------------------------------------


def report(study: Study) -> Section:
    kinds = dict.fromkeys(GRADES, "")  # kind of puzzles -> hash of the file that they are from
    if study.puzzles:
        kinds[f"file {study.puzzles.name}"] = hashlib.sha256(study.puzzles.read_bytes()).hexdigest()
    found = {
        (kind, order): study.values(NAME, solving, kind=kind, content=content, order=order, puzzles=PUZZLES)
        for kind, content in kinds.items()
        for order in ORDERS
    }
    rows = []
    for kind, content in kinds.items():
        made = study.values(NAME, difficulty, kind=kind, content=content, puzzles=PUZZLES)[:1]  # the same for all seeds
        cells = [spread([m[what] for m in made], ".1f") for what in ("clues", "branches")]
        rows.append([kind, *cells, *(spread([100 * f["solved"] for f in found[kind, o]], ".1f") for o in ORDERS)])
    notes = (
        f"per cent of {PUZZLES} puzzles of each kind whose 81 cells are all right, greedy, no cell taken back; trained "
        "on solved grids only, made from other seeds than the puzzles; easy: naked singles solve it; medium: naked and "
        "hidden singles do; hard: neither; branches: candidates that a solver by singles has to try",
    )
    speed = [
        [order, *(spread([scale * f[what] for f in found[TARGET, order]], ".1f") for what, scale in SPEED)]
        for order in ORDERS
    ]
    work = f"{TARGET} puzzles, 64 at once; with --jobs the seeds share the machine"
    tables = [
        Table("Puzzles solved", ("puzzles", "clues", "branches", *ORDERS), rows, notes),
        Table("Work", ("order", "passes a puzzle", "ms a puzzle"), speed, (work,)),
        Table(
            "Published (Kim et al., 2025): per cent solved",
            ("model", "their puzzles", "their hard ones"),
            [[name, *cells] for name, cells in PUBLISHED.items()],
            ("other puzzles and other training than ours: no comparison, only where the field stands",),
        ),
    ]
    shares = [f["solved"] for f in found[TARGET, "margin"]]
    claim = f"margin solves at least {TARGET_SHARE:.0%} of {TARGET} puzzles, the mean over the seeds"
    told = f"{spread([100 * share for share in shares], '.1f')}%"
    reached = fmean(shares) >= TARGET_SHARE if len(shares) == len(study.seeds) else None
    return Section("", tables, [_learning(study)], [Target(claim, told, reached)])


SPEED = (("passes", 1.0), ("seconds", 1000.0))


def _learning(study: Study) -> Figure:
    curve = mean_curve(study, NAME, "uniform")
    floor = [(tokens, FLOOR) for tokens, _ in curve]
    title = "Held-out loss of solved grids"
    drawn = svg(title, {"random orders": curve, "number of grids": floor}, ("million tokens", "nats/cell"))
    return Figure(title, drawn, "in random orders, beside the least that any model can have in any order")


SUDOKU = Experiment(
    "sudoku",
    "Sudoku: the order decides",
    "A network that knows each cell given any set of others has learned the rules. How many puzzles does it solve, by "
    "difficulty and by the order in which it fills the blanks?",
    models,
    report,
    partial(prepare_grids, count=TRAIN_GRIDS),
)
