"""leanlm compare A B@int4 ...: quality, memory and speed of models and formats: a table, JSON, and a page with figures."""

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from leanlm.errors import UsageError

RESULTS, PAGE = "comparison.json", "comparison.html"
Append = tyro.conf.UseAppendAction


@dataclass(frozen=True)
class Command:
    """Measure models side by side: bits per byte, tasks, recall, bytes of weights and state, speed. MODEL@FORMAT holds the
    matrices in another format: int8, int4, int3 ... (rounded to nearest), or ternary (what is not, rounded to its mean
    magnitude). The same command goes on where it was interrupted."""

    models: tyro.conf.Positional[tuple[str, ...]]
    """Folders, names from `leanlm list`, hub ids; each may have a format: builtin-float@int4."""
    out: Path = Path("comparison")
    """Folder of comparison.html (one page that needs no network), comparison.json and what was measured so far."""
    states: tuple[Literal["float32", "bfloat16", "int8"], ...] = ("float32",)
    """Precisions of recurrent states; every model is measured with each."""
    text: str = "builtin"
    """Text for bits per byte: a file, a folder of .txt files, builtin (what the built-in model did not learn from), or none."""
    text_bytes: int = 300_000
    """Of the text that are read at most."""
    items: Append[tuple[Path, ...]] = ()
    """A local task, as of `leanlm eval`; may be repeated."""
    tasks: str | None = None
    """Tasks of the lm-evaluation-harness, with commas between them."""
    num_fewshot: int | None = None
    """Examples before a question of --tasks; by default what each task says."""
    limit: float | None = None
    """So many questions of each of --tasks; below 1, that part of them."""
    recall: tuple[Literal["copy", "needle", "pairs"], ...] = ()
    """Probes of what is remembered."""
    distances: tuple[int, ...] = (64, 256, 1024)
    """Tokens between what --recall tells and where it is asked for."""
    loads: tuple[int, ...] = (1, 4)
    """Things that --recall tells."""
    probes: int = 32
    """Questions of --recall at every distance and load."""
    turns: int = 3
    """Of the speed's measurement; 0: none. Models are measured one after the other: a quiet machine is needed."""
    threads: int | None = None
    """Of the speed's measurement; as many as there are physical cores by default."""
    json: bool = False
    """Print JSON."""


def run(command: Command) -> None:
    check(command)
    from leanlm.checkpoint.aside import replacing
    from leanlm.cli.quantize import progress
    from leanlm.study import comparison, page

    subjects = [
        comparison.Subject(*comparison.parse(spec), None if state == "float32" else state)
        for spec in command.models
        for state in command.states
    ]
    measures = measured(command)
    if measures.tasks:
        from leanlm.evaluate import tasks

        tasks.find([name for name, _ in measures.tasks])
    try:
        rows = comparison.compare(subjects, measures, command.out, progress)
    finally:
        progress("")
    words = "leanlm " + shlex.join(sys.argv[1:] if sys.argv[1:2] == ["compare"] else ["compare", *command.models])
    with replacing(command.out) as aside:
        aside(RESULTS).write_text(json.dumps({"command": words, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    with replacing(command.out) as aside:
        aside(PAGE).write_text(page.page("Quality against bits", rows, [f"Made by: {words}", about(command)]), encoding="utf-8")
    if command.json:
        print(json.dumps(rows, indent=2))
        return
    from leanlm.cli import eval_tables

    eval_tables.show_columns(list(page.cells(rows)))
    print(f"page: {command.out / PAGE}")


def check(command: Command) -> None:
    """Raises UsageError for flags that cannot be meant, before anything is loaded."""
    if not command.models:
        raise UsageError("nothing to compare: give models, such as builtin-float builtin-float@int4")
    for name, least in (("text_bytes", 1), ("turns", 0), ("probes", 1), ("threads", 1), ("num_fewshot", 0)):
        if (value := getattr(command, name)) is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} {value}: must be at least {least}")
    if command.out.is_file():
        raise UsageError(f"--out {command.out}: is a file; give a folder")
    if len({path.name for path in command.items}) < len(command.items):
        raise UsageError("--items: two of one name, whose results could not be told apart; compare on them one by one")
    if command.limit is not None and command.limit <= 0:
        raise UsageError(f"--limit {command.limit:g}: must be more than 0")


def measured(command: Command):
    """The `Measures` asked for, texts and items read."""
    from leanlm.evaluate import items
    from leanlm.quantize import job
    from leanlm.study.comparison import Measures

    return Measures(
        documents=tuple(job.held_out_texts(command.text, command.text_bytes)) if command.text != "none" else (),
        items={path.name: tuple(items.read(path)) for path in command.items},
        tasks=tuple((name.strip(), command.num_fewshot) for name in (command.tasks or "").split(",") if name.strip()),
        limit=command.limit,
        recall=tuple(dict.fromkeys(command.recall)),
        distances=command.distances,
        loads=command.loads,
        probes=command.probes,
        turns=command.turns,
        threads=command.threads,
    )


def about(command: Command) -> str:
    """What was measured on what."""
    import torch

    from leanlm.cli.main import version
    from leanlm.runtime.machine import processor
    from leanlm.study import comparison

    text = "" if command.text == "none" else f" Text: {command.text}, its first {command.text_bytes:,} bytes."
    speed = f" Speed: medians of {command.turns} turns, batch 1, after {comparison.CONTEXT} tokens." if command.turns else ""
    return f"{version()}, torch {torch.__version__}, {processor() or 'unknown processor'}.{text}{speed}"
