"""What a run tells: metrics.jsonl for programs, one live line for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from armd.errors import UserError


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; a last line cut off by a crash is left out."""
    records = []
    path = run / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class Log:
    """Appends records to metrics.jsonl and shows progress on standard error."""

    def __init__(self, run: Path, start: int, max_steps: int, quiet: bool = False) -> None:
        kept = [record for record in read_metrics(run) if record["step"] <= start]
        try:
            self._file = (run / "metrics.jsonl").open("w")
        except OSError as error:
            raise UserError(f"cannot write {run / 'metrics.jsonl'}: {error}") from error
        self._write(kept)
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
        self._file.close()

    def step(self, step: int, note: str) -> None:
        """Move the live line."""
        self._bar.update(self._task, completed=step, note=note)

    def record(self, **values: Any) -> None:
        """Append one record to metrics.jsonl."""
        self._write([values])

    def say(self, text: str) -> None:
        """A line for people that stays."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _write(self, records: Iterable[dict[str, Any]]) -> None:
        try:
            self._file.writelines(json.dumps(record) + "\n" for record in records)
            self._file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self._file.name}: {error}") from error
