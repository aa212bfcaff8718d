"""The experiments, in the order of the page."""

from armd.reproduce.experiment import Experiment
from armd.reproduce.experiments.curves import CURVES
from armd.reproduce.experiments.exact import EXACT
from armd.reproduce.experiments.holes import HOLES_FILLED
from armd.reproduce.experiments.orders import ORDERS
from armd.reproduce.experiments.patience import PATIENCE
from armd.reproduce.experiments.queries import QUERIES
from armd.reproduce.experiments.rates import RATES
from armd.reproduce.experiments.recipes import RECIPES
from armd.reproduce.experiments.sudoku import SUDOKU
from armd.reproduce.experiments.table1 import TABLE1
from armd.reproduce.experiments.table2 import TABLE2
from armd.reproduce.experiments.table3 import TABLE3
from armd.reproduce.experiments.two_stream import TWO_STREAM, TWO_STREAM_AGGREGATE, TWO_STREAM_LONG

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        CURVES, PATIENCE, RATES, TABLE1, TABLE2, TABLE3, EXACT, HOLES_FILLED, QUERIES, TWO_STREAM, TWO_STREAM_AGGREGATE,
        TWO_STREAM_LONG, ORDERS, RECIPES, SUDOKU,
    )
}  # fmt: skip
