"""`armd reproduce`: experiments as recipes, at the paper's scale and at one that two cores can run."""

from armd.reproduce.experiment import Experiment, Figure, Model, Section, Setting, Table, Target
from armd.reproduce.experiments import EXPERIMENTS
from armd.reproduce.farm import distinct, line, train_all
from armd.reproduce.run import Cost, check_page, costs, measure_all, publish, report
from armd.reproduce.study import Run, Study

__all__ = [
    "EXPERIMENTS",
    "Cost",
    "Experiment",
    "Figure",
    "Model",
    "Run",
    "Section",
    "Setting",
    "Study",
    "Table",
    "Target",
    "check_page",
    "costs",
    "distinct",
    "line",
    "measure_all",
    "publish",
    "report",
    "train_all",
]
