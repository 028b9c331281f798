"""Token shards: flat little-endian token files, where each document begins, and a manifest with checksums. Loads no torch.

manifest.json      dtype, tokenizer, totals, and for every shard: file, tokens, documents, sha256
tokens-*.bin       the tokens of whole documents one after another, each ended by the end-of-text token
documents.npy      int64 [2, documents]: first token of each document within its shard; bytes of its text (0: unknown)
tokenizer/         the tokenizer's files, where it is known

Opening reads the manifest and lists the folder, nothing else, so it takes as long for a thousand shards of a gigabyte as for
a thousand of a byte. Tokens are read by position from files kept open (a few at a time) rather than mapped: a file that is cut
short under a running job is an error that names it.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from leanlm.data import manifest as manifests
from leanlm.data.manifest import DOCUMENTS, Manifest, Shard
from leanlm.errors import CheckpointError, LeanLMError, NotFound

Report = Callable[[int, int], None]
KEPT_OPEN = 64  # files of one folder; a process may have as many folders as a mixture has sources


class Shards:
    """The shards of a folder seen as one stream of `tokens` tokens in `documents` documents. Threads may share it.

    A shard that is missing, has not the size stated or, where `checksums` asks for the reading of every file, has another
    checksum, is refused: NotFound or CheckpointError. `damaged` "skip" leaves it out instead, and `skipped` says which and why.
    """

    def __init__(self, folder: str | Path, damaged: Literal["refuse", "skip"] = "refuse", checksums: bool = False):
        self.folder = Path(folder)
        self.manifest = manifests.read(self.folder)
        self.dtype = np.dtype(self.manifest.dtype)
        bad = _damage(self.folder, self.manifest, checksums)
        if bad and damaged == "refuse":
            raise refusal(self.folder, bad)
        self.skipped: tuple[str, ...] = tuple(bad.values())
        everything = self.manifest.shards
        kept = [number for number in range(len(everything)) if number not in bad]
        self.shards: list[Shard] = [everything[number] for number in kept]
        if not self.shards:
            raise CheckpointError(f"{self.folder}: none of its shards can be read; tokenise the data again")
        self._firsts = np.cumsum([0] + [shard.tokens for shard in self.shards])
        self._ordinals = np.cumsum([0] + [shard.documents for shard in self.shards])
        self._rows = np.cumsum([0] + [shard.documents for shard in everything])[kept]  # in documents.npy
        self.tokens, self.documents = int(self._firsts[-1]), int(self._ordinals[-1])
        self._starts, self._bytes = self._index()
        self._root, self._open = str(self.folder), lru_cache(KEPT_OPEN)(File)

    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        path, expected = self.folder / DOCUMENTS, (2, self.manifest.documents)
        try:
            table = np.load(path, mmap_mode="r")
        except FileNotFoundError:
            raise NotFound(f"{path}: missing; tokenise the data again") from None
        except (OSError, ValueError, EOFError) as error:
            raise CheckpointError(f"{path}: damaged ({error}); tokenise the data again") from None
        if table.dtype != np.int64 or table.shape != expected:
            raise CheckpointError(f"{path}: {list(table.shape)} numbers, {list(expected)} stated; tokenise the data again")
        return np.asarray(table[0]), np.asarray(table[1])

    @cached_property
    def fingerprint(self) -> str:
        """Two streams with the same fingerprint hold the same tokens in the same order, wherever they lie."""
        digest = hashlib.sha256(f"{self.dtype.str} {self.manifest.begin_of_text} {self.manifest.end_of_text}".encode())
        for shard in self.shards:
            digest.update(bytes.fromhex(shard.sha256))
        return digest.hexdigest()

    @property
    def bytes(self) -> np.ndarray:
        """Bytes of the text of every document, int64."""
        parts = [self._bytes[row : row + shard.documents] for row, shard in zip(self._rows, self.shards)]
        return np.concatenate(parts)

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens start .. start + length in the stored dtype, across shards."""
        parts = [self._tokens(number, inner, count) for number, inner, count, _ in self._pieces(start, length)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def beginnings(self, start: int, length: int) -> np.ndarray:
        """Where documents begin among the tokens start .. start + length, counted from `start`, int64."""
        parts = []
        for number, inner, count, done in self._pieces(start, length):
            row = int(self._rows[number])
            starts = self._starts[row : row + self.shards[number].documents]
            low, high = starts.searchsorted((inner, inner + count))
            parts.append(starts[low:high] - (inner - done))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _pieces(self, start: int, length: int) -> Iterator[tuple[int, int, int, int]]:
        """The shards under start .. start + length: number, first token within it, how many, how many before them."""
        number, done = int(self._firsts.searchsorted(start, "right")) - 1, 0
        while done < length:
            inner = start + done - int(self._firsts[number])
            count = min(length - done, self.shards[number].tokens - inner)
            yield number, inner, count, done
            number, done = number + 1, done + count

    def _tokens(self, number: int, inner: int, count: int) -> np.ndarray:
        path, size = f"{self._root}/{self.shards[number].file}", count * self.dtype.itemsize  # Path costs more than reading
        try:
            data = self._open(path).read(size, inner * self.dtype.itemsize)
        except FileNotFoundError:
            raise NotFound(f"{path}: missing; tokenise the data again") from None
        except OSError as error:
            raise LeanLMError(f"{path}: cannot be read ({error.strerror})") from None
        if len(data) != size:
            raise CheckpointError(f"{path}: cut short; tokenise the data again")
        return np.frombuffer(data, self.dtype)

    def document(self, number: int) -> np.ndarray:
        """The tokens of one document, its end-of-text token included."""
        if not 0 <= number < self.documents:
            raise IndexError(f"document {number} of {self.documents}")
        at = int(self._ordinals.searchsorted(number, "right")) - 1
        place, shard, row = number - int(self._ordinals[at]), self.shards[at], int(self._rows[at])
        start = int(self._starts[row + place])
        end = int(self._starts[row + place + 1]) if place + 1 < shard.documents else shard.tokens
        return self.read(int(self._firsts[at]) + start, end - start)

    def shard_at(self, position: int) -> Path:
        """The file that holds the token at a position of the stream."""
        return self.folder / self.shards[int(self._firsts.searchsorted(position, "right")) - 1].file

    def check_tokenizer(self, sha256: str, vocab_size: int) -> None:
        """Raises CheckpointError unless the shards' ids mean what they mean to the tokenizer with this
        `vocabulary.fingerprint`; of shards whose tokenizer nobody knew, unless all ids are below `vocab_size`."""
        known = self.manifest.tokenizer_sha256
        if known is not None and known != sha256:
            raise CheckpointError(
                f"{self.folder}: made with another tokenizer ({self.manifest.vocab_size} ids, {known[:8]}) than this one "
                f"({vocab_size} ids, {sha256[:8]}); tokenise the data again, or use the one in {self.folder / 'tokenizer'}"
            )
        if known is None and self.manifest.vocab_size > vocab_size:
            raise CheckpointError(
                f"{self.folder}: holds ids up to {self.manifest.vocab_size - 1}, the tokenizer has {vocab_size}; "
                "it is not the one these tokens were made with"
            )


class File:
    """A file open for reading at any place, by any thread; closed when nobody holds it."""

    def __init__(self, path: str):
        self._number = -1
        self._number = os.open(path, os.O_RDONLY)

    def read(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes; fewer where the file ends."""
        data = os.pread(self._number, size, offset)
        while data and len(data) < size and (more := os.pread(self._number, size - len(data), offset + len(data))):
            data += more
        return data

    def __del__(self):
        if self._number >= 0:
            os.close(self._number)


def examine(folder: Path, checksums: bool = True, report: Report = lambda done, of: None) -> dict[int, str]:
    """Shard number -> what is wrong with it, in a line that names it. `report` hears how many of how many were looked at.

    Raises as `manifest.read` does, and CheckpointError where the document index has not its checksum.
    """
    return _damage(folder, manifests.read(folder), checksums, report)


def _damage(folder: Path, stated: Manifest, checksums: bool, report: Report = lambda done, of: None) -> dict[int, str]:
    if checksums and (folder / DOCUMENTS).exists() and manifests.sha256(folder / DOCUMENTS) != stated.documents_sha256:
        raise CheckpointError(f"{folder / DOCUMENTS}: checksum differs from the manifest; tokenise the data again")
    with os.scandir(folder) as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries if entry.name.endswith(".bin")}
    itemsize = np.dtype(stated.dtype).itemsize
    bad = {}
    for number, shard in enumerate(stated.shards):
        path, size = folder / shard.file, sizes.get(shard.file)
        if size is None:
            bad[number] = f"{path}: missing"
        elif size != shard.tokens * itemsize:
            bad[number] = f"{path}: {size} bytes, {shard.tokens * itemsize} stated"
        elif checksums and manifests.sha256(path) != shard.sha256:
            bad[number] = f"{path}: checksum differs from the manifest"
        report(number + 1, len(stated.shards))
    return bad


def refusal(folder: Path, bad: dict[int, str]) -> LeanLMError:
    """The error for damaged shards: NotFound where all of them are missing."""
    first, *others = bad.values()
    more = f" (and {len(others)} more)" if others else ""
    kind = NotFound if all(reason.endswith("missing") for reason in bad.values()) else CheckpointError
    return kind(f'{first}{more}; tokenise the data again, or leave such shards out with damaged = "skip"')


def check_same_vocabulary(sources: Sequence[Shards]) -> None:
    """Raises CheckpointError where two sources were made with different tokenizers."""
    known = [source for source in sources if source.manifest.tokenizer_sha256]
    for source in known[1:]:
        if source.manifest.tokenizer_sha256 != known[0].manifest.tokenizer_sha256:
            raise CheckpointError(
                f"{known[0].folder} and {source.folder} were made with different tokenizers; tokenise one again"
            )
