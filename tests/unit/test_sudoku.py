"""Sudoku: grids, logic and puzzles against naive twins; grids as training windows; puzzles as templates."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from armd import Armd, ArmdConfig, Order, UserError, loss
from armd.data import TokenDataset, Tokenizer
from armd.sudoku import (
    GRADES,
    ORDERS,
    Solving,
    count_solutions,
    grade,
    is_solved,
    parse,
    prepare_grids,
    random_grids,
    random_puzzles,
    read_puzzles,
    solve,
    symmetric,
    to_text,
)

GRID = random_grids(1, seed=5)[0]
PUZZLES = {name: random_puzzles(6, name, seed=1) for name in GRADES}


# ---- naive twins -----------------------------------------------------------------------------------------------------


def fits(grid: list[int], cell: int) -> list[int]:
    """Digits that no cell of the same row, column or box holds."""
    row, column = divmod(cell, 9)
    near = {
        grid[r * 9 + c]
        for r in range(9)
        for c in range(9)
        if r == row or c == column or (r // 3, c // 3) == (row // 3, column // 3)
    }
    return [digit for digit in range(1, 10) if digit not in near]


def every_solution(grid: list[int]) -> Iterator[list[int]]:
    """All of them, trying every digit that fits the first blank, without any logic."""
    if 0 not in grid:
        yield grid
        return
    cell = grid.index(0)
    for digit in fits(grid, cell):
        yield from every_solution([*grid[:cell], digit, *grid[cell + 1 :]])


def fill_singles(grid: list[int], hidden: bool) -> list[int]:
    """Write what follows from the digits on the board, as by hand, until nothing does."""
    lines = [[(i, j) for j in range(9)] for i in range(9)]
    units = [*lines, *([(j, i) for i, j in line] for line in lines)]
    units += [[(b // 3 * 3 + i, b % 3 * 3 + j) for i in range(3) for j in range(3)] for b in range(9)]
    while True:
        left = {cell: fits(grid, cell) for cell in range(81) if not grid[cell]}
        sure = {cell: digits[0] for cell, digits in left.items() if len(digits) == 1}
        for unit in units if hidden else ():
            for digit in range(1, 10):
                places = [9 * r + c for r, c in unit if digit in left.get(9 * r + c, ())]
                if len(places) == 1:
                    sure[places[0]] = digit
        if not sure:
            return grid
        grid = [sure.get(cell, digit) for cell, digit in enumerate(grid)]


# ---- grids and symmetries --------------------------------------------------------------------------------------------


def test_grids_are_solved_and_seeded() -> None:
    grids = random_grids(20, seed=3, forms=4)
    assert grids.shape == (80, 81) and all(is_solved(grid) for grid in grids.tolist())
    assert len(np.unique(grids, axis=0)) == 80
    assert np.array_equal(grids, random_grids(20, seed=3, forms=4))
    assert not np.array_equal(grids, random_grids(20, seed=4, forms=4))
    spoiled = grids[0].tolist()
    spoiled[0], spoiled[1] = spoiled[1], spoiled[0]
    assert not is_solved(spoiled)


@pytest.mark.parametrize("name", GRADES)
def test_symmetric_forms_are_puzzles_of_the_same_logic(name: str) -> None:
    puzzles, solutions = PUZZLES[name]
    boards = np.stack((puzzles, solutions), axis=1).reshape(-1, 81)
    for seed in range(5):
        forms = symmetric(puzzles.repeat(2, axis=0), np.random.default_rng(seed))
        for before, form in zip(puzzles.repeat(2, axis=0).tolist(), forms.tolist(), strict=True):
            assert form != before and form.count(0) == before.count(0) and grade(form).grade == name
    assert all(is_solved(form) for form in symmetric(boards, np.random.default_rng(0))[1::2].tolist())


def test_symmetric_forms_move_every_cell_everywhere() -> None:
    """Transposition, bands, stacks and lines all take part: a cell meets all places, and new neighbours in its row."""
    board = np.zeros((4000, 81), np.int64)
    board[:, 0], board[:, 1] = 1, 2
    forms = symmetric(board, np.random.default_rng(0))
    first, second = (forms > 0).argsort(axis=1)[:, -2:].T
    assert set(first) | set(second) == set(range(81))
    assert {abs(int(a - b)) for a, b in zip(first, second, strict=True)} == {1, 2, 9, 18}  # in one row, or one column
    assert set(np.unique(forms)) == set(range(10))


def test_boards_are_read_and_written() -> None:
    assert to_text(parse("." * 80 + "7\n")) == "0" * 80 + "7"
    for bad in ("123", "x" * 81, "\u0661" * 81):
        with pytest.raises(UserError, match="81 digits"):
            parse(bad)


# ---- logic -----------------------------------------------------------------------------------------------------------


def test_solutions_are_counted_as_by_trying_everything() -> None:
    random, counts = np.random.default_rng(0), []
    for _ in range(40):
        puzzle = random_grids(1, seed=int(random.integers(1000)))[0].tolist()
        for cell in random.choice(81, size=int(random.integers(40, 52)), replace=False).tolist():
            puzzle[cell] = 0
        counts.append(sum(1 for _ in every_solution(puzzle)))
        assert count_solutions(puzzle, most=10**6) == counts[-1]
        assert count_solutions(puzzle) == min(counts[-1], 2)
        if counts[-1] > 1:
            with pytest.raises(UserError, match="several solutions"):
                grade(puzzle)
    assert 1 in counts and max(counts) > 5
    wrong = GRID.tolist()
    wrong[wrong.index(wrong[0], 1)], wrong[0] = 0, wrong[0] % 9 + 1
    assert count_solutions(wrong) == 0
    with pytest.raises(UserError, match="no solution"):
        grade(wrong)


@pytest.mark.parametrize("name", GRADES)
def test_grades_mean_what_they_say(name: str) -> None:
    for puzzle, solution in zip(*(boards.tolist() for boards in PUZZLES[name]), strict=True):
        by_naked, by_both = fill_singles(puzzle, hidden=False), fill_singles(puzzle, hidden=True)
        assert (by_naked == solution) == (name == "easy")
        assert (by_both == solution) == (name != "hard")
        found = grade(puzzle)
        assert (found.grade, list(found.solution)) == (name, solution) and (found.branches > 0) == (name == "hard")


@pytest.mark.parametrize("name", GRADES)
def test_no_clue_can_be_left_out(name: str) -> None:
    for puzzle in PUZZLES[name][0][:3].tolist():
        for cell in np.flatnonzero(puzzle).tolist():
            less = [*puzzle[:cell], 0, *puzzle[cell + 1 :]]
            if name == "hard":
                assert count_solutions(less) == 2
            else:
                assert 0 in fill_singles(less, hidden=name == "medium")


def test_puzzles_are_seeded() -> None:
    again, other = random_puzzles(3, "medium", seed=1)[0], random_puzzles(3, "medium", seed=2)[0]
    assert np.array_equal(again, PUZZLES["medium"][0][:3]) and not np.array_equal(again, other)
    with pytest.raises(UserError, match="choose one of easy, medium, hard"):
        random_puzzles(1, "evil", seed=0)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_files_of_puzzles(tmp_path: Path) -> None:
    puzzles, solutions = PUZZLES["hard"]
    lines = "".join(f"{to_text(p)},{to_text(s)}\n" for p, s in zip(puzzles.tolist(), solutions.tolist(), strict=True))
    (tmp_path / "a.csv").write_text("puzzle,solution\n" + lines)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(lines.encode()))
    for name in ("a.csv", "a.csv.gz"):
        read = read_puzzles(tmp_path / name)
        assert np.array_equal(read[0], puzzles) and np.array_equal(read[1], solutions)


BAD_FILES = {
    "empty.csv": (b"puzzle,solution\n", "holds no puzzle"),
    "short.csv": (b"123,456\n", "line 1: board '123'"),
    "alone.csv": (b"\n" + b"0" * 81 + b"\n", "line 2: it has 1 columns"),
    "wrong.csv": (b"0" * 81 + b"," + b"1" * 81 + b"\n", "is no solution"),
    "other.csv": (f"{to_text(GRID[::-1])},{to_text(GRID)}\n".encode(), "is no solution"),
    "cut.csv.gz": (gzip.compress(b"0" * 999)[:-9], "cannot be read"),
    "latin.csv": ("é".encode("latin-1"), "cannot be read"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_line(name: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_puzzles(tmp_path / name)
    assert name in str(caught.value) and message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        read_puzzles(tmp_path / "nowhere.csv")


def test_the_puzzles_of_17_clues(shared: Path) -> None:
    puzzles, solutions = read_puzzles(shared / "sudoku" / "sudoku17_solved.csv.gz")
    assert len(puzzles) == 49_151 and ((puzzles > 0).sum(axis=1) == 17).all()
    for puzzle, solution in zip(puzzles[::5000].tolist(), solutions[::5000].tolist(), strict=True):
        assert list(grade(puzzle).solution) == solution


# ---- training data ---------------------------------------------------------------------------------------------------


def test_training_windows_are_grids(tmp_path: Path) -> None:
    prepare_grids(tmp_path / "a", 300, seed=2)
    data = TokenDataset(tmp_path / "a", "train", 81)
    seen = torch.cat([data.batch(step, 50, seed=0) for step in range(12)]) + 1  # two epochs
    assert all(is_solved(grid) for grid in seen.tolist())
    assert len(seen[:300].unique(dim=0)) == len(seen.unique(dim=0)) == 300
    held_out = TokenDataset(tmp_path / "a", "valid", 81)
    others = held_out.eval_batch(0, held_out.eval_windows()) + 1
    assert len(others) == 1000 and len(torch.cat((seen[:300], others)).unique(dim=0)) == 1300
    tokenizer = Tokenizer.load(tmp_path / "a" / "tokenizer.json")
    assert tokenizer.decode((seen[0] - 1).tolist()) == to_text(seen[0].tolist()) and tokenizer.eos_id is None
    again = prepare_grids(tmp_path / "b", 300, seed=2)
    assert again.digest != prepare_grids(tmp_path / "c", 300, seed=3).digest
    assert (tmp_path / "a" / "manifest.json").read_text() == (tmp_path / "b" / "manifest.json").read_text()
    with pytest.raises(UserError, match="count=0"):
        prepare_grids(tmp_path / "d", 0)


def test_no_two_splits_are_forms_of_the_same_grids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def watch(count: int, seed: int, forms: int) -> np.ndarray:
        used.append(seed)
        return random_grids(count, seed, forms)

    monkeypatch.setattr("armd.sudoku.data.random_grids", watch)
    for seed in range(3):
        prepare_grids(tmp_path / str(seed), 50, seed)
    assert len(used) == len(set(used)) == 6


# ---- solving ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def knower() -> Armd:
    """A model that knows one grid by heart, in any order."""
    torch.manual_seed(0)
    model = Armd(ArmdConfig(9, 32, 1, 1, 2, max_position_embeddings=81, kernel_width=81))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens = torch.tensor(GRID.astype(np.int64) - 1).expand(8, -1)
    for step in range(150):
        order = Order.uniform(8, 81, generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        value = loss(model, tokens, order)
        value.backward()
        optimiser.step()
    assert value < 0.01
    return model.eval()


@pytest.mark.parametrize("order", ORDERS)
def test_a_model_that_knows_the_grid_solves_it(knower: Armd, order: str) -> None:
    random = np.random.default_rng(0)
    puzzles = np.where(random.random((7, 81)) < np.linspace(0.1, 0.9, 7)[:, None], GRID, 0).astype(np.uint8)
    puzzles[3] = 0
    solving = solve(knower, puzzles, order, at_once=3)
    assert solving.solved(np.tile(GRID, (7, 1))).all()
    blanks = (puzzles == 0).sum(axis=1)
    assert ((solving.steps > 0) == (puzzles == 0)).all() and solving.seconds > 0
    if order == "exact":
        assert (solving.passes < blanks).all()
    else:
        assert (solving.passes == blanks).all()
        assert all(sorted(row[row > 0]) == list(range(min(row[row > 0]), max(row) + 1)) for row in solving.steps)
    in_text_order = all((np.diff(row[row > 0]) > 0).all() for row in solving.steps)
    assert in_text_order == (order == "left_to_right")
    for alone in (0, 6):
        assert (solve(knower, puzzles[[alone]], order).boards == solving.boards[alone]).all()


def test_clues_stay_and_a_board_counts_only_whole(knower: Armd) -> None:
    puzzle = np.zeros((1, 81), np.uint8)
    puzzle[0, 40] = GRID[40] % 9 + 1  # not the digit the model knows
    board = solve(knower, puzzle, "margin").boards
    assert board[0, 40] == puzzle[0, 40]
    near = np.tile(GRID, (3, 1))
    near[1, 80] = GRID[80] % 9 + 1
    assert Solving(near, near, near[0], 0.0).solved(np.tile(GRID, (3, 1))).tolist() == [True, False, True]


def test_impossible_requests_are_one_line(knower: Armd) -> None:
    for arguments, message in [
        ((GRID[None] * 0, "best"), "choose one of left_to_right"),
        ((GRID[None], "margin"), "blanks among them"),
        ((GRID * 0, "margin"), r"\(n, 81\)"),
    ]:
        with pytest.raises(UserError, match=message):
            solve(knower, *arguments)
    with pytest.raises(UserError, match="at_once=0"):
        solve(knower, GRID[None] * 0, at_once=0)
    with pytest.raises(UserError, match="vocab_size=11"):
        solve(Armd(ArmdConfig(11, max_position_embeddings=81)), GRID[None] * 0)
