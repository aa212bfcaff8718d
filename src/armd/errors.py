"""Exceptions that are no defects: the user can mend something, or a run ended early."""


class UserError(ValueError):
    """A mistake in what the user gave: an argument, a file, a checkpoint.

    The message names the thing, its value and what is allowed, in one line. The command line prints that line and exits
    with status 2; every other exception is a defect of ours and keeps its traceback.
    """

    agreed = False
    """Whether all processes of a run raise it, so that one line from the first of them is enough."""


class TrainingStopped(RuntimeError):
    """The run stopped early; the message says why, and from where it can go on. Exit status 1."""

    agreed = False
    """As of `UserError`."""
