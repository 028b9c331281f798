"""The figures of a comparison, from its rows: what a bit buys, what is remembered, what it costs."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from leanlm.study.figure import Figure
from leanlm.study.recall_charts import recall_figures
from leanlm.train.chart import Series

Row = dict
Value = Callable[[Row], float | None]


def figures(rows: Sequence[Row]) -> Iterator[Figure]:
    """Those that the rows have figures for."""
    for name, of in scores(rows):
        yield from against(rows, name, of)
    yield from state_figures(rows)
    yield from recall_figures(rows)


def scores(rows: Sequence[Row]) -> Iterator[tuple[str, Value]]:
    """(name, how it is read from a row) of everything that rates a model: bits per byte, tasks, speed."""
    if any("text" in row for row in rows):
        yield "bits per byte", lambda row: row.get("text", {}).get("bits_per_byte")
    for path in dict.fromkeys(path for row in rows for path in task_metrics(row)):
        yield " ".join(path[1:]), lambda row, path=path: score_of(row, path)
    if any("speed" in row for row in rows):
        yield "tokens per second", lambda row: row.get("speed", {}).get("decode", {}).get("tokens_per_second")


def task_metrics(row: Row) -> Iterator[tuple[str, ...]]:
    """("items", file, kind, metric) and ("tasks", task, metric) that a row has."""
    for name, kinds in row.get("items", {}).items():
        for kind, found in kinds.items():
            yield from (("items", name, kind, metric) for metric in found if metric != "items")
    for name, found in row.get("tasks", {}).items():
        yield from (("tasks", name, metric) for metric in found)


def score_of(row: Row, path: tuple[str, ...], part: str = "value") -> float | None:
    """A metric's value, or its "stderr"; None where the row has none."""
    found = row
    for key in path:
        found = found.get(key, {})
    return found.get(part)


def against(rows: Sequence[Row], name: str, of: Value) -> Iterator[Figure]:
    """The score against bytes of weights, and against parameters where models differ in them."""
    plain = [row for row in rows if not row["state"] and of(row) is not None]
    if plain:
        by_size = [curve(model, chosen, lambda row: row["weight_bytes"], of) for model, chosen in by(plain, "model")]
        about = "One line a model, a point for every format its matrices are held in."
        yield Figure(f"{name} against model bytes", about, "bytes of weights", name, by_size)
    if len({row["parameters"] for row in plain}) > 1:
        by_count = [
            curve(held or "as stored", chosen, lambda row: row["parameters"], of, "model")
            for held, chosen in by(plain, "format")
        ]
        about = "One line a format, a point for every model."
        yield Figure(f"{name} against parameters", about, "parameters", name, by_count)


def state_figures(rows: Sequence[Row]) -> Iterator[Figure]:
    plain = [row for row in rows if not row["state"]]
    grown = {}
    for row in rows:
        if (told := tuple(row["state_bytes"].items())) and told not in grown.values():
            grown[f"{row['model']}, state {row['state']}" if row["state"] else row["model"]] = told
    series = [Series(name, [int(n) for n, _ in told], [b for _, b in told], style="both") for name, told in grown.items()]
    about = "What one text's memory takes after so many tokens: level where it has a constant size."
    yield Figure("State bytes against tokens read", about, "tokens", "bytes of state", series, log_y=True)
    if any("text" in row for row in rows):
        about = "How much of what was read before helps: spans of positions in the documents, each twice as long as the last."
        series = [
            Series(row["name"], [span["to"] for span in spans], [span["bits_per_byte"] for span in spans])
            for row in plain
            if (spans := row.get("text", {}).get("by_position"))
        ]
        yield Figure("Bits per byte by position", about, "tokens read before, up to", "bits per byte", series)
    yield from precision_figures(rows)


def has_no_recurrent_state(row: Row) -> bool:
    """Whether the model is one without recurrent memory, for which a state's precision changes nothing."""
    return not row.get("recurrent", True)  # rows of earlier comparisons do not say


def precision_figures(rows: Sequence[Row]) -> Iterator[Figure]:
    """Bits per byte against bytes of the state, where there are recurrent states of several precisions."""
    rows = [row for row in rows if not has_no_recurrent_state(row)]
    if not any(row["state"] for row in rows) or not any("text" in row for row in rows) or not lengths(rows):
        return
    tokens = lengths(rows)[-1]
    series = [
        curve(name, chosen, lambda row: row["state_bytes"][tokens], lambda row: row["text"]["bits_per_byte"], "state")
        for name, chosen in by(rows, "model", "format")
    ]
    about = "The same weights with the recurrent state kept in fewer bits, rounded after every piece of text (512 tokens)."
    yield Figure("What a bit of state buys", about, f"bytes of state after {int(tokens):,} tokens", "bits per byte", series)


def lengths(rows: Sequence[Row]) -> list[str]:
    """The numbers of tokens for which all rows tell a state's bytes."""
    return [n for n in rows[0]["state_bytes"] if all(n in row["state_bytes"] for row in rows)]


def by(rows: Sequence[Row], *keys: str) -> Iterator[tuple[str, list[Row]]]:
    """Rows that have the same of `keys`, with it as text."""

    def key(row: Row) -> str:
        return "@".join(str(row[k]) for k in keys if row[k])

    for name, same in groupby(sorted(rows, key=key), key=key):
        yield name, list(same)


def curve(name: str, rows: Sequence[Row], x: Value, y: Value, label: str = "format") -> Series:
    """A point for every row, from left to right, named by what tells the rows apart."""
    rows = sorted(rows, key=x)
    plain = {"format": "as stored", "state": "float32"}.get(label, "")
    labels = [str(row[label] or plain) + (" (rounded)" if label == "format" and row["rounded"] else "") for row in rows]
    return Series(name, [x(row) for row in rows], [y(row) for row in rows], style="both", labels=labels)
