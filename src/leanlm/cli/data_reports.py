"""leanlm data info | verify, and what all of leanlm data prints while it works."""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from leanlm.cli import sizes
from leanlm.errors import UsageError


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
        tokenizer = named_tokenizer(command.tokenizer)
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
        self.write(
            f"part {done.parts}/{parts}  {done.documents:,} documents  {done.tokens:,} tokens  {rate:,.0f} tokens/s{rest}"
        )

    def write(self, text: str) -> None:
        if self.terminal:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_) -> None:
        if self.terminal:
            print(file=sys.stderr)


def named_tokenizer(name: str):
    from leanlm.checkpoint import locate
    from leanlm.checkpoint import tokenizer as tokenizers

    if Path(name).exists():
        return tokenizers.Tokenizer.from_file(name)
    from leanlm.families import catalog

    found = tokenizers.find(locate.resolve(name), catalog.resolve(name))
    if found is None:
        raise UsageError(f"{name}: has no tokenizer; name a tokenizer.json")
    return found


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
    return "\n".join(
        f"{name.replace('_', ' '):{width}}{shown.get(name, 'none' if v is None else v)}" for name, v in found.items()
    )
