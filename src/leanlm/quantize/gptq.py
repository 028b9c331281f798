"""GPTQ: rounding column after column, each time correcting the columns to come (Frantar et al. 2023, arXiv 2210.17323).

R rows (outputs)  n columns (inputs)  G groups of columns
"""

from typing import NamedTuple

import torch
from torch import Tensor

from leanlm.errors import CheckFailed, LeanLMError, UsageError
from leanlm.model.format import Grouped
from leanlm.model.packed import GroupedWeight
from leanlm.quantize import rtn

DAMPING = 0.01
BLOCK = 128  # columns whose corrections reach the columns behind them together, as one product
RETRY = 0.001  # the damping to try where none was not enough
PIVOT = 16  # units of rounding below which what is left of an input is noise


class Quantised(NamedTuple):
    """`objective` is tr((W - Q) H (W - Q)^T); `damping` what was needed, which may be more than was asked for."""

    weight: GroupedWeight
    objective: float
    damping: float


def quantize(
    weight: Tensor,
    hessian: Tensor,
    format: Grouped,
    *,
    act_order: bool = False,
    damping: float = DAMPING,
    block: int = BLOCK,
    name: str = "weight",
) -> Quantised:
    """weight [R, n] in `format`, close to it on inputs whose second moments are `hessian` [n, n] (any multiple of x x^T).

    Works in float32, in float64 for such a weight, and changes neither argument. Inputs that are always zero get zero
    weights. Without `act_order`, a group's grid is that of the corrected weights when its first column is reached; with
    it, columns go by falling diagonal, and the grids are those of the original weight, so that groups stay consecutive
    columns. Damping is raised tenfold while the Hessian is singular. Raises, beginning with `name`, UsageError where groups
    do not come out even, CheckpointError for weights and CheckFailed for a Hessian with NaN or infinite values, LeanLMError
    for a Hessian that no damping below 1 makes positive.
    """
    rtn.check(weight, format, name)
    if not 0 <= damping < 1:
        raise UsageError(f"a damping of {damping}: give at least 0 and less than 1")
    original = rtn.widened(weight)
    hessian = hessian.to(original.dtype)
    if not hessian.isfinite().all():
        raise CheckFailed(f"{name}: its inputs are NaN or infinite on the calibration text; does the model run in float32?")
    diagonal = hessian.diagonal()
    columns = original.T.clone(memory_format=torch.contiguous_format)
    columns[diagonal == 0] = 0
    order = diagonal.argsort(descending=True, stable=True) if act_order else torch.arange(len(hessian), device=hessian.device)
    upper, damping = _inverse_factor(hessian, order, damping, name)
    packed = _eliminate(columns, upper, format, order.tolist(), act_order, block)
    packed.dtype = weight.dtype
    return Quantised(packed, objective(original - packed.dequantize(original.dtype), hessian), damping)


def objective(error: Tensor, hessian: Tensor) -> float:
    """tr(E H E^T) of an error [R, n]: with H = 2 / N sum x x^T, twice the mean squared error of the outputs."""
    return ((error @ hessian) * error).sum(dtype=torch.float64).item()


def _inverse_factor(hessian: Tensor, order: Tensor, damping: float, name: str) -> tuple[Tensor, float]:
    """U, upper, with U^T U the inverse of the damped Hessian in this order of columns, and the damping it took.

    With the columns in reverse, the lower Cholesky factor of H is, reversed again, an upper V with V V^T = H: U = V^-1.
    """
    reverse, least = order.flip(0), PIVOT * torch.finfo(hessian.dtype).eps
    while True:
        damped = hessian[reverse[:, None], reverse]
        diagonal = damped.diagonal()
        diagonal[diagonal == 0] = 1
        diagonal += damping * diagonal.mean()
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed and (lower.diagonal() ** 2 > least * diagonal).all():
            identity = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
            return torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True), damping
        if 10 * damping >= 1:
            raise LeanLMError(
                f"{name}: the second moments of its {len(hessian)} inputs are not positive even with a damping of {damping:g}; "
                "give more, and more varied, calibration text"
            )
        damping = max(10 * damping, RETRY)


def _eliminate(columns: Tensor, upper: Tensor, format: Grouped, order: list[int], static: bool, block: int) -> GroupedWeight:
    """The columns [n, R], which are used up, rounded in this order. Groups are refitted unless `static`."""
    n = len(columns)
    grids = Grids(columns, format)
    refit = not static and grids.width < n
    if refit:  # a group begins where its block does, or inside it: its columns have then had every correction
        block = grids.width * max(1, block // grids.width)
    codes = torch.empty_like(columns, dtype=torch.uint8)
    columns = columns[order]
    for begin in range(0, n, block):
        end = min(begin + block, n)
        errors = torch.empty_like(columns[begin:end])
        for i in range(begin, end):
            if refit and i % grids.width == 0:
                grids.refit(i // grids.width, columns[i : i + grids.width])
            codes[order[i]], nearest = grids.round(columns[i], order[i] // grids.width)
            errors[i - begin] = (columns[i] - nearest) / upper[i, i]
            columns[i + 1 : end].addr_(upper[i, i + 1 : end], errors[i - begin], alpha=-1)
        columns[end:].addmm_(upper[begin:end, end:].T, errors, alpha=-1)
    return GroupedWeight.of(format, codes.T.contiguous(), *grids.stored())


class Grids:
    """The grids of every group, laid out for columns: one row of [G, R] is that of a group of `width` columns."""

    def __init__(self, columns: Tensor, format: Grouped):
        """Fitted to the columns [n, R]."""
        self.format, self.one = format, Grouped(format.bits, symmetric=format.symmetric)
        self.width = len(columns) // format.groups(len(columns))
        scales, zeros = rtn.grid(columns.T, format)
        self.scales = scales.T.contiguous()
        self.zeros = torch.full_like(self.scales, 1 << (format.bits - 1)) if zeros is None else zeros.T.to(scales.dtype)

    def refit(self, group: int, columns: Tensor) -> None:
        """To the columns [width, R] as they are now."""
        scales, zeros = rtn.grid(columns.T, self.one, self.scales.dtype)
        self.scales[group] = scales[:, 0]
        if zeros is not None:
            self.zeros[group] = zeros[:, 0]

    def round(self, column: Tensor, group: int) -> tuple[Tensor, Tensor]:
        """Codes and values of the points nearest to a column [R]."""
        scale, zero = self.scales[group].to(column), self.zeros[group].to(column)
        codes = ((column / scale).round() + zero).clamp(0, (1 << self.format.bits) - 1)
        return codes, scale * (codes - zero)

    def stored(self) -> tuple[Tensor, Tensor | None]:
        """Scales [R, G], and zeros uint8 [R, G] where asymmetric."""
        zeros = None if self.format.symmetric else self.zeros.T.to(torch.uint8).contiguous()
        return self.scales.T.contiguous(), zeros
