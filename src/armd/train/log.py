"""What a run tells: metrics.jsonl for programs, one live line for people."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from armd.errors import UserError
from armd.fields import is_integer, is_number
from armd.files import json_text, write_atomically
from armd.train.board import Board


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; a last line cut off by a crash is left out."""
    path, records = run / "metrics.jsonl", []
    try:
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        for line in lines[:-1]:  # after the last line end: nothing, or a line cut off
            record = json.loads(line)
            if not isinstance(record, dict) or not is_integer(record.get("step")):
                raise ValueError("no record of a step")
            if not all(isinstance(record.get(name, {}), dict) for name in ("losses", "valid")):
                raise ValueError("losses and valid must name order families")
            records.append(record)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} line {len(records) + 1} is damaged: {error}; mend or delete the line") from None
    return records


class Log:
    """Appends records to metrics.jsonl, and to TensorBoard if asked, and shows progress on standard error.

    Attributes:
        seconds: of the run so far, as its records have it.
    """

    def __init__(self, run: Path, start: int, max_steps: int, quiet: bool = False, tensorboard: bool = False) -> None:
        path = run / "metrics.jsonl"
        records = [record for record in read_metrics(run) if record["step"] <= start]
        self.seconds: float = max((r["seconds"] for r in records if is_number(r.get("seconds"))), default=0.0)
        kept = "".join(json_text(record) + "\n" for record in records)
        write_atomically(path, lambda file: file.write_text(kept))
        try:
            self._file = path.open("a")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error}") from error
        self._board = Board(run, start) if tensorboard else None
        self.console = Console(file=sys.stderr, quiet=quiet)
        self._bar = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=max_steps, completed=start, note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        with contextlib.suppress(OSError):  # every record was flushed, or its failure reported
            self._file.close()
        if self._board:
            self._board.close()

    def step(self, step: int, note: str) -> None:
        """Move the live line."""
        self._bar.update(self._task, completed=step, note=note)

    def record(self, **values: Any) -> None:
        """Append one record, that of a step or of a validation."""
        try:
            self._file.write(json_text(values) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self._file.name}: {error}") from error
        if self._board:
            self._board.record(values)

    def say(self, text: str) -> None:
        """A line for people that stays; a run outlives those who read it."""
        try:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)
        except (OSError, SystemExit):  # rich would leave the program at a broken pipe
            self.console.quiet = True


class Silence:
    """Stands for the log in all processes of a run but the first."""

    seconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def step(self, step: int, note: str) -> None:
        pass

    def record(self, **values: Any) -> None:
        pass

    def say(self, text: str) -> None:
        pass
