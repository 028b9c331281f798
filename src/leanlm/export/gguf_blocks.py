"""A weight laid out in GGUF blocks from its own integers, or the reason why a block cannot hold it exactly.

R rows  n columns  G groups of columns
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from leanlm.errors import UsageError
from leanlm.export.gguf_types import QUANTISED, Float, Quantised, row_bytes
from leanlm.model.packed import GroupedWeight, Packed
from leanlm.ops.packing import spread

BAND = 1 << 24  # weights worked on at a time, which bounds the memory


def refusal(weight: Tensor | Packed, type: Float | Quantised) -> str | None:
    """Why `type` cannot hold the values of `weight` [R, n] (any shape for a float tensor) exactly; None where it can."""
    if isinstance(type, Float):
        return _rounding(weight, type)
    if not isinstance(weight, Packed):
        return "it is held in floating point"
    return width_refusal(weight, type) or _levels(weight, type) or _crossing(weight, type) or _scales(weight)


def width_refusal(weight: Tensor | Packed, type: Float | Quantised) -> str | None:
    """Why rows of this width cannot be written in the type at all, rounded or not."""
    n = weight.shape[-1]
    return f"its rows of {n} weights do not divide into blocks of {type.block}" if n % type.block else None


def holding(weight: Packed) -> list[str]:
    """The names of the quantised types that hold the matrix exactly, smallest first."""
    return [type.name for type in QUANTISED if refusal(weight, type) is None]


def write(weight: Tensor | Packed, type: Float | Quantised) -> np.ndarray:
    """The bytes of `weight` in `type`, uint8 [R, bytes of a row] ([bytes] for a vector); nothing is rounded.

    Raises UsageError with the reason where `refusal` has one.
    """
    if reason := refusal(weight, type):
        raise UsageError(f"{type.name} cannot hold this matrix exactly: {reason}")
    if isinstance(type, Float):
        return np.concatenate([type.encode(band).numpy() for band in _values(weight)])
    rows = [_blocks(band, type) for band in _bands(weight)]
    return torch.cat(rows).numpy()


def read(data: np.ndarray, type: Float | Quantised, shape: tuple[int, ...]) -> Tensor:
    """float32 [*shape] from the bytes of a tensor in `type`."""
    stored = torch.from_numpy(np.array(data, dtype=np.uint8))
    if isinstance(type, Float):
        return type.decode(stored.flatten()).view(shape)
    return type.decode(stored.view(-1, type.nbytes)).view(shape)


def _bands(weight: Tensor | Packed) -> Iterator[Tensor | Packed]:
    """The weight in bands of rows."""
    if weight.ndim < 2:
        yield weight
        return
    rows = max(1, BAND // weight.shape[1])
    for start in range(0, weight.shape[0], rows):
        band = slice(start, min(start + rows, weight.shape[0]))
        yield weight.take(band) if isinstance(weight, Packed) else weight[band]


def _values(weight: Tensor | Packed) -> Iterator[Tensor]:
    """The weight as floats, in bands of rows; what is packed exactly, in float32."""
    for band in _bands(weight):
        yield band.dequantize(torch.float32) if isinstance(band, Packed) else band.detach()


def _rounding(weight: Tensor | Packed, type: Float) -> str | None:
    """How many values the float type would round."""
    lost = sum(int((band.to(type.dtype).to(band.dtype) != band).sum()) for band in _values(weight))
    return f"{lost:,} of its {weight.numel():,} values would be rounded" if lost else None


def _blocks(weight: Packed, type: Quantised) -> Tensor:
    """Bytes [R, bytes of a row]."""
    scales, group = spans(weight)
    each = scales[:, group[:: type.block]].expand(len(weight), -1)
    blocks = type.encode(levels(weight).view(-1, type.block), each.flatten())
    return blocks.view(len(weight), row_bytes(type, weight.shape[1]))


def levels(weight: Packed) -> Tensor:
    """What is multiplied by a scale: code - zero, or the trit; int16 [R, n]."""
    if not isinstance(weight, GroupedWeight):
        return weight.unpacked().short()
    codes = weight.unpacked().short()
    if weight.zeros is None:
        return codes - weight.zero
    return codes - weight.zeros.short()[:, spans(weight)[1]]


def spans(weight: Packed) -> tuple[Tensor, Tensor]:
    """scales [R or 1, G], and the group int64 [n] of every column: the weight is scales[:, group] * levels."""
    n = weight.shape[1]
    if isinstance(weight, GroupedWeight):
        G = weight.scales.shape[1]
        return weight.scales, weight.g_idx.long() if weight.g_idx is not None else torch.arange(n) * G // n
    if weight.along_rows:
        return weight.each_scale()[:, None], torch.zeros(n, dtype=torch.int64)
    return weight.scales[None], spread(torch.arange(len(weight.scales)), weight.starts, n)


def _crossing(weight: Packed, type: Quantised) -> str | None:
    """A block in which two scales meet."""
    scales, group = spans(weight)
    for column in (group.diff().nonzero().flatten() + 1).tolist():
        first = column - column % type.block
        if column != first and not torch.equal(scales[:, group[column]], scales[:, group[column - 1]]):
            last = first + type.block - 1
            return f"columns {first} to {last} are one block and hold two scales, which meet at column {column}"
    return None


def _scales(weight: Packed) -> str | None:
    """A scale that half precision, which every block has, does not know."""
    bad = weight.scales[weight.scales.half().to(weight.scales.dtype) != weight.scales]
    return f"its scale {float(bad[0]):.7g} is no half-precision number, and a block's scale is one" if len(bad) else None


def _levels(weight: Packed, type: Quantised) -> str | None:
    """Levels outside the type's range."""
    ranges = [torch.aminmax(levels(band)) for band in _bands(weight)]
    low, high = min(int(low) for low, _ in ranges), max(int(high) for _, high in ranges)
    if type.low <= low and high <= type.high:
        return None
    zeros = ", counted from zeros of their own," if weight.tensors.get("zeros") is not None else ""
    return f"its levels{zeros} run from {low} to {high}, and a block holds {type.low} to {type.high}"
