"""A ternary matrix as symmetric two-bit groups, which published containers hold, and back: code = trit + 2, zero 2.

R rows (outputs)  n columns (inputs)  G groups of columns
"""

import torch
from torch import Tensor

from leanlm.model.format import Grouped
from leanlm.model.packed import GroupedWeight, TernaryWeight
from leanlm.ops import packing

GROUPS = (128, 64, 32)  # what other programs' kernels for groups expect, coarsest first


def by_rows(weight: TernaryWeight) -> bool:
    """Whether one scale per row says all."""
    return weight.along_rows or len(weight.scales) == 1


def group_of(weight: TernaryWeight) -> int | None:
    """The coarsest groups of columns that every region starts with one of; None where there are none."""
    fits = (g for g in GROUPS if weight.shape[1] % g == 0 and (by_rows(weight) or not (weight.starts % g).any()))
    return next(fits, None)


def refusal(weight: TernaryWeight) -> str | None:
    """Why no groups of columns can hold it exactly, or None."""
    if by_rows(weight) or group_of(weight):
        return None
    least = GROUPS[-1]
    if weight.shape[1] % least:
        return f"its scales lie along {weight.shape[1]} columns, which do not divide into groups of {least}"
    inside = (weight.starts % least).nonzero().flatten()
    return f"its scale changes at column {int(weight.starts[inside[0]])}, inside a group of {least} columns"


def to_groups(weight: TernaryWeight, group: int) -> GroupedWeight:
    """The same values in groups of `group` columns (0: one per row); every region starts with a group."""
    R, n = weight.shape
    format = Grouped(2, group)
    if by_rows(weight):
        scales = weight.scales.expand(R) if len(weight.scales) == 1 else weight.each_scale()
        scales = scales[:, None].expand(R, format.groups(n))
    else:
        scales = weight.each_scale()[::group].expand(R, -1)
    return GroupedWeight.of(format, (weight.unpacked() + 2).to(torch.uint8), scales.contiguous())


def from_groups(weight: GroupedWeight) -> GroupedWeight | TernaryWeight:
    """The weight as ternary where it is: no code 0 (-2), and scales that change along rows alone or along columns alone.

    Regions are told by the stored scales, not by the values, so that rows of zeros keep the scale of their region.
    """
    format, scales = weight.format, weight.scales
    if (format.bits, format.symmetric, format.ordered) != (2, True, True):
        return weight
    along_rows = bool((scales == scales[:, :1]).all())
    if not along_rows and not (scales == scales[:1]).all():
        return weight
    codes = weight.unpacked()
    if not codes.all():
        return weight
    width = 1 if along_rows else format.group
    trits = packing.Trits(codes.to(torch.int8) - 2, *_runs(scales[:, 0] if along_rows else scales[0], width), along_rows)
    return TernaryWeight.of(trits)


def _runs(scales: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(scales, starts) of the runs of equal scales, each scale standing for `width` rows or columns."""
    values, counts = scales.unique_consecutive(return_counts=True)
    return values, ((counts.cumsum(0) - counts) * width).to(torch.int32)
