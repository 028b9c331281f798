"""A State in one safetensors file that names the model it belongs to and is refused by any other."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from leanlm.checkpoint.save import write_together
from leanlm.errors import CheckpointError, NotFound
from leanlm.model.language_model import LanguageModel
from leanlm.model.state import State

FORMAT = "leanlm-state-1"
GROWING = ("k", "v")  # memories of full attention are stored up to the last token read


def fingerprint(module: LanguageModel) -> str:
    """sha256 over the config and some rows of every weight matrix: equal for the same model, whatever file it came from."""
    digest = hashlib.sha256(json.dumps(module.config.to_dict(), sort_keys=True).encode())
    for name, parameter in module.named_parameters():
        rows = parameter.detach().flatten()[:: max(1, parameter.numel() // 64)][:64].cpu()
        digest.update(name.encode() + rows.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_state(path: Path, module: LanguageModel, state: State, extra: dict | None = None, tensors: dict | None = None) -> None:
    """Write `state`, plain JSON data `extra` and further `tensors` into one file, aside first."""
    read = int(state.position.max())
    stored = {}
    for name, tensor in state.tensors().items():
        growing = _is_growing(module, name)
        stored[f"state.{name}"] = (tensor[:, :read] if growing else tensor).cpu().contiguous()
    stored |= {f"extra.{name}": tensor.cpu().contiguous() for name, tensor in (tensors or {}).items()}
    metadata = {
        "format": FORMAT,
        "model": fingerprint(module),
        "config": json.dumps(module.config.to_dict()),
        "capacity": json.dumps(_capacity(module, state)),
        "extra": json.dumps(extra or {}),
    }
    write_together(path.parent, {path.name: lambda aside: save_file(stored, aside, metadata)})


def load_state(path: Path, module: LanguageModel, capacity: int | None = None) -> tuple[State, dict, dict[str, Tensor]]:
    """The state, extra data and further tensors of a file that `save_state` wrote for this model, on the model's device.

    `capacity` makes room for more tokens of full attention than the state had. Raises NotFound, or CheckpointError where the
    file is damaged, of another kind, or of another model (saying in what they differ).
    """
    metadata, tensors = read_file(path)
    if metadata["model"] != fingerprint(module):
        raise CheckpointError(f"{path}: belongs to another model ({_difference(json.loads(metadata['config']), module)})")
    position = tensors["state.position"]
    room = max(capacity or 0, json.loads(metadata["capacity"]) or 0) or None
    state = module.new_state(len(position), capacity=room)
    state.position.copy_(position)
    for i, memory in enumerate(state.memories):
        for name in memory or ():
            saved = tensors[f"state.{i}.{name}"]
            if _is_growing(module, f"{i}.{name}"):
                memory[name] = memory[name].to(saved.dtype)
                memory[name][:, : saved.shape[1]] = saved.to(memory[name].device)
            else:
                memory[name] = saved.to(memory[name].device)
    extra = {name.removeprefix("extra."): t for name, t in tensors.items() if name.startswith("extra.")}
    return state, json.loads(metadata["extra"]), extra


def read_file(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a state file, for any model."""
    if not path.is_file():
        raise NotFound(f"{path}: no such state file")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CheckpointError(f"{path}: a safetensors file, but not a leanlm state")
            return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged, cut short, or not a state file ({error})") from None


def _is_growing(module: LanguageModel, name: str) -> bool:
    index, _, leaf = name.partition(".")
    return leaf in GROWING and getattr(module.config.sublayers[int(index)], "window", 0) is None


def _capacity(module: LanguageModel, state: State) -> int | None:
    for i, memory in enumerate(state.memories):
        if memory and _is_growing(module, f"{i}.k") and "k" in memory:
            return memory["k"].shape[1]
    return None


def _difference(theirs: dict, module: LanguageModel) -> str:
    ours = json.loads(json.dumps(module.config.to_dict()))
    for key, value in theirs.items():
        if ours.get(key) != value:
            return "another layout of layers" if key == "layers" else f"its {key} is {value}, this model's is {ours.get(key)}"
    return "same shape, other weights"
