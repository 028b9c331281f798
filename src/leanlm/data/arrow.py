"""Corpora of token ids as fms-fsdp reads them (IBM's Avengers, Bamba) into token shards: arrow IPC files, in each a record
batch per document, one column of ids. Loads no torch."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from leanlm.data import corpus, extras
from leanlm.data import job as jobs
from leanlm.data.corpus import Piece
from leanlm.data.job import Job
from leanlm.errors import CheckpointError, NotFound

ENDING = (".arrow",)


def plan(paths: Sequence[Path], column: str, strip: Sequence[int], size: int, **settings) -> Job:
    """The import of files and folders (their subfolders too) in parts of about `size` bytes. Ids in `strip`, and those that
    begin and end documents, are taken away at the ends of documents before those of `settings` are put there."""
    files = [path.resolve() for path in corpus.find(paths, ENDING)]
    weights = [path.stat().st_size for path in files]
    pieces = ((Piece(str(path)), weight) for path, weight in zip(files, weights))
    return Job("arrow", jobs.parts_of(pieces, size), {"column": column, "strip": list(strip), "sizes": weights}, **settings)


def documents(job: Job, folder: Path, pieces: list[Piece], count: Callable[[str], None]) -> Iterator[tuple[np.ndarray, int]]:
    """The tokens of every document; the bytes of its text are not known, 0."""
    begin = [] if job.begin_of_text is None else [job.begin_of_text]
    ends = np.array([*job.options["strip"], job.end_of_text, *begin])
    for piece in pieces:
        for number, ids in enumerate(_batches(Path(piece.path), job.options["column"])):
            inside = np.flatnonzero(~np.isin(ids, ends))
            ids = ids[inside[0] : inside[-1] + 1] if len(inside) else ids[:0]
            if len(ids) < job.min_tokens:
                count("short")
                continue
            if int(ids.max()) >= job.vocab_size or int(ids.min()) < 0:
                raise CheckpointError(
                    f"{piece.path}: document {number} holds id {int(ids.max())}, beyond a vocabulary of {job.vocab_size}"
                )
            yield np.concatenate([begin, ids, [job.end_of_text]]).astype(np.int64), 0


def _batches(path: Path, column: str) -> Iterator[np.ndarray]:
    pyarrow = extras.package("pyarrow")
    with corpus.reading(path), pyarrow.memory_map(str(path)) as source:
        reader = pyarrow.ipc.open_file(source)
        if column not in reader.schema.names:
            raise NotFound(f"{path}: no column {column!r} (found: {', '.join(reader.schema.names)}); name it by --column")
        for number in range(reader.num_record_batches):
            values = reader.get_batch(number).column(column)
            if pyarrow.types.is_list(values.type) or pyarrow.types.is_large_list(values.type):
                values = values.flatten()
            yield values.to_numpy(zero_copy_only=False).astype(np.int64)
