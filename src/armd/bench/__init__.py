"""Speed on this machine. What is compared is measured in turn, in one process; quote the ratios."""

from armd.bench.decode import DecodeBench, decoding, writing
from armd.bench.show import plot, table, training_table
from armd.bench.timing import alternate, in_words, machine
from armd.bench.train import TrainBench, training

__all__ = [
    "DecodeBench",
    "TrainBench",
    "alternate",
    "decoding",
    "in_words",
    "machine",
    "plot",
    "table",
    "training",
    "training_table",
    "writing",
]
