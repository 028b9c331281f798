"""Grids of few-bit integers, and rounding to the nearest point of them.

R rows (outputs)  n columns (inputs)  G groups of columns
"""

import torch
from torch import Tensor

from leanlm.errors import CheckpointError, UsageError
from leanlm.model.format import Grouped
from leanlm.model.packed import GroupedWeight, stack

BAND = 1 << 24  # numbers of a matrix that are widened at once
RANGES = {torch.float16: (2.0**-20, 65504.0), torch.float32: (2.0**-126, 2.0**127)}  # of scales; below 2^-20 float16 is coarse


def quantize(weight: Tensor, format: Grouped, name: str = "weight") -> GroupedWeight:
    """Every weight of [R, n] as the nearest point of its group's grid; the result gives values in weight's dtype.

    Raises UsageError where the groups do not come out even and CheckpointError for NaN or infinite weights; both begin
    with `name`.
    """
    check(weight, format, name)
    bands = weight.split(max(1, BAND // weight.shape[1]))
    dtype = scale_dtype(torch.cat([_step(*_bounds(band, format), format.bits) for band in bands]))
    packed = stack([_round(band, format, dtype) for band in bands])
    packed.dtype = weight.dtype
    return packed


def check(weight: Tensor, format: Grouped, name: str) -> None:
    """The refusals of `quantize`."""
    try:
        format.groups(weight.shape[1])
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None
    if not all(band.isfinite().all() for band in weight.split(max(1, BAND // weight.shape[1]))):
        raise CheckpointError(f"{name}: holds NaN or infinite values; the file is damaged or its training diverged")


def grid(weight: Tensor, format: Grouped, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor | None]:
    """Scales [R, G] and, where asymmetric, zeros uint8 [R, G] of the grids of weight [R, n].

    Symmetric: 2 max|w| / (2^bits - 1) about the code 2^(bits - 1), as published with GPTQ (Frantar et al. 2023, arXiv
    2210.17323); the largest positive weight falls half a step beyond the last point. Asymmetric: from the smallest to the
    largest weight, 0 included. Scales have `dtype`, by default that of `scale_dtype`; a group of zeros has the scale 1.
    """
    low, high = _bounds(weight, format)
    step = _step(low, high, format.bits)
    dtype = dtype or scale_dtype(step)
    scales = torch.where(step > 0, step.clamp(*RANGES[dtype]), 1.0).to(dtype)
    zeros = None if format.symmetric else _codes(-low, scales, 0, format.bits)
    return scales, zeros


def scale_dtype(step: Tensor) -> torch.dtype:
    """float16 where it holds these scales well, else float32; zeros count for nothing."""
    held = step[step > 0]
    least, most = RANGES[torch.float16]
    return torch.float16 if ((held >= least) & (held <= most)).all() else torch.float32


def codes(weight: Tensor, scales: Tensor, zeros: Tensor | None, bits: int) -> Tensor:
    """Codes uint8 [R, n] of the nearest points of the grids `scales` [R, G], `zeros` [R, G]."""
    R, G = scales.shape
    zero = 1 << (bits - 1) if zeros is None else zeros[..., None]
    return _codes(widened(weight).reshape(R, G, -1), scales[..., None], zero, bits).flatten(1)


def widened(weight: Tensor) -> Tensor:
    """In float32, or float64 where it is that."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _codes(values: Tensor, scales: Tensor, zero: Tensor | int, bits: int) -> Tensor:
    return ((values / scales).round() + zero).clamp(0, (1 << bits) - 1).to(torch.uint8)


def _round(weight: Tensor, format: Grouped, dtype: torch.dtype) -> GroupedWeight:
    scales, zeros = grid(weight, format, dtype)
    return GroupedWeight.of(format, codes(weight, scales, zeros, format.bits), scales, zeros)


def _bounds(weight: Tensor, format: Grouped) -> tuple[Tensor, Tensor]:
    """The ends of the range each grid spans: [R, G] each."""
    R, n = weight.shape
    groups = widened(weight).reshape(R, format.groups(n), -1)
    if format.symmetric:
        largest = groups.abs().amax(-1)
        return -largest, largest
    return groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)


def _step(low: Tensor, high: Tensor, bits: int) -> Tensor:
    steps = (1 << bits) - 1
    return high / steps - low / steps
