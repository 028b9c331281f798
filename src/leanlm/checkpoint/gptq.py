"""GPTQ's container, as AutoGPTQ and GPTQModel define it: v1 and v2 are read, v1 is written.

Of module X: qweight int32 [n bits / 32, R], the codes of a column of words along the inputs; qzeros int32 [G, R bits / 32],
zero points along the outputs, one less than they are in v1; scales [G, R]; g_idx int32 [n], the group of every input.
Words are filled from their low bits on; three-bit codes run on over their ends.

R rows (outputs)  n columns (inputs)  G groups of columns
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from leanlm.checkpoint import two_bit
from leanlm.checkpoint.patterns import module_of, patterns
from leanlm.checkpoint.stored import FLOATS, Stored, consecutive, from_words, grouped, setting, to_words, words
from leanlm.errors import CheckpointError, UsageError
from leanlm.model.format import Grouped
from leanlm.model.packed import GroupedWeight, Packed, TernaryWeight
from leanlm.ops import packing

METHOD = "gptq"
BITS = (2, 3, 4, 8)
SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")
WORD = 32
EMBEDDING = re.compile(r"(?:.*\.)?(?:emb\w*|wte)")


def parts(settings: dict, names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Published name of a weight -> names of the tensors that hold it. Raises CheckpointError for another GPTQ layout."""
    _check(settings)
    held = dict.fromkeys(name.rpartition(".")[0] for name in names if name.endswith((".qweight", ".qzeros")))
    return {f"{stem}.weight": tuple(f"{stem}.{s}" for s in SUFFIXES if f"{stem}.{s}" in names) for stem in held}


def _check(settings: dict) -> None:
    layout = setting(settings, "checkpoint_format", str, "gptq")
    if layout not in ("gptq", "gptq_v2"):
        raise CheckpointError(f"quantization_config: checkpoint_format {layout!r} is not read; 'gptq' and 'gptq_v2' are")
    if (dtype := setting(settings, "pack_dtype", str, "int32")) != "int32":
        raise CheckpointError(f"quantization_config: pack_dtype {dtype!r} is not read; 'int32' is")


def read(settings: dict, name: str, tensors: Mapping[str, Tensor]) -> Packed:
    """The weight of this published name; a two-bit one that is ternary comes as such. Raises CheckpointError."""
    _check(settings)
    module = module_of(name)
    settings = {**settings, **_overrides(settings, module)}
    bits, symmetric = setting(settings, "bits", int), setting(settings, "sym", bool, True)
    if bits not in BITS:
        raise CheckpointError(f"quantization_config: {bits} bits for {name!r}; GPTQ has {', '.join(map(str, BITS))}")
    stored = Stored(tensors, f"{module}.")
    qweight = stored.take("qweight", (torch.int32,), (None, None))
    n, rest = divmod(len(qweight) * WORD, bits)
    if rest:
        raise stored.wrong("qweight", f"has {len(qweight)} rows, which {bits}-bit codes do not fill")
    format = grouped(name, n, bits=bits, group=setting(settings, "group_size", int), symmetric=symmetric)
    g_idx = stored.groups_of_columns("g_idx", format, n)
    if g_idx is not None:
        format = Grouped(bits, format.group, symmetric, ordered=False)
    codes = from_words(qweight.T, bits, n)
    scales = stored.take("scales", FLOATS, (format.groups(n), len(codes))).T.contiguous()
    zeros = _zeros(stored, format, *scales.shape, v1=settings.get("checkpoint_format") != "gptq_v2")
    return two_bit.from_groups(GroupedWeight(format, n, codes, scales, zeros, g_idx))


def _overrides(settings: dict, module: str) -> dict:
    """What `dynamic` says of a module: its first pattern that matches; "-:" marks patterns of modules left float."""
    for pattern, changes in setting(settings, "dynamic", dict, {}).items():
        try:
            if not pattern.startswith("-:") and re.match(pattern.removeprefix("+:"), module):
                return changes if isinstance(changes, dict) else {}
        except re.error as error:
            raise CheckpointError(f"quantization_config: dynamic {pattern!r} is no regular expression ({error})") from None
    return {}


def _zeros(stored: Stored, format: Grouped, R: int, G: int, v1: bool) -> Tensor | None:
    """Zero points uint8 [R, G]; None where symmetric, which is checked."""
    packed = stored.take("qzeros", (torch.int32,), (G, words(R, format.bits)))
    zeros = packing.unpack(from_words(packed, format.bits, R), format.bits, R).T
    if v1:
        zeros = (zeros + 1) & ((1 << format.bits) - 1)
    if not format.symmetric:
        return zeros.contiguous()
    if (zeros != 1 << (format.bits - 1)).any():
        raise stored.wrong(
            "qzeros", f"holds zero points other than {1 << (format.bits - 1)}, though quantization_config says sym"
        )
    return None


def refusal(name: str, weight: Packed) -> str | None:
    """Why GPTQ v1 cannot hold the weight exactly, or None."""
    R, n = weight.shape
    if not name.endswith(".weight") or EMBEDDING.fullmatch(module_of(name)):
        return "GPTQ holds linear layers, not embeddings"
    if weight.scales.dtype == torch.float32:
        return "its scales are float32, and GPTQ's are 16 bits wide"
    if R % WORD or n % WORD:
        return f"GPTQ packs multiples of {WORD} outputs and inputs, and it is {R} x {n}"
    if isinstance(weight, TernaryWeight):
        return two_bit.refusal(weight)
    if weight.format.bits not in BITS:
        return f"GPTQ has no {weight.format.bits}-bit codes"
    if weight.zeros is not None and not weight.zeros.is_meta and not weight.zeros.all():
        # Stored minus one it would wrap around, and readers that add the one back to whole words carry it over.
        return "it has zero points of 0, which GPTQ v1 cannot store"
    return None


def write(name: str, weight: Packed) -> dict[str, Tensor]:
    """The tensors to store, by name. Raises UsageError where there is a refusal."""
    if reason := refusal(name, weight):
        raise UsageError(f"{name!r} cannot be stored as GPTQ: {reason}")
    format, n, stem = _format(weight), weight.shape[1], module_of(name)
    if isinstance(weight, TernaryWeight):
        weight = two_bit.to_groups(weight, format.group)
    zeros = torch.full_like(weight.scales, weight.zero, dtype=torch.uint8) if weight.zeros is None else weight.zeros
    return {
        f"{stem}.qweight": to_words(weight.codes).T.contiguous(),
        f"{stem}.qzeros": to_words(packing.pack((zeros - 1).T.contiguous(), format.bits)),
        f"{stem}.scales": weight.scales.T.contiguous(),
        f"{stem}.g_idx": consecutive(format, n) if weight.g_idx is None else weight.g_idx.clone(),  # matrices may share it
    }


def _format(weight: Packed) -> Grouped:
    """What it is stored in: ternary as groups of 128 where they come out even, so that one format serves a whole model."""
    if isinstance(weight, TernaryWeight):
        return Grouped(2, two_bit.group_of(weight) or 0)
    return weight.format


def settings(packed: Mapping[str, Packed], plain: Collection[str]) -> dict:
    """quantization_config: the most frequent format; `dynamic` names the matrices of others, and those left float."""
    formats = {module_of(name): _format(weight) for name, weight in packed.items()}
    floats = [module_of(name) for name in plain if not EMBEDDING.fullmatch(module_of(name)) and name != "lm_head.weight"]
    (most, _), *others = Counter(formats.values()).most_common()
    dynamic: dict[str, dict] = {}
    for format, _ in others:
        wanted = [module for module in formats if formats[module] == format]
        for pattern in patterns(wanted, [*floats, *formats.keys() - wanted]):
            dynamic[f"+:{pattern}"] = _numbers(format)
    dynamic |= {f"-:{pattern}": {} for pattern in patterns(floats, formats)}
    return {
        "quant_method": METHOD,
        "checkpoint_format": "gptq",
        **_numbers(most),
        "lm_head": "lm_head" in formats,
        "pack_dtype": "int32",
        **({"dynamic": dynamic} if dynamic else {}),
        "meta": {"quantizer": ["leanlm"]},
    }


def _numbers(format: Grouped) -> dict:
    return {
        "bits": format.bits,
        "group_size": format.group or -1,
        "sym": format.symmetric,
        "desc_act": not format.ordered,
    }
