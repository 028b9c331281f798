"""Our own container, for what no published one holds exactly: quantization_config says of every matrix what it is.

Of weight X: X_codes uint8, rows of dense little-endian bits [R, ceil(n bits / 8)], or of five trits a byte [R, ceil(n / 5)]
where ternary; X_scales [R, G] or [S]; X_zeros uint8 [R, G] where asymmetric; X_g_idx int32 [n] where the columns of a group
are not consecutive; X_starts int32 [S], the first row or column of every ternary region.

R rows (outputs)  n columns (inputs)  G groups of columns  S scale regions
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from leanlm.checkpoint.stored import FLOATS, Stored, check_divides, setting
from leanlm.errors import CheckpointError, UsageError
from leanlm.model.format import Grouped, parse
from leanlm.model.packed import GroupedWeight, Packed, TernaryWeight
from leanlm.ops import packing

METHOD = "leanlm"
VERSION = 1
SUFFIXES = ("_codes", "_scales", "_zeros", "_g_idx", "_starts")


def parts(settings: dict, names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Published name of a weight -> names of the tensors that hold it, for every matrix of the manifest."""
    if (version := settings.get("version")) != VERSION:
        raise CheckpointError(f"quantization_config: version {version!r} of leanlm's format is not read; update leanlm")
    return {name: tuple(name + s for s in SUFFIXES if name + s in names) for name in setting(settings, "matrices", dict)}


def read(settings: dict, name: str, tensors: Mapping[str, Tensor]) -> Packed:
    """The weight of this published name. Raises CheckpointError where tensors and manifest do not agree."""
    entry = setting(setting(settings, "matrices", dict), name, dict)
    shape = setting(entry, "shape", list)
    if len(shape) != 2 or not all(type(size) is int and size > 0 for size in shape):
        raise CheckpointError(f"quantization_config: {name!r} of shape {shape}")
    stored, format = Stored(tensors, name), _format(name, entry)
    weight = _ternary(name, entry, stored, *shape) if format == "ternary" else _grouped(name, format, stored, *shape)
    if over := [name + s for s in SUFFIXES if s in stored and s.removeprefix("_") not in weight.tensors]:
        raise CheckpointError(f"tensor {over[0]!r} does not belong to a weight that is {weight.format}")
    return weight


def _format(name: str, entry: dict) -> Grouped | Literal["ternary"]:
    text = setting(entry, "format", str)
    try:
        format = parse(text)
    except UsageError:
        format = "float"
    if format == "float":
        raise CheckpointError(f"quantization_config: {name!r} in the unknown format {text!r}; update leanlm")
    return format if format == "ternary" else replace(format, ordered=setting(entry, "ordered", bool, True))


def _grouped(name: str, format: Grouped, stored: Stored, R: int, n: int) -> GroupedWeight:
    check_divides(name, format, n)
    codes = stored.take("_codes", (torch.uint8,), (R, packing.packed_bytes(n, format.bits)))
    scales = stored.take("_scales", FLOATS, (R, format.groups(n)))
    zeros = None if format.symmetric else stored.take("_zeros", (torch.uint8,), tuple(scales.shape))
    if zeros is not None and (zeros >> format.bits).any():
        raise stored.wrong("_zeros", f"holds zero points beyond {format.bits} bits")
    g_idx = None if format.ordered else stored.take("_g_idx", (torch.int32,), (n,))
    if g_idx is not None and (g_idx.min() < 0 or g_idx.max() >= scales.shape[1]):
        raise stored.wrong("_g_idx", f"names groups outside 0 to {scales.shape[1] - 1}")
    return GroupedWeight(format, n, codes, scales, zeros, g_idx)


def _ternary(name: str, entry: dict, stored: Stored, R: int, n: int) -> TernaryWeight:
    axis, regions = setting(entry, "axis", str), setting(entry, "regions", int)
    if regions < 1:
        raise CheckpointError(f"quantization_config: {name!r} with {regions} regions")
    if axis not in ("rows", "columns"):
        raise CheckpointError(f"quantization_config: {name!r} has scales along {axis!r}; 'rows' and 'columns' are known")
    trits = stored.take("_codes", (torch.uint8,), (R, -(-n // packing.TRITS)))
    scales = stored.take("_scales", FLOATS, (regions,))
    starts = stored.take("_starts", (torch.int32,), (regions,))
    if starts[0] != 0 or (starts[1:] <= starts[:-1]).any() or starts[-1] >= (R if axis == "rows" else n):
        raise stored.wrong("_starts", f"does not cut {R if axis == 'rows' else n} {axis} into {regions} regions")
    return TernaryWeight(n, _codes_of_trits(trits, n), scales, starts, axis == "rows")


def _codes_of_trits(trits: Tensor, n: int) -> Tensor:
    """By the native library, where there is one."""
    try:
        from leanlm.ops import native as implementation
    except ImportError:
        implementation = packing
    return implementation.codes_of_trits(trits, n)


def refusal(name: str, weight: Packed) -> str | None:
    """None: every packed weight can be held."""
    return None


def write(name: str, weight: Packed) -> dict[str, Tensor]:
    """The tensors to store, by name."""
    held = weight.tensors
    if isinstance(weight, TernaryWeight):
        held["codes"] = packing.pack_trits(weight.unpacked())
    codes = held.pop("codes").contiguous()
    # The rest is small, and matrices that were one may share it, which a file cannot.
    return {f"{name}_codes": codes} | {f"{name}_{part}": tensor.clone() for part, tensor in held.items()}


def settings(packed: Mapping[str, Packed], plain: Collection[str]) -> dict:
    """quantization_config: the manifest. Matrices that it does not name are float."""
    return {"quant_method": METHOD, "version": VERSION, "matrices": {name: _entry(weight) for name, weight in packed.items()}}


def _entry(weight: Packed) -> dict[str, Any]:
    format, shape = weight.format, list(weight.shape)
    if isinstance(weight, TernaryWeight):
        return {"format": "ternary", "shape": shape, "axis": format.axis, "regions": format.regions}
    return {"format": str(format), "shape": shape, **({} if format.ordered else {"ordered": False})}
