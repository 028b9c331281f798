"""Tables for the terminal."""

import sys

from rich.console import Console
from rich.table import Table


def console(width: int = 160) -> Console:
    """Of stdout: as wide as the terminal, `width` characters where it is none; a line that is longer stays one."""
    return Console(width=None if sys.stdout.isatty() else width, highlight=False, soft_wrap=True)


def figures(first: str, *rest: str) -> Table:
    """No lines, no row yet; texts in the first column and figures, to the right, in the others."""
    table = Table(box=None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in rest:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
