"""Ternary matrices: packed without loss, or refused."""

import torch
from torch import Tensor

from leanlm.errors import CheckFailed
from leanlm.model.packed import TernaryWeight
from leanlm.ops import packing


def quantize(weight: Tensor, name: str) -> TernaryWeight:
    """The weight [R, n] packed, every value kept. Raises CheckFailed, naming the matrix and counting its distinct values,
    where it is not ternary: where neither bands of rows nor of columns have one magnitude each."""
    found = packing.ternarise(weight)
    if found is None:
        raise CheckFailed(
            f"{name}: not ternary: {distinct(weight):,} distinct values, {distinct(weight.abs()):,} distinct magnitudes, and "
            "no bands of rows or columns with one magnitude each; quantise it with --scheme int4, or train it ternary"
        )
    return TernaryWeight.of(found)


def distinct(weight: Tensor) -> int:
    """Number of distinct values, 0 and -0 being one."""
    weight = weight + 0  # -0 becomes 0
    if weight.element_size() == 2:  # 16-bit floats are counted by their bits, which is many times faster than sorting them
        return int((weight.view(torch.int16).flatten().int() + (1 << 15)).bincount().count_nonzero())
    return len(weight.unique())
