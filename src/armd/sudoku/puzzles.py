"""Grids and puzzles made here, all of them functions of a seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from armd.errors import UserError
from armd.sudoku.grids import CELLS, Grid, symmetric
from armd.sudoku.logic import ALL, GRADES, Search, count_solutions, grade, solves


def random_grids(count: int, seed: int, forms: int = 1) -> np.ndarray:
    """Solved grids: every cell filled with a random candidate, the one with the fewest first.

    That is not quite the uniform law over all grids, but reaches each of them.

    Args:
        count: number of grids made this way.
        forms: number of symmetric forms that stand for each, which is much faster than as many grids.

    Returns:
        (count * forms, 81) uint8.
    """
    random = np.random.default_rng([seed, 0])
    made = np.array([_random_grid(random) for _ in range(count)], np.uint8)
    return symmetric(made.repeat(forms, axis=0), random)


def _random_grid(random: np.random.Generator) -> tuple[int, ...]:
    return next(Search(random).solutions([ALL] * CELLS, []))


def random_puzzles(count: int, grade: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Puzzles of one grade, and their solutions: two (count, 81) uint8 arrays; 0 is a blank.

    Clues are taken from a solved grid, in random order, each unless the puzzle would then need more than its grade
    allows or have several solutions. So no clue can be left out: these are the hardest puzzles of their grade.
    """
    if grade not in GRADES:
        raise UserError(f"grade={grade!r} is unknown; choose one of {', '.join(GRADES)}")
    random = np.random.default_rng([seed, 1 + GRADES.index(grade)])
    pairs = [_random_puzzle(grade, random) for _ in range(count)]
    boards = np.array(pairs, np.uint8).reshape(count, 2, CELLS)
    return boards[:, 0], boards[:, 1]


def _random_puzzle(wanted: str, random: np.random.Generator) -> tuple[list[int], tuple[int, ...]]:
    while True:
        solution = _random_grid(random)
        puzzle = dig(solution, is_unique if wanted == "hard" else lambda p: solves(p, wanted), random)
        if grade(puzzle).grade == wanted:
            return puzzle, solution


def dig(solution: Grid, allowed: Callable[[Grid], bool], random: np.random.Generator) -> list[int]:
    """Take away clues in random order, each unless what is left is not `allowed`."""
    puzzle = list(solution)
    for cell in random.permutation(CELLS).tolist():
        clue, puzzle[cell] = puzzle[cell], 0
        if not allowed(puzzle):
            puzzle[cell] = clue
    return puzzle


def is_unique(puzzle: Grid) -> bool:
    """Whether a puzzle has exactly one solution."""
    return count_solutions(puzzle) == 1
