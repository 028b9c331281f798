"""leanlm data tokenize | import | info | verify: token shards, made and looked into."""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from leanlm.cli import sizes
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
class Info:
    """Tell what a folder of token shards holds."""

    folder: tyro.conf.Positional[Path]
    """A folder of shards."""
    document: int | None = None
    """Print this document, as text where the tokenizer is known."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Verify:
    """Read every shard and compare its checksum; exit code 5 where one is missing or damaged."""

    folder: tyro.conf.Positional[Path]
    """A folder of shards."""
    tokenizer: str = ""
    """Check that they were made with this tokenizer, too."""
    json: bool = False
    """Print JSON."""


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
    runners = {Tokenize: tokenize, Import: bring, Info: info, Verify: verify}
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
    tokenizer = _tokenizer(command.tokenizer)
    if command.cluster:
        cluster.tokenize(command.paths, command.out, tokenizer, settings, command.cluster, command.tasks, _pairs(command.slurm))
        print(f"when its tasks are done, the same command without --cluster completes {command.out}", file=sys.stderr)
        return
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
            _tokenizer(command.tokenizer) if command.tokenizer else None,
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


def info(command: Info) -> None:
    from leanlm.data.shards import Shards

    shards = Shards(command.folder)
    made = shards.manifest
    if command.document is not None:
        _print_document(command, shards)
        return
    found = {
        "tokens": shards.tokens,
        "documents": shards.documents,
        "shards": len(shards.shards),
        "text_bytes": int(shards.bytes.sum()) or None,
        "vocab_size": made.vocab_size,
        "dtype": shards.dtype.name,
        "end_of_text": made.end_of_text,
        "begin_of_text": made.begin_of_text,
        "tokenizer_sha256": made.tokenizer_sha256,
        "short": made.short,
        "invalid": made.invalid,
        "fingerprint": shards.fingerprint,
    }
    print(json.dumps(found, indent=2) if command.json else _table(found))


def verify(command: Verify) -> None:
    from leanlm.data import shards, vocabulary
    from leanlm.errors import CheckFailed

    with Line() as line:
        bad = shards.examine(command.folder, report=lambda done, of: line.write(f"{done} of {of} shards"))
    opened = shards.Shards(command.folder, damaged="skip") if len(bad) == 0 else None
    if opened and command.tokenizer:
        tokenizer = _tokenizer(command.tokenizer)
        opened.check_tokenizer(vocabulary.fingerprint(tokenizer.core), tokenizer.vocab_size)
    if command.json:
        print(json.dumps({"damaged": list(bad.values())}, indent=2))
    else:
        print("\n".join(bad.values()) or f"{command.folder}: {len(opened.shards)} shards are as they were written")
    if bad:
        raise CheckFailed(f"{command.folder}: {len(bad)} damaged or missing shards: {next(iter(bad.values()))}")


class Line:
    """A line of progress, redrawn in place; nothing where stderr is no terminal."""

    def __init__(self):
        self.terminal, self.began, self.first = sys.stderr.isatty(), time.monotonic(), None

    def __call__(self, done, parts: int) -> None:
        self.first = self.first or done
        rate = (done.tokens - self.first.tokens) / max(time.monotonic() - self.began, 1e-9)
        rest = f"  {done.short} short" * bool(done.short) + f"  {done.invalid} invalid" * bool(done.invalid)
        self.write(f"part {done.parts}/{parts}  {done.documents:,} documents  {done.tokens:,} tokens  {rate:,.0f} tokens/s{rest}")

    def write(self, text: str) -> None:
        if self.terminal:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_) -> None:
        if self.terminal:
            print(file=sys.stderr)


def _need(command: Tokenize | Import, *names: str) -> None:
    for name in ("paths", "out", *names):
        if getattr(command, name) in ((), Path(), ""):
            raise UsageError(f"data {type(command).__name__.lower()}: name {'files or folders to read' if name == 'paths' else f'--{name}'}")


def _work(command: Work) -> dict:
    which, slash, of = command.share.partition("/")
    if not (slash and which.isdecimal() and of.isdecimal()):
        raise UsageError(f"--share {command.share}: write it as I/N, 0/4 to 3/4 for four machines")
    if command.processes < 0:
        raise UsageError(f"--processes {command.processes}: 0 (all processors) or more")
    return {"processes": command.processes, "share": (int(which), int(of))}


def _tokenizer(name: str):
    from leanlm.checkpoint import locate
    from leanlm.checkpoint import tokenizer as tokenizers

    if Path(name).exists():
        return tokenizers.Tokenizer.from_file(name)
    from leanlm.families import catalog

    found = tokenizers.find(locate.resolve(name), catalog.resolve(name))
    if found is None:
        raise UsageError(f"{name}: has no tokenizer; name a tokenizer.json")
    return found


def _pairs(settings: tuple[str, ...]) -> dict[str, str]:
    for setting in settings:
        if "=" not in setting:
            raise UsageError(f"--slurm {setting}: write it as key=value")
    return dict(setting.split("=", 1) for setting in settings)


def _print_made(command: Work, made) -> None:
    if made is None:
        print(f"{command.out}: this share is done, others are not", file=sys.stderr)
    elif command.json:
        counts = {name: getattr(made, name) for name in ("tokens", "documents", "short", "invalid")}
        print(json.dumps({"folder": str(command.out), "shards": len(made.shards), **counts}, indent=2))
    else:
        left_out = "".join(f", {n} {what}" for n, what in ((made.short, "too short"), (made.invalid, "invalid")) if n)
        print(f"{command.out}: {made.tokens:,} tokens, {made.documents:,} documents, {len(made.shards)} shards{left_out}")


def _print_document(command: Info, shards) -> None:
    from leanlm.checkpoint.tokenizer import Tokenizer

    if not 0 <= command.document < shards.documents:
        raise UsageError(f"--document {command.document}: {command.folder} holds documents 0 to {shards.documents - 1}")
    ids = shards.document(command.document).tolist()
    folder = command.folder / "tokenizer"
    text = Tokenizer.from_folder(folder).decode(ids, skip_special=False) if folder.is_dir() else None
    if command.json:
        print(json.dumps({"tokens": ids, "text": text}))
    else:
        print(" ".join(map(str, ids)) if text is None else text)


def _table(found: dict) -> str:
    shown = {"text_bytes": sizes.size(found["text_bytes"]) if found["text_bytes"] else "unknown"}
    width = max(map(len, found)) + 2
    return "\n".join(f"{name.replace('_', ' '):{width}}{shown.get(name, 'none' if v is None else v)}" for name, v in found.items())
