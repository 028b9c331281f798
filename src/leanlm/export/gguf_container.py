"""The GGUF file: keys and tensors. The `gguf` package writes it, code of our own reads it: one shows the mistakes of the other.

Layout: ggml-org/ggml, docs/gguf.md, version 3, little-endian.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from leanlm.errors import CheckpointError, UsageError
from leanlm.export import gguf_blocks
from leanlm.export.gguf_types import BY_CODE, Float, Quantised, row_bytes

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # value type -> struct
STRING, ARRAY = 8, 9

Value = bool | int | float | str | Sequence


def package():
    """The optional package `gguf`; raises UsageError naming the extra that brings it."""
    try:
        import gguf
    except ImportError:
        raise UsageError('writing GGUF needs the package gguf: pip install "leanlm[gguf]"') from None
    return gguf


class Info(NamedTuple):
    """A tensor of the file: its shape in our order (outermost first), and its type."""

    shape: tuple[int, ...]
    type: Float | Quantised

    @property
    def nbytes(self) -> int:
        return prod(self.shape[:-1]) * row_bytes(self.type, self.shape[-1])


def write(
    path: Path, architecture: str, keys: Mapping[str, Value], infos: Mapping[str, Info], data: Iterable[np.ndarray]
) -> None:
    """Write the file; `data` gives the bytes of the tensors one by one, in the order of `infos`.

    Keys hold bool, int (written as uint32), float (float32), str, or lists of one of these (ints as int32).
    """
    writer = package().GGUFWriter(None, architecture)
    for key, value in keys.items():
        _add(writer, key, value)
    for name, info in infos.items():
        # The package knows no type 42; given as signed bytes it takes shape and type as they are.
        writer.add_tensor_info(name, info.shape, np.dtype(np.int8), info.nbytes, raw_dtype=info.type.code)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for blocks in data:
            writer.write_tensor_data(blocks)
    finally:
        writer.close()


def _add(writer, key: str, value: Value) -> None:
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    adders.get(type(value), writer.add_array)(key, value)


class GGUF:
    """A GGUF file, memory-mapped: `keys` (arrays as lists) and `infos` by name; raises CheckpointError where it is damaged."""

    def __init__(self, path: Path):
        self.path, self.keys, self.infos = path, {}, {}
        try:
            self._bytes = np.memmap(path, mode="r")
            self._read_header()
        except (OSError, ValueError, struct.error, UnicodeDecodeError, KeyError) as error:
            raise CheckpointError(f"{path}: damaged or no GGUF file ({error})") from None

    def tensor(self, name: str) -> Tensor:
        """The tensor in float32."""
        info = self.infos[name]
        return gguf_blocks.read(self.data(name), info.type, info.shape)

    def data(self, name: str) -> np.ndarray:
        """The stored bytes, uint8, a row of them for every row of the tensor."""
        info, start = self.infos[name], self._start + self._offsets[name]
        return self._bytes[start : start + info.nbytes].reshape(*info.shape[:-1], -1)

    def _read_header(self) -> None:
        self._at = 0
        if self._take(4) != MAGIC or self._number("I") != VERSION:
            raise ValueError(f"it does not begin with {MAGIC.decode()} and version {VERSION}")
        tensors, keys = self._number("Q"), self._number("Q")
        for _ in range(keys):
            name = self._string()
            self.keys[name] = self._value(self._number("I"))
        self._offsets: dict[str, int] = {}
        for _ in range(tensors):
            name = self._string()
            innermost_first = [self._number("Q") for _ in range(self._number("I"))]
            self.infos[name] = Info(tuple(reversed(innermost_first)), BY_CODE[self._number("I")])
            self._offsets[name] = self._number("Q")
        alignment = self.keys.get("general.alignment", ALIGNMENT)
        self._start = -(-self._at // alignment) * alignment
        ends = [self._start + offset + self.infos[name].nbytes for name, offset in self._offsets.items()]
        if max(ends, default=0) > len(self._bytes):
            raise ValueError(f"its tensors need {max(ends):,} bytes and it has {len(self._bytes):,}")

    def _take(self, count: int) -> bytes:
        self._at += count
        return bytes(self._bytes[self._at - count : self._at])

    def _number(self, kind: str):
        return struct.unpack("<" + kind, self._take(struct.calcsize(kind)))[0]

    def _string(self) -> str:
        return self._take(self._number("Q")).decode()

    def _value(self, kind: int) -> Value:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            inner, count = self._number("I"), self._number("Q")
            if inner in NUMBERS:
                return list(struct.unpack(f"<{count}{NUMBERS[inner]}", self._take(count * struct.calcsize(NUMBERS[inner]))))
            return [self._value(inner) for _ in range(count)]
        return self._number(NUMBERS[kind])
