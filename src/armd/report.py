"""The page that `armd demo` leaves behind: its results as one HTML file that needs nothing but a browser.

Every chart is drawn here as inline SVG, coloured by the style sheet (so it follows the reader's light or dark theme);
no plotting library, no network. The page is complete without JavaScript, which only adds the slider of the samples.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from armd.chart import MARKS, Series, chart, finite_points, is_finite, legend, number, safe, swatch
from armd.quantities import count, duration

TINTS = 10
"""Colours of the scale from the first step to the last: classes t0 .. t9 of the style sheet."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


# ---- words and colours -----------------------------------------------------------------------------------------------


def _name(family: str) -> str:
    """left_to_right -> Left to right, strided:4 -> Strided (4)."""
    name, _, argument = str(family).replace("_", " ").strip().partition(":")
    return name[:1].upper() + name[1:] + (f" ({argument})" if argument else "")


def _tint(step: int, first: int, last: int) -> str:
    """The colour class of a step."""
    return f"t{round((TINTS - 1) * (step - first) / (last - first))}" if last > first else "t0"


# ---- the sections ----------------------------------------------------------------------------------------------------


def _section(title: str, words: str, *body: str) -> str:
    """A section, or nothing if all its parts are empty. `words` is our own HTML."""
    if not any(body):
        return ""
    return f"<section><h2>{safe(title)}</h2><p>{words}</p>{''.join(body)}</section>"


def _head(results: Mapping[str, Any], speed: list[dict[str, Any]]) -> str:
    summary = results.get("summary") or {}
    out = [f"<header><h1>{safe(results.get('title') or 'armd')}</h1>"]
    if summary:
        size, corpus = count(summary.get("parameters", 0)), safe(summary.get("corpus", "text"))
        hardware, spent = safe(summary.get("hardware", "")), duration(summary.get("train_seconds", 0))
        on = f" on {hardware}" if hardware else ""
        lead = f"A language model with {size} parameters learned <b>{corpus}</b> in {spent}{on}. "
        lead += "It can write text in any order, and several tokens at a time."
        out.append(f'<p class="lead">{lead}{_speedup(speed)}</p>')
        cards = (
            ("bits_per_byte", lambda v: f"{v:.3f}", "bits per byte", "on held-out files; lower is better"),
            ("parameters", count, "parameters", f"preset {safe(summary.get('preset', '-'))}"),
            ("train_tokens", count, "tokens read", "while training"),
            ("train_seconds", duration, "of training", safe(summary.get("hardware", ""))),
            ("tokens_per_second", count, "tokens a second", "while training"),
        )
        out.append('<ul class="cards">')
        for key, show, unit, note in cards:
            if is_finite(summary.get(key)):
                out.append(f"<li><b>{show(summary[key])}</b> {unit}<small>{note}</small></li>")
        out.append("</ul>")
    return "".join(out) + "</header>"


def _speedup(speed: list[dict[str, Any]]) -> str:
    """The sentence that compares the fastest exact (else parallel) run with one token at a time, batch for batch."""
    base = {row["batch"]: row for row in speed if row["mode"] == "sequential" and row["streams"] == 1}
    mode = "exact" if any(row["mode"] == "exact" for row in speed) else "parallel"
    pairs = [(row, base[row["batch"]]) for row in speed if row["mode"] == mode and row["batch"] in base]
    if not pairs:
        return ""
    fast, slow = max(pairs, key=lambda pair: pair[0]["tokens_per_second"] / pair[1]["tokens_per_second"])
    times = fast["tokens_per_second"] / slow["tokens_per_second"]
    passes = ""
    if fast["tokens"] == slow["tokens"]:
        passes = f", using {fast['forward_passes']} passes of the network instead of {slow['forward_passes']}"
    words = (
        f" With {fast['streams']} streams it wrote at <b>{times:.1f}\u00d7</b> the speed of one token at a time{passes}"
    )
    if is_finite(fast["nats_per_token"]) and is_finite(slow["nats_per_token"]):
        change = fast["nats_per_token"] - slow["nats_per_token"]
        words += (
            f"; in that order held-out text costs {abs(change):.2f} nats per token {'more' if change >= 0 else 'less'}"
        )
    return words + "."


def _strip(positions: list[int], blocks: list[int]) -> str:
    """The text from left to right; in each place the step at which it is written."""
    steps = {position: block + 1 for position, block in zip(positions, blocks, strict=True)}
    last, wide = max(steps.values()), 26
    told = ", ".join(str(steps[p]) for p in sorted(steps))
    out = [f'<svg class="strip" viewBox="0 0 {wide * len(steps)} 46" role="img" ']
    out.append(f'aria-label="Steps at which places 1 to {len(steps)} of the text are written: {told}">')
    for position, step in steps.items():
        x, tint = wide * position, _tint(step, 1, last)
        out.append(f'<rect class="{tint}" x="{x + 1}" y="1" width="{wide - 2}" height="28" rx="4"/>')
        out.append(f'<text class="step" x="{x + wide / 2:g}" y="20" text-anchor="middle">{step}</text>')
        out.append(f'<text class="place" x="{x + wide / 2:g}" y="42" text-anchor="middle">{position + 1}</text>')
    return "".join(out) + "</svg>"


def _mask(positions: list[int], blocks: list[int]) -> str:
    """The strictly causal mask in generation order: filled where the column's block is before the row's.

        1  7  2  8        strided, two streams, four of its rows
    1   /  .  .  .        # seen     / written in the same step, not seen     . later
    7   #  /  .  .
    2   #  #  /  /
    8   #  #  /  /
    """
    size, edge, N = 14, 20, len(positions)
    seen = sum(key < query for query in blocks for key in blocks)
    out = [
        f'<svg class="mask" viewBox="0 0 {edge + size * N + 2} {edge + size * N + 2}" role="img" aria-label="Mask of '
    ]
    out.append(
        f"{N} rows and columns in the order of writing: each row may look at the columns of earlier steps only, "
    )
    out.append(f'{seen} of {N * N} cells.">')
    for n, query in enumerate(blocks):
        y = edge + size * n
        if N <= 24:
            place = positions[n] + 1
            out.append(f'<text x="{edge - 4}" y="{y + 10}" text-anchor="end">{place}</text>')
            out.append(f'<text x="{y + size / 2:g}" y="{edge - 5}" text-anchor="middle">{place}</text>')
        for i, key in enumerate(blocks):
            x = edge + size * i
            kind = "seen" if key < query else "same" if key == query else "later"
            out.append(f'<rect class="{kind}" x="{x + 1}" y="{y + 1}" width="{size - 2}" height="{size - 2}" rx="2"/>')
            if kind == "same":
                out.append(
                    f'<path class="hatch" d="M{x + 2} {y + 8}l6 -6M{x + 3} {y + 12}l9 -9M{x + 7} {y + 12}l5 -5"/>'
                )
    return "".join(out) + "</svg>"


def _orders(orders: list[dict[str, Any]]) -> str:
    cards = []
    for order in orders:
        positions, blocks = order["positions"], order["blocks"]
        if not positions:
            continue
        count = f"{len(positions)} tokens in {blocks[-1] + 1} steps"
        words = f"<h3>{safe(_name(order['name']))}</h3><p>{safe(order['caption'])}</p>"
        words += f'{_strip(positions, blocks)}<p class="quiet">{count}</p>'
        cards.append(f'<article class="order"><div>{words}</div>{_mask(positions, blocks)}</article>')
    if not cards:
        return ""
    kinds = (("seen", "may be looked at"), ("same", "written in the same step: not seen"), ("later", "not yet written"))
    swatches = []
    for kind, label in kinds:
        hatch = '<path class="hatch" d="M2 8l6 -6M3 12l9 -9M7 12l5 -5"/>' if kind == "same" else ""
        drawing = f'<rect class="{kind}" x="1" y="1" width="12" height="12" rx="2"/>{hatch}'
        swatches.append(
            f'<li><svg class="mask" viewBox="0 0 14 14" width="14" aria-hidden="true">{drawing}</svg>{label}</li>'
        )
    words = (
        "The strip is the text, left to right; the number in each place is the step at which it is written. "
        "The square beside it is the rule the network obeys: each row is a token about to be written, and it may look "
        "only at tokens of <em>earlier</em> steps (its numbers are places in the text, in the order of writing). One "
        "network learns all these orders."
    )
    return _section("One model, many orders", words, f'<div class="orders">{"".join(cards)}</div>', legend(swatches))


def _piece(piece: dict[str, Any], shift: int, first: int, last: int) -> str:
    text = safe(piece["text"]).replace("\n", '<i aria-hidden="true">\u21b5</i>\n')
    if piece["given"]:
        return f'<span class="given">{text}</span>'
    step = int(piece["step"]) + shift
    tint = _tint(step, first, last)
    return f'<span class="{tint}" data-step="{step}" title="written in pass {step}">{text}</span>'


def _sample(sample: dict[str, Any]) -> str:
    pieces = sample["pieces"]
    steps = [int(piece["step"]) for piece in pieces if not piece["given"]]
    shift = 1 if steps and min(steps) == 0 else 0  # passes are counted from 1
    first, last = (min(steps) + shift, max(steps) + shift) if steps else (0, 0)
    text = "".join(_piece(piece, shift, first, last) for piece in pieces)
    scale = "".join(f'<i class="t{k}"></i>' for k in range(TINTS))
    given = '<span class="given">given text</span>' if len(steps) < len(pieces) else ""
    title = safe(sample["title"])
    controls = ""
    if steps:
        controls = (
            f'<div class="stepper" hidden><button type="button">Play</button>'
            f'<input type="range" min="{first - 1}" max="{last}" value="{last}" aria-label="{title}: passes done">'
            f"<output></output></div>"
        )
    return (
        f'<article class="sample" data-steps="{safe(sample["steps"])}"><h3>{title}</h3><p>{safe(sample["caption"])}</p>'
        f'<p class="key">{given}<span class="ramp">first pass'
        f'<span class="scale" aria-hidden="true">{scale}</span>last</span>'
        f'<span class="quiet">{len(steps)} tokens in {safe(sample["steps"])} passes</span></p>{controls}'
        f'<label class="numbers"><input type="checkbox"> show pass numbers</label><pre>{text}</pre></article>'
    )


def _samples(samples: list[dict[str, Any]]) -> str:
    words = (
        "The colour of each token tells in which pass of the network it was written: an even ramp from left to right "
        "is ordinary writing, repeated ramps are streams that grow side by side. Given text has no colour."
    )
    return _section("What it wrote, and when", words, *(_sample(sample) for sample in samples if sample["pieces"]))


def _curves(curves: Mapping[str, Any]) -> str:
    train, valid = ({k: finite_points(v) for k, v in (curves.get(part) or {}).items()} for part in ("train", "valid"))
    families = [name for name in dict.fromkeys([*valid, *train]) if train.get(name) or valid.get(name)]
    if not families:
        return ""
    # The steep start would squeeze the rest: with enough points the first one does not count for the range of y.
    told = [valid.get(name) or train[name] for name in families]
    shown = [y for points in told for _, y in (points[1:] if len(points) > 3 else points)]
    charts = []
    for name in families:
        others = [Series(_name(o), valid[o], "other") for o in families if o != name and valid.get(o)]
        own = Series(f"{_name(name)}, training", train.get(name, []), "train")
        held = Series(f"{_name(name)}, held out", valid.get(name, []), "valid", "circle")
        start, *_, end = [y for _, y in (held.points or own.points) * 2]
        alt = f"loss goes from {start:.2f} to {end:.2f} nats per token"
        title = f"{_name(name)}: {end:.2f}"
        charts.append(chart(title, alt, [*others, own, held], ("step", "nats per token"), frame=shown))
    words = (
        "How surprised the model is by each token, step by step while it trains; lower is better. The last value "
        "stands in each title; the steep start may be cut off. A surprise of <i>x</i> nats is like choosing among "
        "e<sup><i>x</i></sup> equally likely tokens."
    )
    marks = [swatch("valid", "circle", "held-out text"), swatch("train", "", "training batches")]
    if len(families) > 1:
        marks.append(swatch("other", "", "held-out text, the other orders"))
    return _section("How it learned", words, f'<div class="charts">{"".join(charts)}</div>', legend(marks))


def _scores(scores: list[dict[str, Any]]) -> str:
    if not scores:
        return ""
    most = max((row["bits_per_byte"] for row in scores if is_finite(row["bits_per_byte"])), default=0) or 1
    rows = []
    for row in scores:
        share = 100 * row["bits_per_byte"] / most if is_finite(row["bits_per_byte"]) else 0
        bar = f'<span class="bar" aria-hidden="true"><i style="width:{share:.1f}%"></i></span>'
        spread = f" <small>\u00b1\u2009{number(row['stderr'])}</small>" if is_finite(row.get("stderr")) else ""
        note = f"<small>{safe(row['note'])}</small>" if row.get("note") else ""
        rows.append(
            f'<tr><th scope="row">{safe(_name(row["order"]))}{note}</th><td class="wide">'
            f"{number(row['bits_per_byte'])}{bar}</td><td>{number(row['nats_per_token'])}{spread}</td>"
            f"<td>{number(row['perplexity'], 2)}</td></tr>"
        )
    words = (
        "The same held-out files, scored in different orders of writing. Fewer bits per byte is better: it is the size "
        "to which the model, used as a compressor, would shrink each byte (8 bits) of text."
    )
    return _section(
        "How well it predicts", words, _table("Order|Bits per byte|Nats per token|Perplexity", rows, "scores")
    )


def _table(head: str, rows: list[str], label: str) -> str:
    """A table that scrolls sideways where the screen is narrow; `head` is its column titles, split by bars."""
    cells = "".join(f'<th scope="col">{safe(title)}</th>' for title in head.split("|"))
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table class="{label}"><thead>'
        f"<tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _speed(speed: list[dict[str, Any]]) -> str:
    if not speed:
        return ""
    batches = sorted({row["batch"] for row in speed})
    lines: list[tuple[str, str, str, list[dict[str, Any]]]] = []
    for mode in dict.fromkeys(row["mode"] for row in speed):
        for batch in batches:
            rows = [row for row in speed if (row["mode"], row["batch"]) == (mode, batch)]
            label = _name(mode) + (f", batch {batch}" if len(batches) > 1 else "")
            if rows:
                lines.append((label, f"s{len(lines) % 4}", list(MARKS)[len(lines) % 4], rows))

    def series(field: str) -> list[Series]:
        return [
            Series(label, finite_points((r["streams"], r[field]) for r in rows), *look) for label, *look, rows in lines
        ]

    def told(found: list[Series]) -> str:
        parts = (f"{s.label}: " + ", ".join(f"{y:.4g} at {x:g}" for x, y in s.points) for s in found if s.points)
        return "; ".join(parts)

    pace, held, wrote = series("tokens_per_second"), series("nats_per_token"), series("nats_left_to_right")
    most = max(row["streams"] for row in speed)
    base = {r["batch"]: r["tokens_per_second"] for r in speed if r["streams"] == 1 and r["mode"] == "sequential"}
    ideal = [
        Series("Ideal", [(1.0, float(v)), (float(most), float(v) * most)], "ideal") for v in base.values() if most > 1
    ]
    axis = "streams S"
    charts = [
        chart("Speed: higher is better", told(pace), [*ideal, *pace], (axis, "tokens/s"), log_x=True, log_y=True),
        chart("Predicting real text: lower is better", told(held), held, (axis, "nats per token"), log_x=True),
        chart("What it wrote, re-read: lower is plainer", told(wrote), wrote, (axis, "nats per token"), log_x=True),
    ]
    marks = [swatch(style, mark, label) for label, style, mark, _ in lines]
    if ideal:
        marks.append(swatch("ideal", "", "ideal: S times one token at a time"))
    words = (
        "Cut the text into S streams and write one token of each in the same pass: fewer passes, more speed. In mode "
        "<em>parallel</em> tokens of one pass cannot see each other. Mode <em>exact</em> checks its guesses and writes "
        "the very text that one token at a time gives in the same order. What is left to pay is the order itself: a "
        "stream begins with little to go by. The third chart re-reads the generated text left to right with the same "
        "model; very low values can also mean repetition."
    )
    return _section("Speed against quality", words, f'<div class="charts">{"".join(charts)}</div>', legend(marks))


def _times(speed: list[dict[str, Any]]) -> str:
    rows = []
    for row in sorted(speed, key=lambda r: (r["batch"], r["streams"], r["mode"] != "sequential")):
        cells = (
            number(row["batch"], 0),
            number(row["tokens"], 0),
            number(row["forward_passes"], 0),
            number(row["seconds"], 2),
            number(row["tokens_per_second"], 0),
            number(row["nats_per_token"]),
            number(row["nats_left_to_right"]),
        )
        name = f"S\u2009=\u2009{safe(row['streams'])}, {safe(row['mode'])}"
        rows.append(f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    head = "Run|Batch|Tokens|Passes|Seconds|Tokens/s|Nats, real text|Nats, own text"
    words = "A pass is one call of the network. Nats are per token: of held-out text, and of the text it wrote."
    return _section("Times and steps", words, _table(head, rows, "times") if rows else "")


def _again(summary: Mapping[str, Any]) -> str:
    if not summary.get("command"):
        return ""
    parts = [
        f"{label} {safe(summary[key])}" for key, label in (("version", "armd"), ("seed", "seed")) if key in summary
    ]
    parts += [safe(summary["hardware"])] if summary.get("hardware") else []
    return _section("Do it again", ", ".join(parts) + ".", f'<pre class="command">{safe(summary["command"])}</pre>')


# ---- the page --------------------------------------------------------------------------------------------------------


def render(results: Mapping[str, Any]) -> str:
    """The results of `armd demo` as one HTML page.

    Args:
        results: plain JSON with title, summary, curves, scores, orders, speed and samples. What is missing or empty is
            left out of the page. Losses are in nats per token; steps and positions count from 0.
    """
    style, script = (files("armd").joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    speed = [run for run in results.get("speed") or [] if (run.get("tokens_per_second") or 0) > 0]
    sections = (
        _head(results, speed),
        _orders(results.get("orders") or []),
        _samples(results.get("samples") or []),
        _speed(speed),
        _curves(results.get("curves") or {}),
        _scores(results.get("scores") or []),
        _times(speed),
        _again(results.get("summary") or {}),
    )
    body = "\n".join(filter(None, sections))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{safe(results.get('title') or 'armd')}</title>"
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,">'
        f"<style>\n{style}</style></head>\n<body><main>\n{body}\n</main>\n"
        f"<script>\n{script}</script></body></html>\n"
    )


def write(results: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the page of `render` to `path`, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(render(results), encoding="utf-8", newline="\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
