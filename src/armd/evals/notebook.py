"""What the order laboratory found, written down: a record, a page, and its charts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from armd.chart import MARKS, Series, drawing, look, number, picture
from armd.evals.laboratory import Pair, RankCurve, Sensitivity, Study
from armd.evals.protocol import Protocol
from armd.files import write_json, write_text

RECORD, PAGE = "record.json", "laboratory.md"


def protocols(held_out: Protocol, study: Study) -> dict[str, Protocol]:
    """The terms of each look, from those of held-out likelihood."""

    def terms(task: str, scoring: str) -> Protocol:
        return dataclasses.replace(held_out, task=task, scoring=scoring)

    drawn = f"random orders of seed {study.seed}, those of armd evaluate"
    written = f", measured on {study.measure} texts written" if study.measure else ""
    return {
        "ranks": terms(
            "held-out likelihood by rank",
            f"one token a block, every token scored; means of {study.bins} bins of ranks, ± standard error over texts, "
            f"{drawn}",
        ),
        "evidence": terms(
            "sensitivity to the order of evidence",
            f"a random set of evidence a text, then {study.targets} more tokens in random order, one a block, as the "
            f"targets; std over {study.shuffles} random orders of the evidence, mean over targets and texts, ± "
            f"standard error over texts, seed {study.seed}",
        ),
        "streams": terms(
            "orders written S ranks at a time",
            "sequential: one token a block; parallel: S ranks one by one, then S a block; acceptance and tokens/pass "
            f"of mode exact predicted at temperature 1{written}, {drawn}",
        ),
    }


@dataclass(frozen=True)
class Findings:
    """What a study found, look by look."""

    ranks: list[RankCurve]
    evidence: list[Sensitivity]
    streams: list[Pair]

    @classmethod
    def of(cls, results: Sequence[RankCurve | Sensitivity | Pair]) -> Findings:
        return cls(
            [result for result in results if isinstance(result, RankCurve)],
            [result for result in results if isinstance(result, Sensitivity)],
            [result for result in results if isinstance(result, Pair)],
        )


@dataclass(frozen=True)
class Section:
    """One look: a table, what it comes to in a sentence, a picture, and the terms of all of it."""

    key: str
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    finding: str
    picture: str
    protocol: Protocol


def sections(study: Study, found: Findings, terms: Mapping[str, Protocol]) -> list[Section]:
    """The looks that found something."""
    parts = []
    if found.ranks:
        parts.append(_ranks(found.ranks, terms["ranks"]))
    if found.evidence:
        parts.append(_evidence(found.evidence, terms["evidence"]))
    if found.streams:
        parts.append(_streams(study, found.streams, terms["streams"]))
    return parts


def record(model: str, study: Study, found: Findings, terms: Mapping[str, Protocol]) -> dict[str, Any]:
    """All numbers with their protocols, for JSON."""
    return {
        "model": model,
        "study": dataclasses.asdict(study),
        **dataclasses.asdict(found),
        "protocols": {key: protocol.fields for key, protocol in terms.items()},
    }


def page(model: str, parts: Sequence[Section], complete: bool = True) -> str:
    """Markdown; the pictures lie beside it."""
    lines = [f"# Order laboratory: {model}", "", *["Not complete: some looks are still to come.", ""] * (not complete)]
    for part in parts:
        lines += [f"## {part.title}", "", part.finding, "", f"![{part.title}]({part.key}.svg)", ""]
        lines += [_row(part.columns), _row(["---"] * len(part.columns)), *map(_row, part.rows), ""]
        lines += [f"{part.protocol.line}", ""]
    return "\n".join(lines)


def write(folder: Path, values: Mapping[str, Any], parts: Sequence[Section]) -> None:
    """Page and pictures, then the record."""
    for part in parts:
        write_text(folder / f"{part.key}.svg", part.picture)
    write_text(folder / PAGE, page(values["model"], parts, values.get("complete", True)))
    write_json(folder / RECORD, values)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


# ---- the looks -------------------------------------------------------------------------------------------------------


def _ranks(curves: Sequence[RankCurve], terms: Protocol) -> Section:
    ranks, bins = curves[0].ranks, len(curves[0].nats)
    shown = sorted({0, bins // 4, bins // 2, 3 * bins // 4, bins - 1})
    rows = [(c.order, f"{c.mean:.4f}", *(f"{c.nats[k]:.3f} ± {number(c.stderr[k])}" for k in shown)) for c in curves]
    middles = [(low + high - 1) / 2 for low, high in pairwise(ranks)]
    lines = [_line(c.order, list(zip(middles, c.nats, strict=True)), i, c.stderr) for i, c in enumerate(curves, 1)]
    ends = "; ".join(f"{c.order} {c.nats[0]:.3f} and {c.nats[-1]:.3f}" for c in curves)
    title = "Loss by rank in the order"
    drawn = drawing(title, ends, lines, ("rank in the order", "nats per token"))
    return Section(
        key="ranks",
        title=title,
        columns=("order", "all ranks", *(f"{ranks[k]} - {ranks[k + 1] - 1}" for k in shown)),
        rows=rows,
        finding=f"Nats per token in the first and the last bin of ranks: {ends}.",
        picture=picture([(title, drawn)], _names(lines), terms.line),
        protocol=terms,
    )


def _evidence(found: Sequence[Sensitivity], terms: Protocol) -> Section:
    values = {  # with their standard errors
        "spread": [(s.spread, s.spread_stderr) for s in found],
        "random order - text order": [(s.shuffled - s.text_order, s.shuffled_stderr) for s in found],
        "one block - text order": [(s.one_block - s.text_order, s.one_block_stderr) for s in found],
    }
    rows = [
        (str(s.evidence), f"{s.text_order:.4f}", *(f"{mean:.4f} ± {number(error, 4)}" for mean, error in each))
        for s, *each in zip(found, *values.values(), strict=True)
    ]
    most = max(range(len(found)), key=lambda i: found[i].spread)
    varying, shuffling, blocking = (f"{v[most][0]:.3f} ± {number(v[most][1])}" for v in values.values())
    finding = (
        f"A network that reads its evidence as a set has spread 0. Here, at {found[most].evidence} tokens of evidence, "
        f"the log-probability of a target has a standard deviation of {varying} nats over the orders that the evidence "
        f"was read in; against text order, a random order costs {shuffling} nats per target, and one block {blocking}."
    )
    spread, *lines = (
        _line(name, [(s.evidence, mean) for s, (mean, _) in zip(found, v, strict=True)], i, [error for _, error in v])
        for i, (name, v) in enumerate(values.items())
    )
    told = "; ".join(f"{y:.3g} at {x:g} tokens" for x, y in spread.points)
    axes = "evidence tokens", "nats"
    frame = [0.0, *(y for _, y in spread.points), *(high for *_, high in spread.whiskers)]
    charts = [
        ("Spread over orders of the evidence", drawing("Spread", told, [spread], axes, log_x=True, frame=frame)),
        ("Nats per target above text order", drawing("Cost of a reading", finding, lines, axes, log_x=True)),
    ]
    return Section(
        key="evidence",
        title="Sensitivity to the order of evidence",
        columns=("evidence", "text order", *values),
        rows=rows,
        finding=finding,
        picture=picture(charts, _names([spread, *lines]), terms.line),
        protocol=terms,
    )


def _streams(study: Study, pairs: Sequence[Pair], terms: Protocol) -> Section:
    measured = study.measure > 0
    columns = ["order", "S", "sequential", "parallel", "penalty", "TV", "acceptance", "tokens/pass"]
    columns += ["acceptance, measured", "tokens/pass, measured"] * measured
    rows = [_cells(pair, measured) for pair in pairs]
    best = min((p for p in pairs if p.meter.streams == max(study.streams)), key=lambda p: p.meter.parallel)
    finding = (
        f"Of the orders written {best.meter.streams} ranks at a time `{best.order}` has the fewest nats in parallel: "
        f"{best.meter.parallel:.4f} per token, of which {best.meter.penalty:.4f} are the penalty."
    )
    # The first colour is that of the strided orders, the others those of the orders in every picture.
    groups = {"strided:S": [pair for pair in pairs if pair.order == f"strided:{pair.meter.streams}"]}
    groups |= {order: [pair for pair in pairs if pair.order == order] for order in study.orders}
    charts = []
    for title, field, unit in (
        ("Parallel penalty", "penalty", "nats per token"),
        ("Tokens a pass, mode exact, predicted", "tokens_per_pass", "tokens"),
    ):
        lines = [
            _line(order, sorted((p.meter.streams, getattr(p.meter, field)) for p in group), i)
            for i, (order, group) in enumerate(groups.items())
        ]
        told = "; ".join(f"{line.label} " + ", ".join(f"{y:.3g} at {x:g}" for x, y in line.points) for line in lines)
        charts.append((title, drawing(title, told, lines, ("ranks at a time S", unit), log_x=True)))
    return Section(
        key="streams",
        title="Orders written S ranks at a time",
        columns=tuple(columns),
        rows=rows,
        finding=finding,
        picture=picture(charts, _names(lines), terms.line),
        protocol=terms,
    )


def _cells(pair: Pair, measured: bool) -> tuple[str, ...]:
    m = pair.meter
    nats = [number(round(value, 4) + 0.0, 4) for value in (m.sequential, m.parallel, m.penalty, m.variation)]  # no -0
    decoding = [number(m.acceptance), number(m.tokens_per_pass, 2)]
    if measured:
        decoding += [number(pair.acceptance), number(pair.tokens_per_pass, 2)]
    return pair.order, str(m.streams), *nats, *decoding


def _line(name: str, points: Sequence[tuple[float, float]], i: int, errors: Sequence[float] = ()) -> Series:
    return Series(label(name), [*points], look(i), [*MARKS][i % len(MARKS)], errors=errors)


def _names(lines: Iterable[Series]) -> list[tuple[str, str, str]]:
    return [(line.label, line.style, line.marks) for line in lines]


def label(order: str) -> str:
    """A name short enough for a chart: of a file's path its last part."""
    return order.rpartition("/")[2]
