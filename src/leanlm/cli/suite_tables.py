"""Named suites of tasks as tables: what is published, and a model's own results beside a row of it."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from leanlm.cli import tables
from leanlm.evaluate.suites import Cell, Row, Suite


def published(suite: Suite) -> Table:
    """The suite's rows as printed. Wide: give it a console without a limit."""
    details = list(suite.rows[0].details)
    table = tables.figures("model", *details, *suite.columns)
    for row in suite.rows:
        table.add_row(row.model, *row.details.values(), *(row.values.get(label, "") for label in suite.columns))
    return table


def comparison(cells: Sequence[Cell]) -> Table:
    """A line for every column of the suite: ours with one digit more than theirs, and as printed theirs."""
    table = tables.figures("task", "ours", "standard error", "theirs", "agrees")
    for cell in cells:
        digits = len(cell.theirs.partition(".")[2]) + 1 if cell.theirs else 2
        ours, error = ("" if value is None else f"{value:.{digits}f}" for value in (cell.ours, cell.error))
        agrees = {True: "yes", False: "no", None: cell.note}[cell.agrees]
        table.add_row(cell.label, ours, error, cell.theirs, agrees)
    return table


def summary(suite: Suite, row: Row | None, cells: Sequence[Cell]) -> Iterator[str]:
    """Line by line: what theirs is and where it is from, and how many of its values ours agree with."""
    source = suite.provenance
    yield f"{suite.name}: {suite.about}"
    yield f"theirs: {row.model if row else 'nothing is published of this model'}; {source.kind}, {source.source}, {source.url}"
    if source.note:
        yield f"note: {source.note}"
    judged = [cell.agrees for cell in cells if cell.agrees is not None]
    if judged:
        yield (
            f"{sum(judged)} of {len(judged)} agree: no further apart than two of our standard errors and "
            + (f"what was read off may be off by, {source.reading:g}" if source.reading else "half of their last digit")
        )
