"""The ternary weight format of training: which matrices take it, going on from ternary weights, packing what was trained."""

import torch
from torch import Tensor

from leanlm.errors import CheckFailed, UsageError
from leanlm.model.format import NEVER
from leanlm.model.language_model import LanguageModel
from leanlm.model.linear import Linear
from leanlm.model.packed import TernaryWeight
from leanlm.ops import absmean, packing
from leanlm.ops.absmean import Bands

INTO_STREAM = ("out_proj", "down_proj")  # model-parallel training cuts their inputs, and all others' outputs


def linears(module: LanguageModel) -> dict[str, Linear]:
    """The matrices that are ternary where a model is, by name: the linear layers inside its layers, but for step sizes."""
    inside = {name: matrix for name, matrix in module.matrices().items() if name.startswith("layers.")}
    return {name: matrix for name, matrix in inside.items() if not name.endswith(NEVER)}


def latent(module: LanguageModel) -> dict[str, Linear]:
    """Those of `linears` whose weight holds latents."""
    return {name: linear for name, linear in linears(module).items() if linear.bands is not None}


def mark(module: LanguageModel, shards: int = 1) -> None:
    """In place: the weights of `linears` are latents from now on, with `shards` scales each; fresh or meta weights too.

    Raises UsageError, with nothing changed, where a matrix does not divide into as many.
    """
    chosen = {}
    for name, linear in linears(module).items():
        along_rows = name.split(".")[-2] not in INTO_STREAM
        extent = linear.weight.shape[0 if along_rows else 1]
        if shards < 1 or extent % shards:
            sides = "outputs" if along_rows else "inputs"
            raise UsageError(f"{name}: {extent} {sides} do not divide into {shards} shards; choose model.shards so that all do")
        chosen[name] = Bands((extent // shards,) * shards, along_rows)
    for name, linear in linears(module).items():
        linear.bands = chosen[name]


@torch.no_grad()
def adopt(module: LanguageModel) -> int:
    """In place, after `mark`: loaded weights become float32 latents. How many of them were ternary.

    Ternary values, packed or stored as floats, come back to the bit from their latents; other values are latents themselves.
    Raises, with nothing changed, UsageError for scales in other regions than those marked, and CheckFailed for a scale that
    latents cannot give.
    """
    found = {name: _adopted(name, linear) for name, linear in latent(module).items()}
    _check_regions({name: linear for name, linear in latent(module).items() if found[name][1]})
    count = 0
    for name, linear in latent(module).items():
        weight, ternary = found[name]
        linear.hold(weight)
        count += ternary
    return count


def _check_regions(ternary: dict[str, Linear]) -> None:
    """Two regions of a matrix may have equal scales by chance, but not those of all matrices. Raises UsageError."""
    marked = max((len(linear.bands.sizes) for linear in ternary.values()), default=1)
    if marked > 1:
        stored = max(len(packing.ternarise(linear.dequantize().detach().float()).scales) for linear in ternary.values())
        if stored < marked:
            raise UsageError(f"the model has {stored} scales a matrix, not {marked}; set model.shards to {stored}")


def _adopted(name: str, linear: Linear) -> tuple[Tensor, bool]:
    """The latents of a loaded weight, and whether it is ternary."""
    values = linear.dequantize().detach().float()
    made = absmean.latents(values, linear.bands)
    if made is not None:
        if not torch.equal(absmean.ternarised(made, linear.bands), values):
            largest = values.abs().max().item()
            raise CheckFailed(f"{name}: latent weights cannot give the scale {largest:.6g}; only 16-bit ones from 2e-5 on")
        return made, True
    if (other := packing.ternarise(values)) is not None:
        side = "rows" if other.along_rows else "columns"
        raise UsageError(
            f"{name}: is ternary with {len(other.scales)} scales along its {side}, not {len(linear.bands.sizes)} along its "
            f"{'rows' if linear.bands.along_rows else 'columns'}; set model.shards to the number it was trained with"
        )
    return values.clone(), False


@torch.no_grad()
def packed(module: LanguageModel) -> LanguageModel:
    """The same function in packed weights: latents rounded as in the forward pass, all other weights shared. The module itself
    where it has no latents.

    Weights that are sharded over processes are gathered, so all of these must call it.
    """
    rounded = latent(module)
    if not rounded:
        return module
    with torch.device("meta"):
        copy = LanguageModel(module.config)
    rest = {name: _whole(weight.detach()) for name, weight in module.named_parameters() if name not in rounded}
    copy.load_state_dict(rest, strict=False, assign=True)
    matrices = copy.matrices()
    for name, linear in rounded.items():
        weight = TernaryWeight.of(absmean.ternarise(_whole(linear.weight.detach()), linear.bands))
        weight.dtype = linear.weight.dtype
        matrices[name].hold(weight)
    return copy.eval()


def _whole(weight: Tensor) -> Tensor:
    """A weight that is sharded over processes, put together; others as they are."""
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight
