"""leanlm list: the models known by name and what they cost."""

import json
from dataclasses import dataclass

from leanlm.cli import sizes

COLUMNS = ("name", "parameters", "bits", "weight_bytes", "packed_bytes", "state_bytes", "licence", "repo")


@dataclass(frozen=True)
class Command:
    """List the models known by name: parameters, bits of a weight inside the layers, bytes of the weights as released, the
    format they can be packed in and their bytes then, bytes of a text's state, licence, hub id."""

    all: bool = False
    """Also models that were announced and never released, with how to make them."""
    json: bool = False
    """Print JSON."""


def run(command: Command) -> None:
    from leanlm.families import catalog

    rows = [row(entry) for entry in catalog.CATALOG if entry.repo or command.all]
    if command.json:
        print(json.dumps(rows, indent=2))
        return
    from rich.table import Table

    from leanlm.cli import tables

    headings = ("name", "parameters", "bits", "weights", "format", "packed", "state", "licence", "hub id")
    table = Table(*headings, box=None, pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
    for known in rows:
        table.add_row(*cells(known))
    tables.console().print(table)


def row(entry) -> dict:
    """The entry's figures; `note` says what of them is not from the published files."""
    format = str(entry.format) if entry.format else "float"
    return {**{name: getattr(entry, name) for name in (*COLUMNS, "note")}, "format": format}


def cells(row: dict) -> list[str]:
    return [
        row["name"],
        sizes.count(row["parameters"]),
        f"{row['bits']:g}",
        sizes.size(row["weight_bytes"]),
        row["format"],
        sizes.size(row["packed_bytes"]) if row["packed_bytes"] else "",
        sizes.size(row["state_bytes"]),
        row["licence"],
        row["repo"] or row["note"],
    ]
