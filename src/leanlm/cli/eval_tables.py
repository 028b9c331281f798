"""What `leanlm eval` found, as tables."""

from collections.abc import Sequence

from rich.table import Table

from leanlm.cli import suite_tables, tables
from leanlm.evaluate.suites import Cell, Row, Suite


def show(found: dict) -> None:
    console = tables.console()
    for name, kinds in found.get("items", {}).items():
        console.print(items(name, kinds))
    for source, scores in found.get("text", {}).items():
        console.print(*text(source, scores), sep="\n")
    if "tasks" in found:
        from lm_eval.utils import make_table

        console.print(make_table(found["tasks"]), markup=False)
        if found["tasks"].get("groups"):
            console.print(make_table(found["tasks"], "groups"), markup=False)


def show_suite(suite: Suite, row: Row | None, cells: Sequence[Cell]) -> None:
    console = tables.console()
    console.print(suite_tables.comparison(cells))
    console.print(*suite_tables.summary(suite, row, cells), sep="\n", markup=False)


def show_columns(columns: Sequence[tuple[str, list[str]]]) -> None:
    """(heading, texts) side by side; a terminal too narrow breaks its lines."""
    table = tables.figures(*(heading for heading, _ in columns))
    for line in zip(*(texts for _, texts in columns)):
        table.add_row(*line)
    tables.console(400).print(table)


def items(name: str, kinds: dict[str, dict]) -> Table:
    table = tables.figures(name, "items", "metric", "value", "stderr")
    for kind, scores in kinds.items():
        for metric, score in scores.items():
            if metric != "items":
                error = "" if score["stderr"] is None else f"{score['stderr']:.4f}"
                table.add_row(kind, str(scores["items"]), metric, f"{score['value']:.4f}", error)
    return table


def text(source: str, scores: dict) -> list:
    size = f"{scores['documents']} documents, {scores['tokens']} tokens, {scores['bytes']} bytes"
    table = tables.figures("tokens read before", "tokens", "bits per byte")
    for span in scores["by_position"]:
        table.add_row(f"{span['from']} to {span['to'] - 1}", str(span["tokens"]), f"{span['bits_per_byte']:.4f}")
    return [
        f"{source}: {size}",
        f"bits per byte {scores['bits_per_byte']:.4f}, perplexity {scores['perplexity']:.3f} per token",
        table,
    ]
