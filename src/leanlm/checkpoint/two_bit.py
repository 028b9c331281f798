"""A ternary matrix as symmetric two-bit groups, which published containers hold, and back: code = trit + 2, zero 2.

R rows (outputs)  n columns (inputs)  G groups of columns
"""

import numpy as np
import torch
from torch import Tensor

from leanlm.model.format import Grouped
from leanlm.model.packed import GroupedWeight, TernaryWeight

ONES = np.uint8(0x55)  # a code of 1 in all four places of a byte
BAND = 256  # rows looked at together
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
    n = weight.shape[1]
    codes = _less_one(weight.codes, n)
    if codes is None:
        return weight
    regions = _runs(scales[:, 0] if along_rows else scales[0], 1 if along_rows else format.group)
    return TernaryWeight(n, codes, *regions, along_rows)


def _less_one(codes: Tensor, n: int) -> Tensor | None:
    """Every one of n two-bit codes to a row less one, still packed; None where one of them is 0."""
    held = codes.numpy()  # whose bands wait for no other threads
    less = np.empty(held.shape, np.uint8)
    for start in range(0, len(held), BAND):
        band, into = held[start : start + BAND], less[start : start + BAND]
        np.subtract(band, ONES, out=into)
        if n % 4:  # what fills a row up is 0, and stays
            into[:, -1] = (band[:, -1] | np.uint8(ONES << 2 * (n % 4) & 255)) - ONES
        # No code was 0 where none became 3: a row whose codes are all above 0 lends nothing from one to the other.
        if ((into & (into >> 1)) & ONES).any():
            return None
    return torch.from_numpy(less)


def _runs(scales: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(scales, starts) of the runs of equal scales, each scale standing for `width` rows or columns."""
    values, counts = scales.unique_consecutive(return_counts=True)
    return values, ((counts.cumsum(0) - counts) * width).to(torch.int32)
