"""The manifest of a folder of token shards: what they hold, under which tokenizer, with checksums. Loads no torch."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from leanlm.errors import CheckpointError, NotFound

FORMAT = 2
MANIFEST, DOCUMENTS = "manifest.json", "documents.npy"
JOB = "job.json"  # lies there until the manifest does


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of whole documents; `sha256` is that of its bytes."""

    file: str
    tokens: int
    documents: int
    sha256: str

    def __post_init__(self):
        if (
            "/" in self.file
            or "\\" in self.file
            or self.tokens < 1
            or self.documents < 1
            or len(bytes.fromhex(self.sha256)) != 32
        ):
            raise ValueError(f"shard {self.file!r} of {self.tokens} tokens")


@dataclass(frozen=True)
class Manifest:
    """`dtype` is that of the stored ids, all below `vocab_size`. Every document ends with the id `end_of_text` (but those cut
    short before they were imported), and begins with `begin_of_text` where that is not None. `tokenizer_sha256` is
    `vocabulary.fingerprint`'s, None where nobody knew the tokenizer. `short` and `invalid` count the documents left out."""

    dtype: str
    vocab_size: int
    end_of_text: int
    begin_of_text: int | None
    tokenizer_sha256: str | None
    documents_sha256: str
    shards: tuple[Shard, ...]
    short: int = 0
    invalid: int = 0
    made_from: str = ""

    def __post_init__(self):
        if self.dtype not in ("<u2", "<u4") or not 0 <= self.end_of_text < self.vocab_size:
            raise ValueError(f"ids of type {self.dtype!r}, {self.end_of_text} of {self.vocab_size} ending texts")

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)


def read(folder: Path) -> Manifest:
    """The manifest in `folder`; raises NotFound or CheckpointError with what to do."""
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        remedy = "tokenising it is unfinished: give the same command again" if (folder / JOB).exists() else "tokenise first"
        raise NotFound(f"{folder}: no {MANIFEST}; {remedy}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); tokenise the data again") from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not shards of format {FORMAT}; tokenise the data again")
    known = {field.name for field in dataclasses.fields(Manifest)}
    try:
        shards = tuple(Shard(s["file"], s["tokens"], s["documents"], s["sha256"]) for s in raw["shards"])
        return Manifest(**{name: value for name, value in raw.items() if name in known} | {"shards": shards})
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); tokenise the data again") from None


def text(manifest: Manifest) -> str:
    """The file's content."""
    totals = {"tokens": manifest.tokens, "documents": manifest.documents}
    return json.dumps({"format": FORMAT, **totals, **dataclasses.asdict(manifest)}, indent=1) + "\n"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
