"""A comparison as one HTML page that needs nothing else: no script, no font, no network."""

from collections.abc import Iterator, Sequence
from html import escape

from leanlm.study.comparison_charts import figures, has_no_recurrent_state, lengths, score_of, task_metrics
from leanlm.study.figure import Figure
from leanlm.train.chart import COLOURS, NARROW, Series, number, svg

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 1240px; font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a;
  background: #fff; }
h1 { font-size: 1.6rem; margin: .2rem 0 .6rem; }
h2 { font-size: 1.2rem; margin: 2rem 0 .6rem; }
p, li { max-width: 46rem; }
.wide { overflow-x: auto; border: 1px solid #ddd; border-radius: 6px; }
table { border-collapse: collapse; white-space: nowrap; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid #eee; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; max-width: 15rem;
  min-width: 9rem; white-space: normal; overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid #ccc; }
tbody tr:last-child td { border-bottom: 0; }
.figures { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 430px), 1fr)); }
figure { margin: 0; padding: .7rem; border: 1px solid #ddd; border-radius: 6px; }
figure svg { display: block; width: 100%; height: auto; }
figcaption b { display: block; font-size: 1.05rem; }
figcaption { font-size: .92rem; margin-bottom: .4rem; }
.key { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; padding: 0; margin: .4rem 0 0; font-size: .88rem; }
.key i { display: inline-block; width: 1.4em; margin-right: .4em; border-top: 3px solid; vertical-align: middle; }
footer { margin-top: 2rem; font-size: .88rem; color: #555; overflow-wrap: anywhere; }
"""


def page(title: str, rows: Sequence[dict], notes: Sequence[str]) -> str:
    """The page as text; `notes` are told at its end, a paragraph each."""
    drawn = "\n".join(map(shown, figures(rows)))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{escape(rounded(rows))}</p>
<div class="wide">
{table(rows)}
</div>
<h2>Figures</h2>
<div class="figures">
{drawn}
</div>
<footer>{"".join(f"<p>{escape(note)}</p>" for note in notes)}</footer>
</body>
</html>
"""


def rounded(rows: Sequence[dict]) -> str:
    names = [row["name"] for row in rows if row["rounded"]]
    about = "Bits of matrices count their scales. Bits per byte compare models with different tokenizers; less is better."
    return about + (f" Rounded to ternary without training: {'; '.join(names)}." if names else "")


def table(rows: Sequence[dict]) -> str:
    columns = list(cells(rows))
    head = "".join(f"<th>{escape(name)}</th>" for name, _ in columns)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{escape(value)}</td>" for value in line) + "</tr>" for line in zip(*(v for _, v in columns))
    )
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def cells(rows: Sequence[dict]) -> Iterator[tuple[str, list[str]]]:
    """(heading, a text for every row) of each column there is something for."""
    without = " (has no recurrent state)"
    yield "model", [row["name"] + (without if has_no_recurrent_state(row) and row["state"] else "") for row in rows]
    yield "parameters", [number(row["parameters"]) for row in rows]
    yield "bytes of weights", [number(row["weight_bytes"]) for row in rows]
    yield "bits per matrix weight", [f"{row['matrix_bits']:.2f}" for row in rows]
    shared, most = lengths(rows), max((row["state_bytes"] for row in rows), key=len)
    for n in dict.fromkeys([*shared[:1], *list(most)[-1:]]):
        yield f"state after {int(n):,}", [number(row["state_bytes"][n]) if n in row["state_bytes"] else "" for row in rows]
    if any("text" in row for row in rows):
        yield "bits per byte", [f"{row['text']['bits_per_byte']:.4f}" for row in rows]
        yield "perplexity", [f"{row['text']['perplexity']:.2f}" for row in rows]
        if any(row["text"]["window"] for row in rows):
            yield "read in windows of", [f"{row['text']['window'] or ''}" for row in rows]
    for path in dict.fromkeys(path for row in rows for path in task_metrics(row)):
        yield " ".join(path[1:]), [score(row, path) for row in rows]
    yield from recalls(rows)
    if any("speed" in row for row in rows):
        yield "tokens/s, decode", [f"{row['speed']['decode']['tokens_per_second']:.1f}" for row in rows]
        yield "tokens/s, prefill", [f"{row['speed']['prefill']['tokens_per_second']:.0f}" for row in rows]
        yield "share of a plain read", [share(row["speed"]["share_of_read"]) for row in rows]


def recalls(rows: Sequence[dict]) -> Iterator[tuple[str, list[str]]]:
    """Accuracy of every kind of probe by distance, with the smallest load."""
    points = [{(p["kind"], p["load"], p["distance"]): p["accuracy"] for p in row.get("recall", ())} for row in rows]
    least = min((load for found in points for _, load, _ in found), default=None)
    for kind, load, distance in dict.fromkeys(key for found in points for key in found):
        if load == least:
            values = (found.get((kind, load, distance)) for found in points)
            yield f"{kind} after {distance}", ["" if value is None else f"{value:.2f}" for value in values]


def score(row: dict, path: tuple[str, ...]) -> str:
    """ "0.412 +- 0.021"."""
    value, error = score_of(row, path), score_of(row, path, "stderr")
    return "" if value is None else f"{value:.3f}" + (f" ± {error:.3f}" if error else "")


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def shown(figure: Figure) -> str:
    series = [Series(s.name, s.x, s.y, s.errors, style_of(n, s), s.labels) for n, s in enumerate(figure.series)]
    chart = svg("", series, figure.x_label, figure.y_label, figure.log_x, figure.log_y, NARROW, names=False)
    key = "".join(f'<li><i style="{line_of(n, s)}"></i>{escape(s.name)}</li>' for n, s in enumerate(series))
    title = figure.title[:1].upper() + figure.title[1:]
    caption = f"<b>{escape(title)}</b>{escape(figure.about)}"
    return f'<figure>\n<figcaption>{caption}</figcaption>\n{chart}<ul class="key">{key}</ul>\n</figure>'


def line_of(place: int, series: Series) -> str:
    """The series' line in the key, as CSS."""
    dashed = "; border-top-style: dashed" if series.style == "dashed" else ""
    return f"border-color: {COLOURS[place % len(COLOURS)]}{dashed}"


def style_of(place: int, series: Series) -> str:
    """Colours that come a second time are dashed."""
    return "dashed" if place >= len(COLOURS) else series.style
