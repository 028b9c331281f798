"""What a file says of its packed matrices, settings and tensors, checked as it is taken: CheckpointError where it is wrong."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from leanlm.errors import CheckpointError, UsageError
from leanlm.model.format import Grouped
from leanlm.ops import packing

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def setting(settings: Mapping, key: str, kind: type, default: Any = None) -> Any:
    """settings[key], of this type; the default where it is absent or null."""
    value = settings.get(key)
    value = default if value is None else value
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        found = "is missing" if value is None else f"is {value!r}, which is no {kind.__name__}"
        raise CheckpointError(f"quantization_config: {key!r} {found}")
    return value


def grouped(name: str, n: int, **fields: Any) -> Grouped:
    """The format of matrix `name` with n columns, from settings of a file; a group size of -1 means one group per output."""
    try:
        format = Grouped(**{**fields, "group": max(fields["group"], 0)})
    except UsageError as error:
        raise CheckpointError(f"quantization_config: {name!r}: {error}") from None
    check_divides(name, format, n)
    return format


def check_divides(name: str, format: Grouped, n: int) -> None:
    """Raises CheckpointError unless n columns come out even in groups."""
    if format.group and n % format.group:
        raise CheckpointError(f"quantization_config: {name!r} has {n} inputs, no multiple of its group of {format.group}")


class Stored:
    """The tensors `stem` + suffix."""

    def __init__(self, tensors: Mapping[str, Tensor], stem: str):
        self.tensors, self.stem = tensors, stem

    def __contains__(self, suffix: str) -> bool:
        return self.stem + suffix in self.tensors

    def take(self, suffix: str, dtypes: Collection[torch.dtype], shape: tuple[int | None, ...]) -> Tensor:
        """One tensor, of one of these dtypes and of this shape (None: any size, but not 0); floats are finite."""
        if suffix not in self:
            raise CheckpointError(f"tensor {self.stem + suffix!r} is missing")
        tensor = self.tensors[self.stem + suffix]
        if tensor.dtype not in dtypes:
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise self.wrong(suffix, f"is {str(tensor.dtype).removeprefix('torch.')} and should be {names}")
        fits = tensor.ndim == len(shape) and all(a == b or (b is None and a) for a, b in zip(tensor.shape, shape))
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise self.wrong(suffix, f"is {list(tensor.shape)} and should be [{wanted}]; is the file cut short?")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise self.wrong(suffix, "holds NaN or infinite values; the file is damaged")
        return tensor

    def groups_of_columns(self, suffix: str, format: Grouped, n: int) -> Tensor | None:
        """The group of every column, int32 [n]; None where it is absent, or consecutive columns form the groups."""
        if suffix not in self:
            return None
        group = self.take(suffix, (torch.int32, torch.int64), (n,)).to(torch.int32)
        if (group == -1).all() or torch.equal(group, consecutive(format, n)):
            return None
        if group.min() < 0 or group.max() >= format.groups(n):
            raise self.wrong(suffix, f"names groups outside 0 to {format.groups(n) - 1}")
        return group.contiguous()

    def wrong(self, suffix: str, what: str) -> CheckpointError:
        return CheckpointError(f"tensor {self.stem + suffix!r} {what}")


def consecutive(format: Grouped, n: int) -> Tensor:
    """The group of every column where consecutive columns form the groups: int32 [n]."""
    return torch.arange(n, dtype=torch.int32) // (format.group or n)


def to_words(rows: Tensor) -> Tensor:
    """Packed rows (`packing.pack`, uint8 [R, b]) as int32 words [R, ceil(b / 4)], low bits first, filled up with zeros."""
    # Flat, because a view of other width is particular about strides, even those of single rows.
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % 4)).flatten().view(torch.int32).view(len(rows), -1)


def from_words(words: Tensor, bits: int, n: int) -> Tensor:
    """The inverse of `to_words` for rows of n codes: uint8 [R, packed_bytes(n, bits)]."""
    return words.flatten().view(torch.uint8).view(len(words), -1)[:, : packing.packed_bytes(n, bits)].contiguous()


def words(n: int, bits: int) -> int:
    """int32 words that n codes fill."""
    return -(-n * bits // 32)
