"""Line charts as inline SVG, drawn by hand: no plotting library, coloured by the style sheet of the page.

Every value passes through `safe` or `number` on its way into the page, so that nothing in the data can become markup.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

Number = int | float
Point = tuple[float, float]


# ---- text and numbers ------------------------------------------------------------------------------------------------


def _visible(char: str) -> str:
    """A character as it may be shown: control and invisible ones by name, newline and tab as they are."""
    if char in "\n\t ":
        return char
    if ord(char) < 0x20 or char == "\x7f":
        return chr(0x2400 + ord(char)) if ord(char) < 0x20 else "\u2421"  # control pictures
    if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"):
        return f"\u2039U+{ord(char):04X}\u203a"
    return char


def safe(value: object) -> str:
    """Any value as HTML text or attribute."""
    return escape("".join(map(_visible, str(value))), quote=True)


def number(value: object, digits: int = 3) -> str:
    """A finite number with fixed digits; a dash for anything else."""
    return f"{value:,.{digits}f}" if is_finite(value) else "\u2013"


def is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


# ---- line charts -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """One line of a chart; `style` is its class in the style sheet and `marks` its marker, if any.

    `errors` are standard errors, drawn as whiskers: one a point, or none.
    """

    label: str
    points: list[Point]
    style: str
    marks: str = ""
    errors: Sequence[float] = field(default=(), kw_only=True)

    @property
    def whiskers(self) -> list[tuple[float, float, float]]:
        """x, low and high of every standard error that is known."""
        known = zip(self.points, self.errors, strict=True) if self.errors else ()
        return [(x, y - error, y + error) for (x, y), error in known if is_finite(error)]


def finite_points(raw: Iterable[Sequence[Any]], at_most: int = 200) -> list[Point]:
    """Finite points in order of x, thinned by averaging neighbours."""
    points = sorted((float(x), float(y)) for x, y in raw if is_finite(x) and is_finite(y))
    size = -(-len(points) // at_most) or 1
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _ticks(low: Number, high: Number, count: int = 4) -> list[float]:
    """About `count` round numbers that span low .. high."""
    rough = (high - low) / count or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * 0.999)
    return [round(k * step, 10) for k in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _log_ticks(low: Number, high: Number) -> list[float]:
    """1, 2, 5, 10 ... around low .. high."""
    marks = [
        m * 10.0**e for e in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1) for m in (1, 2, 5)
    ]
    return [m for i, m in enumerate(marks) if m > low / 2.5 and (i == 0 or marks[i - 1] < high)]


MARKS: dict[str, Callable[[float, float], str]] = {
    "circle": lambda x, y: f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6"/>',
    "square": lambda x, y: f'<rect x="{x - 3.4:.1f}" y="{y - 3.4:.1f}" width="6.8" height="6.8"/>',
    "diamond": lambda x, y: f'<path d="M{x:.1f} {y - 4.8:.1f}l4.8 4.8l-4.8 4.8l-4.8 -4.8z"/>',
    "triangle": lambda x, y: f'<path d="M{x:.1f} {y - 4.6:.1f}l4.5 8h-9z"/>',
}


def _share(value: Number, low: Number, high: Number, log: bool) -> float:
    """Where a value lies between low (0) and high (1)."""
    scale = math.log if log else float
    return (scale(value) - scale(low)) / ((scale(high) - scale(low)) or 1.0)


def chart(
    title: str,
    alt: str,
    series: list[Series],
    axes: tuple[str, str],
    *,
    log_x: bool = False,
    log_y: bool = False,
    frame: list[float] | None = None,
) -> str:
    """A small line chart under its title, or nothing if there is no point to draw; the arguments are `drawing`'s."""
    drawn = drawing(title, alt, series, axes, log_x=log_x, log_y=log_y, frame=frame)
    return f"<figure><figcaption>{safe(title)}</figcaption>{drawn}</figure>" if drawn else ""


def drawing(
    title: str,
    alt: str,
    series: list[Series],
    axes: tuple[str, str],
    *,
    log_x: bool = False,
    log_y: bool = False,
    frame: list[float] | None = None,
) -> str:
    """The chart alone, 310 by 208.

    Args:
        title: its name.
        alt: what the chart tells, in words, for those who cannot see it.
        series: the lines, the last one on top.
        axes: names of x and y.
        log_x: logarithmic x with a tick at every x of the data.
        log_y: logarithmic y.
        frame: values that the y axis has to span; lines outside it are cut off. All of the data if not given.
    """
    series = [s for s in series if s.points]
    if not series:
        return ""
    xs = [x for s in series for x, _ in s.points]
    ys = frame or [y for s in series for y in [*(y for _, y in s.points), *(e for w in s.whiskers for e in w[1:])]]
    y_ticks = _log_ticks(min(ys), max(ys)) if log_y else _ticks(min(ys), max(ys))
    x_ticks = sorted(set(xs)) if log_x else [x for x in _ticks(min(xs), max(xs)) if min(xs) <= x <= max(xs)]
    left, top, width, height = 46, 12, 254, 150
    pad = 10 if log_x else 0

    def at_x(x: float) -> float:
        return left + pad + (width - 2 * pad) * _share(x, min(xs), max(xs), log_x)

    def at_y(y: float) -> float:
        return top + height * (1 - _share(y, y_ticks[0], y_ticks[-1], log_y))

    out = [f'<svg class="chart" viewBox="0 0 310 208" role="img" aria-label="{safe(title)}: {safe(alt)}">']
    for y in y_ticks:
        out.append(f'<path class="grid" d="M{left} {at_y(y):.1f}h{width}"/>')
        out.append(f'<text x="{left - 7}" y="{at_y(y) + 4:.1f}" text-anchor="end">{_tick(y)}</text>')
    for x in x_ticks:
        middle = min(at_x(x), 308 - 3.5 * len(_tick(x)))  # the last one must not stick out
        out.append(f'<text x="{middle:.1f}" y="{top + height + 17}" text-anchor="middle">{_tick(x)}</text>')
    out.append(f'<text class="axis" x="{left + width}" y="203" text-anchor="end">{safe(axes[0])} \u2192</text>')
    out.append(f'<text class="axis" x="0" y="203">\u2191 {safe(axes[1])}</text>')
    inside = (left - 5, 0, width + 10, top + height + 5)  # a nested svg cuts off what lies outside
    out.append('<svg x="{}" y="{}" width="{}" height="{}" viewBox="{} {} {} {}">'.format(*inside, *inside))
    for s in series:
        spots = [(at_x(x), at_y(y)) for x, y in s.points]
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
        out.append(f'<g class="{s.style}"><path class="line" d="M{line}"/>')
        out += [f'<path class="line" d="M{at_x(x):.1f} {at_y(a):.1f}V{at_y(b):.1f}"/>' for x, a, b in s.whiskers]
        if s.marks:
            marks = (
                f"<g><title>{safe(s.label)}, {safe(axes[0])} {_tick(x)}: {number(y)}</title>{MARKS[s.marks](*spot)}</g>"
                for (x, y), spot in zip(s.points, spots, strict=True)
            )
            out.append(f'<g class="marks">{"".join(marks)}</g>')
        out.append("</g>")
    return "".join([*out, "</svg></svg>"])


def _tick(value: Number) -> str:
    """1500 -> 1500, 2500 -> 2.5k, 3000000 -> 3M."""
    for least, size, unit in ((1e9, 1e9, "B"), (1e6, 1e6, "M"), (2e3, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def swatch(style: str, marks: str, label: str) -> str:
    mark = f'<g class="marks">{MARKS[marks](17, 8)}</g>' if marks else ""
    drawing = f'<g class="{style}"><path class="line" d="M2 8h30"/>{mark}</g>'
    return f'<li><svg viewBox="0 0 34 16" width="34" height="16" aria-hidden="true">{drawing}</svg>{safe(label)}</li>'


def legend(items: Iterable[str]) -> str:
    return f'<ul class="legend">{"".join(items)}</ul>'


# ---- a whole picture -------------------------------------------------------------------------------------------------

# Okabe and Ito's colours, which remain apart for the colour-blind, yellow left out: it is too pale for a line.
STYLE = """
text { font: 11px system-ui, sans-serif; fill: #555 } .head { font-weight: 600; font-size: 13px; fill: #111 }
.paper { fill: #fff } .grid { stroke: #ddd; fill: none } .marks { fill: currentColor }
.line { fill: none; stroke: currentColor; stroke-width: 1.6; stroke-linejoin: round }
.r0 { color: #0072b2 } .r1 { color: #d55e00 } .r2 { color: #009e73 } .r3 { color: #cc79a7 }
.r4 { color: #56b4e9 } .r5 { color: #e69f00 } .r6 { color: #000 } .dashed .line { stroke-dasharray: 5 3 }
"""
COLOURS = 7


def look(i: int) -> str:
    """The classes of the i-th line of a picture: the colours, then the same ones dashed."""
    return f"r{i % COLOURS}" + " dashed" * (i // COLOURS % 2)


def picture(charts: Sequence[tuple[str, str]], names: Sequence[tuple[str, str, str]], told: str = "") -> str:
    """Charts in rows of three under the names of their lines, as a whole SVG file.

    Args:
        charts: title and `drawing` of each.
        names: label, style and marks of every line; none if the titles say it all.
        told: what a reader of the file should know, a description nobody sees.
    """
    wide, high, columns = 330, 246, min(len(charts), 3)
    names_drawn, top = _names(names, columns * wide)
    width, height = columns * wide, top + high * -(-len(charts) // columns)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{max(width, 660)}">',
        f"<desc>{safe(told)}</desc>" if told else "",
        f'<style>{STYLE}</style><rect class="paper" width="100%" height="100%"/>{names_drawn}',
    ]
    for i, (title, drawn) in enumerate(charts):
        left, down = 10 + wide * (i % columns), top + high * (i // columns)
        out.append(f'<text class="head" x="{left}" y="{down + 14}">{safe(title)}</text>')
        out.append(f'<svg x="{left}" y="{down + 22}" width="310" height="208" viewBox="0 0 310 208">{drawn}</svg>')
    return "\n".join([*filter(None, out), "</svg>"]) + "\n"


def _names(names: Sequence[tuple[str, str, str]], width: int) -> tuple[str, int]:
    """Lines with their names in rows of this width, and the height they take."""
    out, x, y = [], 12.0, 10
    for label, style, marks in names:
        wide = 54 + 6.2 * len(label)
        if x > 12 and x + wide > width:
            x, y = 12.0, y + 18
        mark = f'<g class="marks">{MARKS[marks](17, 8)}</g>' if marks else ""
        line = f'<g class="{style}"><path class="line" d="M2 8h30"/>{mark}</g>'
        out.append(f'<g transform="translate({x:g} {y})">{line}<text x="38" y="12">{safe(label)}</text></g>')
        x += wide
    return "".join(out), y + 30 if out else 10
