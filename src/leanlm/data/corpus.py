"""Text on disk as documents: text files, JSON lines and parquet, plain or compressed as Dolma and SlimPajama come.

Loads no torch."""

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from leanlm.data import extras
from leanlm.errors import CheckpointError, LeanLMError, NotFound, UsageError, first_line

JSON_LINES = (".jsonl", ".json", ".ndjson")
PARQUET, TEXT = (".parquet",), (".txt", ".text", ".md")
COMPRESSED = (".gz", ".zst", ".zstd")
CHUNK = 1 << 20
EXPANSION = 4  # bytes of text in a byte of a compressed or parquet file, about; only to cut work into equal parts


@dataclass(frozen=True)
class Piece:
    """A file or, of plain JSON lines, the lines that begin in its bytes start .. end (None: the whole file)."""

    path: str
    start: int = 0
    end: int | None = None


@dataclass(frozen=True)
class Invalid:
    """Stands for a document that could not be read; `reason` names file and line."""

    reason: str


def find(paths: Iterable[Path], kinds: tuple[str, ...] = ()) -> list[Path]:
    """The input files: those named and, in folders, those of a known kind (of `kinds`, where given), in the order of their
    names. Raises NotFound where a path is absent or a folder holds none."""
    known = kinds or (*JSON_LINES, *PARQUET, *TEXT)
    found = []
    for path in paths:
        if path.is_file():
            found.append(path)
            continue
        if not path.is_dir():
            raise NotFound(f"{path}: no such file or folder")
        inside = sorted(file for file in path.rglob("*") if file.is_file() and kind(file) in known)
        if not inside:
            raise NotFound(f"{path}: holds no file ending in {', '.join(known)} (or with {', '.join(COMPRESSED)} after it)")
        found += inside
    if len(set(found)) < len(found):
        raise UsageError(f"{next(path for path in found if found.count(path) > 1)}: named twice; name every input once")
    return found


def kind(path: Path) -> str:
    """The ending that says how a file is to be read, without that of its compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return ([""] + [suffix for suffix in suffixes if suffix not in COMPRESSED])[-1]


def weight(path: Path) -> int:
    """Bytes of text in a file, about."""
    dense = path.suffix.lower() in (*COMPRESSED, *PARQUET)
    return path.stat().st_size * (EXPANSION if dense else 1)


def cut(path: Path, size: int) -> Iterator[Piece]:
    """The file in pieces of about `size` bytes where its kind allows, else whole."""
    length = path.stat().st_size
    if path.suffix.lower() not in JSON_LINES or length <= size:
        yield Piece(str(path))
        return
    count = -(-length // size)
    for i in range(count):
        yield Piece(str(path), length * i // count, length * (i + 1) // count)


def texts(piece: Piece, field: str = "text") -> Iterator[str | Invalid]:
    """The documents of a piece in order: the lines' and rows' `field`, or a text file's whole content.

    Raises CheckpointError for a damaged file, UsageError where parquet has no such column, LeanLMError where reading fails.
    """
    path = Path(piece.path)
    with reading(path):
        if kind(path) in PARQUET:
            yield from _rows(path, field)
            return
        with opened(path) as file:
            if kind(path) in JSON_LINES:
                yield from _lines(file, piece, field)
                return
            data = file.read()
    try:
        yield data.decode("utf-8")
    except UnicodeDecodeError as error:
        yield Invalid(f"{path}: not UTF-8 ({error.reason} at byte {error.start})")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong in reading `path` becomes one line that names it."""
    try:
        yield
    except LeanLMError:
        raise
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CheckpointError(f"{path}: damaged or cut short ({first_line(error)}); download it again") from None
    except OSError as error:
        raise LeanLMError(f"{path}: cannot be read ({error.strerror or first_line(error)})") from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("zstandard", "pyarrow", "tarfile", "_zstd"):
            raise CheckpointError(f"{path}: damaged or cut short ({first_line(error)}); download it again") from None
        raise


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed as its ending says."""
    suffix = path.suffix.lower()
    with path.open("rb") as raw:
        if suffix == ".gz":
            with gzip.open(raw) as file:
                yield file
        elif suffix in (".zst", ".zstd"):
            yield io.BufferedReader(ZstdFile(raw), CHUNK)
        else:
            yield raw


class ZstdFile(io.RawIOBase):
    """The frames of a zstd file as one stream; EOFError where the last is cut short, which the package's own stream passes
    over in silence."""

    def __init__(self, file: BinaryIO):
        self._file, self._package = file, extras.package("zstandard")
        self._frame, self._unread, self._ready = None, b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            chunk = self._unread or self._file.read(CHUNK)
            if not chunk:
                if self._frame is not None:
                    raise EOFError("it ends inside a zstd frame")
                return 0
            if self._frame is None:
                self._frame = self._package.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            self._ready = self._frame.decompress(chunk)
            self._unread = self._frame.unused_data if self._frame.eof else b""
            self._frame = None if self._frame.eof else self._frame
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def _lines(file: BinaryIO, piece: Piece, field: str) -> Iterator[str | Invalid]:
    if piece.start:
        file.seek(piece.start - 1)
        file.readline()  # the line that began before
    place = file.tell() if piece.end is not None else 0
    for number, line in enumerate(file, 1):
        if piece.end is not None and place >= piece.end:
            return
        where = f"{piece.path}: line {number}" if not piece.start else f"{piece.path}: the line at byte {place}"
        place += len(line)
        if line.strip():
            yield _text(line, field, where)


def _text(line: bytes, field: str, where: str) -> str | Invalid:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Invalid(f"{where}: not JSON ({error})")
    if not isinstance(record, dict) or field not in record:
        near = ", ".join(record) if isinstance(record, dict) else type(record).__name__
        return Invalid(f"{where}: no field {field!r} (found: {near}); name it by --field")
    if not isinstance(record[field], str):
        return Invalid(f"{where}: field {field!r} is a {type(record[field]).__name__}, not a string")
    return record[field]


def _rows(path: Path, field: str) -> Iterator[str | Invalid]:
    table = extras.package("pyarrow.parquet").ParquetFile(path)
    names = table.schema_arrow.names
    if field not in names:
        raise UsageError(f"{path}: no column {field!r} (found: {', '.join(names)}); name it by --field")
    number = 0
    for batch in table.iter_batches(256, columns=[field]):
        for text in batch.column(0).to_pylist():
            number += 1
            yield text if isinstance(text, str) else Invalid(f"{path}: row {number} of {field!r} is {text!r}, not a string")
