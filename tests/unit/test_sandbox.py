"""Programs of a model are contained: each of these would do harm, or never end, if it were just run."""

from __future__ import annotations

import os
import platform
import socket
import time
from pathlib import Path

import pytest

from armd import UserError
from armd.evals import sandbox
from armd.evals.sandbox import Limits, check_sandbox, run
from conftest import linux

QUICK = Limits(seconds=2, megabytes=256)


@linux
@pytest.mark.parametrize("program", [
    "assert sorted([2, 1]) == [1, 2]",
    "import math, re, collections, hashlib, random, decimal, datetime, typing\nassert math.gcd(4, 6) == 2\nprint('hi')",
    "if __name__ == '__main__':\n    x = [i * i for i in range(10**5)]",
    "open('/etc/passwd').read(1) if __import__('os').path.exists('/etc/passwd') else None",
])  # fmt: skip
def test_right_programs_pass(program: str) -> None:
    assert run(program) == sandbox.Verdict(True, "")


WRONG = {
    "assert 1 == 2": "AssertionError",
    "def f(:": "SyntaxError",
    "print('\\ud800')\nraise ValueError('no')": "UnicodeEncodeError",
    "import sys\nsys.exit(0)": "SystemExit",  # to leave early is not to pass
    "import os\nos._exit(0)": "ended by itself with status 0",
    "import numpy": "ModuleNotFoundError",
    "import os\nassert 'HOME' in os.environ": "AssertionError",
    "def f():\n    f()\nf()": "RecursionError",
}


@linux
@pytest.mark.parametrize("program", WRONG)
def test_wrong_programs_fail(program: str) -> None:
    verdict = run(program)
    assert not verdict.passed and verdict.reason.startswith(WRONG[program])


@linux
@pytest.mark.parametrize("program", [
    "while True:\n    pass", "import time\ntime.sleep(60)",
    "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
])  # fmt: skip
def test_an_endless_program_is_stopped(program: str) -> None:
    began = time.monotonic()
    assert run(program, Limits(seconds=1)).reason == "timed out"
    assert time.monotonic() - began < 20  # the machine may be busy


@linux
@pytest.mark.parametrize("program", ["x = bytearray(10**9)", "x = []\nwhile True:\n    x.append(bytearray(10**6))"])
def test_memory_is_limited(program: str) -> None:
    assert run(program, Limits(seconds=20, megabytes=256)).reason == "MemoryError"


@linux
@pytest.mark.parametrize("program", [
    "import os\nfor i in range(20):\n    if os.fork() == 0:\n        os._exit(0)",  # a bomb of at most 20
    "import subprocess\nsubprocess.run(['true'])",
    "import os\nos.posix_spawn('/bin/true', ['true'], {})",
    "import os\nos.execv('/bin/true', ['true'])",
    "import multiprocessing as m\nm.get_context('spawn').Process(target=print).start()",
    "import threading\nthreading.Thread(target=print).start()",
])  # fmt: skip
def test_no_process_is_started(program: str) -> None:
    verdict = run(program, QUICK)
    assert verdict.reason.startswith(("PermissionError", "RuntimeError: can't start new thread"))


@linux
def test_no_socket_is_opened() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=1).close()"
        assert run(program, QUICK).reason.startswith("PermissionError")
        exec(program)  # outside it would have worked


@linux
@pytest.mark.parametrize("attack", [
    "open(F, 'w')", "open(F, 'a')", "open('new', 'w')", "os.remove(F)", "os.rename(F, F + 'x')", "os.truncate(F, 0)",
    "os.chmod(F, 0)", "os.symlink(F, 'link')", "os.mkdir('folder')", "os.rmdir(os.path.dirname(F))",
    "os.open(F, os.O_RDWR)", "os.utime(F)", "os.memfd_create('m')", "os.mkfifo('fifo')",
])  # fmt: skip
def test_no_file_is_changed(attack: str, tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("mine")
    before = file.stat()
    assert run(f"import os\nF = {str(file)!r}\n{attack}", QUICK).reason.startswith("PermissionError")
    assert (
        file.read_text() == "mine" and file.stat().st_mtime == before.st_mtime and file.stat().st_mode == before.st_mode
    )
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def children() -> set[str]:
    """Processes that this one started and that still exist."""
    return {pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}


@linux
def test_others_are_not_signalled_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    assert run(f"import os\nos.kill({os.getpid()}, 0)", QUICK).reason.startswith("PermissionError")
    before = children()
    run("while True: pass", Limits(seconds=1))
    assert not list(tmp_path.iterdir())
    assert children() <= before


def test_elsewhere_programs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with pytest.raises(UserError, match="on Linux x86_64 only"):
        check_sandbox()


@linux
def test_a_kernel_without_filter_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_sandbox()
    open_jail = tmp_path / "jail.py"
    open_jail.write_text(sandbox.SOURCE.read_text().replace("    lock()\n", ""))
    monkeypatch.setattr(sandbox, "SOURCE", open_jail)
    with pytest.raises(UserError, match="cannot be contained here"):
        check_sandbox()
    open_jail.write_text("raise SystemExit(1)")
    with pytest.raises(UserError, match=r"does not work here: .* \(ended by itself with status 1\)"):
        check_sandbox()


def test_limits_are_checked() -> None:
    with pytest.raises(UserError, match="must be at least 1 and 64"):
        Limits(seconds=0)
    with pytest.raises(UserError, match="megabytes=1"):
        Limits(megabytes=1)
