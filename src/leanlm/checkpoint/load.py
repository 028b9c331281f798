"""From a checkpoint folder to a module: translated config, renamed tensors, every one accounted for."""

import difflib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from leanlm import families
from leanlm.checkpoint.folder import CONFIG, read_config, translating
from leanlm.checkpoint.published import Published
from leanlm.checkpoint.weights import Weights
from leanlm.errors import CheckpointError, UsageError
from leanlm.families import Family, Rule, names
from leanlm.model.config import ModelConfig
from leanlm.model.language_model import LanguageModel
from leanlm.model.packed import Packed

SENSITIVE = {"A_log", "D", "dt_bias"}  # exponents and skips of the scans, which lose more than they save when narrowed
SMALL = 1 << 20  # tensors up to this many numbers are looked through for NaN even where they are only mapped
MAPPED_BYTES = 256 << 20  # while converting, how much of the source may stay mapped


@dataclass(frozen=True)
class Loaded:
    """A loaded checkpoint: `raw` is its config.json as found, `config` what it means."""

    module: LanguageModel
    family: Family
    raw: dict
    config: ModelConfig


def load_module(folder: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Loaded:
    """The model in `folder`, every parameter set from its files.

    `dtype` None keeps each tensor as stored (and memory-mapped, on the CPU); otherwise all are cast, but those in
    `SENSITIVE` never to less than they have. Memory peaks at the weights plus a few hundred MB. Raises NotFound for a
    missing folder and CheckpointError for one that cannot be understood.
    """
    folder = Path(folder)
    if dtype is not None and not dtype.is_floating_point:
        raise UsageError(f"dtype {dtype} is not a floating-point type; choose float32, bfloat16 or float16")
    raw = read_config(folder)
    with translating(folder):
        family = families.find(raw)
    weights = Weights(folder)
    theirs = Published(weights, family.prefixes, raw)
    with translating(folder):
        config = family.to_config(raw, frozenset(theirs))
    with torch.device("meta"):
        module = LanguageModel(config)
    rules = family.rules(config)
    check_tensors(weights.main, rules, theirs, module)
    _warn_of_untied_head(folder, rules, theirs)
    ours = _read(rules, theirs, dtype, torch.device(device))
    module.load_state_dict({name: weight for name, weight in ours.items() if isinstance(weight, Tensor)}, False, assign=True)
    _hold(module, {name: weight for name, weight in ours.items() if isinstance(weight, Packed)}, weights.main)
    return Loaded(module.eval(), family, raw, config)


def check_tensors(file: Path, rules: Sequence[Rule], theirs: Mapping[str, Tensor | Packed], module: LanguageModel) -> None:
    """Raises CheckpointError unless the file has exactly the tensors of the format, in the shapes the config asks for."""
    expected = {rule.theirs for rule in rules}
    missing = [rule.theirs for rule in rules if not rule.optional and rule.theirs not in theirs]
    unread = [name for name in theirs if name not in expected]
    if missing or unread:
        problems = [f"{_listed(missing)} missing" if missing else "", _unread(unread, missing or expected) if unread else ""]
        raise CheckpointError(f"{file}: {'; '.join(filter(None, problems))} (does {CONFIG} belong to these weights?)")
    ours = dict(module.named_parameters())
    wrong = []
    for rule in rules:
        if rule.theirs in theirs:
            first = ours[rule.ours[0]].shape
            shape = (sum(rule.rows) if rule.rows else first[0], *first[1:])
            if (found := tuple(theirs[rule.theirs].shape)) != shape:
                wrong.append(f"{rule.theirs!r} is {list(found)} and should be {list(shape)}")
    if wrong:
        more = f" (and {len(wrong) - 2} more)" if len(wrong) > 2 else ""
        raise CheckpointError(f"{file}: shapes do not fit {CONFIG}: {', '.join(wrong[:2])}{more}")


def _hold(module: LanguageModel, packed: Mapping[str, Packed], file: Path) -> None:
    """Put packed matrices in place of the parameters; their values are given in the dtype of the norms."""
    matrices = module.matrices()
    for name, weight in packed.items():
        if name not in matrices:
            raise CheckpointError(f"{file}: {name!r} is packed, and only the matrices of linear layers and embeddings may be")
        weight.dtype = module.norm.weight.dtype
        matrices[name].hold(weight)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{'tensor' if len(names) == 1 else 'tensors'} {shown}{more}"


def _unread(unread: Sequence[str], candidates: Iterable[str]) -> str:
    near = difflib.get_close_matches(unread[0], list(candidates), 1)
    return f"{_listed(unread)} unknown" + (f"; is {unread[0]!r} meant to be {near[0]!r}?" if near else "")


def _warn_of_untied_head(folder: Path, rules: Sequence[Rule], theirs: Mapping[str, Tensor | Packed]) -> None:
    """A file may repeat a tied head; where it differs from the embedding, config.json is believed, with a warning."""
    source = {rule.ours: rule.theirs for rule in rules if not rule.optional}
    for rule in rules:
        if rule.optional and rule.theirs in theirs and rule.ours in source:
            tied, head = theirs[source[rule.ours]], theirs[rule.theirs]
            if not _same(tied, head):
                text = f"{folder}: {CONFIG} ties the head to the embedding, but {rule.theirs!r} differs from it and is ignored"
                warnings.warn(text, stacklevel=3)


def _same(a: Tensor | Packed, b: Tensor | Packed) -> bool:
    if isinstance(a, Packed) or isinstance(b, Packed):
        return type(a) is type(b) and a.equal(b)
    return a.data_ptr() == b.data_ptr() or torch.equal(a, b)


def _read(
    rules: Sequence[Rule], theirs: Published, dtype: torch.dtype | None, device: torch.device
) -> dict[str, Tensor | Packed]:
    """Our weights by name. Mapped where nothing has to change; otherwise copied one by one, dropping the source."""
    held = [rule for rule in rules if rule.theirs in theirs]
    copy = device.type != "cpu" or any(_target(rule.ours[0], theirs[rule.theirs], dtype) for rule in held)
    ours: dict[str, Tensor | Packed] = {}
    mapped = 0
    for rule in held:
        if rule.optional and rule.ours[0] in ours:
            continue
        source = theirs[rule.theirs]
        for name, tensor in names.to_ours([rule], {rule.theirs: source}).items():
            if isinstance(tensor, Packed):
                ours[name] = tensor.to(device)
                _check_finite(theirs.file, rule.theirs, tensor.scales, tensor.scales, True)
                continue
            changed = theirs.arena.copy(tensor.to(device), _target(name, tensor, dtype)) if copy else tensor
            _check_finite(theirs.file, rule.theirs, tensor, changed, copy)
            ours[name] = changed
        theirs.forget(rule.theirs)
        mapped += source.nbytes
        if copy and mapped > MAPPED_BYTES:
            theirs.weights.release()
            mapped = 0
    return ours


def _target(name: str, tensor: Tensor | Packed, dtype: torch.dtype | None) -> torch.dtype | None:
    """The dtype this parameter has to be cast to; None where it stays as it is, as what is packed does."""
    if dtype is None or isinstance(tensor, Packed) or tensor.dtype == dtype:
        return None
    narrows = torch.promote_types(tensor.dtype, dtype) != dtype
    return None if narrows and name.rpartition(".")[2] in SENSITIVE else dtype


def _check_finite(file: Path, name: str, stored: Tensor, loaded: Tensor, copied: bool) -> None:
    """NaN or infinite weights are refused; large tensors that are only mapped are not read for it."""
    if (loaded.numel() > SMALL and not copied) or _finite(loaded):
        return
    if _finite(stored):
        raise UsageError(
            f"{file}: tensor {name!r} has values beyond the range of {loaded.dtype}; load it as bfloat16 or float32"
        )
    raise CheckpointError(f"{file}: tensor {name!r} holds NaN or infinite values; the file is damaged or its training diverged")


def _finite(tensor: Tensor) -> bool:
    """Whether all numbers are, by the extremes: a sum may overflow, or take a copy in another dtype."""
    return all(extreme.isfinite() for extreme in tensor.aminmax())
