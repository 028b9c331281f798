"""A checkpoint folder: which of its files hold the weights, and its config.json. Loads no torch."""

import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from leanlm.errors import CheckpointError, LeanLMError, NotFound

CONFIG = "config.json"
GPTQ_CONFIG = "quantize_config.json"  # where early GPTQ folders keep their quantization_config
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def check_folder(folder: Path) -> None:
    """Raises NotFound where there is nothing, CheckpointError where there is a file."""
    if not folder.exists():
        raise NotFound(f"{folder}: no such folder")
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is a file; give the folder that holds it and its {CONFIG}")


def read_config(folder: Path) -> dict:
    """config.json as plain data; bare Infinity and NaN are let through. Raises CheckpointError where it cannot be read."""
    check_folder(folder)
    path = folder / CONFIG
    if not path.exists():
        what = f"no {CONFIG}" if any(folder.iterdir()) else "the folder is empty"
        raise CheckpointError(f"{folder}: {what}; a checkpoint is a folder with {CONFIG} and its weights")
    raw = read_json(path)
    if "quantization_config" not in raw and (folder / GPTQ_CONFIG).exists():
        raw["quantization_config"] = {"quant_method": "gptq", **read_json(folder / GPTQ_CONFIG)}
    return raw


@contextmanager
def translating(folder: Path) -> Iterator[None]:
    """Around a family's reading of the folder's config: whatever is wrong in it becomes a CheckpointError naming the folder."""
    try:
        yield
    except LeanLMError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError) as error:
        raise CheckpointError(f"{folder / CONFIG}: a setting has the wrong type or value ({error})") from None


def read_json(path: Path) -> dict:
    """A JSON object from a file; raises CheckpointError with the place of the mistake."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: not valid JSON (line {error.lineno}: {error.msg})") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def main_file(names: Collection[str]) -> str | None:
    """Of the files in a folder the one that leads to the weights: safetensors first, an index where they are sharded.

    Without a standard name: the only safetensors file, the newest epoch_N.pt (OpenLM), the only pickle. None if there is
    no such file, or no telling which.
    """
    for name in (SINGLE, INDEX, PICKLE, PICKLE_INDEX):
        if name in names:
            return name
    safetensors = [name for name in names if name.endswith(".safetensors")]
    epochs = [name for name in names if re.fullmatch(r"epoch_\d+\.pt", name)]
    pickles = [
        name for name in names if re.search(r"\.(pt|pth|bin)$", name) and not re.match(r"optimizer|stats|training", name)
    ]
    if epochs and not safetensors:
        return max(epochs, key=lambda name: int(re.findall(r"\d+", name)[0]))
    only = safetensors or pickles
    return only[0] if len(only) == 1 else None


def weight_files(names: Collection[str]) -> list[str]:
    """Every file of a listing that the weights need: the main file and, where it is an index, the shards beside it."""
    main = main_file(names)
    if main is None or not main.endswith(".index.json"):
        return [main] if main else []
    stem, _, suffix = main.removesuffix(".index.json").rpartition(".")
    shard = re.compile(rf"{re.escape(stem)}-\d+-of-\d+\.{suffix}")
    return [main, *sorted(name for name in names if shard.fullmatch(name))]


def find_weights(folder: Path) -> Path:
    """The main file of the weights in a folder; raises CheckpointError where there is none, or no telling which."""
    names = sorted(path.name for path in folder.iterdir())
    main = main_file(names)
    if main:
        return folder / main
    candidates = [name for name in names if re.search(r"\.(safetensors|pt|pth|bin)$", name)]
    if candidates:
        raise CheckpointError(
            f"{folder}: cannot tell which file holds the weights ({', '.join(candidates[:4])}); name it {SINGLE}"
        )
    raise CheckpointError(f"{folder}: no weights; expected {SINGLE}, {INDEX} or {PICKLE}")
