"""Matrices into the formats of a plan without looking at text: ternary packing, round-to-nearest, or back to float."""

from collections.abc import Callable

import torch
from torch import Tensor

from leanlm.errors import UsageError
from leanlm.model.format import Grouped, Ternary
from leanlm.model.language_model import LanguageModel
from leanlm.model.linear import Matrix
from leanlm.model.packed import Packed
from leanlm.quantize import rtn, ternary
from leanlm.quantize.plan import Choice, Plan, make


def convert(module: LanguageModel, plan: Plan, progress: Callable[[str], None] = lambda name: None) -> dict[str, float]:
    """In place: every matrix that `plan` names takes its format; `progress` is told the name before each.

    Returns the relative error of each weight, |W - Q|^2 / |W|^2. Nothing is changed where one of them cannot be converted.
    Raises CheckFailed for a matrix that should be ternary and is not, CheckpointError for NaN or infinite weights, UsageError
    for integers that are to become other integers.
    """
    check_once(module, plan)
    matrices = module.matrices()
    converted: dict[str, Tensor | Packed] = {}
    errors: dict[str, float] = {}
    for name, chosen in plan.items():
        progress(name)
        converted[name] = held_as(matrices[name], chosen, name)
        errors[name] = weight_error(matrices[name].weight, converted[name])
    for name, weight in converted.items():
        matrices[name].hold(weight)
    return errors


def check_once(module: LanguageModel, plan: Plan) -> None:
    """Raises UsageError where integers would be made of other integers, which loses twice."""
    matrices = module.matrices()
    for name, chosen in plan.items():
        held = matrices[name].format
        if isinstance(chosen, Grouped) and held not in (None, chosen) and not isinstance(held, Ternary):
            raise UsageError(f"{name}: is {held} already; quantise the float model it was made from")


def to_format(module: LanguageModel, scheme: str) -> None:
    """In place: every matrix inside the layers in the format `scheme` (see `plan.make`), embedding and head left alone."""
    convert(module, make({name: tuple(matrix.weight.shape) for name, matrix in module.matrices().items()}, scheme))


def held_as(matrix: Matrix, chosen: Choice, name: str) -> Tensor | Packed:
    """The matrix's weight in another format; what is in it already is left as it is."""
    weight, packed = matrix.weight, isinstance(matrix.weight, Packed)
    if chosen == "float":
        return weight.dequantize() if packed else weight.detach()
    if packed and (weight.format.kind == chosen if chosen == "ternary" else weight.format == chosen):
        return weight
    values = weight.dequantize(weight.scales.dtype if chosen == "ternary" else None) if packed else weight.detach()
    made = rtn.quantize(values, chosen, name) if isinstance(chosen, Grouped) else ternary.quantize(values, name)
    made.dtype = weight.dtype
    return made


def weight_error(before: Tensor | Packed, after: Tensor | Packed) -> float:
    """|before - after|^2 / |before|^2, 0 for two matrices of zeros."""
    if before is after:
        return 0.0
    old, new = (w.dequantize(torch.float32) if isinstance(w, Packed) else w.detach().float() for w in (before, after))
    total = old.square().sum(dtype=torch.float64)
    return float((old - new).square().sum(dtype=torch.float64) / total) if total else 0.0
