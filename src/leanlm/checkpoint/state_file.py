"""States on disk: one safetensors file that names the model it belongs to and is refused by another.

Full attention keeps only the keys and values of the tokens read; its capacity is restored on loading. A caller may store
JSON data and tensors of its own beside the state (a session does).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from leanlm.checkpoint.aside import replacing
from leanlm.errors import CheckpointError, NotFound, UsageError
from leanlm.model.config import Attention
from leanlm.model.language_model import LanguageModel
from leanlm.model.state import State

FORMAT, VERSION = "leanlm-state", 1
SAMPLED_TENSORS, SAMPLED_NUMBERS = 24, 256  # how much of the weights goes into a fingerprint
NOT_IDENTITY = ("context_length", "bos_id", "eos_ids", "pad_id")  # settings that leave a state's meaning alone


class Saved(NamedTuple):
    """What a file held: the state, and the caller's own data and tensors."""

    state: State
    extra: dict
    tensors: dict[str, Tensor]


def write(
    file: str | Path,
    module: LanguageModel,
    state: State,
    extra: dict | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Save `state` of `module` with the caller's JSON data and tensors; an older file is replaced when this one is complete."""
    file = Path(file)
    if file.is_dir():
        raise UsageError(f"{file}: is a folder; give a file to save the state in")
    trimmed, capacity = pack(module, state)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "model": fingerprint(module),
        "dtype": _dtype(module),
        "summary": summary(module),
        "capacity": str(capacity),
        "extra": json.dumps(extra or {}),
    }
    named = {f"state.{name}": tensor for name, tensor in trimmed.items()}
    named |= {f"extra.{name}": tensor for name, tensor in (tensors or {}).items()}
    # Copies, because safetensors refuses tensors that share memory, as forks and snapshots may.
    owned = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in named.items()}
    with replacing(file.parent) as aside:
        save_file(owned, aside(file.name), metadata)


def read(file: str | Path, module: LanguageModel, capacity: int | None = None) -> Saved:
    """The state in `file`, on the module's device, with room for `capacity` tokens (default: as when it was saved).

    Raises NotFound without the file, CheckpointError where it is damaged, of another kind, or of another model.
    """
    file = Path(file)
    metadata, tensors = _open(file)
    _check_model(file, metadata, module)
    states, others = _part(tensors, "state."), _part(tensors, "extra.")
    extra, saved_capacity = _parsed(file, metadata)
    try:
        state = unpack(module, states, capacity or saved_capacity)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None
    return Saved(state, extra, others)


def describe(file: str | Path) -> dict:
    """What a state file says about itself, without its model: "summary", "dtype", "capacity", "position", "nbytes", "extra"."""
    metadata, tensors = _open(Path(file))
    extra, capacity = _parsed(Path(file), metadata)
    position = tensors.get("state.position", torch.zeros(0, dtype=torch.int64))
    return {
        "summary": metadata.get("summary", ""),
        "dtype": metadata.get("dtype", ""),
        "capacity": capacity,
        "position": position.tolist(),
        "nbytes": sum(tensor.nbytes for tensor in tensors.values()),
        "extra": extra,
    }


def pack(module: LanguageModel, state: State) -> tuple[dict[str, Tensor], int]:
    """The state's tensors by name, keys and values of full attention cut to the tokens read; and their capacity, or 0."""
    tensors, capacity = state.tensors(), 0
    for name, length in _growing(module):
        if name not in tensors:
            continue
        capacity = tensors[name].shape[1]
        tensors[name] = tensors[name][:, : int(tensors[length].max())]
    return tensors, capacity


def unpack(module: LanguageModel, tensors: Mapping[str, Tensor], capacity: int) -> State:
    """The state that `pack` took apart, on the module's device again, every tensor in the dtype it was saved in.

    Raises CheckpointError where the tensors are not a state of this module or need more than `capacity`.
    """
    position = tensors.get("position")
    if position is None or position.ndim != 1 or position.dtype != torch.int64 or not len(position) or position.min() < 0:
        raise CheckpointError("holds no state")
    growing = dict(_growing(module))
    if growing and capacity < position.max():
        raise CheckpointError(f"holds {int(position.max())} tokens, more than the capacity of {capacity} asked for")
    dtypes = (_held_in(tensors, ".ssm", ".entry_k"), _held_in(tensors, ".k"))
    state = module.new_state(len(position), capacity or None, *dtypes)
    if odd := state.tensors().keys() ^ tensors.keys():
        raise CheckpointError(f"is no state of this model: {min(odd)!r} is in one of them only")
    for i, memory in enumerate(state.memories):
        for name in memory or ():
            memory[name] = _restored(f"{i}.{name}", memory[name], tensors[f"{i}.{name}"], f"{i}.{name}" in growing)
    for memory in state.memories:
        if memory and "position" in memory:
            read, start = memory["position"], memory["start"]
            if not (torch.equal(read.cpu(), position) and bool(((start >= 0) & (start <= read)).all())):
                raise CheckpointError(
                    "holds no state: its memories disagree on how many tokens they have seen; the file is damaged"
                )
    state.position = position.clone()
    return state


def _held_in(tensors: Mapping[str, Tensor], *ends: str) -> torch.dtype:
    """Of memories whose names end so: int8, or float32, which stands for any float (`_restored` keeps what was saved)."""
    coded = any(name.endswith(ends) and tensor.dtype == torch.int8 for name, tensor in tensors.items())
    return torch.int8 if coded else torch.float32


def _restored(name: str, empty: Tensor, saved: Tensor, growing: bool) -> Tensor:
    """`saved` in the shape and on the device of `empty`; what grows is shorter along axis 1 and padded with zeros."""
    shape = list(empty.shape)
    fits = saved.ndim == empty.ndim and saved.is_floating_point() == empty.is_floating_point()
    if growing and fits and saved.shape[1] <= shape[1]:
        shape[1] = saved.shape[1]
    if not fits or list(saved.shape) != shape:
        raise CheckpointError(f"is no state of this model: {name!r} is {list(saved.shape)} and should be {shape}")
    if not growing:
        return saved.to(empty.device, copy=True)
    full = torch.zeros_like(empty, dtype=saved.dtype)
    full[:, : saved.shape[1]] = saved.to(empty.device)
    return full


def fingerprint(module: LanguageModel) -> str:
    """sha256 over what the model is made of and a sample of its weights, in their own dtype."""
    digest = hashlib.sha256(json.dumps(_identity(module), sort_keys=True).encode())
    weights = sorted(module.state_dict().items())
    for name, tensor in weights[:: -(-len(weights) // SAMPLED_TENSORS)]:
        flat = tensor.detach().reshape(-1)
        sample = torch.cat([flat[:SAMPLED_NUMBERS], flat[-SAMPLED_NUMBERS:]]).cpu()
        digest.update(name.encode() + sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def summary(module: LanguageModel) -> str:
    """The model's make in a few words, for messages."""
    config = module.config
    kinds = Counter(mixer.kind for mixer in config.sublayers)
    return f"width {config.d_model}, vocabulary {config.vocab_size}, " + " + ".join(f"{n} {kind}" for kind, n in kinds.items())


def _identity(module: LanguageModel) -> dict:
    return {key: value for key, value in module.config.to_dict().items() if key not in NOT_IDENTITY}


def _growing(module: LanguageModel) -> Iterator[tuple[str, str]]:
    """Names that the keys and values of full attention may have in a state's tensors, with those of their rows' positions."""
    for i, mixer in enumerate(module.config.sublayers):
        if isinstance(mixer, Attention) and mixer.window is None:
            for name in ("k", "v", "k_scale", "v_scale"):
                yield f"{i}.{name}", f"{i}.position"


def _open(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not file.exists():
        raise NotFound(f"{file}: no such state file")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a state file, or cut short ({error})") from None
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{file}: a safetensors file, but no state written by leanlm")
    if metadata.get("version") != str(VERSION):
        raise CheckpointError(f"{file}: written in version {metadata.get('version')} of the state format; this is {VERSION}")
    return metadata, tensors


def _parsed(file: Path, metadata: Mapping[str, str]) -> tuple[dict, int]:
    """The caller's own data, and the capacity."""
    try:
        return json.loads(metadata["extra"]), int(metadata["capacity"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{file}: damaged state file ({error})") from None


def _check_model(file: Path, metadata: Mapping[str, str], module: LanguageModel) -> None:
    """Raises CheckpointError, with the reason, unless the file belongs to this very model."""
    if metadata.get("model") == fingerprint(module):
        return
    theirs, mine = metadata.get("summary"), summary(module)
    if theirs != mine:
        raise CheckpointError(f"{file}: belongs to another model ({theirs}); this one has {mine}")
    if metadata.get("dtype") != _dtype(module):
        then, now = metadata.get("dtype"), _dtype(module)
        raise CheckpointError(f"{file}: saved from the model in {then}; load it in that dtype, not {now}")
    raise CheckpointError(f"{file}: belongs to another model: the same make ({mine}), but other weights or settings")


def _dtype(module: LanguageModel) -> str:
    return str(module.dtype).removeprefix("torch.")


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
