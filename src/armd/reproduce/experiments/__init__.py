"""The experiments, in the order of the page."""

from armd.reproduce.experiment import Experiment
from armd.reproduce.experiments.choices import LAYERS, ORDER_MIXTURES, QUERIES, RECIPES
from armd.reproduce.experiments.curves import CURVES
from armd.reproduce.experiments.exact import EXACT
from armd.reproduce.experiments.sudoku import SUDOKU
from armd.reproduce.experiments.table1 import TABLE1
from armd.reproduce.experiments.table2 import TABLE2
from armd.reproduce.experiments.table3 import TABLE3

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (CURVES, TABLE1, TABLE2, TABLE3, EXACT, QUERIES, LAYERS, ORDER_MIXTURES, RECIPES, SUDOKU)
}
