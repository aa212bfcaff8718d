"""The report is one well-formed, self-contained page in which nothing of the data becomes markup."""

import copy
import re
from html.parser import HTMLParser

import pytest
import torch

from armd import Order, chart, report

VOID = {"meta", "link", "input", "br", "img"}
HOSTILE = "</pre><script>alert('x')</script>\"><img onerror=a> & <b>"


class Page(HTMLParser):
    """Reads a page, checks that every element is closed in order, and keeps its elements and text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), f"attribute twice in {tag}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def having(self, tag, cls=None):
        return [a for t, a in self.elements if t == tag and (cls is None or cls in a.get("class", "").split())]


def order_picture(name, order):
    return {
        "name": name,
        "caption": f"about {name}",
        "positions": order.positions[0].tolist(),
        "blocks": order.blocks[0].tolist(),
    }


def run(streams, mode, seconds):
    return {
        "streams": streams,
        "mode": mode,
        "batch": 1,
        "seconds": seconds,
        "forward_passes": 65 if mode == "sequential" else streams + 64 // streams,
        "tokens": 64,
        "tokens_per_second": 64 / seconds,
        "nats_per_token": 1.5 + 0.1 * streams,
        "nats_left_to_right": 1.2,
    }


@pytest.fixture
def results():
    pieces = [("ab\n", 0, True), ("\tc d", 0, False), ("e", 1, False), ("\u200b\x07", 1, False), ("f", 2, False)]
    return {
        "title": "A demo",
        "summary": {
            "preset": "demo",
            "parameters": 3_412_992,
            "corpus": "the language reference",
            "train_tokens": 9_830_400,
            "train_seconds": 341.2,
            "tokens_per_second": 28811.0,
            "bits_per_byte": 1.873,
            "hardware": "2 CPU cores",
            "seed": 0,
            "command": "armd demo --seed 0",
            "version": "0.1.0",
        },
        "curves": {
            "train": {"left_to_right": [[s, 5 / (s + 1) + 1] for s in range(500)], "uniform": [[0, 5.0]]},
            "valid": {"left_to_right": [[0, 6.0], [100, 3.0], [200, float("nan")], [499, 1.5]]},
        },
        "scores": [
            {
                "order": "strided:4",
                "nats_per_token": 1.5,
                "stderr": stderr,
                "bits_per_byte": 1.9,
                "perplexity": 4.48,
                "note": "a note",
            }
            for stderr in (None, 0.01)
        ],
        "orders": [
            order_picture("left_to_right", Order.left_to_right(1, 12)),
            order_picture("strided", Order.strided(1, 12, 4)),
            order_picture("masking", Order.from_masking_times(torch.tensor([[3, 1, 2, 2, 0, 1, 3]]))),
        ],
        "speed": [run(1, "sequential", 4.0), run(2, "parallel", 2.0), run(4, "parallel", 1.0)],
        "samples": [
            {
                "title": "A sample",
                "caption": "four tokens",
                "steps": 3,
                "pieces": [{"text": text, "step": step, "given": given} for text, step, given in pieces],
            }
        ],
    }


def body(page):
    """The page without its style sheet and script."""
    return re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.S)


def test_page_is_well_formed_and_complete(results):
    page = Page(body(report.render(results)))
    assert len(page.having("h1")) == 1
    assert len(page.having("section")) == 7
    assert all(a.get("aria-label") or a.get("aria-hidden") or "viewbox" in a for a in page.having("svg"))
    assert all("aria-label" in a for a in page.having("svg") if a.get("role") == "img")
    assert len(page.having("svg", "chart")) == 2 + 3
    assert "1.873" in page.text and "3.41M" in page.text and "6 min" in page.text and "28.8k" in page.text


def test_page_asks_for_nothing_from_outside(results):
    page = report.render(results)
    assert not re.search(r"https?://|//\w|src\s*=|@import|url\(|<iframe|<object", page.replace("// The slider", ""))
    assert [a["href"] for a in Page(body(page)).having("link")] == ["data:,"]
    assert page.count("<script>") == page.count("<style>") == 1


def test_hostile_text_stays_text(results):
    def spoil(value):
        if isinstance(value, dict):
            return {key: spoil(v) for key, v in value.items()}
        if isinstance(value, list):
            return [spoil(v) for v in value]
        return HOSTILE if isinstance(value, str) and value not in ("sequential", "parallel") else value

    spoiled = spoil(results)
    spoiled["curves"]["valid"][HOSTILE] = [[0, 2.0], [1, 1.0]]
    spoiled["speed"][0]["mode"] = HOSTILE
    page = report.render(spoiled)
    parsed = Page(body(page))
    assert page.count("<script>") == 1 and not parsed.having("img")
    assert {name for _, attrs in parsed.elements for name in attrs if name.startswith("on")} == set()
    assert "<script>alert('x')" in parsed.text  # still there to be read


@pytest.mark.parametrize("key", ["title", "summary", "curves", "scores", "orders", "speed", "samples"])
def test_a_part_without_data_is_left_out(results, key):
    full = len(Page(body(report.render(results))).having("section"))
    gone = {"title": 0, "summary": 1, "curves": 1, "scores": 1, "orders": 1, "speed": 2, "samples": 1}[key]
    for nothing in ({**results, key: type(results[key])()}, {k: v for k, v in results.items() if k != key}):
        assert len(Page(body(report.render(nothing))).having("section")) == full - gone


@pytest.mark.parametrize("curves", [{"train": {}, "valid": {}}, {"train": {"uniform": []}, "valid": {}}])
def test_empty_results(curves):
    empty = {"curves": curves, "scores": [], "orders": [], "speed": [], "samples": []}
    assert Page(body(report.render(empty))).having("section") == []


def test_constant_and_single_values_draw(results):
    results["curves"] = {"train": {}, "valid": {"uniform": [[5, 2.0]], "infill": [[1, 0.0], [2, 0.0]]}}
    results["speed"] = [
        {**run(1, "parallel", 1.0), "nats_per_token": None},
        {**run(2, "parallel", 1.0), "seconds": 0.0},
    ]
    page = body(report.render(results))
    Page(page)
    assert not re.search(r"\b(nan|inf)\b", page, re.I)


def test_every_written_piece_is_a_coloured_span(results):
    page = Page(body(report.render(results)))
    spans = [a for a in page.having("span") if "data-step" in a]
    assert [a["data-step"] for a in spans] == ["1", "2", "2", "3"]  # counted from 1
    assert [a["class"] for a in spans] == ["t0", "t4", "t4", "t9"]
    slider = next(a for a in page.having("input") if a["type"] == "range")
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "3", "3")


def test_text_keeps_its_shape_and_shows_what_is_invisible(results):
    page = body(report.render(results))
    text = re.sub(r"<i.*?</i>|<span.*?>|</span>", "", re.search(r"<pre>(.*?)</pre>", page, re.S)[1])
    assert text == "ab\n\tc de\u2039U+200B\u203a\u2407f"
    assert chart.safe("a\rb\x7f\ud800\u202ec\ufffd") == "a\u240db\u2421\u2039U+D800\u203a\u2039U+202E\u203ac\ufffd"


def test_mask_cells_match_a_direct_computation(results):
    page = Page(body(report.render(results)))
    cells = [a["class"] for a in page.having("rect") if a.get("class") in ("seen", "same", "later")]
    legend = ["seen", "same", "later"]
    expected = []
    for picture in results["orders"]:
        blocks = picture["blocks"]
        for n in range(len(blocks)):
            for i in range(len(blocks)):
                expected.append("seen" if blocks[i] < blocks[n] else "same" if blocks[i] == blocks[n] else "later")
    assert cells == expected + legend


def test_strip_shows_the_step_of_each_place():
    order = Order.strided(1, 8, 2)
    strip = report._strip(order.positions[0].tolist(), order.blocks[0].tolist())
    assert "written: 1, 3, 4, 5, 2, 3, 4, 5" in strip
    shown = re.findall(r'class="step" x="([\d.]+)".*?>(\d+)<', strip)
    assert [int(step) for _, step in sorted(shown, key=lambda s: float(s[0]))] == [1, 3, 4, 5, 2, 3, 4, 5]


def test_headline_compares_with_one_token_at_a_time(results):
    text = Page(body(report.render(results))).text
    assert "With 4 streams it wrote at 4.0\u00d7 the speed" in text
    assert "20 passes of the network instead of 65" in text
    assert "0.30 nats per token more" in text


def test_long_curves_are_thinned_by_averaging():
    points = chart.finite_points([[s, float(s % 2)] for s in range(1000)], at_most=100)
    assert len(points) == 100 and all(y == 0.5 for _, y in points)
    assert chart.finite_points([[2, 1.0], [1, 3.0], [3, float("inf")], [4, None]]) == [(1.0, 3.0), (2.0, 1.0)]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1.62, 5.5), (3, 3), (0, 0), (-2, 7), (1e-4, 2e-4)])
def test_ticks_span_the_values(low, high):
    ticks = chart._ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and len(ticks) <= 8


@pytest.mark.parametrize(("low", "high"), [(1, 10), (60, 480), (62.4, 62.4), (0.03, 7000)])
def test_log_ticks_span_the_values(low, high):
    ticks = chart._log_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high


def test_write_replaces_the_file_whole_or_not_at_all(results, tmp_path):
    path = tmp_path / "out" / "report.html"
    report.write(results, path)
    assert path.read_text(encoding="utf-8") == report.render(results)
    broken = copy.deepcopy(results)
    del broken["samples"][0]["title"]
    with pytest.raises(KeyError):
        report.write(broken, path)
    assert path.read_text(encoding="utf-8") == report.render(results)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_rendering_is_deterministic_and_leaves_the_results_alone(results):
    before = copy.deepcopy(results["orders"]), copy.deepcopy(results["samples"])
    assert report.render(results) == report.render(results)
    assert before == (results["orders"], results["samples"])


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.00025, "0.00025"), (1500, "1500"), (2500, "2.5k"), (1_000_000, "1M"), (94.4e9, "94.4B"), (-3000, "-3k")],
)
def test_ticks_are_short(value, shown):
    assert chart._tick(value) == shown
