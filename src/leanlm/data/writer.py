"""Writing token shards: every file aside first, in place when complete. Loads no torch."""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from leanlm.checkpoint.aside import replacing
from leanlm.data import manifest as manifests
from leanlm.data.manifest import DOCUMENTS, MANIFEST, Manifest, Shard
from leanlm.data.shards import Shards

BUFFER = 1 << 20  # tokens gathered before they are written


@dataclass(frozen=True)
class Written:
    """Complete shards and the table of their documents, int64 [2, documents] as in documents.npy."""

    shards: tuple[Shard, ...]
    documents: np.ndarray


def id_type(vocab_size: int) -> np.dtype:
    """16 bits where they hold every id, else 32."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def write_documents(
    folder: Path, name: str, documents: Iterable[tuple[Sequence[int], int]], dtype: np.dtype, shard_tokens: int
) -> Written:
    """Write (tokens, bytes of the text) after (tokens, bytes) into shards `name`-000.bin ... of about `shard_tokens` tokens.

    Raises LeanLMError where writing fails, with all shards but the complete ones removed.
    """
    shards, starts, sizes = [], [], []
    documents = iter(documents)
    following = next(documents, None)
    while following is not None:
        file = f"{name}-{len(shards):03}.bin"
        first, held, flushed, buffer, digest = len(starts), 0, 0, [], hashlib.sha256()
        with replacing(folder) as aside, aside(file).open("wb") as out:
            while following is not None and held < shard_tokens:
                ids, size = following
                starts.append(held)
                sizes.append(size)
                buffer.append(np.asarray(ids, dtype))
                held += len(ids)
                if held - flushed > BUFFER:
                    _flush(out, digest, buffer)
                    flushed = held
                following = next(documents, None)
            _flush(out, digest, buffer)
        shards.append(Shard(file, held, len(starts) - first, digest.hexdigest()))
    return Written(tuple(shards), np.asarray([starts, sizes], np.int64).reshape(2, -1))


def _flush(out, digest, buffer: list[np.ndarray]) -> None:
    """Write and hash what the buffer holds, and empty it."""
    if buffer:
        data = np.concatenate(buffer).tobytes()
        out.write(data)
        digest.update(data)
        buffer.clear()


def write_index(path: Path, tables: Sequence[np.ndarray]) -> None:
    """documents.npy from the tables [2, n] of consecutive parts (which may be mapped files), one row after the other."""
    shape = (2, sum(table.shape[1] for table in tables))
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": shape})
        for row in range(2):
            for table in tables:
                file.write(np.ascontiguousarray(table[row], "<i8").tobytes())


def write_shards(
    folder: Path,
    texts: Iterable[str],
    encode: Callable[[str], list[int]],
    end_of_text: int,
    vocab_size: int,
    tokenizer_sha256: str | None,
    shard_tokens: int = 1 << 26,
) -> Shards:
    """Tokenise `texts` into `folder` in this process; the folder appears only when complete."""
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    dtype = id_type(vocab_size)
    documents = (([*encode(text), end_of_text], len(text.encode())) for text in texts)
    written = write_documents(aside, "tokens", documents, dtype, shard_tokens)
    write_index(aside / DOCUMENTS, [written.documents])
    digest = manifests.sha256(aside / DOCUMENTS)
    made = Manifest(dtype.str, vocab_size, end_of_text, None, tokenizer_sha256, digest, written.shards)
    (aside / MANIFEST).write_text(manifests.text(made), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    aside.replace(folder)
    return Shards(folder)
