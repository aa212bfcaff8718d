"""armd reproduce: the experiments of the paper and our own."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.table import Table

from armd import reproduce
from armd.cli.terminal import say, show
from armd.data import Manifest
from armd.errors import TrainingStopped, UserError
from armd.evals import judge_name, load_judge
from armd.files import hold, json_text, read_json
from armd.gpus import get_accelerator
from armd.quantities import count, duration
from armd.reproduce import EXPERIMENTS, Experiment, Study
from armd.reproduce.page import MET


@dataclass(frozen=True)
class Reproduce:
    """Train, measure and report experiments: armd reproduce NAME... --data DIR --out OUT; no name lists them."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Experiments, or all."""
    data: Path | None = None
    """Folder made by armd prepare."""
    out: Path = Path("results")
    """Folder for models, figures and sections; what is there already is not made again."""
    scale: Literal["small", "medium", "paper"] = "small"
    """small: two CPU cores, hours; medium: a GPU, minutes; paper: its shapes and budgets, only planned here."""
    seeds: int = 2
    """Repetitions."""
    jobs: int = 1
    """Models trained, and seeds measured, at once, the cores divided among them."""
    sets: Path | None = None
    """Folder with folders lambada, wikitext-2 ... for zero-shot perplexities."""
    puzzles: Path | None = None
    """File of test puzzles."""
    evaluator: str = ""
    """Causal model that reads the texts of table2: a folder, or a name that transformers knows, such as gpt2-large;
    without it a larger AR model of ours is trained."""
    page: Path | None = None
    """Write all sections that are in --out as this Markdown page, charts and records in a folder beside it."""
    plan: bool = False
    """Only tell what is left to train, what it costs, and the commands that do it."""
    gpu: str = "h100"
    """For the plan at medium and paper scale: a100, h100 or h200."""
    gpus: int = 8
    """For the plan at paper scale: devices."""
    utilisation: float = 0.4
    """For the plan: share of the peak that is reached."""
    json: bool = False
    """Print the sections, or the plan, as one JSON object."""


def run_reproduce(args: Reproduce) -> None:
    if not args.names and args.page is None:
        print(list_experiments())
        return
    names = list(EXPERIMENTS) if "all" in args.names else list(args.names)
    for name in names:
        if name not in EXPERIMENTS:
            raise UserError(f"experiment {name!r} is unknown; choose one of {', '.join(EXPERIMENTS)}, or all")
    if args.page:
        reproduce.check_page(args.page, args.scale, EXPERIMENTS.values())
    if args.seeds < 1 or args.jobs < 1:
        raise UserError(f"seeds={args.seeds} and jobs={args.jobs} must be at least 1")
    if args.evaluator and "table2" not in names:
        raise UserError(f"evaluator={args.evaluator} reads the texts of table2: name it, or leave --evaluator out")
    if args.evaluator:
        load_judge(args.evaluator, torch.device("cpu"))  # what is wrong with it is told before anything is trained
    studies = [_study(args, EXPERIMENTS[name]) for name in names]
    if args.plan or (args.scale == "paper" and any(not run.finished for s in studies for run in s.all_runs)):
        _plan(args, studies)
        return
    faults, sections = list[str](), []
    with ExitStack() as held:
        for study in studies:
            path, what = study.section, f"experiment {study.experiment.name} is being run in {args.out}"
            held.callback(hold(path, what).close)
        for study in studies:
            faults += _train(study, args)
            reproduce.measure_all(study, args.jobs)
            sections.append(_report(study, args))
    if args.page:
        written = reproduce.publish(args.out, args.scale, args.page, EXPERIMENTS.values())
        say(f"written: {args.page} with {', '.join(written) or 'no section yet'}")
    if args.json:
        print(json_text({study.experiment.name: section for study, section in zip(studies, sections, strict=True)}))
    if faults:
        raise TrainingStopped("; ".join(faults))


def list_experiments() -> str:
    width = max(map(len, EXPERIMENTS)) + 2
    lines = [f"  {e.name:<{width}}{e.title}\n{'':{width + 2}}{e.question}" for e in EXPERIMENTS.values()]
    return "\n".join(["usage: armd reproduce NAME... --data DIR [--out OUT] [--page FILE.md]", "", *lines])


def _study(args: Reproduce, experiment: Experiment) -> Study:
    data = args.data
    if experiment.prepare is not None:
        data = args.out / "data" / experiment.name
        if not (data / "manifest.json").exists():
            say(f"preparing the data of {experiment.name}")
            experiment.prepare(data)
    if data is None:
        raise UserError(f"experiment {experiment.name} needs --data, a folder made by armd prepare")
    Manifest.load(data)  # what is wrong with it is told before anything is made
    if args.sets is not None and not args.sets.is_dir():
        raise UserError(f"sets={args.sets} is no folder")
    if args.puzzles is not None and not args.puzzles.is_file():
        raise UserError(f"puzzles={args.puzzles} is no file")
    paths = args.sets, args.puzzles, args.evaluator
    return Study(experiment, args.out, data, args.scale, range(args.seeds), *paths, say)


def _train(study: Study, args: Reproduce) -> list[str]:
    left = reproduce.distinct(study.all_runs)
    if not left:
        return []
    say(f"{study.experiment.name}: training {len(left)} models")
    return [f"{study.experiment.name}: {fault}" for fault in reproduce.train_all(left, study.data, args.jobs)]


def _report(study: Study, args: Reproduce) -> dict[str, object]:
    name = study.experiment.name
    section = reproduce.report(study, " ".join(["armd reproduce", name, *_settings(args, name)]))
    if not args.json:
        for table in section.tables:
            shown = Table(*table.columns, title=table.title)
            for row in table.rows:
                shown.add_row(*row)
            show(shown, *table.notes)
        for target in section.targets:
            print(f"{MET[target.met]}: {target.claim}: {target.found}")
    return read_json(study.section)


def _settings(args: Reproduce, name: str) -> list[str]:
    """What a record says of its command: no paths, which differ from machine to machine."""
    words = ["--data DIR", f"--seeds {args.seeds}"] + [f"--scale {args.scale}"] * (args.scale != "small")
    words += [f"--jobs {args.jobs}"] * (args.jobs > 1)  # which slows whatever is timed
    words += [f"--evaluator {judge_name(args.evaluator)}"] * bool(args.evaluator and name == "table2")
    return words + [f"--{folder} PATH" for folder in ("sets", "puzzles") if getattr(args, folder)]


def _plan(args: Reproduce, studies: list[Study]) -> None:
    gpu, gpus = {"small": ("cpu", 1), "medium": (args.gpu, 1)}.get(args.scale, (args.gpu, args.gpus))
    accelerator, found, lines = get_accelerator(gpu), dict[str, reproduce.Cost](), dict[str, str]()
    for study in studies:
        mine = {cost.run.key: cost for cost in reproduce.costs(study, accelerator, gpus, args.utilisation)}
        if args.scale == "paper":
            lines |= {key: reproduce.line(cost.run, study.data, gpus) for key, cost in mine.items()}
        found |= mine
    if args.json:
        rows = [
            {"name": c.run.name, "seed": c.run.seed, "tokens": c.tokens, "days": c.days, "line": lines.get(key)}
            for key, c in found.items()
        ]
        print(json_text({"accelerator": accelerator.name, "gpus": gpus, "left": rows}))
        return
    table = Table(
        "model",
        "seed",
        "tokens",
        "time",
        title=f"left to train, {gpus} x {accelerator.name}, utilisation {args.utilisation:g}",
    )
    for cost in found.values():
        table.add_row(cost.run.name, str(cost.run.seed), count(cost.tokens), duration(86400 * cost.days))
    total = sum(cost.days for cost in found.values())
    table.add_row("all", "", count(sum(cost.tokens for cost in found.values())), duration(86400 * total))
    show(table)
    if args.scale == "paper":
        say("each by one of these lines; then run this command again to measure and report:")
        print("\n".join(lines.values()), flush=True)
