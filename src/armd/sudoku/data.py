"""Solved grids as a folder that `armd train` reads: a grid is a document of 81 digits, and a training window.

Only solved grids are trained on, in every order. A network that knows each cell given any set of other cells needs no
puzzles: at solving time the clues are evidence and the blanks are holes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from armd.data import Document, Manifest, prepare
from armd.errors import UserError
from armd.sudoku.grids import to_text
from armd.sudoku.puzzles import random_grids

TOKENIZER = "chars:123456789"
FORMS = 50
"""Symmetric forms that stand for a grid that was searched for."""
HELD_OUT = 1000


def prepare_grids(out: str | Path, count: int, seed: int = 0) -> Manifest:
    """Write solved grids for training, and 1,000 others to validate on, into a new folder.

    Args:
        count: grids to train on; thousands are made a second.
        seed: both splits depend on it and on nothing else.

    Raises:
        UserError: as of `armd.data.prepare`.
    """
    if count < 1:
        raise UserError(f"count={count} must be at least 1 grid")

    def documents(number: int, seed: int) -> Iterator[Document]:
        grids = random_grids(-(-number // FORMS), seed, FORMS)[:number]
        for i, grid in enumerate(grids.tolist()):
            yield Document(f"grid {i}", to_text(grid))

    train, valid = (lambda: documents(count, 2 * seed)), (lambda: documents(HELD_OUT, 2 * seed + 1))
    return prepare(train, TOKENIZER, out, valid=valid)


def to_tokens(boards: np.ndarray) -> Int[Tensor, "B N"]:
    """Boards as token ids: digit d is token d - 1, so a blank is -1, the mark of a hole."""
    return torch.from_numpy(boards.astype(np.int64) - 1)
