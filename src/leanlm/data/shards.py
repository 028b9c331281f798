"""Token shards: flat little-endian token files, where each document begins, and a manifest with checksums.

manifest.json         format, dtype, tokenizer sha256, totals, and per shard: file, tokens, documents, sha256
tokens-00000.bin      the tokens of the documents one after another, each ended by the end-of-text token
documents-00000.npy   int64 [documents, 2]: first token of the document within the shard, bytes of its text
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from leanlm.errors import CheckpointError, NotFound

FORMAT = 1


def write_shards(
    folder: Path,
    texts: Iterable[str],
    encode: Callable[[str], list[int]],
    end_of_text: int,
    vocab_size: int,
    tokenizer_sha256: str,
    shard_tokens: int = 1 << 26,
) -> "Shards":
    """Tokenise `texts` into `folder`, which appears only when complete."""
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
    shards, tokens, starts, held = [], [], [], 0
    for text in texts:
        ids = [*encode(text), end_of_text]
        starts.append((held, len(text.encode())))
        tokens.append(np.asarray(ids, dtype))
        held += len(ids)
        if held >= shard_tokens:
            shards.append(_write_shard(aside, len(shards), tokens, starts))
            tokens, starts, held = [], [], 0
    if tokens:
        shards.append(_write_shard(aside, len(shards), tokens, starts))
    manifest = {
        "format": FORMAT,
        "dtype": dtype.str,
        "tokenizer_sha256": tokenizer_sha256,
        "tokens": sum(s["tokens"] for s in shards),
        "documents": sum(s["documents"] for s in shards),
        "shards": shards,
    }
    (aside / "manifest.json").write_text(json.dumps(manifest, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    aside.replace(folder)
    return Shards(folder)


def _write_shard(folder: Path, number: int, tokens: list[np.ndarray], starts: list[tuple[int, int]]) -> dict:
    data = np.concatenate(tokens)
    name = f"tokens-{number:05}.bin"
    data.tofile(folder / name)
    np.save(folder / f"documents-{number:05}.npy", np.asarray(starts, np.int64))
    return {"file": name, "tokens": len(data), "documents": len(starts), "sha256": hashlib.sha256(data).hexdigest()}


class Shards:
    """A folder of shards, memory-mapped, seen as one stream of `tokens` tokens.

    Raises NotFound or CheckpointError where the folder or a shard is missing, or a file has not the size stated.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        try:
            self.manifest = json.loads((self.folder / "manifest.json").read_text())
        except FileNotFoundError:
            raise NotFound(f"{folder}: no manifest.json; tokenise the data first") from None
        except json.JSONDecodeError as error:
            raise CheckpointError(f"{folder}/manifest.json: not JSON ({error}); tokenise the data again") from None
        if not isinstance(self.manifest, dict) or self.manifest.get("format") != FORMAT:
            raise CheckpointError(f"{folder}/manifest.json: not shards of format {FORMAT}; tokenise the data again")
        self.tokens: int = self.manifest["tokens"]
        self._maps = [self._map(shard) for shard in self.manifest["shards"]]
        self._firsts = np.cumsum([0] + [s["tokens"] for s in self.manifest["shards"]])
        starts, sizes = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for number, first in enumerate(self._firsts[:-1]):
            table = np.load(self.folder / f"documents-{number:05}.npy")
            starts.append(table[:, 0] + first)
            sizes.append(table[:, 1])
        self.starts = np.concatenate(starts)  # first token of every document
        self.bytes = np.concatenate(sizes)  # bytes of its text

    def _map(self, shard: dict) -> np.ndarray:
        path, dtype = self.folder / shard["file"], np.dtype(self.manifest["dtype"])
        if not path.is_file():
            raise NotFound(f"{path}: missing; tokenise the data again")
        if path.stat().st_size != shard["tokens"] * dtype.itemsize:
            raise CheckpointError(
                f"{path}: {path.stat().st_size} bytes, {shard['tokens'] * dtype.itemsize} stated; tokenise again"
            )
        return np.memmap(path, dtype, "r")

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens start .. start + length as int64, across shards."""
        parts = []
        while length:
            shard = int(np.searchsorted(self._firsts, start, "right")) - 1
            inner = start - int(self._firsts[shard])
            part = self._maps[shard][inner : inner + length]
            parts.append(part.astype(np.int64))
            start, length = start + len(part), length - len(part)
        return np.concatenate(parts)

    def documents_of(self, start: int, length: int) -> np.ndarray:
        """Ordinal of the document of every token start .. start + length, int64."""
        return np.searchsorted(self.starts, np.arange(start, start + length), "right") - 1

    def document(self, number: int) -> np.ndarray:
        """The tokens of one document, its end-of-text token included."""
        end = self.starts[number + 1] if number + 1 < len(self.starts) else self.tokens
        return self.read(int(self.starts[number]), int(end - self.starts[number]))

    def verify(self) -> None:
        """Read every shard and compare its checksum; raises CheckpointError naming the first that differs."""
        for shard, data in zip(self.manifest["shards"], self._maps):
            if hashlib.sha256(data).hexdigest() != shard["sha256"]:
                raise CheckpointError(f"{self.folder / shard['file']}: checksum differs from the manifest; tokenise again")
