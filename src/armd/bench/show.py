"""Records as tables; that of decoding also as a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from armd.bench.decode import HUGGING_FACE
from armd.bench.timing import in_words
from armd.chart import MARKS, Series, drawing, finite_points, safe

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #555 } .head { font-weight: 600; font-size: 14px; fill: #111 }
.paper { fill: #fff } .grid { stroke: #ddd; fill: none } .marks { fill: currentColor }
.line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round }
.s0 { color: #888 } .s1 { color: #1f6feb } .s2 { color: #d1570a }
.other { color: #1a7f37 } .other .line { stroke-dasharray: 6 4 }
.ideal { color: #666 } .ideal .line { stroke-width: 1.4; stroke-dasharray: 2 5 }
"""
LOOKS = {"sequential": ("s0", "circle"), "exact": ("s1", "square"), "parallel": ("s2", "diamond")}


def table(record: Mapping[str, Any]) -> Table:
    """All rows, one a job."""
    columns = (
        "what",
        "S",
        "dtype",
        "batch",
        "N",
        "tokens/s",
        "min - max",
        "against",
        "tokens/pass",
        "ms/pass",
        "floor",
    )
    reached = f"{record['bandwidth_bytes_per_second'] / 1e9:.1f} GB/s"
    title = f"{in_words(record['machine'])}; against {record['reference']}; floor: share of the speed at {reached}"
    out = Table(*columns, title=title)
    for row in record["rows"]:
        rate, what = row["tokens_per_second"], f"{row['what']}, {row['mode']}"
        out.add_row(
            what + "*" * bool(row["extrapolated_from_passes"]),
            str(row["streams"] or ""),
            row["dtype"],
            str(row["batch"]),
            str(row["length"]),
            f"{rate['median']:,.4g}",
            f"{rate['min']:,.4g} - {rate['max']:,.4g}",
            f"{row['ratio']['median']:.2f}x",
            f"{row['tokens_per_pass']:.2f}",
            f"{1000 * row['seconds_per_pass']:.1f}",
            f"{row['of_floor']:.0%}",
        )
    out.caption = "* a few passes timed, the rest extrapolated"
    return out


def training_table(record: Mapping[str, Any]) -> Table:
    """Rows of a record of training: what was measured, and beside it what arithmetic allows."""
    shape = record["shape"]
    size = f"L = {shape['num_hidden_layers']}, D = {shape['hidden_size']}, V = {shape['vocab_size']}"
    where = f"{size}, batch {record['batch']} x {shape['max_position_embeddings']}; {in_words(record['machine'])}"
    against = f"x {record['reference']}"
    columns = (
        "what",
        "dtype",
        "mode",
        "tokens/s",
        "min - max",
        against,
        "x AR",
        "limit",
        "of limit",
        "MFU",
        "memory x AR",
    )
    out = Table(*columns, title=where, caption=f"memory: {record['memory']}")
    for row in record["rows"]:
        rate = row["tokens_per_second"]
        out.add_row(
            row["what"],
            row["dtype"],
            row["mode"],
            f"{rate['median']:,.4g}",
            f"{rate['min']:,.4g} - {rate['max']:,.4g}",
            f"{row['ratio']['median']:.3f}",
            f"{row['ratio_to_ar']['median']:.3f}",
            f"{row['limit']:.3f}" if row["limit"] else "",
            f"{row['of_limit']:.1%}" if row["of_limit"] else "",
            f"{row['mfu']:.1%}" if row["mfu"] else "",
            f"{row['peak_to_ar']:.2f}" if row["peak_to_ar"] else "",
        )
    return out


def plot(record: Mapping[str, Any]) -> str:
    """Tokens per second against streams, a chart a group, as a whole SVG file."""
    groups = list(dict.fromkeys((row["dtype"], row["batch"], row["length"]) for row in record["rows"]))
    wide, high, top = 330, 250, 60
    columns = min(len(groups), 4)
    legend, legend_width = _legend(record["rows"])
    width = max(columns * wide, math.ceil(legend_width))
    size = f"{width} {top + high * -(-len(groups) // columns)}"
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" width="{width}">',
        f'<style>{STYLE}</style><rect class="paper" width="100%" height="100%"/>',
        f'<text x="12" y="20" class="head">Decoding speed by number of streams</text>{legend}',
    ]
    for i, group in enumerate(groups):
        rows = [row for row in record["rows"] if (row["dtype"], row["batch"], row["length"]) == group]
        dtype, batch, length = group
        x, y = 10 + wide * (i % columns), top + high * (i // columns)
        title = f"{dtype}, batch {batch}, N = {length}"
        out.append(f'<text class="head" x="{x}" y="{y + 14}">{safe(title)}</text>')
        out.append(
            f'<svg x="{x}" y="{y + 22}" width="310" height="208" viewBox="0 0 310 208">{_chart(title, rows)}</svg>'
        )
    return "\n".join([*out, "</svg>"]) + "\n"


def _chart(title: str, rows: list[dict[str, Any]]) -> str:
    rates = {(row["what"], row["mode"], row["streams"]): row["tokens_per_second"]["median"] for row in rows}
    streams = sorted({s for _, _, s in rates if s})
    ends = streams[0], streams[-1]
    lines = []
    base = next((rates["armd", mode, 1] for mode in LOOKS if ("armd", mode, 1) in rates), None)
    if base:
        lines.append(Series("ideal", [(float(s), base * s) for s in ends], "ideal"))
    if (HUGGING_FACE, "sequential", None) in rates:
        level = rates[HUGGING_FACE, "sequential", None]
        lines.append(Series(HUGGING_FACE, [(float(s), level) for s in ends], "other"))
    for mode, look in LOOKS.items():
        points = finite_points((s, rate) for (what, m, s), rate in rates.items() if what == "armd" and m == mode)
        lines.append(Series(mode, points, *look))
    told = "; ".join(f"{s.label}: " + ", ".join(f"{y:.4g} at {x:g}" for x, y in s.points) for s in lines if s.points)
    return drawing(title, told, lines, ("streams S", "tokens/s"), log_x=True, log_y=True)


def _legend(rows: list[dict[str, Any]]) -> tuple[str, float]:
    """The names of the lines in a row, and how wide that is."""
    modes = {row["mode"] for row in rows if row["what"] == "armd"}
    shown = {mode: look for mode, look in LOOKS.items() if mode in modes}
    shown["ideal: S times one stream"] = "ideal", ""
    if any(row["what"] == HUGGING_FACE for row in rows):
        shown[HUGGING_FACE] = "other", ""
    out, x = [], 12.0
    for label, (style, mark) in shown.items():
        drawn = f'<g class="marks">{MARKS[mark](17, 8)}</g>' if mark else ""
        line = f'<g class="{style}"><path class="line" d="M2 8h30"/>{drawn}</g>'
        out.append(f'<g transform="translate({x:g} 32)">{line}<text x="38" y="12">{safe(label)}</text></g>')
        x += 58 + 6.5 * len(label)
    return "".join(out), x
