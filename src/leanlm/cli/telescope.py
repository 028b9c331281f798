"""leanlm telescope MODEL OUT: the model with telescoping caches in place of its attention's, to be fine-tuned."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from leanlm.cli.quantize import check_new, held_out, progress
from leanlm.errors import UsageError
from leanlm.slots import NAMED, Table, wrong


@dataclass(frozen=True)
class Command:
    """Give the attention of a Llama or a hybrid telescoping caches, and write the model into the folder OUT.

    The weights stay as they are: up to the first merge it computes what it did, after that what merged entries leave of it.
    Fine-tune it with a recipe whose model.from is OUT. Bits per byte are measured before and after."""

    model: tyro.conf.Positional[str]
    """A folder, a name from `leanlm list`, or a hub id."""
    out: tyro.conf.Positional[Path]
    """The folder to write; it must not hold anything yet."""
    cache: str = "128"
    """A published cache (32, 64, 128, 128-even, 128-long, 256, 512), or with --merges the number of slots."""
    merges: tuple[int, ...] = ()
    """The slots in which entries are merged, level by level."""
    merge: Literal["self_score", "l2", "learned", "mean", "sqrt2"] = "self_score"
    """How tokens weigh in what is merged. self_score started nearest to the original where we measured it; like l2 it has no
    weights of its own. learned starts as the plain mean."""
    full: tuple[int, ...] = ()
    """Layers whose attention goes on seeing all tokens."""
    held_out: str | None = None
    """Text to measure bits per byte on before and after, its first 300 kB: a file, a folder, builtin (the default), or none."""
    tokenizer: str | None = None
    """Folder, file or hub id of a tokenizer, where the model's own is missing."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    offline: bool = False
    """Use only what is already on disk."""


def run(command: Command) -> None:
    check_new(command.out)
    table = table_of(command)
    from leanlm.api import load
    from leanlm.distill.telescoping import telescoped
    from leanlm.quantize import job

    model = load(command.model, tokenizer=command.tokenizer, revision=command.revision, offline=command.offline)
    made = telescoped(model, table, command.merge, command.full)
    made.save(command.out)
    print(f"written to {command.out}", flush=True)
    source = held_out(command, model)
    if source:
        documents = job.held_out_documents(model, source)
        try:
            before = job.measured(model, documents, progress, "held-out text, before")
            after = job.measured(made, documents, progress, "held-out text, after")
        finally:
            progress("")
        print(f"bits per byte: {before:.4f} before, {after:.4f} with {table.size} slots")


def table_of(command: Command) -> Table:
    """The table that the flags ask for. Raises UsageError."""
    if not command.merges:
        if command.cache not in NAMED:
            raise UsageError(f"--cache {command.cache}: choose from {', '.join(NAMED)}, or give --merges too")
        return NAMED[command.cache]
    if not command.cache.isdecimal():
        raise UsageError(f"--cache {command.cache}: with --merges give the number of slots")
    table = Table(int(command.cache), command.merges)
    if reason := wrong(table):
        raise UsageError(reason)
    return table
