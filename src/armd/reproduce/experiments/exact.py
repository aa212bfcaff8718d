"""Exact against parallel: what several streams save in passes and cost in likelihood."""

from __future__ import annotations

from armd.reproduce.bases import armd, strided
from armd.reproduce.experiment import Experiment, Figure, Model, Section, Setting, Table, Target
from armd.reproduce.measures import exact_writing, meter, svg
from armd.reproduce.page import spread
from armd.reproduce.study import Study

STREAMS = (2, 4, 8, 16)
NAME = "ARMD, strided"


def models(setting: Setting) -> dict[str, Model]:
    config = armd(setting)
    steps = config.max_steps // 8 if setting.scale != "paper" else 10_000
    return {"ARMD": Model(config), NAME: Model(strided(config, steps), parent="ARMD")}


def report(study: Study) -> Section:
    rows, predicted, measured, equal, texts = [], [], [], 0, 0
    for streams in STREAMS:
        meters = study.values(NAME, meter, streams=streams)
        written = study.values(NAME, exact_writing, streams=streams)
        rows.append([
            str(streams),
            *(spread([m[what] for m in meters]) for what in ("sequential", "parallel", "penalty")),
            spread([m["tokens_per_pass"] for m in meters], ".2f"),
            spread([w["tokens_per_pass"] for w in written], ".2f"),
            f"{sum(w['equal'] for w in written)} of {sum(w['texts'] for w in written)}",
        ])  # fmt: skip
        predicted += [(float(streams), sum(m["tokens_per_pass"] for m in meters) / len(meters))] if meters else []
        measured += [(float(streams), sum(w["tokens_per_pass"] for w in written) / len(written))] if written else []
        equal, texts = equal + sum(w["equal"] for w in written), texts + sum(w["texts"] for w in written)
    columns = ("S", "sequential", "parallel", "penalty", "tokens a pass, predicted", "measured", "texts equal")
    notes = (
        "fine-tuned with 1, 2 and 4 streams, so that 8 and 16 are beyond its training; nats per token of 64 held-out "
        "windows from all of the split in the strided order, one token at a time and S at once; 8 texts of "
        "whole length a seed at temperature 1, all passes counted; equal: token for token those of one token at a "
        "time with the same seed",
    )
    ideal = [(float(s), float(s)) for s in STREAMS]
    drawn = svg("Tokens a pass", {"ideal": ideal, "predicted": predicted, "measured": measured},
                ("streams", "tokens a pass"), log_x=True)  # fmt: skip
    found = f"{equal} of {texts} texts"
    return Section(
        "",
        [Table("Streams of the fine-tuned model", columns, rows, notes)],
        [Figure("Tokens a pass", drawn, "exact mode, against the number of streams")],
        [Target("exact texts equal one token at a time", found, equal == texts if texts else None)],
    )


EXACT = Experiment(
    "exact",
    "Exact against parallel",
    "How many tokens does exact decoding write in a pass, and what would writing them as if independent cost?",
    models,
    report,
)
