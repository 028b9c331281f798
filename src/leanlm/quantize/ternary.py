"""Ternary matrices: packed without loss, or refused; rounded without training where only their shape or cost matters."""

import torch
from torch import Tensor

from leanlm.errors import CheckFailed
from leanlm.model.format import NEVER
from leanlm.model.language_model import LanguageModel
from leanlm.model.packed import TernaryWeight
from leanlm.ops import absmean, packing
from leanlm.ops.absmean import Bands


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


def round_matrices(module: LanguageModel) -> None:
    """In place: the matrices inside the layers rounded to -1, 0 and 1 times their mean magnitude, without training: few models
    are of use after it."""
    for name, matrix in module.matrices().items():
        if name.startswith("layers") and not name.endswith(NEVER):
            weight = matrix.weight.detach()
            matrix.hold(TernaryWeight.of(absmean.ternarise(weight.float(), Bands((len(weight),), True))))
            matrix.weight.dtype = weight.dtype


def distinct(weight: Tensor) -> int:
    """Number of distinct values, 0 and -0 being one."""
    weight = weight + 0  # -0 becomes 0
    if weight.element_size() == 2:  # 16-bit floats are counted by their bits, which is many times faster than sorting them
        return int((weight.view(torch.int16).flatten().int() + (1 << 15)).bincount().count_nonzero())
    return len(weight.unique())
