"""A weight matrix held in few bits: what stands in the place of a float parameter.

R rows (outputs)  n columns (inputs)  G groups of columns  S scale regions
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from leanlm import ops
from leanlm.errors import UsageError
from leanlm.model.format import Format, Grouped, Ternary
from leanlm.ops import packing


class Packed(nn.Module, ABC):
    """A matrix `shape` [R, n] in `format`, immutable.

    `dtype` is that of the model around it: what its values are given in. Casting the model changes it, and leaves what is
    stored as it is.
    """

    def __init__(self, format: Format, shape: tuple[int, int], **buffers: Tensor | None):
        super().__init__()
        self.format, self.shape = format, shape
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)
        self.dtype: torch.dtype = self.scales.dtype

    @abstractmethod
    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight [R, n] in `dtype` (default: `self.dtype`); exact in float32 where the scales are 16 bits wide."""

    @abstractmethod
    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., n] times the weight transposed, plus bias [R]: [..., R] in x's dtype."""

    def take(self, rows: Tensor | slice) -> Self:
        """The matrix of these rows."""
        taken = self._take(rows)
        taken.dtype = self.dtype
        return taken

    @abstractmethod
    def _take(self, rows: Tensor | slice) -> Self:
        """`take`, the dtype left to it."""

    @staticmethod
    @abstractmethod
    def _stack(parts: Sequence["Packed"]) -> "Packed":
        """Matrices of this class, one below the other; raises UsageError where they do not fit."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        return dict(self.named_buffers())

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.buffers())

    @property
    def bits(self) -> float:
        """Bits stored per weight, scales and all else included."""
        return 8 * self.nbytes / self.numel()

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def ndim(self) -> int:
        return 2

    def numel(self) -> int:
        return self.shape[0] * self.shape[1]

    def split(self, rows: Sequence[int]) -> list[Self]:
        """The matrices of consecutive bands of so many rows."""
        parts, start = [], 0
        for count in rows:
            parts.append(self.take(slice(start, start + count)))
            start += count
        return parts

    def __len__(self) -> int:
        return self.shape[0]

    def equal(self, other: "Packed") -> bool:
        """Whether format, shape and every stored bit are the same."""
        return (
            (self.format, self.shape) == (other.format, other.shape)
            and self.tensors.keys() == other.tensors.keys()
            and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(self.buffers(), other.buffers(), strict=True))
        )

    def _apply(self, fn, recurse=True):
        """Moves go through, casts change `dtype` alone: the stored floats are shown to `fn` as integers of their size."""
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.device)).dtype
        for name, tensor in self._buffers.items():
            if tensor is not None:
                bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(tensor.element_size(), torch.uint8)
                self._buffers[name] = fn(tensor.view(bits)).view(tensor.dtype)
        return self

    def extra_repr(self) -> str:
        return f"{self.shape[0]} x {self.shape[1]}, {self.format}, {self.bits:.3f} bits"


class GroupedWeight(Packed):
    """weight = scale * (code - zero).

    Buffers: codes uint8 [R, ceil(n bits / 8)] (`packing.pack`), scales [R, G] floats, zeros uint8 [R, G] where asymmetric,
    g_idx int32 [n] where the groups are not consecutive columns.
    """

    def __init__(
        self, format: Grouped, n: int, codes: Tensor, scales: Tensor, zeros: Tensor | None = None, g_idx: Tensor | None = None
    ):
        super().__init__(format, (len(codes), n), codes=codes, scales=scales, zeros=zeros, g_idx=g_idx)

    @classmethod
    def of(
        cls, format: Grouped, codes: Tensor, scales: Tensor, zeros: Tensor | None = None, g_idx: Tensor | None = None
    ) -> "GroupedWeight":
        """From one code per byte, uint8 [R, n]."""
        return cls(format, codes.shape[1], packing.pack(codes, format.bits), scales, zeros, g_idx)

    def unpacked(self) -> Tensor:
        """The codes, uint8 [R, n]."""
        return packing.unpack(self.codes, self.format.bits, self.shape[1])

    @property
    def zero(self) -> Tensor | int:
        """What codes are counted from: [R, G], or one number where symmetric."""
        return 1 << (self.format.bits - 1) if self.zeros is None else self.zeros

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        return packing.grouped_values(self.unpacked(), self.scales, self.zero, self.g_idx).to(dtype or self.dtype)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return ops.grouped_linear(x, self.codes, self.scales, self.zeros, self.g_idx, self.format.bits, bias)

    def _take(self, rows: Tensor | slice) -> "GroupedWeight":
        zeros = None if self.zeros is None else self.zeros[rows]
        return GroupedWeight(self.format, self.shape[1], self.codes[rows], self.scales[rows], zeros, self.g_idx)

    @staticmethod
    def _stack(parts: Sequence[Packed]) -> "GroupedWeight":
        first = parts[0]
        _check_stackable(parts)
        if first.g_idx is not None and any(not torch.equal(part.g_idx, first.g_idx) for part in parts):
            raise UsageError("matrices whose columns are grouped differently cannot be stacked")
        zeros = None if first.zeros is None else torch.cat([part.zeros for part in parts])
        codes, scales = torch.cat([part.codes for part in parts]), torch.cat([part.scales for part in parts])
        return GroupedWeight(first.format, first.shape[1], codes, scales, zeros, first.g_idx)


class TernaryWeight(Packed):
    """weight = trit * scale of its region.

    Buffers: codes uint8 [R, ceil(n / 4)], two bits each holding trit + 1; scales [S] floats; starts int32 [S], the first row
    or column of each region.
    """

    def __init__(self, n: int, codes: Tensor, scales: Tensor, starts: Tensor, along_rows: bool):
        format = Ternary("rows" if along_rows else "columns", len(scales))
        super().__init__(format, (len(codes), n), codes=codes, scales=scales, starts=starts)

    @classmethod
    def of(cls, trits: packing.Trits) -> "TernaryWeight":
        codes = packing.pack((trits.trits + 1).to(torch.uint8), 2)
        return cls(trits.trits.shape[1], codes, trits.scales, trits.starts, trits.along_rows)

    @property
    def along_rows(self) -> bool:
        return self.format.axis == "rows"

    def unpacked(self) -> Tensor:
        """The trits, int8 [R, n]."""
        return packing.unpack(self.codes, 2, self.shape[1]).to(torch.int8) - 1

    def each_scale(self) -> Tensor:
        """The scale of every row, or of every column where the regions lie along columns."""
        return packing.spread(self.scales, self.starts, self.shape[0 if self.along_rows else 1])

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        values = packing.ternary_values(self.unpacked(), self.scales, self.starts, self.along_rows)
        return values.to(dtype or self.dtype)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return ops.ternary_linear(x, self.codes, self.scales, self.starts, self.along_rows, bias)

    def _take(self, rows: Tensor | slice) -> "TernaryWeight":
        codes = self.codes[rows]
        if not self.along_rows:
            return TernaryWeight(self.shape[1], codes, self.scales, self.starts, False)
        return TernaryWeight(self.shape[1], codes, *_bands(self.each_scale()[rows]), True)

    @staticmethod
    def _stack(parts: Sequence[Packed]) -> "TernaryWeight":
        first = parts[0]
        _check_stackable(parts)
        codes = torch.cat([part.codes for part in parts])
        if first.along_rows or len(first.scales) == 1:
            each = torch.cat([part.each_scale() if part.along_rows else part.scales.expand(len(part)) for part in parts])
            return TernaryWeight(first.shape[1], codes, *_bands(each), True)
        if any(not (torch.equal(part.scales, first.scales) and torch.equal(part.starts, first.starts)) for part in parts):
            raise UsageError("ternary matrices with different scales along their columns cannot be stacked")
        return TernaryWeight(first.shape[1], codes, first.scales, first.starts, False)


def _bands(each: Tensor) -> tuple[Tensor, Tensor]:
    """(scales, starts) of the runs of equal scales."""
    first = torch.cat([each.new_ones(1, dtype=torch.bool), each[1:] != each[:-1]]).nonzero().flatten()
    return each[first], first.to(torch.int32)


def _check_stackable(parts: Sequence[Packed]) -> None:
    kinds = {(type(part), part.shape[1], part.dtype) for part in parts}
    formats = {part.format if isinstance(part, GroupedWeight) else part.format.axis for part in parts}
    one_band = all(isinstance(part, TernaryWeight) and (part.along_rows or len(part.scales) == 1) for part in parts)
    if len(kinds) > 1 or (len(formats) > 1 and not one_band):
        raise UsageError(
            f"matrices in different formats ({', '.join(sorted({str(p.format) for p in parts}))}) cannot be stacked"
        )


def stack(parts: Sequence[Tensor | Packed]) -> Tensor | Packed:
    """Float or packed matrices one below the other. Raises UsageError where their formats or widths differ."""
    if not any(isinstance(part, Packed) for part in parts):
        return torch.cat(list(parts))
    kinds = {type(part) for part in parts}
    if len(kinds) > 1:
        formats = sorted({str(part.format) if isinstance(part, Packed) else "float" for part in parts})
        raise UsageError(f"matrices in different formats ({', '.join(formats)}) cannot be stacked")
    stacked = kinds.pop()._stack(parts)
    stacked.dtype = parts[0].dtype
    return stacked


def empty(format: Format, R: int, n: int, dtype: torch.dtype = torch.float16) -> Packed:
    """A matrix of the format with nothing in it yet, to be filled in place."""
    if isinstance(format, Ternary):
        starts = torch.zeros(format.regions, dtype=torch.int32)
        codes = torch.empty(R, packing.packed_bytes(n, 2), dtype=torch.uint8)
        return TernaryWeight(n, codes, torch.empty(format.regions, dtype=dtype), starts, format.axis == "rows")
    G = format.groups(n)
    return GroupedWeight(
        format,
        n,
        torch.empty(R, packing.packed_bytes(n, format.bits), dtype=torch.uint8),
        torch.empty(R, G, dtype=dtype),
        None if format.symmetric else torch.empty(R, G, dtype=torch.uint8),
        None if format.ordered else torch.empty(n, dtype=torch.int32),
    )


def matmul(x: Tensor, weight: Tensor | Packed, bias: Tensor | None = None) -> Tensor:
    """x [..., n] times a float or packed weight [R, n] transposed, plus bias [R], in x's dtype."""
    return weight.linear(x, bias) if isinstance(weight, Packed) else ops.linear(x, weight, bias)
