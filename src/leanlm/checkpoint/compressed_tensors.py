"""The container of compressed-tensors, pack-quantized: the one that vLLM and transformers read for 2 to 8 bits.

Of module X: weight_packed int32 [R, ceil(n bits / 32)], the codes of a row from the low bits on, running on over the ends of
words; weight_shape int64 [2]; weight_scale [R, G]; where asymmetric weight_zero_point int32 [ceil(R bits / 32), G], packed
along the outputs; weight_g_idx int32 [n], which versions before 0.20 wrote for act-order.

R rows (outputs)  n columns (inputs)  G groups of columns
"""

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from leanlm.checkpoint import two_bit
from leanlm.checkpoint.patterns import module_of, patterns
from leanlm.checkpoint.stored import FLOATS, Stored, from_words, grouped, setting, to_words, words
from leanlm.errors import CheckpointError, UsageError
from leanlm.model.format import Grouped
from leanlm.model.packed import GroupedWeight, Packed, TernaryWeight
from leanlm.ops import packing

METHOD = "compressed-tensors"
LAYOUT = "pack-quantized"
SUFFIXES = ("weight_packed", "weight_shape", "weight_scale", "weight_zero_point", "weight_g_idx")


def parts(settings: dict, names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Published name of a weight -> names of the tensors that hold it. Raises CheckpointError for another layout."""
    for group in _groups(settings):
        if (layout := setting(group, "format", str, setting(settings, "format", str, ""))) != LAYOUT:
            raise CheckpointError(f"quantization_config: format {layout!r} is not read; {LAYOUT!r} is")
        if group.get("input_activations") or group.get("output_activations"):
            raise CheckpointError("quantization_config: activations are quantised too; weights alone are supported")
    held = dict.fromkeys(name.rpartition(".")[0] for name in names if name.endswith((".weight_packed", ".weight_shape")))
    return {f"{stem}.weight": tuple(f"{stem}.{s}" for s in SUFFIXES if f"{stem}.{s}" in names) for stem in held}


def read(settings: dict, name: str, tensors: Mapping[str, Tensor]) -> Packed:
    """The weight of this published name; a two-bit one that is ternary comes as such. Raises CheckpointError."""
    module = module_of(name)
    args = _scheme(settings, module)
    bits, symmetric = setting(args, "num_bits", int), setting(args, "symmetric", bool, True)
    group = _group_size(args)
    stored = Stored(tensors, f"{module}.")
    R, n = stored.take("weight_shape", (torch.int64, torch.int32), (2,)).tolist()
    if min(R, n) < 1:
        raise stored.wrong("weight_shape", f"says {[R, n]}")
    format = grouped(name, n, bits=bits, group=group, symmetric=symmetric)
    codes = from_words(stored.take("weight_packed", (torch.int32,), (R, words(n, bits))), bits, n)
    scales = stored.take("weight_scale", FLOATS, (R, format.groups(n)))
    zeros = None if symmetric else _zeros(stored, format, *scales.shape)
    g_idx = stored.groups_of_columns("weight_g_idx", format, n)
    if g_idx is not None:
        format = Grouped(bits, group, symmetric, ordered=False)
    return two_bit.from_groups(GroupedWeight(format, n, codes, scales, zeros, g_idx))


def _groups(settings: dict) -> list[dict]:
    groups = list(setting(settings, "config_groups", dict).values())
    if not groups or not all(isinstance(group, dict) for group in groups):
        raise CheckpointError("quantization_config: 'config_groups' names no scheme of weights")
    return groups


def _scheme(settings: dict, module: str) -> dict:
    """The arguments for a module's weight: of the group that names it, or else of the one that names its class."""
    classes = []
    for group in _groups(settings):
        targets = setting(group, "targets", list)
        if any(_names(target, module) for target in targets):
            return setting(group, "weights", dict)
        if any(isinstance(target, str) and target[:1].isupper() for target in targets):
            classes.append(group)
    if len(classes) != 1:
        found = "no group" if not classes else "more than one group"
        raise CheckpointError(f"quantization_config: {found} of config_groups is for {module!r}, which is stored packed")
    return setting(classes[0], "weights", dict)


def _names(target: object, module: str) -> bool:
    try:
        return target == module or (str(target).startswith("re:") and bool(re.match(str(target)[3:], module)))
    except re.error as error:
        raise CheckpointError(f"quantization_config: target {target!r} is no regular expression ({error})") from None


def _group_size(args: dict) -> int:
    """Columns in a group; 0 for one group per output."""
    size = setting(args, "group_size", int, -1)
    strategy = setting(args, "strategy", str, "group" if size > 0 else "channel")
    if setting(args, "type", str, "int") != "int" or strategy not in ("group", "channel"):
        raise CheckpointError(f"quantization_config: {args.get('type')} weights with one scale per {strategy} are not read")
    if strategy == "group" and size < 1:
        raise CheckpointError(f"quantization_config: strategy 'group' with a group_size of {size}")
    return size if strategy == "group" else 0


def _zeros(stored: Stored, format: Grouped, R: int, G: int) -> Tensor:
    """Zero points uint8 [R, G]. Early versions stored them unpacked, as signed numbers."""
    if "weight_zero_point" in stored and stored.tensors[f"{stored.stem}weight_zero_point"].dtype == torch.int8:
        signed = stored.take("weight_zero_point", (torch.int8,), (R, G))
        return (signed.int() + (1 << (format.bits - 1))).to(torch.uint8)
    packed = stored.take("weight_zero_point", (torch.int32,), (words(R, format.bits), G))
    return packing.unpack(from_words(packed.T, format.bits, R), format.bits, R).T.contiguous()


def refusal(name: str, weight: Packed) -> str | None:
    """Why compressed-tensors cannot hold the weight exactly, or None."""
    if not name.endswith(".weight"):
        return "it is not the weight of a module"
    if isinstance(weight, TernaryWeight):
        return two_bit.refusal(weight)
    if not weight.format.ordered:
        return "its columns are grouped in act-order, which compressed-tensors gave up in version 0.20"
    return None


def write(name: str, weight: Packed) -> dict[str, Tensor]:
    """The tensors to store, by name. Raises UsageError where there is a refusal."""
    if reason := refusal(name, weight):
        raise UsageError(f"{name!r} cannot be stored as compressed-tensors: {reason}")
    format, stem = _format(weight), module_of(name)
    if isinstance(weight, TernaryWeight):
        weight = two_bit.to_groups(weight, format.group)
    tensors = {
        f"{stem}.weight_packed": to_words(weight.codes),
        f"{stem}.weight_shape": torch.tensor(weight.shape),
        f"{stem}.weight_scale": weight.scales.contiguous(),
    }
    if weight.zeros is not None:
        tensors[f"{stem}.weight_zero_point"] = to_words(packing.pack(weight.zeros.T.contiguous(), format.bits)).T.contiguous()
    return tensors


def _format(weight: Packed) -> Grouped:
    """What it is stored in: ternary with one scale per row, or in the coarsest groups that fit its bands of columns."""
    if isinstance(weight, TernaryWeight):
        return Grouped(2, 0 if two_bit.by_rows(weight) else two_bit.group_of(weight))
    return weight.format


def settings(packed: Mapping[str, Packed], plain: Collection[str]) -> dict:
    """quantization_config: a group for every format, which names its modules; `ignore` names the matrices left float."""
    formats = {module_of(name): _format(weight) for name, weight in packed.items()}
    floats = [module_of(name) for name in plain]
    groups = {}
    for format in dict.fromkeys(formats.values()):
        wanted = [module for module in formats if formats[module] == format]
        targets = _targets(wanted, [*floats, *formats.keys() - wanted])
        activations = {"input_activations": None, "output_activations": None}
        groups[f"group_{len(groups)}"] = {"targets": targets, "weights": _arguments(format), **activations, "format": LAYOUT}
    return {
        "quant_method": METHOD,
        "format": LAYOUT,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": _targets(floats, formats),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _targets(wanted: Collection[str], others: Collection[str]) -> list[str]:
    return [f"re:{pattern}" for pattern in patterns(wanted, others)]


def _arguments(format: Grouped) -> dict:
    return {
        "num_bits": format.bits,
        "type": "int",
        "symmetric": format.symmetric,
        "strategy": "group" if format.group else "channel",
        "group_size": format.group or None,
        "dynamic": False,
    }
