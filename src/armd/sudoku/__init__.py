"""Sudoku: a network trained on solved grids in every order solves puzzles, which are templates to it."""

from armd.sudoku.data import prepare_grids
from armd.sudoku.grids import is_solved, parse, read_puzzles, symmetric, to_text
from armd.sudoku.logic import GRADES, Grading, count_solutions, grade
from armd.sudoku.puzzles import random_grids, random_puzzles
from armd.sudoku.solve import ORDERS, Solving, solve

__all__ = [
    "GRADES",
    "ORDERS",
    "Grading",
    "Solving",
    "count_solutions",
    "grade",
    "is_solved",
    "parse",
    "prepare_grids",
    "random_grids",
    "random_puzzles",
    "read_puzzles",
    "solve",
    "symmetric",
    "to_text",
]
