"""Words in, lines out: parsing the options of a command, and saying things to people."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

import tyro
from rich.console import Console
from rich.table import Table
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from armd.errors import UserError

T = TypeVar("T")

KINDS = ConstructorRegistry()
"""How options are read that the parser would read otherwise."""


def _pairs(words: list[str]) -> dict[str, float]:
    try:
        return {name: float(share) for name, share in zip(words[::2], words[1::2], strict=True)}
    except ValueError:
        raise ValueError(f"{' '.join(words)!r} must be names with numbers, as in uniform 0.2 infill 0.1") from None


@KINDS.primitive_rule
def _shares(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Mapping[str, float]] | None:
    """Names with numbers are given as a whole, NAME NUMBER NAME NUMBER, so that there can be new names among them."""
    if get_args(info.type) != (str, float):
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME SHARE ...]",
        instance_from_str=_pairs,
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=lambda value: [word for name, share in value.items() for word in (name, f"{share:g}")],
    )


def parse(kind: type[T], argv: Sequence[str], prog: str, default: T | None = None, strict: bool = True) -> T:
    """Parse the options of a command, or without `strict` those among them that belong to `kind`.

    The parser's box of several lines becomes one line.
    """
    shown = io.StringIO()
    extra: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(shown), KINDS:
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
