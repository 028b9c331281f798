"""Documents into token shards: work cut into parts that any number of processes take up and any restart finds done.

A part is a run of input pieces. Its shards are put in place when complete, its record parts/NNNNN.json last; the manifest is
made when all records are there. Parts do not depend on who works on them, so the shards are the same for every number of
processes, after every interruption. Loads no torch.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from leanlm.checkpoint.aside import replacing
from leanlm.checkpoint.folder import read_json
from leanlm.data import manifest as manifests
from leanlm.data import writer
from leanlm.data.corpus import Piece
from leanlm.data.manifest import DOCUMENTS, JOB, MANIFEST, Manifest, Shard
from leanlm.errors import LeanLMError, NotFound, UsageError, first_line

PARTS, TOKENIZER = "parts", "tokenizer"


@dataclass(frozen=True)
class Job:
    """What is to be done, as plain data. `parts` are runs of (path, start, end). `kind` says how pieces
    become documents, with `options` of its own. Documents of fewer than `min_tokens` tokens (those that begin and end a text
    not counted) are left out, and counted. Ids are below `vocab_size`."""

    kind: str
    parts: tuple[tuple[tuple[str, int, int | None], ...], ...]
    options: dict
    vocab_size: int
    end_of_text: int
    begin_of_text: int | None
    tokenizer_sha256: str | None
    min_tokens: int
    skip_invalid: bool
    shard_tokens: int

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    def pieces(self, number: int) -> list[Piece]:
        return [Piece(*piece) for piece in self.parts[number]]


@dataclass(frozen=True)
class Done:
    """What one part, or several together, came to. `bytes` of text."""

    parts: int = 0
    tokens: int = 0
    documents: int = 0
    bytes: int = 0
    short: int = 0
    invalid: int = 0

    def __add__(self, other: "Done") -> "Done":
        return Done(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other))))


def begin(job: Job, folder: Path, tokenizer_files: dict[str, bytes]) -> bool:
    """Make `folder` the place of this job, or find it so; returns whether its shards are complete already.

    Raises UsageError where the folder holds something else.
    """
    # Others may begin or end the same job meanwhile: the job's file is the first to come, and goes after the manifest is there.
    there = folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir())
    if _complete(job, folder):
        return True
    if (folder / JOB).exists():
        if read_json(folder / JOB).get("fingerprint") != job.fingerprint:
            raise UsageError(
                f"{folder}: holds the beginnings of another job (other files, tokenizer or settings, or files changed since); "
                "name a new folder, or remove this one"
            )
    elif _complete(job, folder):
        return True
    elif there:
        raise UsageError(f"{folder}: exists and is not empty; name a new folder")
    with _writing(folder):
        with replacing(folder) as aside:
            aside(JOB).write_text(json.dumps({"fingerprint": job.fingerprint, **dataclasses.asdict(job)}), encoding="utf-8")
        if tokenizer_files:
            with replacing(folder / TOKENIZER) as aside:
                for name, content in tokenizer_files.items():
                    aside(name).write_bytes(content)
    return False


def _complete(job: Job, folder: Path) -> bool:
    """Whether the manifest of this job is there; raises UsageError where it is that of another."""
    if not (folder / MANIFEST).exists():
        return False
    if manifests.read(folder).made_from != job.fingerprint:
        raise UsageError(f"{folder}: holds shards of other files, another tokenizer or other settings; name a new folder")
    return True


def record(folder: Path, number: int) -> dict | None:
    """The record of a finished part, None where it has to be done (again)."""
    path = folder / PARTS / f"{number:05}.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        size = np.dtype(raw["dtype"]).itemsize
        whole = all((folder / s["file"]).stat().st_size == s["tokens"] * size for s in raw["shards"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return raw if whole and path.with_suffix(".npy").exists() else None


def work(job: Job, folder: Path, number: int, producer: Callable) -> Done:
    """Do one part, unless it is done.

    `producer(job, folder, pieces, count)` gives (tokens, bytes) of every document to keep, and reports those left out by
    `count(kind)`, kind being a field of `Done`.
    """
    if found := record(folder, number):
        return Done(**found["done"])
    left_out = {"short": 0, "invalid": 0}

    def count(kind: str) -> None:
        left_out[kind] += 1

    dtype = writer.id_type(job.vocab_size)
    documents = producer(job, folder, job.pieces(number), count)
    with _writing(folder):
        written = writer.write_documents(folder, f"tokens-{number:05}", documents, dtype, job.shard_tokens)
    sizes = int(written.documents[1].sum())
    tokens = sum(shard.tokens for shard in written.shards)
    done = Done(1, tokens, written.documents.shape[1], sizes, **left_out)
    raw = {"dtype": dtype.str, "done": dataclasses.asdict(done), "shards": [dataclasses.asdict(s) for s in written.shards]}
    with _writing(folder), replacing(folder / PARTS) as aside:
        with aside(f"{number:05}.npy").open("wb") as file:
            np.save(file, written.documents)
        aside(f"{number:05}.json").write_text(json.dumps(raw), encoding="utf-8")
    return done


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """A failure to write says what stays."""
    try:
        yield
    except (LeanLMError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        reason = cause.strerror or first_line(cause)
        raise LeanLMError(
            f"{folder}: cannot write ({reason}); finished parts are kept: make room, and give the same command again"
        ) from cause


def todo(job: Job, folder: Path) -> list[int]:
    """The parts that are not done."""
    return [number for number in range(len(job.parts)) if record(folder, number) is None]


def finish(job: Job, folder: Path) -> Manifest:
    """Write index and manifest of a job all of whose parts are done, and clear away the records; the folder is complete then.

    Raises UsageError where nothing at all was kept.
    """
    records = [record(folder, number) for number in range(len(job.parts))]
    if None in records:
        raise NotFound(f"{folder}: part {records.index(None)} of {len(records)} is not done; give the same command again")
    total = sum((Done(**raw["done"]) for raw in records), Done())
    if not total.documents:
        raise UsageError(f"{folder}: no document was kept ({total.short} too short, {total.invalid} invalid)")
    tables = [np.load(folder / PARTS / f"{number:05}.npy", mmap_mode="r") for number in range(len(records))]
    with _writing(folder), replacing(folder) as aside:
        writer.write_index(aside(DOCUMENTS), tables)
        digest = manifests.sha256(aside(DOCUMENTS))
    made = Manifest(
        dtype=writer.id_type(job.vocab_size).str,
        vocab_size=job.vocab_size,
        end_of_text=job.end_of_text,
        begin_of_text=job.begin_of_text,
        tokenizer_sha256=job.tokenizer_sha256,
        documents_sha256=digest,
        shards=tuple(Shard(**shard) for raw in records for shard in raw["shards"]),
        short=total.short,
        invalid=total.invalid,
        made_from=job.fingerprint,
    )
    with _writing(folder), replacing(folder) as aside:
        aside(MANIFEST).write_text(manifests.text(made), encoding="utf-8")
    del tables
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    for left in (folder / JOB, *folder.glob(".*.partial")):
        left.unlink(missing_ok=True)
    return made


def parts_of(pieces: Iterator[tuple[Piece, int]], size: int) -> tuple[tuple[tuple[str, int, int | None], ...], ...]:
    """(piece, its weight) gathered into runs of about `size`."""
    parts, run, held = [], [], 0
    for piece, weight in pieces:
        if run and held + weight > size:
            parts.append(tuple(run))
            run, held = [], 0
        run.append((piece.path, piece.start, piece.end))
        held += weight
    if run:
        parts.append(tuple(run))
    return tuple(parts)
