"""The board: 81 cells in text order, row by row, a digit 1..9 or 0 for a blank. Units, peers, symmetries, files."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from armd.errors import UserError

CELLS = 81
Grid = Sequence[int]

UNITS = tuple(
    tuple(cell for cell in range(CELLS) if of(cell) == i)
    for of in (lambda c: c // 9, lambda c: c % 9, lambda c: c // 27 * 3 + c % 9 // 3)
    for i in range(9)
)
"""The 9 rows, 9 columns and 9 boxes: cells that hold every digit once."""

PEERS = tuple(tuple(sorted({p for unit in UNITS if c in unit for p in unit} - {c})) for c in range(CELLS))
"""The 20 cells that share a unit with each cell."""


def is_solved(grid: Grid) -> bool:
    """Whether every unit holds every digit once."""
    return all({grid[cell] for cell in unit} == set(range(1, 10)) for unit in UNITS)


def parse(text: str) -> tuple[int, ...]:
    """A board of 81 characters; blanks are 0 or a point."""
    cells = text.strip().replace(".", "0")
    if len(cells) != CELLS or not (cells.isascii() and cells.isdigit()):
        raise UserError(f"board {text.strip()[:90]!r} must be 81 digits, 0 or a point for a blank")
    return tuple(map(int, cells))


def to_text(grid: Grid) -> str:
    """The inverse of `parse`."""
    return "".join(map(str, grid))


def symmetric(grids: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A random one of the symmetric forms of each grid; a puzzle stays a puzzle of the same logic.

    Digits are renamed; bands, rows in a band, stacks and columns in a stack change places; the board is transposed or
    not: 9! x 2 x 6^8 forms, 1.2e12.

    Args:
        grids: (n, 81) integers, 0 for blanks, which stay blanks.

    Returns:
        (n, 81), of the same type.
    """
    n = len(grids)
    rows, columns = _line_order(n, random), _line_order(n, random)
    cells = rows[:, :, None] * 9 + columns[:, None, :]
    turned = random.random(n) < 0.5
    cells[turned] = cells[turned].transpose(0, 2, 1)
    names = np.zeros((n, 10), grids.dtype)
    names[:, 1:] = random.random((n, 9)).argsort(axis=1) + 1
    moved = np.take_along_axis(grids, cells.reshape(n, CELLS), axis=1)
    return np.take_along_axis(names, moved.astype(np.intp), axis=1)


def _line_order(n: int, random: np.random.Generator) -> np.ndarray:
    """Orders of 9 lines that keep bands together: (n, 9)."""
    bands, lines = random.random((n, 3, 1)).argsort(axis=1), random.random((n, 3, 3)).argsort(axis=2)
    return (bands * 3 + lines).reshape(n, 9)


# ---- files -----------------------------------------------------------------------------------------------------------


def read_puzzles(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Puzzles and their solutions from a file of lines `puzzle,solution`, which may be compressed as .gz.

    Returns:
        Two (n, 81) uint8 arrays; 0 is a blank.

    Raises:
        UserError: the file is missing, damaged or empty, or a line holds no puzzle with a grid that solves it.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
        lines = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("ascii")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    pairs = list(_pairs(path, lines))
    if not pairs:
        raise UserError(f"{path} holds no puzzle; wanted are lines of puzzle,solution")
    boards = np.array(pairs, np.uint8)
    return boards[:, 0], boards[:, 1]


def _pairs(path: Path, lines: str) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    for number, line in enumerate(csv.reader(io.StringIO(lines)), 1):
        if not line or (number == 1 and line == ["puzzle", "solution"]):
            continue
        try:
            if len(line) != 2:
                raise UserError(f"it has {len(line)} columns, not 2")
            puzzle, solution = map(parse, line)
        except UserError as error:
            raise UserError(f"{path} line {number}: {error}") from None
        if not is_solved(solution) or any(clue not in (0, digit) for clue, digit in zip(puzzle, solution, strict=True)):
            raise UserError(f"{path} line {number}: {line[1]} is no solution of {line[0]}")
        yield puzzle, solution
