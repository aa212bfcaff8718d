"""The program that runs a program which nobody has read. `sandbox` starts it as a process of its own.

It gives up, for good, all that a solution of a programming problem does not need, and then executes it:

    system calls   only those in ALLOWED: compute, read files. No new process or thread, no socket, no file opened for
                   writing, none removed or renamed, no signal to others: the kernel answers EPERM (seccomp)
    memory, time   setrlimit; the wall clock is watched by `sandbox`

Standard library only, and nothing of armd: it runs in an interpreter that sees neither site-packages nor environment.
Input: one JSON object on standard input; output: the verdict, one line on standard output.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import struct
import sys
import traceback
from collections.abc import Iterable

# Numbers of x86-64. What is not here, calls of future kernels included, is refused.
ALLOWED = {
    "read": 0, "write": 1, "close": 3, "fstat": 5, "stat": 4, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9,
    "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15,
    "pread64": 17, "readv": 19, "writev": 20, "access": 21, "select": 23, "sched_yield": 24, "mremap": 25,
    "madvise": 28, "dup": 32, "nanosleep": 35, "getpid": 39, "exit": 60, "uname": 63, "fcntl": 72, "getcwd": 79,
    "readlink": 89, "gettimeofday": 96, "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102,
    "getgid": 104, "geteuid": 107, "getegid": 108, "sigaltstack": 131, "gettid": 186, "time": 201, "futex": 202,
    "sched_getaffinity": 204, "getdents64": 217, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230,
    "exit_group": 231, "newfstatat": 262, "readlinkat": 267, "faccessat": 269, "getrandom": 318, "statx": 332,
    "faccessat2": 439,
}  # fmt: skip
OPENING = {"open": (2, 1), "openat": (257, 2)}  # number, place of the flags among the arguments
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_TMPFILE", 0) & ~os.O_DIRECTORY

ARCHITECTURE, ALLOW, REFUSE = 0xC000003E, 0x7FFF0000, 0x00050000 | 1  # x86-64; SECCOMP_RET_ALLOW; _ERRNO | EPERM
LOAD, EQUALS, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06  # classic BPF on the words of struct seccomp_data


def filter_program() -> bytes:
    """The seccomp filter: (code, jump if true, jump if false, operand) of each instruction."""

    def call_is(number: int, then: Iterable[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
        body = list(then)
        return [(EQUALS, 0, len(body), number), *body]

    program = [(LOAD, 0, 0, 4), (EQUALS, 1, 0, ARCHITECTURE), (RETURN, 0, 0, REFUSE), (LOAD, 0, 0, 0)]
    for number, flags in OPENING.values():
        program += call_is(
            number,
            [(LOAD, 0, 0, 16 + 8 * flags), (ANY_BIT, 0, 1, WRITING), (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)],
        )
    for number in ALLOWED.values():
        program += call_is(number, [(RETURN, 0, 0, ALLOW)])
    return b"".join(struct.pack("HBBI", *each) for each in [*program, (RETURN, 0, 0, REFUSE)])


def lock() -> None:
    """Install the filter: from here on, and in no way to be undone.

    Raises:
        OSError: the kernel does not have it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    program = ctypes.create_string_buffer(filter_program())
    head = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(program)))
    for call in ((38, 1, 0, 0, 0), (22, 2, head, 0, 0)):  # PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP
        if libc.prctl(*call):
            raise OSError(ctypes.get_errno(), "prctl")


def limit(seconds: int, memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # the hard one kills without a reason
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(what, (most, most))


def main() -> None:
    job = json.loads(sys.stdin.read())
    verdict, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    limit(job["seconds"], job["memory"])
    lock()
    try:
        exec(compile(job["program"], "<solution>", "exec"), {"__name__": "__main__"})
        said = job["token"]
    except BaseException as error:  # SystemExit as well: what leaves early has passed no test
        said = (traceback.format_exception_only(error) or ["?"])[-1].strip()[:200]
    os.write(verdict, said.encode(errors="replace"))
    os._exit(0)


if __name__ == "__main__":
    main()
