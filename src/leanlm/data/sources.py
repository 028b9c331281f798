"""Where training text comes from: the Python standard library of the running interpreter, or any files and folders."""

import hashlib
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from leanlm.errors import NotFound, UsageError

STANDARD_LIBRARY = "python-library"
SKIPPED = {"test", "tests", "idle_test", "site-packages", "__pycache__"}


@dataclass(frozen=True)
class Document:
    """One text and the name it is known by: its path below the source's root, with forward slashes."""

    name: str
    text: str


def read(source: str, suffix: str = ".py") -> Iterator[Document]:
    """The documents of a source in the order of their names: "python-library", a file, or a folder (files with `suffix`).

    Files of a folder that are not UTF-8 are passed over. Raises NotFound where the source is absent or empty, UsageError for a
    file that is not UTF-8.
    """
    root = Path(sysconfig.get_path("stdlib")) if source == STANDARD_LIBRARY else Path(source)
    if root.is_file():
        try:
            yield Document(root.name, root.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise UsageError(f"{root}: is not UTF-8 text (byte {error.start}); convert it first") from None
        return
    if not root.is_dir():
        raise NotFound(f"{root}: no such file or folder to read training text from")
    found = False
    for path in sorted(root.rglob(f"*{suffix}")):
        inner = path.relative_to(root)
        if source == STANDARD_LIBRARY and SKIPPED & set(inner.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if text:
            found = True
            yield Document(inner.as_posix(), text)
    if not found:
        raise NotFound(f"{root}: holds no readable *{suffix} file")


def split(documents: Iterable[Document], held_out: Iterable[str]) -> tuple[list[Document], list[Document]]:
    """Documents to learn from and, by name, those held out."""
    names = set(held_out)
    learned, held = [], []
    for document in documents:
        (held if document.name in names else learned).append(document)
    return learned, held


def fingerprint(documents: Iterable[Document]) -> str:
    """sha256 over names and texts: two runs with the same fingerprint saw the same text."""
    digest = hashlib.sha256()
    for document in documents:
        for part in (document.name, document.text):
            data = part.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
