"""What torch.compile needs of the machine."""

from __future__ import annotations

import os
import shutil
import sys

import torch

from armd.errors import UserError


def check_compiler(device: torch.device) -> None:
    """Refuse to compile for a CPU without a C++ compiler: that is what the compiled code is written in."""
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(name) is None:
        raise UserError(f"compile=True needs a C++ compiler on a CPU, and there is no {name!r}; or leave it off")
