"""Fields of a config hold what their annotations say: a config may come from a file or a hand-written script."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from armd.errors import UserError


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Finite; a whole number will do for a real one."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _tuple_of(fits: Callable[[Any], bool], size: int | None = None) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple) and len(value) == (size or len(value)) and all(map(fits, value))


# annotation -> (what a message calls it, whether a value fits). Annotations that are not here are not checked.
KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("an integer", is_integer),
    "int | None": ("an integer or none", lambda value: value is None or is_integer(value)),
    "float": ("a finite number", is_number),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "str": ("a string", lambda value: isinstance(value, str)),
    "tuple[int, ...]": ("a tuple of integers", _tuple_of(is_integer)),
    "tuple[str, ...]": ("a tuple of strings", _tuple_of(lambda value: isinstance(value, str))),
    "tuple[float, float]": ("two finite numbers", _tuple_of(is_number, 2)),
}


def check_types(config: Any, prefix: str = "") -> None:
    """Compare every field of a dataclass with its annotation.

    Raises:
        UserError: the first field that does not fit, with `prefix` before its name.
    """
    for field in dataclasses.fields(config):
        kind, value = KINDS.get(str(field.type)), getattr(config, field.name)
        if kind is not None and not kind[1](value):
            raise UserError(f"{prefix}{field.name}={value!r} must be {kind[0]}")
