"""Runs in processes of their own: tiny models, started as users start them, killed as machines kill them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import armd
from armd.data import Document, prepare

TINY = [
    *["--model.hidden-size", "16", "--model.num-hidden-layers", "2", "--model.num-attention-heads", "2"],
    *["--model.max-position-embeddings", "16", "--model.dropout", "0", "--precision", "fp32", "--batch-size", "8"],
    *["--eval-texts", "9", "--eval-orders", "left_to_right", "uniform", "--log-every", "1", "--optim.ema", "0.9"],
    *["--optim.name", "adamw", "--optim.lr", "2e-3"],
]
"""Options that make preset tiny a model of some ten thousand weights on texts of 16 bytes."""


def make_data(folder: Path) -> Path:
    corpus = [Document(f"d{i}", f"{i} bottles of beer on the wall, {i} bottles of beer. " * 8) for i in range(60)]
    prepare(lambda: iter(corpus), "byte", folder, held_out=0.2, progress=False)
    return folder


def start(words: list[str], **variables: str) -> subprocess.Popen[str]:
    """python WORDS..., one thread, with the source that is tested here; output in one pipe."""
    source = str(Path(armd.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(
        [sys.executable, *words], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def start_training(data: Path, out: Path, *more: str, variables: Mapping[str, str] = {}) -> subprocess.Popen[str]:
    """armd train tiny, made still smaller."""
    return start(["-m", "armd.cli", "train", "tiny", "--data", str(data), "--out", str(out), *TINY, *more], **variables)


def ranks(count: int) -> list[dict[str, str]]:
    """The variables that torchrun gives its processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
