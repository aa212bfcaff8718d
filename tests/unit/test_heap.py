"""Freed memory stays with the process. In processes of their own: it is the whole process that changes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from armd.heap import keep_freed_memory

FAULTS = """
import resource, sys, torch
from armd.heap import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    print("refused")
    sys.exit()
for _ in range(20):  # the heap takes a few to settle
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(2**24).fill_(1)  # 64 MiB
    again = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(again)
"""


def faults(how: str) -> str:
    """Pages that the system had to hand out for the last tensor of twenty."""
    process = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return process.stdout.strip()


def test_freed_memory_is_used_again() -> None:
    kept = faults("keep")
    if kept == "refused":
        pytest.skip("this C library has no mallopt, or refuses what glibc takes")
    assert int(kept) < 0.05 * int(faults("return"))


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("armd.heap.ctypes.CDLL", lambda name: object())
    assert keep_freed_memory() is False
