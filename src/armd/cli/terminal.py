"""Words in, lines out: parsing the options of a command, and saying things to people."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro
from rich.console import Console
from rich.table import Table

from armd.errors import UserError

T = TypeVar("T")


def parse(kind: type[T], argv: Sequence[str], prog: str, default: T | None = None, strict: bool = True) -> T:
    """Parse the options of a command, or without `strict` those among them that belong to `kind`.

    The parser's box of several lines becomes one line.
    """
    shown = io.StringIO()
    extra: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(shown):
            result, unknown = tyro.cli(kind, args=list(argv), prog=prog, return_unknown_args=True, **extra)
    except SystemExit as stop:
        if stop.code:
            raise UserError(f"{prog}: {_one_line(shown.getvalue())}; see {prog} --help") from None
        raise
    if strict and unknown:
        raise UserError(f"{prog}: unknown option {' '.join(unknown)}; see {prog} --help")
    return result


def _one_line(box: str) -> str:
    """The message of the parser's error box: title, a rule in ASCII only, message, rule, advice."""
    lines = [line.strip("│| ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()[1:]]
    message: list[str] = []
    for line in lines:
        if line.strip("─-╰╯"):
            message.append(line)
        elif message:
            break
    return " ".join(message)


def show(table: Table, *notes: str) -> None:
    """A table on standard output, and lines under it, which are not cut where there is no terminal."""
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    for note in notes:
        print(note)


def say(text: str) -> None:
    """A line for people, on standard error."""
    print(text, file=sys.stderr, flush=True)
