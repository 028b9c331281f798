"""Published tables of results as suites of the harness's tasks, and how a model's own results compare with a row of them.

A table is two files in `published`: NAME.toml says which task gives which column and where the table is from, NAME.csv is
the table, every value as it is printed. Loads no torch and not the harness.
"""

import csv
import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from numbers import Real
from pathlib import Path

from leanlm.errors import UsageError
from leanlm.families import catalog

PUBLISHED = Path(__file__).parent / "published"


@dataclass(frozen=True)
class Provenance:
    """Where values are from. `kind` is "as printed", "second-hand" or "read off a chart", in which case values may be off by
    `reading`, in their own unit. `note` says what else to know, with UNVERIFIED before what no source states."""

    kind: str
    source: str
    url: str
    note: str = ""
    reading: float = 0.0


@dataclass(frozen=True)
class Task:
    """A column: `metric` of the harness's task or group `name`, or of a `part` that the group itself defines, after `filter`,
    with `shots` examples. What is printed is the harness's value times `scale`."""

    label: str
    name: str
    shots: int = 0
    metric: str = "acc"
    filter: str = "none"
    scale: float = 100
    part: str = ""

    @property
    def result(self) -> str:
        """The name its results have."""
        return f"{self.name}::{self.part}" if self.part else self.name


@dataclass(frozen=True)
class Average:
    """A column that is the mean of those labelled `of`."""

    label: str
    of: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """`values` by column label, as printed, without those that are not; `details` likewise for columns that are no results.
    `model` is the name as printed, `name` that of the catalogue, "" where it has none."""

    model: str
    name: str
    values: Mapping[str, str]
    details: Mapping[str, str]
    provenance: Provenance


@dataclass(frozen=True)
class Suite:
    """`columns` are the labels of `tasks` and `average` in the order of the table."""

    name: str
    about: str
    columns: tuple[str, ...]
    tasks: tuple[Task, ...]
    average: Average | None
    rows: tuple[Row, ...]
    provenance: Provenance

    def row(self, model: str) -> Row | None:
        """The row of a model by its name as printed or by any that the catalogue knows it by; None where there is none."""
        entry = catalog.resolve(model)
        known = entry.name if entry else None
        return next((row for row in self.rows if row.model == model or (row.name and row.name == known)), None)


@dataclass(frozen=True)
class Cell:
    """A value beside a published one, in its unit: `ours` and its standard `error` (None where they were not measured),
    `theirs` as printed ("" where nothing is), whether they agree (None where that cannot be said; `note` may tell why)."""

    label: str
    ours: float | None
    error: float | None
    theirs: str
    agrees: bool | None
    note: str = ""


def names() -> list[str]:
    return sorted(path.stem for path in PUBLISHED.glob("*.toml"))


@cache
def suite(name: str) -> Suite:
    """Raises UsageError for an unknown name."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1)
        meant = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(names())}"
        raise UsageError(f"no suite {name!r}{meant}")
    described = tomllib.loads((PUBLISHED / f"{name}.toml").read_text())
    tasks = tuple(Task(**task) for task in described["tasks"])
    average = described.get("average")
    average = Average(average["label"], tuple(average["of"])) if average else None
    provenance = Provenance(**described["provenance"])
    details = described.get("details", [])
    with (PUBLISHED / f"{name}.csv").open(newline="") as file:
        table = csv.DictReader(file)
        columns = tuple(label for label in table.fieldnames or () if label not in ("model", "name", *details))
        rows = tuple(_row(printed, columns, details, provenance) for printed in table)
    return Suite(name, described["about"], columns, tasks, average, rows, provenance)


def _row(printed: Mapping[str, str], columns: Sequence[str], details: Sequence[str], provenance: Provenance) -> Row:
    values = {label: printed[label] for label in columns if printed[label]}
    return Row(printed["model"], printed["name"], values, {label: printed[label] for label in details}, provenance)


def compared(suite: Suite, row: Row | None, results: Mapping) -> list[Cell]:
    """The suite's columns in the harness's `results`, beside a row (None: beside nothing), in the order of the suite.

    Values agree by `agree`. Of tasks that were run with another number of examples, and of a printed average that is not the
    mean of the columns printed beside it, nothing is said but why.
    """
    cells = [_cell(task, row, results) for task in suite.tasks]
    if suite.average:
        cells.append(_mean(suite.average, row, cells))
    return sorted(cells, key=lambda cell: suite.columns.index(cell.label))


def agree(ours: float, error: float, printed: str, reading: float = 0.0) -> bool:
    """Whether values differ by no more than two standard errors of ours and what theirs may be off by: half of its last
    printed digit, or `reading` where it was read off a chart and that is more."""
    return abs(ours - float(printed)) <= 2 * error + max(half_digit(printed), reading) + 1e-9


def half_digit(printed: str) -> float:
    """Half of the last digit of a number as printed: 0.05 for "59.2"."""
    return 0.5 * 10.0 ** int(Decimal(printed).as_tuple().exponent)


def shots(results: Mapping, task: str) -> int | None:
    """How many examples a task was given in the harness's `results`, a group all of its tasks; None where they do not say."""
    given = results.get("n-shot", {}).get(task)
    if given is not None:
        return given
    inside = {shots(results, part) for part in results.get("group_subtasks", {}).get(task, ())}
    return inside.pop() if len(inside) == 1 else None


def metrics(results: Mapping, task: str) -> dict[tuple[str, str], float]:
    """A task's values in the harness's `results` by metric and filter, such as ("acc", "none"), errors likewise as
    ("acc_stderr", "none"); without those that it did not compute, where it writes "N/A"."""
    found = results.get("results", {}).get(task, {})
    numbers = {key: value for key, value in found.items() if "," in key and isinstance(value, Real) and math.isfinite(value)}
    return {tuple(key.split(",", 1)): float(value) for key, value in numbers.items()}


def _cell(task: Task, row: Row | None, results: Mapping) -> Cell:
    found = metrics(results, task.result)
    ours, error = (found.get((name, task.filter)) for name in (task.metric, f"{task.metric}_stderr"))
    ours, error = (None if value is None else value * task.scale for value in (ours, error))
    given = shots(results, task.result)
    other = ours is not None and given not in (None, task.shots)
    note = f"{given}-shot instead of {task.shots}-shot" if other else ""
    return _beside(row, task.label, ours, error, note)


def _mean(average: Average, row: Row | None, cells: Sequence[Cell]) -> Cell:
    """The average's cell; its error is that of a mean of independent values."""
    members = [cell for cell in cells if cell.label in average.of]
    if any(cell.ours is None for cell in members):
        return _beside(row, average.label, None, None)
    errors = [cell.error for cell in members]
    error = None if None in errors else math.hypot(*errors) / len(members)
    note = next((f"{cell.label} is {cell.note}" for cell in members if cell.note), "")
    if not note and row and not _is_mean(average, row):
        note = "not the mean of the columns printed beside it"
    return _beside(row, average.label, math.fsum(cell.ours for cell in members) / len(members), error, note)


def _is_mean(average: Average, row: Row) -> bool:
    """Whether a printed average is, up to rounding, that of the printed columns; so it is held to be where some are not."""
    if average.label not in row.values or not row.values.keys() >= set(average.of):
        return True
    printed = [row.values[label] for label in average.of]
    mean = math.fsum(map(float, printed)) / len(printed)
    return agree(mean, 0.0, row.values[average.label], reading=2 * max(map(half_digit, printed)))


def _beside(row: Row | None, label: str, ours: float | None, error: float | None, note: str = "") -> Cell:
    theirs = row.values.get(label, "") if row else ""
    agrees = None
    if theirs and not note and ours is not None and error is not None:
        agrees = agree(ours, error, theirs, row.provenance.reading)
    return Cell(label, ours, error, theirs, agrees, note)
