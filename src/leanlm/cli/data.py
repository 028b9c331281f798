"""leanlm data tokenize | import | info | verify: token shards, made and looked into."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from leanlm.cli import data_reports
from leanlm.cli.data_reports import Info, Line, Verify, named_tokenizer
from leanlm.errors import UsageError

Paths = tyro.conf.Positional[tuple[Path, ...]]


@dataclass(frozen=True)
class Work:
    processes: int = 0
    """Processes to work with; 0: as many as there are processors."""
    share: str = "0/1"
    """I/N: do only share I of N of the work, so that N machines do all of it; the call that ends last completes the folder."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Tokenize(Work):
    """Turn text into token shards: files, or folders of .txt, .jsonl or .parquet, plain, .gz or .zst.

    The same command, given again, goes on where it was interrupted."""

    paths: Paths = ()
    """Files and folders to read."""
    out: Path = Path()
    """The folder to write."""
    tokenizer: str = ""
    """A tokenizer.json, the folder of one, or a model's name."""
    field: str = "text"
    """The field of JSON lines, or column of parquet, that holds the text."""
    end_of_text: str | None = None
    """The token (or its id) that ends every document; the tokenizer's own by default."""
    begin_of_text: str | None = None
    """The token (or its id) that begins every document, or "none"; what the tokenizer puts there by default."""
    min_tokens: int = 1
    """Leave out shorter documents."""
    skip_invalid: bool = False
    """Leave out, and count, documents that cannot be read, instead of stopping at the first."""
    shard_tokens: int = 1 << 26
    """Tokens of a shard, about."""
    cluster: Literal["local", "slurm"] | None = None
    """Let datatrove do the work, in --tasks tasks; --slurm sets partition and time."""
    tasks: int = 1
    """Tasks of the cluster."""
    slurm: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """A setting of datatrove's SlurmPipelineExecutor, such as partition=cpu or time=10:00:00; may be given several times."""


@dataclass(frozen=True)
class Import(Work):
    """Turn tokens that other programs prepared into token shards: fms-fsdp's arrow files, OpenLM's tar files."""

    paths: Paths = ()
    """Files and folders to read."""
    out: Path = Path()
    """The folder to write."""
    format: Literal["arrow", "openlm"] | None = None
    """What they are; told by the files' endings by default."""
    tokenizer: str = ""
    """The tokenizer they were made with: a tokenizer.json, the folder of one, or a model's name."""
    vocab_size: int | None = None
    """How many ids there are, where there is no tokenizer at hand."""
    end_of_text: str | None = None
    """The token (or its id) that ends documents; the tokenizer's own by default."""
    begin_of_text: str | None = None
    """The token (or its id) to begin documents with; none by default."""
    column: str = "tokens"
    """The arrow files' column."""
    strip: tuple[int, ...] = ()
    """Ids to take away at the ends of documents, besides those that begin and end them."""
    min_tokens: int = 1
    """Leave out shorter documents."""
    shard_tokens: int = 1 << 26
    """Tokens of a shard, about."""


@dataclass(frozen=True)
class Command:
    """Token shards: make them from text, import them, look into them, check them."""

    action: (
        Annotated[Tokenize, tyro.conf.subcommand("tokenize")]
        | Annotated[Import, tyro.conf.subcommand("import")]
        | Annotated[Info, tyro.conf.subcommand("info")]
        | Annotated[Verify, tyro.conf.subcommand("verify")]
    )


def run(command: Command) -> int | None:
    runners = {Tokenize: tokenize, Import: bring, Info: data_reports.info, Verify: data_reports.verify}
    return runners[type(command.action)](command.action)


def tokenize(command: Tokenize) -> None:
    _need(command, "tokenizer")
    from leanlm.data import cluster
    from leanlm.data.tokenize import tokenize

    begin = True if command.begin_of_text is None else False if command.begin_of_text == "none" else command.begin_of_text
    settings = {
        "field": command.field,
        "end_of_text": command.end_of_text,
        "begin_of_text": begin,
        "min_tokens": command.min_tokens,
        "skip_invalid": command.skip_invalid,
        "shard_tokens": command.shard_tokens,
    }
    tokenizer = named_tokenizer(command.tokenizer)
    if command.cluster:
        slurm = _pairs(command.slurm)
        made = cluster.tokenize(command.paths, command.out, tokenizer, settings, command.cluster, command.tasks, slurm)
    else:
        with Line() as line:
            made = tokenize(command.paths, command.out, tokenizer, **settings, **_work(command), report=line)
    _print_made(command, made)


def bring(command: Import) -> None:
    _need(command)
    from leanlm.data.imports import bring

    end = command.end_of_text
    with Line() as line:
        made = bring(
            command.paths,
            command.out,
            command.format,
            named_tokenizer(command.tokenizer) if command.tokenizer else None,
            command.vocab_size,
            int(end) if end and end.isdecimal() else end,
            command.begin_of_text or False,
            command.column,
            command.strip,
            command.min_tokens,
            command.shard_tokens,
            **_work(command),
            report=line,
        )
    _print_made(command, made)


def _need(command: Tokenize | Import, *names: str) -> None:
    for name in ("paths", "out", *names):
        if getattr(command, name) in ((), Path(), ""):
            raise UsageError(
                f"data {type(command).__name__.lower()}: name {'files or folders to read' if name == 'paths' else f'--{name}'}"
            )


def _work(command: Work) -> dict:
    which, slash, of = command.share.partition("/")
    if not (slash and which.isdecimal() and of.isdecimal()):
        raise UsageError(f"--share {command.share}: write it as I/N, 0/4 to 3/4 for four machines")
    if command.processes < 0:
        raise UsageError(f"--processes {command.processes}: 0 (all processors) or more")
    return {"processes": command.processes, "share": (int(which), int(of))}


def _pairs(settings: tuple[str, ...]) -> dict[str, str]:
    for setting in settings:
        if "=" not in setting:
            raise UsageError(f"--slurm {setting}: write it as key=value")
    return dict(setting.split("=", 1) for setting in settings)


def _print_made(command: Work, made) -> None:
    if made is None:
        print(f"{command.out}: not complete yet; the share that ends last completes it", file=sys.stderr)
    elif command.json:
        counts = {name: getattr(made, name) for name in ("tokens", "documents", "short", "invalid")}
        print(json.dumps({"folder": str(command.out), "shards": len(made.shards), **counts}, indent=2))
    else:
        left_out = "".join(f", {n} {what}" for n, what in ((made.short, "too short"), (made.invalid, "invalid")) if n)
        print(f"{command.out}: {made.tokens:,} tokens, {made.documents:,} documents, {len(made.shards)} shards{left_out}")
