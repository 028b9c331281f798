"""Small token shards whose every token is another id, so that what was delivered can be told from what was not."""

from pathlib import Path

import numpy as np

from leanlm.data import manifest as manifests
from leanlm.data.manifest import DOCUMENTS, MANIFEST, Manifest
from leanlm.data.shards import Shards
from leanlm.data.writer import write_documents, write_index

END, BEGIN = 0, 1


def make(
    folder: Path, lengths, first: int = 2, shard_tokens: int = 20, begin: bool = False, vocabulary: str | None = "v"
) -> Shards:
    """Shards of documents with `lengths` tokens of text, numbered from `first` on; each ends with END, may begin with BEGIN."""
    documents = []
    for length in lengths:
        text = range(first, first + length)
        documents.append(([BEGIN, *text, END] if begin else [*text, END], 3 * length))
        first += length
    dtype = np.dtype("<u4")
    written = write_documents(folder, "tokens", documents, dtype, shard_tokens)
    write_index(folder / DOCUMENTS, [written.documents])
    digest = manifests.sha256(folder / DOCUMENTS)
    made = Manifest(dtype.str, first, END, BEGIN if begin else None, vocabulary, digest, written.shards)
    (folder / MANIFEST).write_text(manifests.text(made))
    return Shards(folder)
