"""Models whose matrices are packed, in every format, with values about as large as those of a trained model."""

import torch

from leanlm.model.format import Grouped, Ternary
from leanlm.model.language_model import LanguageModel
from leanlm.model.packed import Packed
from packed_matrices import grouped, ternary

FORMATS = {
    **{f"int{bits}": Grouped(bits) for bits in (8, 6, 4, 3, 2)},
    **{f"int4-g{group}": Grouped(4, group) for group in (8, 32, 64, 128)},
    "int3-g32-asym": Grouped(3, 32, symmetric=False),
    "int4-asym": Grouped(4, symmetric=False),
    "int8-g32-asym": Grouped(8, 32, symmetric=False),
    "int4-g32 in any order": Grouped(4, 32, ordered=False),
    "ternary": Ternary("rows", 1),
    "ternary in bands of rows": Ternary("rows", 3),
    "ternary in bands of columns": Ternary("columns", 3),
}


def packed(format: Grouped | Ternary, R: int, n: int, seed: int = 0) -> Packed:
    """A random matrix in the format, with values about as large as 1 / sqrt(n)."""
    if isinstance(format, Ternary):
        along_rows = format.axis == "rows"
        extent = R if along_rows else n
        starts = sorted({extent * region // format.regions for region in range(format.regions)})
        made = ternary(R, n, tuple(starts), along_rows, seed, torch.float32)
        made.scales = made.scales * 30 * n**-0.5
    else:
        made = grouped(R, n, format.bits, format.group, format.symmetric, format.ordered, seed)
        made.scales = made.scales.float() * n**-0.5 * 4 / 2**format.bits
    made.dtype = torch.float32
    return made


def pack(module: LanguageModel, format: Grouped | Ternary, seed: int = 0) -> int:
    """In place: a random matrix in the format for every one that divides into its groups; how many there are."""
    count = 0
    for matrix in module.matrices().values():
        R, n = matrix.weight.shape
        if not getattr(format, "group", 0) or n % format.group == 0:
            matrix.hold(packed(format, R, n, seed + count))
            count += 1
    return count
