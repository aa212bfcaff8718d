"""Functions of the user's own, by name: `path/to/file.py:function` or `package.module:function`.

Orders, schedules and weights plug in so. Their code is run as it is; what goes wrong in it is said in one line that
names the function.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from armd.errors import UserError

SPELLING = re.compile(r"(?P<source>.+\.py|[^\W\d][\w.]*):(?P<function>[^\W\d]\w*)(:(?P<argument>.*))?")
SPELLED = "file.py:function or package.module:function"


def split(text: str) -> tuple[str, str | None] | None:
    """Name and argument of `source:function` or `source:function:argument`; None if it is not spelled so."""
    found = SPELLING.fullmatch(text)
    return (f"{found['source']}:{found['function']}", found["argument"]) if found else None


def is_name(text: str) -> bool:
    """Whether this is how a function is named; it need not exist."""
    return split(text) == (text, None)


def load(name: str) -> Callable[..., Any]:
    """The function of a name.

    Raises:
        UserError: its file or module is missing or cannot be run, it has no such function, or that is not callable.
    """
    (module, _), attribute = _module(name), name.rpartition(":")[2]
    if not hasattr(module, attribute):
        raise UserError(f"{name}: {module.__file__} has no function {attribute}")
    function = getattr(module, attribute)
    if not callable(function):
        raise UserError(f"{name}: {attribute} is a {type(function).__name__}, which cannot be called")
    return function


def call(name: str, *arguments: object) -> Any:
    """What the function of a name returns; whatever it raises becomes a UserError that says where."""
    function = load(name)
    try:
        return function(*arguments)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except Exception as error:
        raise UserError(f"{name} failed: {_in_words(error)}") from error


def digest(name: str) -> str:
    """SHA-256 of the text, as it was loaded, that the function of a name stands in."""
    return _module(name)[1]


def _module(name: str) -> tuple[ModuleType, str]:
    source = name.rpartition(":")[0]
    path = Path(source).resolve() if source.endswith(".py") else None
    try:
        return _run(path) if path else _import(source)
    except (Exception, SystemExit) as error:
        if path and not path.is_file():
            raise UserError(f"{name}: there is no file {path}") from None
        raise UserError(f"{name} cannot be loaded: {_in_words(error)}") from error


@cache
def _run(path: Path) -> tuple[ModuleType, str]:
    """A file as a module, and its digest; run once, so that a process never changes its functions on the way."""
    text = path.read_bytes()
    module = ModuleType(f"armd_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(text, str(path), "exec"), module.__dict__)
    return module, hashlib.sha256(text).hexdigest()


@cache
def _import(source: str) -> tuple[ModuleType, str]:
    module = importlib.import_module(source)
    text = Path(module.__file__).read_bytes() if module.__file__ else b""
    return module, hashlib.sha256(text).hexdigest()


def forget() -> None:
    """Load everything anew the next time, as a new process would."""
    _run.cache_clear()
    _import.cache_clear()


def _in_words(error: BaseException) -> str:
    """Kind, message and place of an error in the user's code, on one line."""
    calls = traceback.extract_tb(error.__traceback__)
    frames = [call for call in calls if call.filename != __file__ and "importlib" not in call.filename]
    where = f" (line {frames[-1].lineno} of {frames[-1].filename})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
