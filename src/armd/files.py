"""Files a crash cannot spoil: JSON and tensors, written whole or not at all, read with one line for what is wrong."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from armd.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its final place and move it there: a crash or a full disk leaves the old file whole.

    The name beside it is always the same, so what a killed process left there is written over.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {error}; what was there before is untouched") from error
    finally:
        with contextlib.suppress(OSError):  # moved away, or never made
            temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlast a power failure, as `fsync` does the content of files."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def alone_at(path: Path) -> Iterator[None]:
    """Within the context no other process is in that of the same path; the others wait."""
    with _open_lock(path) as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open_lock(path: Path) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(f".{path.name}.lock").open("wb")
    except OSError as error:
        raise UserError(f"cannot write {path.parent}: {error}") from error


def hold(path: Path, what: str) -> BinaryIO:
    """Lock a path for one process at a time: until what is returned is closed, at the latest when the process ends.

    The lock is a file of its own, which stays: `path` may be replaced meanwhile. A file system without locks holds
    nobody off.

    Raises:
        UserError: another process holds it; `what` it then does begins the message. Or the folder cannot be written.
    """
    file = _open_lock(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"{what} by another process; wait for it to end, or stop it") from None
    except OSError:  # a file system without locks
        pass
    return file


def json_text(values: Any, indent: int | None = None) -> str:
    """JSON that every parser reads: numbers that are not finite become null."""
    return json.dumps(_finite(values), indent=indent, allow_nan=False)


def _finite(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_json(path: Path, values: Any) -> None:
    write_text(path, json_text(values, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file; a missing or damaged one is a one-line error."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; is {path.parent} the right folder?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or no JSON file: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return values


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    dense = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    write_atomically(path, lambda file: save_file(dense, str(file)))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; a missing, truncated or foreign one is a one-line error."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; is {path.parent} the right folder?")
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged, truncated or no safetensors file: {error}") from None
