"""leanlm eval MODEL: the harness's tasks and suites, local tasks, perplexity and bits per byte."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from leanlm import env
from leanlm.cli import options
from leanlm.errors import UsageError

RESULTS = "results.json"
Append = tyro.conf.UseAppendAction


@dataclass(frozen=True)
class Command(options.Source):
    """Evaluate MODEL: on tasks of the lm-evaluation-harness (--tasks, --suite), on tasks in local files (--items), or its
    perplexity and bits per byte on text (--text). With --output_path the same command goes on where it was interrupted."""

    model: tyro.conf.Positional[str] = "builtin"
    """A folder, a name from `leanlm list`, or a hub id."""
    tasks: str | None = None
    """Tasks or groups of the harness, with commas between them (`leanlm lm-eval ls tasks` lists them)."""
    suite: str | None = None
    """Tasks, shots and metrics of a published table, ours beside it; --suite list tells which there are."""
    beside: str | None = None
    """The row of the suite's table to compare with, as it is printed there; by default that of MODEL."""
    published: bool = False
    """Print the suite's table as published, and evaluate nothing."""
    items: Append[tuple[Path, ...]] = ()
    """A local task: a file with a JSON object a line, with "context" and either "choices" and "answer" (the right one's number,
    from 0), or "continuation", or "answer" alone (generated text must equal it); may be repeated."""
    text: Append[tuple[str, ...]] = ()
    """Text for perplexity and bits per byte: a file, a folder of .txt files, or builtin (what the built-in model did not learn
    from); may be repeated."""
    window: int | None = None
    """Tokens of --text read at once; by default the context where attention sees all tokens, whole documents otherwise."""
    num_fewshot: Annotated[int | None, tyro.conf.arg(aliases=["-f"])] = None
    """Examples before a question of --tasks; by default what each task says."""
    batch_size: Annotated[str, tyro.conf.arg(aliases=["-b"])] = "auto"
    """Texts at once for the harness's tasks; auto (auto:4 means the same): as many as memory allows."""
    limit: Annotated[float | None, tyro.conf.arg(aliases=["-L"])] = None
    """So many questions of each task; below 1, that part of them."""
    output_path: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder for results.json and the answers so far."""
    cache_requests: Literal["true", "refresh", "delete"] | None = None
    """Keep the harness's prepared questions for the next evaluation, make them anew, or delete them."""
    include_path: Path | None = None
    """A folder of more task files for the harness."""
    card: Path | None = None
    """Model card to write the results into, or to make: README.md, with the hub's model-index."""
    trust_remote_code: bool = False
    """Accepted, and without effect: no downloaded code is ever run."""
    json: bool = False
    """Print JSON."""


def run(command: Command) -> None:
    if command.suite == "list":
        return list_suites()
    check(command)
    suite, row = find_suite(command)
    if command.published:
        return show_published(suite)
    from leanlm.evaluate import items as local

    asked = {str(path): local.read(path) for path in command.items}
    texts = {source: read_text(source) for source in command.text}
    wanted, manager = find_tasks(suite, command)
    model = options.load(command)
    found: dict = {"model": command.model}
    if asked:
        found["items"] = {name: run_items(model, name, each, command) for name, each in asked.items()}
    if texts:
        found["text"] = {source: run_text(model, source, documents, command) for source, documents in texts.items()}
    if command.tasks or suite:
        found["tasks"] = run_tasks(model, wanted, manager, command)
    cells = []
    if suite:
        from leanlm.evaluate import suites

        cells = suites.compared(suite, row, found["tasks"])
        found["suite"] = {"name": suite.name, "beside": row and row.model, "cells": [dataclasses.asdict(c) for c in cells]}
    keep(found, command)
    if command.json:
        print(json.dumps(found, indent=2, default=str))
    else:
        from leanlm.cli import eval_tables

        eval_tables.show(found)
        if suite:
            eval_tables.show_suite(suite, row, cells)
    return None


def check(command: Command) -> None:
    """Raises UsageError for flags that cannot be meant, before anything is loaded."""
    if (command.beside or command.published) and not command.suite:
        raise UsageError("--beside and --published are of a --suite, and none is given")
    if not (command.tasks or command.suite or command.items or command.text):
        raise UsageError("nothing to evaluate on: give --tasks, --suite, --items or --text")
    harness = command.tasks or command.suite
    for flag, needs in (("window", command.text), ("num_fewshot", command.tasks), ("limit", harness or command.items)):
        if getattr(command, flag) is not None and not needs:
            raise UsageError(f"--{flag} says nothing about what is evaluated here")
    for name, least in (("window", 1), ("num_fewshot", 0)):
        if (value := getattr(command, name)) is not None and value < least:
            raise UsageError(f"--{name} {value}: must be at least {least}")
    if command.limit is not None and command.limit <= 0:
        raise UsageError(f"--limit {command.limit:g}: must be more than 0")
    word, _, times = command.batch_size.partition(":")
    if not (word == "auto" and (not times or times.isdecimal())) and not (word.isdecimal() and int(word) and not times):
        raise UsageError(f"--batch_size {command.batch_size}: give a number, auto, or auto:4")
    for kind, given in (("items", command.items), ("text", command.text)):
        if len({Path(name).stem for name in given}) < len(given):
            raise UsageError(f"--{kind}: two of one name, whose results could not be told apart; evaluate them one by one")
    if command.output_path and command.output_path.is_file():
        raise UsageError(f"--output_path {command.output_path}: is a file; give a folder")
    if command.card and command.card.is_dir():
        raise UsageError(f"--card {command.card}: is a folder; give a file, such as {command.card / 'README.md'}")
    if command.card and not harness:
        raise UsageError("--card holds results of --tasks or --suite, and neither is given")


def find_suite(command: Command):
    """The suite asked for, and the row of its table that is compared with; None for what there is not."""
    if command.suite is None:
        return None, None
    from leanlm.evaluate import suites

    suite = suites.suite(command.suite)
    row = suite.row(command.beside or command.model)
    if command.beside and row is None:
        raise UsageError(f"--beside {command.beside}: no row of {suite.name}; leanlm eval --suite {suite.name} --published")
    return suite, row


def list_suites() -> None:
    from leanlm.evaluate import suites

    for name in suites.names():
        print(f"{name:15}{suites.suite(name).about}")


def show_published(suite) -> None:
    from rich.console import Console

    from leanlm.cli import suite_tables

    Console(width=1000).print(suite_tables.published(suite))
    source = suite.provenance
    print(f"{source.kind}: {source.source}, {source.url}", *([source.note] if source.note else []), sep="\n")


def read_text(source: str) -> list[str]:
    from leanlm.quantize import job

    return job.texts(source, held_out=True)


def run_items(model, name: str, asked: list, command: Command) -> dict:
    from leanlm.evaluate import items

    if command.limit:
        asked = asked[: max(1, round(command.limit * len(asked))) if command.limit < 1 else int(command.limit)]
    with bar(name, len(asked)) as progress:
        return items.evaluate(model, asked, store(command, "items", name), progress)


def run_text(model, source: str, documents: list[str], command: Command) -> dict:
    from leanlm.evaluate import text

    with bar(source, len(documents)) as progress:
        return text.evaluate(model, documents, command.window, store(command, "text", source), progress)


def find_tasks(suite, command: Command):
    """(tasks with their numbers of examples, the harness's index of them), before a model is loaded."""
    if not (command.tasks or suite):
        return [], None
    if not sys.stderr.isatty():
        env.TQDM_DISABLE.put("1")
    if command.offline:
        env.HF_HUB_OFFLINE.put("1")
        env.HF_DATASETS_OFFLINE.put("1")
    from leanlm.evaluate import tasks

    names = [name.strip() for name in (command.tasks or "").split(",") if name.strip()]
    wanted = dict.fromkeys((name, command.num_fewshot) for name in names)
    if suite:
        wanted |= dict.fromkeys((task.name, task.shots) for task in suite.tasks)
    return list(wanted), tasks.find([name for name, _ in wanted], command.include_path)


def run_tasks(model, wanted: list, manager, command: Command) -> dict:
    from leanlm.evaluate import tasks

    given = {name: getattr(command, name) for name in ("batch_size", "limit", "cache_requests")}
    return tasks.evaluate(model, wanted, tasks.Settings(**given, store=command.output_path), manager)


def store(command: Command, kind: str, name: str) -> Path | None:
    """Where results are kept as they come."""
    return command.output_path / f"{kind}-{Path(name).stem}.jsonl" if command.output_path else None


@contextmanager
def bar(name: str, total: int) -> Iterator:
    """A progress bar on stderr, on a terminal; gives the function that is told how much is done."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as shown:
        task = shown.add_task(name, total=total)
        yield lambda done: shown.update(task, completed=done)


def keep(found: dict, command: Command) -> None:
    """Write results.json, and the model card."""
    from leanlm.checkpoint.aside import replacing

    if command.output_path:
        given = {f.name: getattr(command, f.name) for f in dataclasses.fields(command)}
        text = json.dumps(found | {"command": given}, indent=2, default=str)
        with replacing(command.output_path) as aside:
            aside(RESULTS).write_text(text + "\n", encoding="utf-8")
    if command.card:
        from leanlm.evaluate import card

        card.write(found["tasks"], command.model, command.card)
