"""Suites on the terminal."""

import io

import pytest
from rich.console import Console

from leanlm.cli import suite_tables
from leanlm.evaluate import suites
from leanlm.evaluate.suites import Cell


def text(table) -> list[str]:
    console = Console(file=io.StringIO(), width=1000)
    console.print(table)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("name", suites.names())
def test_rows_are_shown_as_printed(name):
    suite = suites.suite(name)
    head, *lines = text(suite_tables.published(suite))
    assert head.split() == " ".join(["model", *suite.rows[0].details, *suite.columns]).split()
    for line, row in zip(lines, suite.rows, strict=True):
        assert line.startswith(row.model)
        values = [*row.details.values(), *row.values.values()]
        assert line.removeprefix(row.model).split() == [value for value in values if value]


def test_a_model_beside_a_row():
    found = [
        Cell("PIQA", 77.4, 0.97, "77.5", True),
        Cell("COPA", 70.0, 4.6, "82.0", False),
        Cell("MMLU", 26.0, 0.4, "32.6", None, "0-shot instead of 5-shot"),
        Cell("ARC", None, None, "61.7", None),
        Cell("LAMBADA", 6.25, None, "", None),
    ]
    head, *lines = [line.split(maxsplit=4) for line in text(suite_tables.comparison(found))]
    assert head == ["task", "ours", "standard", "error", "theirs                    agrees"]
    assert lines == [
        ["PIQA", "77.40", "0.97", "77.5", "yes"],
        ["COPA", "70.00", "4.60", "82.0", "no"],
        ["MMLU", "26.00", "0.40", "32.6", "0-shot instead of 5-shot"],
        ["ARC", "61.7"],
        ["LAMBADA", "6.25"],
    ]


def test_what_theirs_is_and_where_it_is_from():
    suite = suites.suite("avengers")
    row = suite.row("avengers-tele64")
    lines = list(suite_tables.summary(suite, row, [Cell("a", 1.0, 1.0, "1.0", True), Cell("b", 9.0, 1.0, "1.0", False)]))
    assert "Tele@64; read off a chart" in lines[1] and suite.provenance.url in lines[1]
    assert lines[-1].startswith("1 of 2 agree") and lines[-1].endswith("0.1")
    lines = list(suite_tables.summary(suite, None, []))
    assert "nothing is published" in lines[1] and not any("agree" in line for line in lines)
