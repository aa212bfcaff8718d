"""What logic solves a puzzle: candidates of a cell are a bit mask, bit d - 1 for digit d.

naked single    a cell with one candidate left: that digit leaves its 20 peers
hidden single   a digit with one cell left in a unit: that cell holds it
branching       try the candidates of a cell with the fewest, which also counts the solutions
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from armd.errors import UserError
from armd.sudoku.grids import CELLS, PEERS, UNITS, Grid

ALL = 2**9 - 1
GRADES = ("easy", "medium", "hard")
"""Solved by naked singles; by naked and hidden singles; by nothing less than branching."""

Masks = list[int]


@dataclass(frozen=True)
class Grading:
    """The grade of a puzzle, its one solution, and the branches that a proof of both takes: 0 unless it is hard."""

    grade: str
    solution: tuple[int, ...]
    branches: int


def naked_singles(masks: Masks, fixed: list[int]) -> bool:
    """Follow naked singles from the cells in `fixed` to their end, in place; whether each cell has a candidate left."""
    while fixed:
        cell = fixed.pop()
        bit = masks[cell]
        for peer in PEERS[cell]:
            left = masks[peer] & ~bit
            if left != masks[peer]:
                if not left:
                    return False
                masks[peer] = left
                if not left & (left - 1):
                    fixed.append(peer)
    return True


def hidden_singles(masks: Masks, unit: tuple[int, ...], fixed: list[int]) -> bool:
    """Fix, in place, the digits with one cell left in a unit; whether each digit has a cell, and of its own."""
    once = twice = 0
    for cell in unit:
        twice |= once & masks[cell]
        once |= masks[cell]
    if once != ALL:
        return False
    alone = once & ~twice
    for cell in unit:
        here = masks[cell] & alone
        if here & (here - 1):
            return False
        if here and here != masks[cell]:
            masks[cell] = here
            fixed.append(cell)
    return True


def singles(masks: Masks, fixed: list[int]) -> bool:
    """Follow naked and hidden singles to their end, in place; whether each cell and each digit has a place left."""
    while naked_singles(masks, fixed):
        for unit in UNITS:
            if not hidden_singles(masks, unit, fixed):
                return False
            if fixed:
                break
        else:
            return True
    return False


LOGICS = {"easy": naked_singles, "medium": singles}
"""What may be used up to a grade; hard is the rest."""


def start(puzzle: Grid) -> tuple[Masks, list[int]]:
    """Candidates before any logic, and the cells that hold clues."""
    return [1 << digit - 1 if digit else ALL for digit in puzzle], [c for c, digit in enumerate(puzzle) if digit]


def solves(puzzle: Grid, grade: str) -> bool:
    """Whether the logic of `easy` or `medium` alone solves a puzzle, and so proves that it has one solution."""
    masks, fixed = start(puzzle)
    return LOGICS[grade](masks, fixed) and is_finished(masks)


def is_finished(masks: Masks) -> bool:
    return all(not mask & (mask - 1) for mask in masks)


def digits(masks: Masks) -> tuple[int, ...]:
    """The grid of finished masks."""
    return tuple(mask.bit_length() for mask in masks)


class Search:
    """All solutions of a puzzle, one after another; `branches` counts the candidates tried so far.

    Args:
        random: try the candidates of a cell in random order instead of from 1 to 9.
    """

    def __init__(self, random: np.random.Generator | None = None) -> None:
        self.branches, self._random = 0, random

    def solutions(self, masks: Masks, fixed: list[int]) -> Iterator[tuple[int, ...]]:
        if not singles(masks, fixed):
            return
        open_cells = [cell for cell in range(CELLS) if masks[cell] & (masks[cell] - 1)]
        if not open_cells:
            yield digits(masks)
            return
        cell = min(open_cells, key=lambda cell: masks[cell].bit_count())
        tries = [1 << i for i in range(9) if masks[cell] >> i & 1]
        if self._random is not None:
            self._random.shuffle(tries)
        for bit in tries:
            self.branches += 1
            branch = masks.copy()
            branch[cell] = bit
            yield from self.solutions(branch, [cell])


def count_solutions(puzzle: Grid, most: int = 2) -> int:
    """The number of solutions of a puzzle, counted up to `most`."""
    return len(list(islice(Search().solutions(*start(puzzle)), most)))


def grade(puzzle: Grid) -> Grading:
    """The grade of a puzzle.

    Raises:
        UserError: it has no solution, or several.
    """
    search = Search()
    found = list(islice(search.solutions(*start(puzzle)), 2))
    if len(found) != 1:
        raise UserError(f"puzzle {''.join(map(str, puzzle))} has {'no solution' if not found else 'several solutions'}")
    name = next((name for name in LOGICS if solves(puzzle, name)), "hard")
    return Grading(name, found[0], search.branches)
