"""`armd reproduce`: plan, train, measure, report; every step goes on where an earlier one was stopped."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from armd.bench.timing import in_words, provenance
from armd.data import Manifest
from armd.errors import UserError
from armd.files import read_json, write_json
from armd.gpus import GPUS, Accelerator
from armd.plan import Machine, plan
from armd.quantities import count
from armd.reproduce.experiment import Experiment, Section, Setting, Table
from armd.reproduce.farm import distinct
from armd.reproduce.page import read_record, write_page
from armd.reproduce.study import Run, Study, planned
from armd.train.loop import pick_device


def measure_all(study: Study, jobs: int) -> None:
    """Measure what is not measured yet, `jobs` seeds at a time and each with its share of the cores."""
    jobs = min(jobs, len(study.seeds))
    if jobs < 2:
        return  # the report does it
    context, threads = get_context("spawn"), max((os.cpu_count() or 1) // jobs, 1)
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (threads,)) as pool:
        list(pool.map(_measure, [dataclasses.replace(study, only=seed) for seed in study.seeds]))


def _measure(study: Study) -> None:
    """Its report is thrown away: what counts are the figures it leaves."""
    study.experiment.report(study)


def report(study: Study, command: str) -> Section:
    """Measure the trained models of a study and keep the section, with where it comes from, in OUT/sections."""
    experiment = study.experiment
    section = experiment.report(study)
    runs = list({run.key: run for run in study.all_runs if run.finished}.values())
    trained = [read_json(run.folder.with_suffix(".json")) for run in runs]
    manifest = Manifest.load(study.data)
    record = {
        "name": experiment.name,
        "title": experiment.title,
        "question": experiment.question,
        **provenance(command, pick_device("auto")),
        "trained_at": sorted({commit for origin in trained for commit in origin["commits"]}),
        "measured_at": sorted({str(origin["commit"]) for origin in study.used}),
        "machines": sorted({in_words(origin["machine"]) for origin in (*trained, *study.used)}),
        "data": {
            "tokenizer": manifest.tokenizer,
            "vocab_size": manifest.vocab_size,
            "eos_id": manifest.eos_id,
            "digest": manifest.digest,
        },
        "scale": study.scale,
        "seeds": sorted({run.seed for run in runs}),
        "hours": sum(run.seconds for run in runs) / 3600,
        "models": [_model(run) for run in runs],
        "figures": _figures(study),
        "section": dataclasses.asdict(section),
    }
    write_json(study.section, record)
    return section


def _figures(study: Study) -> list[dict[str, Any]]:
    """What the section was made of, each figure once: enough to compute its tables and targets again."""
    found = {json.dumps([used["run"], used["function"], used["options"]]): used for used in study.used}
    return [{key: value for key, value in used.items() if key not in ("commit", "machine")} for used in found.values()]


def _model(run: Run) -> dict[str, Any]:
    return {"name": run.name, "seed": run.seed, "key": run.key, "tokens": run.tokens, "curve": run.curve()}


def check_page(page: Path, scale: str, experiments: Iterable[Experiment]) -> None:
    """Refuse a page that cannot be written, before anything is trained for it."""
    if page.suffix != ".md":
        raise UserError(f"page={page} must end in .md")
    for experiment in experiments:
        found = read_record(page, experiment.name)
        if found is not None and found["scale"] != scale:
            raise UserError(f"{page} holds results of scale {found['scale']}; give those of {scale} another page")


def publish(out: Path, scale: str, page: Path, experiments: Iterable[Experiment]) -> list[str]:
    """Write the page of all sections that are there; returns their names.

    What an earlier page has and OUT has not, as on another machine, stays as it is.
    """
    check_page(page, scale, experiments)
    records, old = dict[str, Mapping[str, Any]](), list[str]()
    for experiment in experiments:
        path = out / "sections" / scale / f"{experiment.name}.json"
        found = read_json(path) if path.exists() else read_record(page, experiment.name)
        if found is not None:
            records[experiment.name] = found
            if outdated(found, experiment):
                old.append(experiment.name)
    write_page(page, records, old, paper_plan(experiments) if scale == "small" else None)
    return list(records)


def outdated(record: Mapping[str, Any], experiment: Experiment) -> bool:
    """Whether the recipe has changed since: some models of the record are none that the experiment would train now."""
    data, size = record["data"], record["data"]["vocab_size"]
    ends = [data["eos_id"]] if "eos_id" in data else [size - 1, None]  # older records do not say
    made = {model["key"] for model in record["models"]}
    for end in ends:
        setting = Setting(record["scale"], size, end)
        if made <= {run.key for run in planned(experiment, setting, data["digest"], record["seeds"], Path())}:
            return False
    return True


PAPER = ("table1", "table2", "table3")
"""Experiments of the paper, whose models it trained at its size."""
PAPER_GPUS, PAPER_UTILISATION = 8, 0.4


def paper_plan(experiments: Iterable[Experiment]) -> Table:
    """What the paper's models would take, each once, whichever experiments need it: by `armd plan`'s arithmetic."""
    rows, seen = [], []
    for experiment in experiments:
        vocabulary = (30_522, 102) if experiment.name == "table3" else (50_257, 50_256)
        setting = Setting("paper", *vocabulary)
        for name, model in experiment.models(setting).items() if experiment.name in PAPER else ():
            if (model.config, model.parent) in seen:
                continue
            seen.append((model.config, model.parent))
            found = plan(model.config, Machine(GPUS["h100"], PAPER_GPUS, PAPER_UTILISATION), [model.config.max_steps])
            budget = found["budgets"][0]
            taken = found["taken"]
            how = f"{taken['sharding']}, activations {taken['activations_are']}"
            size = f"{taken['total'] / 1e9:.0f} GB ({how})" if taken["fits"] else "does not fit"
            days = f"{budget['device_hours'] / 24:.1f}"
            parameters = count(sum(found["parameters"].values()))
            rows.append([experiment.name, name, parameters, count(budget["tokens"]), days, size])
    columns = ("experiment", "model", "parameters", "tokens", "H100 days", "memory of a GPU")
    note = f"{PAPER_GPUS} x {GPUS['h100'].name}, {PAPER_UTILISATION:.0%} of the peak; without validation and measuring"
    return Table("At the paper's size: planned, not run", columns, rows, (note,))


@dataclasses.dataclass(frozen=True)
class Cost:
    """What is left to train of one model: tokens, and days on the planned machine."""

    run: Run
    tokens: int
    days: float


def costs(study: Study, accelerator: Accelerator, gpus: int, utilisation: float) -> list[Cost]:
    """The plan of every run that is not there yet, by `armd plan`'s arithmetic."""
    found = []
    for run in distinct(study.all_runs):
        budget = plan(run.config, Machine(accelerator, gpus, utilisation), [run.config.max_steps])["budgets"][0]
        found.append(Cost(run, budget["tokens"], budget["seconds"] / 86400))
    return found
