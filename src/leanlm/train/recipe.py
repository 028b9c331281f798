"""A run as one validated TOML file: model, data, optimiser, schedule, validation, checkpoints. Loads no torch."""

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from leanlm.errors import CheckpointError, NotFound, UsageError
from leanlm.model.config import from_dict

SHIPPED = Path(__file__).parent.parent / "recipes"


@dataclass(frozen=True)
class Model:
    """A family and its published config, written as a TOML table. `init_std` is that of the fresh weights."""

    family: str
    config: dict
    init_std: float = 0.02


@dataclass(frozen=True)
class Data:
    """`source`: "python-library", a file or a folder. `held_out`: names, or one name of a text file listing them."""

    source: str
    held_out: tuple[str, ...] = ()
    suffix: str = ".py"
    vocab_size: int = 4096  # of the BPE trained on the text learned from
    length: int = 512  # tokens per window


@dataclass(frozen=True)
class Optimiser:
    """AdamW; weight decay only on matrices (never on norms, biases, A_log, D, dt_bias)."""

    lr: float
    betas: tuple[float, ...] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0  # largest norm of the gradient; 0: no clipping


@dataclass(frozen=True)
class Schedule:
    """`steps` of `batch` windows each; the learning rate rises over `warmup` steps, then falls to lr x `final`."""

    steps: int
    batch: int
    warmup: int = 100
    shape: Literal["linear", "cosine", "constant"] = "linear"
    final: float = 0.0


@dataclass(frozen=True)
class Keep:
    """Every `checkpoint` steps a checkpoint (the last `last` are kept), every `validate` steps a validation."""

    checkpoint: int = 200
    last: int = 2
    validate: int = 200
    validate_bytes: int = 200_000  # of held-out text at a time; the end of the run reads all of it
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the finished model's file


@dataclass(frozen=True)
class Recipe:
    name: str
    model: Model
    data: Data
    optimiser: Optimiser
    schedule: Schedule
    keep: Keep = Keep()
    seed: int = 0
    threads: int = 0  # 0: torch's own choice


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def path_of(name: str) -> Path:
    """A recipe file by path, or by the name of a shipped one; raises NotFound naming those there are."""
    if Path(name).is_file():
        return Path(name)
    path = SHIPPED / f"{name}.toml"
    if path.is_file():
        return path
    raise NotFound(f"{name}: neither a recipe file nor one of the shipped recipes ({', '.join(shipped())})")


def read(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """The recipe in a TOML file after `section.key=value` overrides (values in TOML's own notation, or plain words)."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from None
    for override in overrides:
        _override(raw, override)
    try:
        recipe = from_dict(Recipe, raw, path.stem)
    except CheckpointError as error:
        raise UsageError(str(error)) from None
    _check(recipe)
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, held_out=_names(recipe.data.held_out, path)))


def _override(raw: dict, override: str) -> None:
    name, equals, value = override.partition("=")
    if not equals or not name:
        raise UsageError(f"--set {override}: write it as section.key=value")
    *sections, key = name.strip().split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise UsageError(f"--set {override}: {section} is a value, not a section")
    try:
        raw[key] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        raw[key] = value.strip()


def _check(recipe: Recipe) -> None:
    for path, value in (
        ("schedule.steps", recipe.schedule.steps),
        ("schedule.batch", recipe.schedule.batch),
        ("data.length", recipe.data.length),
        ("keep.checkpoint", recipe.keep.checkpoint),
        ("keep.last", recipe.keep.last),
        ("keep.validate", recipe.keep.validate),
    ):
        if value < 1:
            raise UsageError(f"{recipe.name}: {path} = {value}; it must be at least 1")
    optimiser, schedule = recipe.optimiser, recipe.schedule
    for path, fits, meant in (
        ("optimiser.lr", optimiser.lr > 0, "above 0"),
        (
            "optimiser.betas",
            len(optimiser.betas) == 2 and all(0 <= b < 1 for b in optimiser.betas),
            "two numbers from 0 to below 1",
        ),
        ("optimiser.weight_decay", optimiser.weight_decay >= 0, "0 or more"),
        ("optimiser.clip", optimiser.clip >= 0, "0 (no clipping) or more"),
        ("schedule.warmup", schedule.warmup >= 0, "0 or more"),
        ("seed", 0 <= recipe.seed < 2**63, "from 0 to 2^63"),
        ("threads", recipe.threads >= 0, "0 (torch's choice) or more"),
        ("name", recipe.name.isprintable() and recipe.name.strip("./"), "a name fit for a folder"),
    ):
        if not fits:
            raise UsageError(f"{recipe.name!r}: {path} must be {meant}")
    if recipe.data.vocab_size < 257:
        raise UsageError(f"{recipe.name}: data.vocab_size = {recipe.data.vocab_size}; end of text and 256 bytes need 257")


def _names(held_out: tuple[str, ...], path: Path) -> tuple[str, ...]:
    """Held-out names; a single name ending in .txt is a list beside the recipe."""
    if len(held_out) != 1 or not held_out[0].endswith(".txt"):
        return held_out
    listed = path.parent / held_out[0]
    if not listed.is_file():
        raise NotFound(f"{listed}: the list of held-out files named by data.held_out is missing")
    return tuple(listed.read_text(encoding="utf-8").split())


def write(recipe: Recipe, path: Path) -> None:
    """Store a recipe as TOML that `read` gives back unchanged."""
    raw = dataclasses.asdict(recipe)
    lines = [f"{key} = {_toml(value)}" for key, value in raw.items() if not isinstance(value, dict)]
    for section, table in raw.items():
        if isinstance(table, dict):
            lines += ["", f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _toml(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items() if item is not None) + "}"
    return repr(value)
