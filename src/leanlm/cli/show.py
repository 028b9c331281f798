"""leanlm show MODEL: what a model is made of, what it costs, what is missing or odd. Only pickled weights need torch."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import tyro

from leanlm import families
from leanlm.checkpoint import locate
from leanlm.checkpoint.folder import CONFIG, find_weights, read_config, read_json
from leanlm.checkpoint.tokenizer import MAIN
from leanlm.cli import cache, sizes
from leanlm.errors import CheckpointError, LeanLMError, NotFound, UsageError, first_line
from leanlm.families import catalog
from leanlm.model import cost
from leanlm.model.config import ModelConfig
from leanlm.slots import runs

BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1}


@dataclass(frozen=True)
class Command:
    """Show a model's layers, parameters, bytes of weights and of state, context, tokenizer, and what is missing or odd."""

    model: tyro.conf.Positional[str]
    """A folder, a name from `leanlm list`, or a hub id that was pulled."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    json: bool = False
    """Print JSON."""
    cache: bool = False
    """Show instead which tokens every slot of its telescoping cache covers."""
    at: int | None = None
    """With --cache: after so many tokens, 1000 where none are given."""
    svg: Path | None = None
    """With --cache: draw it into this file too, the first one where layers differ."""


class Stored(NamedTuple):
    """A tensor in a file."""

    shape: tuple[int, ...]
    dtype: str  # as safetensors writes it

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.numbers * BYTES.get(self.dtype, 4)


def run(command: Command) -> None:
    if command.cache:
        show_cache(command)
        return
    if command.svg or command.at is not None:
        raise UsageError("--at and --svg are of a cache: give --cache too")
    entry = catalog.resolve(command.model)
    folder = on_disk(command, entry)
    found = of_folder(folder, entry) if folder else of_entry(entry)
    found = {"name": entry.name if entry else command.model, **found}
    print(json.dumps(found, indent=2) if command.json else text(found))


def on_disk(command: Command, entry: catalog.Entry | None) -> Path | None:
    """The model's folder; None where it is known by name alone."""
    try:
        return locate.resolve(command.model, revision=command.revision, offline=True)
    except NotFound:
        if entry is None or command.revision:
            raise
        return None


def show_cache(command: Command) -> None:
    read = 1000 if command.at is None else command.at
    if read < 1:
        raise UsageError(f"--at {read}: a cache is shown after at least 1 token")
    if command.svg and command.svg.exists():
        raise UsageError(f"{command.svg}: is there already; nothing is overwritten, give a new name")
    found = cache.tables(config_of(command))
    if command.svg:
        name, table = next(iter(found.items()))
        command.svg.write_text(cache.svg(name, table, read), encoding="utf-8")
    if command.json:
        told = {name: [run and list(run) for run in runs(table, read - 1)] for name, table in found.items()}
        print(json.dumps({"tokens": read, "slots": told}, indent=2))
    else:
        print("\n\n".join(cache.text(name, table, read) for name, table in found.items()))


def config_of(command: Command) -> ModelConfig:
    """What the model is, from its config.json alone, or from the catalogue."""
    entry = catalog.resolve(command.model)
    folder = on_disk(command, entry)
    if folder is None:
        return entry.model
    raw = read_config(folder)
    return translated(families.find(raw), raw, {})


def of_entry(entry) -> dict:
    """What the catalogue knows of a model that is not on disk."""
    odd = [entry.note] if entry.note else []
    where = f"not on disk; these are the catalogue's figures (leanlm pull {entry.name})" if entry.repo else "not released"
    return {
        "source": where,
        "repo": entry.repo,
        "licence": entry.licence,
        **of_config(entry.family, entry.model, 2),
        "weight_bytes": entry.weight_bytes,
        "dtypes": {},
        "formats": {},
        "tokenizer": entry.tokenizer_repo or entry.repo,
        "odd": odd,
    }


def of_folder(folder: Path, entry=None) -> dict:
    raw = read_config(folder)
    family = families.find(raw)
    odd: list[str] = []
    try:
        stored = tensors(folder)
    except CheckpointError as error:
        odd.append(str(error))
        stored = {}
    names = {plain(name, family.prefixes): tensor for name, tensor in stored.items()}
    formats = packed(folder, family.prefixes, raw, names) if stored and raw.get("quantization_config") else {}
    config = translated(family, raw, names)
    if names:
        odd += differences(family, config, names)
    dtypes: Counter[str] = Counter()
    for tensor in stored.values():
        dtypes[tensor.dtype] += tensor.numbers
    floats = {dtype: n for dtype, n in dtypes.items() if dtype in ("F32", "BF16", "F16")}
    width = BYTES[max(floats, key=floats.get)] if floats else 2
    tokenizer = MAIN if (folder / MAIN).exists() else entry.tokenizer_repo if entry else None
    if tokenizer is None:
        odd.append("no tokenizer: text needs --tokenizer FILE, or give token ids")
    return {
        "source": str(folder),
        "repo": entry.repo if entry else None,
        "licence": entry.licence if entry else None,
        **of_config(family.name, config, width),
        "weight_bytes": sum(tensor.bytes for tensor in stored.values()) or None,
        "dtypes": dtypes,
        "formats": formats,
        "tokenizer": tokenizer,
        "odd": odd,
    }


def packed(folder: Path, prefixes: tuple[str, ...], raw: dict, names: dict[str, Stored]) -> dict[str, dict]:
    """Of the folder's packed matrices, format by format: how many, their weights, their bits in memory and in the file.

    In `names` each takes the place of the tensors that hold it."""
    from leanlm.checkpoint.published import Published
    from leanlm.checkpoint.weights import Weights
    from leanlm.model.packed import Packed

    published, found = Published(Weights(folder), prefixes, raw), {}
    for name in published:
        if parts := published.parts(name):
            weight: Packed = published[name]
            total = found.setdefault(str(weight.format), {"matrices": 0, "weights": 0, "bytes": 0, "file_bytes": 0})
            total["matrices"] += 1
            total["weights"] += weight.numel()
            total["bytes"] += weight.nbytes
            total["file_bytes"] += sum(names[part].bytes for part in parts)
            for part in parts:
                del names[part]
            names[name] = Stored(tuple(weight.shape), str(weight.format))
    for total in found.values():
        total["bits"], total["file_bits"] = (8 * total[kind] / total["weights"] for kind in ("bytes", "file_bytes"))
    return found


def of_config(family: str, config: ModelConfig, dtype_bytes: int) -> dict:
    return {
        "family": family,
        "layers": sizes.layers(config),
        "sublayers": sizes.settings(config),
        "width": config.d_model,
        "vocabulary": config.vocab_size,
        "padded_vocabulary": config.padded_vocab_size,
        "tied": config.tied,
        "context": config.context_length,
        "parameters": cost.parameters(config),
        "state_bytes": cost.state_bytes(config, dtype_bytes=dtype_bytes),
        "state_is_constant": config.bounded,
    }


def translated(family, raw: dict, names: Mapping[str, Stored]) -> ModelConfig:
    try:
        return family.to_config(raw, frozenset(names))
    except LeanLMError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError) as error:
        raise CheckpointError(f"{CONFIG}: a setting has the wrong type or value ({error})") from None


def tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of the folder's weights, from the headers of the files alone where they are safetensors."""
    main = find_weights(folder)
    if main.suffix == ".json":
        shards = read_json(main).get("weight_map")
        if not isinstance(shards, dict):
            raise CheckpointError(f"{main}: no weight_map, the table of which file holds which tensor")
        files = {folder / Path(str(shard)).name for shard in shards.values()}
    else:
        files = {main}
    if any(file.suffix != ".safetensors" for file in files):
        return pickled(folder)
    from safetensors import SafetensorError, safe_open

    found = {}
    for file in sorted(files):
        try:
            with safe_open(file, framework="np") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a mapping)
                    part = opened.get_slice(name)
                    found[name] = Stored(tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: missing, damaged or cut short ({first_line(error)})") from None
    return found


def pickled(folder: Path) -> dict[str, Stored]:
    from leanlm.checkpoint.weights import Weights

    short = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
    weights = Weights(folder)
    return {n: Stored(tuple(t.shape), short.get(str(t.dtype).removeprefix("torch."), str(t.dtype))) for n, t in weights.items()}


def plain(name: str, prefixes: tuple[str, ...]) -> str:
    for prefix in prefixes:
        name = name.removeprefix(prefix)
    return name


def differences(family, config: ModelConfig, names: Mapping[str, Stored]) -> list[str]:
    """Where the tensors in the files are not those that config.json asks for."""
    rules = family.rules(config)
    missing = [rule.theirs for rule in rules if not rule.optional and rule.theirs not in names]
    unread = sorted(names.keys() - {rule.theirs for rule in rules})
    held = sum(names[rule.theirs].numbers for rule in rules if not rule.optional and rule.theirs in names)
    asked = cost.parameters(config)
    odd = [f"{len(group)} tensors {what}: {some(group)}" for what, group in (("missing", missing), ("unread", unread)) if group]
    if not missing and held != asked:
        odd.append(f"the weights hold {held:,} numbers and {CONFIG} asks for {asked:,}")
    return odd


def packing(total: dict) -> str:
    return (
        f"{total['matrices']} matrices of {sizes.count(total['weights'])} weights: {total['bits']:.3f} bits each in memory, "
        f"{total['file_bits']:.3f} in the file, scales included"
    )


def some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def text(found: dict) -> str:
    """The findings as aligned lines."""
    stored = ", ".join(f"{sizes.count(n)} {dtype}" for dtype, n in found["dtypes"].items())
    weights = sizes.size(found["weight_bytes"]) if found["weight_bytes"] else "none"
    state = "however long the text" if found["state_is_constant"] else "with room for the whole context"
    padded = f", padded to {found['padded_vocabulary']}" if found["padded_vocabulary"] != found["vocabulary"] else ""
    lines = [
        ("model", found["name"]),
        ("source", found["source"]),
        ("hub id", found["repo"]),
        ("licence", found["licence"]),
        ("family", found["family"]),
        ("layers", found["layers"]),
        *((f"  {name}", values) for name, values in found["sublayers"].items()),
        ("width", found["width"]),
        ("vocabulary", f"{found['vocabulary']}{padded}, head {'tied' if found['tied'] else 'untied'}"),
        ("context", found["context"] or "unknown"),
        ("parameters", f"{sizes.count(found['parameters'])} ({found['parameters']:,})"),
        ("weights", f"{weights} ({stored})" if stored else weights),
        *((f"  {format}", packing(total)) for format, total in found["formats"].items()),
        ("state", f"{sizes.size(found['state_bytes'])} per text, {state}"),
        ("tokenizer", found["tokenizer"] or "none"),
        *(("odd", problem) for problem in found["odd"]),
    ]
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(f"{name:{width}}{value}" for name, value in lines if value is not None)
