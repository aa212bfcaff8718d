"""The Sudoku experiment from its data to its tables, on a model too small to solve anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from armd.files import write_json
from armd.reproduce.experiment import Model
from armd.reproduce.experiments import sudoku
from armd.reproduce.study import DONE, Study
from armd.sudoku import GRADES, ORDERS, prepare_grids, random_puzzles, to_text
from armd.train import train


def test_the_experiment_measures_what_its_tables_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_grids(tmp_path / "data", 200)
    puzzles, solutions = random_puzzles(3, "easy", seed=9)
    puzzles[0] = solutions[0]
    puzzles[0, 40] = 0  # one blank, which even this model may get right
    lines = "".join(f"{to_text(p)},{to_text(s)}\n" for p, s in zip(puzzles.tolist(), solutions.tolist(), strict=True))
    (tmp_path / "file.csv").write_text(lines)
    monkeypatch.setattr(sudoku, "PUZZLES", 3)

    def models(setting: object) -> dict[str, Model]:
        (model,) = sudoku.models(setting).values()
        changes = {"hidden_size": 16, "num_attention_heads": 1, "num_hidden_layers": 1, "num_two_stream_layers": 1}
        network = replace(model.config.model, **changes)
        config = replace(model.config, model=network, max_steps=4, eval_every=2, eval_texts=8, batch_size=8)
        return {sudoku.NAME: Model(config)}

    study = Study(replace(sudoku.SUDOKU, models=models), tmp_path, tmp_path / "data", puzzles=tmp_path / "file.csv")
    for run in study.all_runs:
        train(run.config, study.data, run.folder, quiet=True)
        write_json(run.folder / DONE, {})
    section = sudoku.report(study)
    solved, work, published = section.tables
    assert len({len(row) for row in (published.columns, *published.rows)}) == 1
    assert [row[0] for row in solved.rows] == [*GRADES, "file file.csv"]
    assert all(row[3:] == ["0.0 ± 0.0"] * len(ORDERS) for row in solved.rows[:3])
    blanks = 81 - float(solved.rows[0][1])
    passes = {row[0]: float(row[1].split()[0]) for row in work.rows}
    assert abs(passes["margin"] - blanks) < 0.1 and passes["random"] == passes["margin"] > passes["exact"]
    assert section.targets[0].met is False and "random orders" in section.figures[0].svg
    assert all(run.valid["uniform"] > sudoku.FLOOR for run in study.all_runs)
