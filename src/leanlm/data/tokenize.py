"""Text files into token shards, by any tokenizer. Loads no torch."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.data import corpus, vocabulary, workers
from leanlm.data import job as jobs
from leanlm.data.corpus import Invalid, Piece
from leanlm.data.job import Job
from leanlm.data.manifest import Manifest
from leanlm.errors import CheckpointError, UsageError

SHARD_TOKENS = 1 << 26
SMALLEST, LARGEST, PARTS = 8 << 20, 256 << 20, 64  # bytes of text in a part; parts of a corpus between these sizes
TOGETHER = 1 << 20  # characters given to the tokenizer at a time


def tokenize(
    paths: Sequence[Path],
    folder: Path,
    tokenizer: Tokenizer,
    field: str = "text",
    end_of_text: str | int | None = None,
    begin_of_text: str | int | bool = True,
    min_tokens: int = 1,
    skip_invalid: bool = False,
    shard_tokens: int = SHARD_TOKENS,
    **work,
) -> Manifest | None:
    """Tokenise files and folders into shards in `folder`; a call that was interrupted, given again, goes on.

    Every document becomes [begin_of_text] tokens end_of_text. The end is the tokenizer's own unless named; True begins as
    the tokenizer does, False not at all. What looks like a special token inside a text is text. A document that cannot be
    read ends the work (CheckpointError), unless `skip_invalid` has it counted. `work` is `workers.run`'s processes, share and
    report; None is returned where other shares are not done yet.
    """
    job = plan(paths, tokenizer, field, end_of_text, begin_of_text, min_tokens, skip_invalid, shard_tokens)
    return workers.run(job, folder, tokenizer.files, documents, **work)


def plan(paths, tokenizer, field, end_of_text, begin_of_text, min_tokens, skip_invalid, shard_tokens) -> Job:
    """The work of `tokenize` cut into parts."""
    files = [path.resolve() for path in corpus.find(paths)]
    sizes = [corpus.weight(path) for path in files]
    size = min(max(sum(sizes) // PARTS, SMALLEST), LARGEST)
    cut = [list(corpus.cut(path, size)) for path in files]
    pieces = ((piece, weight // len(pieces)) for pieces, weight in zip(cut, sizes) for piece in pieces)
    end = end_of(tokenizer, end_of_text)
    return Job(
        kind="text",
        parts=jobs.parts_of(pieces, size),
        options={"field": field, "sizes": [path.stat().st_size for path in files]},
        vocab_size=tokenizer.vocab_size,
        end_of_text=end,
        begin_of_text=beginning_of(tokenizer, begin_of_text, end),
        tokenizer_sha256=vocabulary.fingerprint(tokenizer.core),
        min_tokens=min_tokens,
        skip_invalid=skip_invalid,
        shard_tokens=shard_tokens,
    )


def end_of(tokenizer: Tokenizer, wanted: str | int | None) -> int:
    """The id that ends documents; raises UsageError where the tokenizer has none, or not the wanted one."""
    if wanted is not None:
        return _id(tokenizer, wanted)
    found = tokenizer.eos_id if tokenizer.eos_id is not None else next(iter(tokenizer.eos_ids), None)
    if found is None:
        raise UsageError("the tokenizer names no end-of-text token; name one by --end-of-text (a token, or its id)")
    return found


def beginning_of(tokenizer: Tokenizer, wanted: str | int | bool, end: int) -> int | None:
    """The id that begins documents, None for none; True is what the tokenizer puts before a text."""
    if wanted is True:
        added = tokenizer.encode("")
        return added[0] if added and added[0] != end else None
    return None if wanted is False else _id(tokenizer, wanted)


def _id(tokenizer: Tokenizer, token: str | int) -> int:
    found = tokenizer.core.token_to_id(token) if isinstance(token, str) and not token.isdecimal() else int(token)
    if found is None or not 0 <= found < tokenizer.vocab_size:
        raise UsageError(f"{token!r} is no token of the tokenizer, nor an id below {tokenizer.vocab_size}")
    return found


def documents(job: Job, folder: Path, pieces: list[Piece], count: Callable[[str], None]) -> Iterator[tuple[list[int], int]]:
    """The tokens and bytes of every document of a part."""
    core = _core(folder / jobs.TOKENIZER)
    begin = [] if job.begin_of_text is None else [job.begin_of_text]
    for texts in _together(job, pieces, count):
        for text, encoding in zip(texts, core.encode_batch_fast(texts, add_special_tokens=False)):
            if len(encoding.ids) < job.min_tokens:
                count("short")
            else:
                yield [*begin, *encoding.ids, job.end_of_text], len(text.encode())


def _together(job: Job, pieces: list[Piece], count: Callable[[str], None]) -> Iterator[list[str]]:
    """The valid documents in groups of about `TOGETHER` characters."""
    group, size = [], 0
    for piece in pieces:
        for text in corpus.texts(piece, job.options["field"]):
            if isinstance(text, str) and not text.isascii() and (broken := _broken(text)):
                text = Invalid(f"{piece.path}: a document holds {broken}, which is no Unicode character")
            if isinstance(text, Invalid):
                if not job.skip_invalid:
                    raise CheckpointError(f"{text.reason}; mend it, or leave such documents out with --skip-invalid")
                count("invalid")
                continue
            group.append(text)
            size += len(text)
            if size > TOGETHER:
                yield group
                group, size = [], 0
    if group:
        yield group


def _broken(text: str) -> str:
    """Half of a surrogate pair, which JSON can spell and UTF-8 cannot; empty where there is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return ascii(text[error.start])
    return ""


@lru_cache(1)
def _core(folder: Path):
    core = Tokenizer.from_folder(folder).core
    core.encode_special_tokens = True
    return core
