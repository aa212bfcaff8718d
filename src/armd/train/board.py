"""Records as scalars of TensorBoard, an optional extra."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from armd.errors import UserError
from armd.fields import is_number


def load_writer() -> Any:
    """The class that writes TensorBoard's files.

    Raises:
        UserError: the package tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "tensorboard=True needs the package tensorboard: pip install 'armd[tensorboard]', or set it to False"
        ) from None
    return SummaryWriter


class Board:
    """Writes RUN/tensorboard. Its writer has a thread of its own, so that a later call may tell what went wrong."""

    def __init__(self, run: Path, start: int) -> None:
        """`start` is the step the run goes on from: what was written of later steps is taken back."""
        self._folder = run / "tensorboard"
        with self._one_line():
            self._writer = load_writer()(str(self._folder), purge_step=start + 1)

    def record(self, values: Mapping[str, Any]) -> None:
        with self._one_line():
            for name, value in scalars(values):
                self._writer.add_scalar(name, value, values["step"])

    def close(self) -> None:
        with self._one_line():
            self._writer.close()

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write {self._folder}: {error}; --no-tensorboard goes on without it") from error


def scalars(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a record but its step, named `valid/uniform` where they lie deeper."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{name}/")
        elif is_number(value) and name != "step":
            yield prefix + name, value
