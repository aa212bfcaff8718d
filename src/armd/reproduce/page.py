"""Sections of results as a Markdown page: targets first, then every experiment with its tables, charts and terms."""

from __future__ import annotations

import re
import statistics
from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from armd.bench.timing import in_words
from armd.errors import UserError
from armd.files import read_json, write_json, write_text
from armd.reproduce.experiment import Table

MET = {True: "met", False: "missed", None: "open"}

HEAD = """# Results

What `armd reproduce` found; nothing here was written by hand. Figures are means over the seeds, with half the distance
between the least and the greatest, which for two seeds is no standard error; perplexities and losses come from
documents that no model was trained on. A target is met if it is met with every seed, missed if with none, else open.
"""

OUTDATED = "*Made with an earlier recipe: today some of its models would not be trained, or not so.*"


def spread(values: Sequence[float | None], form: str = ".4f") -> str:
    """Mean and half the range of some values, a dash for none."""
    known = [value for value in values if value is not None]
    if not known:
        return "\u2013"
    mean = format(statistics.mean(known), form)
    return mean if len(known) == 1 else f"{mean} ± {format((max(known) - min(known)) / 2, form)}"


def write_page(
    path: Path, sections: Mapping[str, Mapping[str, Any]], old: Collection[str] = (), ahead: Table | None = None
) -> None:
    """Write the page, and beside it a folder of its name with a JSON record and the charts of every section.

    Args:
        path: a .md file.
        sections: name of the experiment -> its record, in the order of the page.
        old: names of those made with an earlier recipe.
        ahead: what could not be run here, for the end of the page.
    """
    folder = path.with_suffix("")
    parts = [HEAD, _targets(sections, old)]
    for name, record in sections.items():
        section = record["section"]
        for former in folder.glob(f"{name}-*.svg"):
            former.unlink()
        for i, figure in enumerate(section["figures"]):
            write_text(folder / f"{name}-{i + 1}.svg", figure["svg"])
        kept = [{key: figure[key] for key in ("title", "tells")} for figure in section["figures"]]
        write_json(folder / f"{name}.json", {**record, "section": {**section, "figures": kept}})
        parts.append(_section(name, record, folder.name, name in old))
    if ahead:
        parts += [f"## {ahead.title}\n", _table(ahead.columns, ahead.rows), *_notes(ahead.notes)]
    write_text(path, "\n".join(parts))


def read_record(path: Path, name: str) -> dict[str, Any] | None:
    """The record of a section that `write_page` left beside a page, charts included; None if there is none."""
    folder = path.with_suffix("")
    if not (folder / f"{name}.json").exists():
        return None
    record: dict[str, Any] = read_json(folder / f"{name}.json")
    try:
        for i, figure in enumerate(record["section"]["figures"]):
            figure["svg"] = (folder / f"{name}-{i + 1}.svg").read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{error.filename}, a chart of {path}, is gone: bring it back, or remove {name}.json") from None
    return record


def _targets(sections: Mapping[str, Mapping[str, Any]], old: Collection[str]) -> str:
    rows = [
        [record["title"] + " (an earlier recipe)" * (name in old), t["claim"], t["found"], MET[t["met"]]]
        for name, record in sections.items()
        for t in record["section"]["targets"]
    ]
    return _table(("experiment", "target", "found", ""), rows) if rows else ""


def _section(name: str, record: Mapping[str, Any], folder: str, old: bool) -> str:
    section = record["section"]
    out = [f"## {_plain(record['title'])}\n", f"{_plain(record['question'])}\n"]
    if old:
        out.append(f"{OUTDATED}\n")
    if section["text"]:
        out.append(f"{section['text']}\n")
    for i, figure in enumerate(section["figures"]):
        out.append(f"![{_plain(figure['title'])}: {_plain(figure['tells'])}]({folder}/{name}-{i + 1}.svg)\n")
    for table in section["tables"]:
        out += [f"**{_plain(table['title'])}**\n", _table(table["columns"], table["rows"])]
        out += _notes(table["notes"])
    for target in section["targets"]:
        out.append(f"* {_plain(target['claim'])}: **{MET[target['met']]}**. {_plain(target['found'])}")
    out.append(f"\n<sub>{_origin(record)} Record: [{name}.json]({folder}/{name}.json).</sub>\n")
    return "\n".join(out)


def _origin(record: Mapping[str, Any]) -> str:
    """How, from which source and where it was made; older records do not know where each figure is from."""
    commits = {"commit": [record["commit"]], "models of": record["trained_at"]}
    if "measured_at" in record:
        commits["figures of"] = record["measured_at"]
    told = ", ".join(f"{what} {', '.join(commit[:10] for commit in of)}" for what, of in commits.items())
    machines = " and ".join(record.get("machines", [in_words(record["machine"])]))
    seeds, data = ", ".join(map(str, record["seeds"])), record["data"]
    return (
        f"Made with `{record['command']}`, {told}; seeds {seeds}; data {data['digest'][:12]} ({data['tokenizer']}); "
        f"{machines}; training took {record['hours']:.1f} hours of its models' time."
    )


def _notes(notes: Sequence[str]) -> list[str]:
    return [f"<sub>{_plain(note)}</sub>\n" for note in merged(notes)]


def merged(notes: Sequence[str]) -> list[str]:
    """Notes of which some, that differ in one clause only, are told as one with alternatives: a; (b / c); d."""
    groups: list[list[list[str]]] = []
    for note in notes:
        clauses = note.split("; ")
        for group in groups:
            if len(group[0]) == len(clauses) > 1 and _differing([*group, clauses]) <= 1:
                group.append(clauses)
                break
        else:
            groups.append([clauses])
    return ["; ".join(map(_alternatives, zip(*group, strict=True))) for group in groups]


def _differing(rows: Sequence[Sequence[str]]) -> int:
    return sum(len(set(column)) > 1 for column in zip(*rows, strict=True))


def _shared(rows: Sequence[Sequence[str]]) -> int:
    """How many of their first parts are the same in all."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))


def _alternatives(clauses: Sequence[str]) -> str:
    """One clause of several: the parts at either end that all share, once, and what is between them."""
    parts = [clause.split(", ") for clause in dict.fromkeys(clauses)]
    start = _shared(parts)
    tails = [part[start:][::-1] for part in parts]
    end = _shared(tails)
    if len(parts) == 1:
        return clauses[0]
    between = " / ".join(", ".join(tail[end:][::-1]) for tail in tails)
    return ", ".join((*parts[0][:start], f"({between})", *tails[0][:end][::-1]))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_plain, cells))} |" for cells in lines) + "\n"


def _plain(text: object) -> str:
    """Text that cannot end a cell or a link."""
    return re.sub(r"([|\[\]<>])", r"\\\1", str(text).replace("\n", " "))
