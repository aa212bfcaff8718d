"""The one exception that means: the user can mend this."""


class UserError(ValueError):
    """A mistake in what the user gave: an argument, a file, a checkpoint.

    The message names the thing, its value and what is allowed, in one line. The command line prints that line and exits
    with status 2; every other exception is a defect of ours and keeps its traceback.
    """
