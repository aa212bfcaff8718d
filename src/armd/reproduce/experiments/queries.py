"""Our own question: where the first queries G^0 come from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from armd.presets import for_architecture
from armd.reproduce.bases import ablation
from armd.reproduce.experiment import Experiment, Model, Section, Setting
from armd.reproduce.measures import likelihood
from armd.reproduce.study import Study

KINDS = ("aggregate", "shift", "anchor", "anchor+aggregate", "kernel")
REACH, OTHERS = 2, (4, 8)
"""Tokens to each side that `kernel` reads, and those that it is compared with."""


def models(setting: Setting) -> dict[str, Model]:
    config = ablation(setting)
    half = config.model.num_hidden_layers // 2

    def with_query(query: str, two_stream: int, **changes: Any) -> Model:
        changes = {"num_two_stream_layers": two_stream, "kernel_width": REACH, **changes}
        return Model(replace(config, model=replace(config.model, query=query, **changes)))

    return {
        **{f"{query}, L2s = L/2": with_query(query, half) for query in KINDS},
        "kernel, L2s = 1": with_query("kernel", 1),
        **{f"kernel of reach {width}, L2s = 1": with_query("kernel", 1, kernel_width=width) for width in OTHERS},
        "AR": Model(for_architecture(config, "ar")),
        "AR + kernel": Model(for_architecture(with_query("kernel", 1).config, "ar+prefix")),
    }


def report(study: Study) -> Section:
    return Section("", [likelihood(study, "Queries", study.names)])


QUERIES = Experiment(
    "queries",
    "Where the first queries come from",
    "What is the best G^0, the first rows of the prediction stream: the paper's prefix aggregation (Eq. 6), a shift, "
    "an anchor at the position before, or a kernel over the positions around?",
    models,
    report,
)
