"""Running programs that a model wrote: in a process of their own that can compute and read, and nothing else.

Meant for the mistakes of a language model: endless loops, too much memory, a stray `os.remove`. Files of the user can
be read but go nowhere. It is not proof against a program made to cheat the test it is run with.
"""

from __future__ import annotations

import os
import platform
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from armd.errors import UserError
from armd.files import json_text

SOURCE = Path(__file__).with_name("jail.py")


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: of wall clock, and of processor time.
        megabytes: of address space, the interpreter included.
    """

    seconds: int = 5
    megabytes: int = 512

    def __post_init__(self) -> None:
        if self.seconds < 1 or self.megabytes < 64:
            given = f"seconds={self.seconds} and megabytes={self.megabytes}"
            raise UserError(f"{given} must be at least 1 and 64: the interpreter itself needs that")


@dataclass(frozen=True)
class Verdict:
    """`passed`: the program ran to its end. `reason`: else why not, such as `timed out` or `AssertionError`."""

    passed: bool
    reason: str


def run(program: str, limits: Limits = Limits()) -> Verdict:
    """Run a Python program; it has passed if it comes to its end without an exception.

    It has the standard library and an empty folder, no output, no environment. See `jail` for what it may do.
    """
    token = secrets.token_hex(16)
    job = json_text({"program": program, "token": token, "seconds": limits.seconds, "memory": limits.megabytes * 2**20})
    # -I, -S: no environment, no site-packages; -B: no .pyc is written.
    command = [os.path.realpath(sys.executable), "-I", "-S", "-B", "-X", "utf8", "-c", SOURCE.read_text("utf-8")]
    with tempfile.TemporaryDirectory(prefix="armd-") as folder:
        process = subprocess.Popen(
            command, cwd=folder, env={}, text=True, encoding="utf-8", errors="replace", start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            said, _ = process.communicate(job, timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            return Verdict(False, "timed out")
        finally:
            process.kill()
            process.communicate()
    if said == token:
        return Verdict(True, "")
    if process.returncode == -signal.SIGXCPU:
        return Verdict(False, "timed out")
    return Verdict(False, said or f"ended by itself with status {process.returncode}")


def check_sandbox() -> None:
    """Refuse to go on where programs cannot be contained: run one that asks for a socket.

    Raises:
        UserError: this is no Linux on x86-64, or its kernel does not filter system calls.
    """
    machine = f"{platform.system()} {platform.machine()}"
    if machine != "Linux x86_64":
        raise UserError(f"programs of a model run on Linux x86_64 only, where they can be contained; this is {machine}")
    patient = Limits(seconds=30)
    nothing = run("pass", patient)
    if not nothing.passed:
        raise UserError(f"the sandbox does not work here: a program that does nothing fails ({nothing.reason})")
    if run("import socket; socket.socket()", patient).passed:
        raise UserError("programs of a model cannot be contained here: they can open sockets")
