"""The page of a comparison: well-formed, complete in itself, readable in a real browser at two widths."""

import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from leanlm.study.comparison_charts import figures
from leanlm.study.page import cells, page

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "link", "br"}


def row(format: str | None, size: float, score: float, state: str | None = None) -> dict:
    points = [
        {
            "kind": "copy",
            "distance": d,
            "load": n,
            "accuracy": score / d,
            "stderr": 0.1,
            "chance": 0.01,
            "nats": 1.0,
            "items": 4,
        }
        for d in (16, 64)
        for n in (1, 4)
    ]
    return {
        "model": "a <model>",
        "format": format,
        "state": state,
        "name": "a <model>" + (f"@{format}" if format else "") + (f", state {state}" if state else ""),
        "rounded": format == "ternary",
        "parameters": 5_000_000,
        "weight_bytes": size,
        "matrix_bits": 8.0,
        "state_bytes": {"256": 1000, "1024": 1000 if not state else 500, "65536": 1000},
        "text": {
            "window": None,
            "bits_per_byte": score,
            "perplexity": 20.0,
            "by_position": [{"from": n, "to": n + 64, "tokens": 9, "bits_per_byte": 2 - n / 128} for n in (0, 64)],
        },
        "items": {"quiz.jsonl": {"multiple choice": {"items": 9, "acc": {"value": 0.5, "stderr": 0.1}}}},
        "tasks": {"piqa": {"acc": {"value": 0.6, "stderr": 0.02}}},
        "speed": {"decode": {"tokens_per_second": 100.0}, "prefill": {"tokens_per_second": 900.0}, "share_of_read": None},
        "recall": points,
    }  # fmt: skip


ROWS = [
    row(None, 10e6, 1.2),
    row("int8", 6e6, 1.21),
    row("int4", 4e6, 1.25),
    row("ternary", 3e6, 1.5),
    row(None, 10e6, 1.2, "int8"),
]
HTML = page("Quality & bits", ROWS, ["made by <hand>"])


def test_states_that_a_model_has_not_are_marked():
    """Its rows are equal whatever the state's precision, and no point of the figure about that."""
    alike = [row(None, 10e6, 1.2) | {"recurrent": False}, row(None, 10e6, 1.2, "int8") | {"recurrent": False}]
    names = dict(cells([*ROWS, *alike]))["model"]
    assert names[-1] == "a <model>, state int8 (has no recurrent state)" and "(" not in "".join(names[:-1])
    title = "What a bit of state buys"
    assert [figure.title for figure in figures(ROWS)].count(title) == 1
    assert title not in [figure.title for figure in figures(alike)]


class Balance(HTMLParser):
    """Fails on tags that do not close in order, and gathers what a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched = [], []

    def handle_starttag(self, tag, attributes):
        self.fetched += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        pass


def test_it_is_well_formed_and_fetches_nothing():
    found = Balance()
    found.feed(HTML)
    assert not found.open and found.fetched == ["data:,"]
    assert "<script" not in HTML and "@import" not in HTML and "url(" not in HTML
    assert "a &lt;model&gt;@int4" in HTML and "made by &lt;hand&gt;" in HTML
    for chart in re.findall(r"<svg.*?</svg>", HTML, re.DOTALL):
        ElementTree.fromstring(chart)


def test_every_measure_has_its_figure():
    titles = [figure.title for figure in figures(ROWS)]
    assert titles == [
        "bits per byte against model bytes",
        "quiz.jsonl multiple choice acc against model bytes",
        "piqa acc against model bytes",
        "tokens per second against model bytes",
        "State bytes against tokens read",
        "Bits per byte by position",
        "What a bit of state buys",
        "Recall, copy, by distance",
        "Recall, copy, by load",
    ]
    other = {**row(None, 20e6, 1.1), "model": "another", "name": "another", "parameters": 9_000_000}
    assert "bits per byte against parameters" in [figure.title for figure in figures([*ROWS, other])]
    assert all(title in HTML for title in titles[4:])


def test_points_are_named_by_format_from_small_to_large():
    first = next(figures(ROWS))
    assert first.series[0].labels == ["ternary (rounded)", "int4", "int8", "as stored"]
    assert list(first.series[0].y) == [1.5, 1.25, 1.21, 1.2]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_errors_or_sideways_scrolling(tmp_path, width):
    frame = f'<iframe style="width: {width}px; height: 1900px; border: 0" srcdoc="{escape(HTML)}"></iframe>'  # of any width
    measuring = "document.body.dataset.wide = frames[0].document.documentElement.scrollWidth"
    (tmp_path / "page.html").write_text(f"<body style='margin: 0'>{frame}<script>onload = () => {{ {measuring} }}</script>")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={width},2000"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}", "--dump-dom"]
    shown = subprocess.run([BROWSER, *flags, f"file://{tmp_path}/page.html"], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in shown.stderr
    assert int(re.search(r'data-wide="(\d+)"', shown.stdout).group(1)) <= width
    picture = (tmp_path / "page.png").read_bytes()
    assert int.from_bytes(picture[16:20]) == width and len(picture) > 30_000  # an empty page has a tenth of it
