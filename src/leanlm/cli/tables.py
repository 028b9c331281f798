"""Tables for the terminal."""

from rich.table import Table


def figures(first: str, *rest: str) -> Table:
    """No lines, no row yet; texts in the first column and figures, to the right, in the others."""
    table = Table(box=None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in rest:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
