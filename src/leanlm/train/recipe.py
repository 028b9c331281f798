"""A run as one validated TOML file: model, data, optimiser, schedule, machine, validation, checkpoints. Loads no torch."""

import dataclasses
import math
import re
import tomllib
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from leanlm.errors import CheckpointError, NotFound, UsageError
from leanlm.model.config import from_dict

SHIPPED = Path(__file__).parent.parent / "recipes"
NAME = re.compile(r"\w(?:[\w.+-]*\w)?")
MOST_THREADS = 1024


@dataclass(frozen=True)
class Model:
    """A fresh model, by a family and its published config written as a TOML table; or one that is trained on.

    `from_` (in the file: from) is a folder, a name or a hub id. `init_std` is that of fresh weights. `shards` is the number of
    scale regions of a ternary matrix, as model-parallel training leaves them.
    """

    family: str = ""
    config: dict = field(default_factory=dict)
    from_: str = ""
    init_std: float = 0.02
    weights: Literal["float", "ternary"] = "float"
    shards: int = 1


@dataclass(frozen=True)
class Data:
    """One of: `sources`, folders of token shards with their weights; `source`, text that the run tokenises itself
    ("python-library", a file or a folder); `chat`, a file of JSON lines of messages.

    Validated is on `held`, a folder of shards, or on the documents of `source` that `held_out` names (names, or the one of a
    .txt beside the recipe that lists them). `suffix` and `vocab_size` (of the BPE trained on the text) belong to `source`.
    """

    sources: dict = field(default_factory=dict)
    source: str = ""
    chat: str = ""
    held: str = ""
    held_out: tuple[str, ...] = ()
    suffix: str = ".py"
    vocab_size: int = 4096
    length: int = 512  # tokens per window
    damaged: Literal["refuse", "skip"] = "refuse"  # shards

    def of_shards(self, learned: Path, held: Path | str) -> "Data":
        """These settings, with shards in the place of their text, and of what is held out, if anything is."""
        return dataclasses.replace(self, source="", held_out=(), sources={str(learned): 1.0}, held=str(held))


@dataclass(frozen=True)
class Optimiser:
    """AdamW; weight decay only on matrices (never on norms, biases, A_log, D, dt_bias)."""

    lr: float
    betas: tuple[float, ...] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0  # largest norm of the gradient; 0: no clipping
    z_loss: float = 0.0  # times the mean of (log sum exp logits)^2 over the targets


@dataclass(frozen=True)
class Change:
    """From the share `at` of all steps on, another peak learning rate or weight decay."""

    at: float
    lr: float | None = None
    weight_decay: float | None = None


@dataclass(frozen=True)
class Schedule:
    """`steps`, or `tokens` in all, in steps of `batch` windows over all processes; `micro` of them (0: all of its share) go
    through a process at a time.

    The learning rate rises over `warmup` steps, then takes its `shape` down to lr x `final`: "linear" and "cosine" over all
    steps after the warm-up; "constant" falls linearly and "wsd" as 1 - sqrt over the last `cooldown` share of all steps.
    """

    steps: int = 0
    tokens: int = 0
    batch: int = 1
    micro: int = 0
    warmup: int = 100
    warmup_shape: Literal["linear", "parabolic"] = "linear"
    shape: Literal["linear", "cosine", "constant", "wsd"] = "linear"
    cooldown: float = 0.0
    final: float = 0.0
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True)
class Compute:
    """How the run uses its machine; results differ by rounding only.

    `dtype` is that of matrix products; master weights, optimiser and scans are float32. `checkpoint_blocks` is the fraction of
    layers whose activations are computed again rather than kept. Over several processes: "ddp" copies the model, "fsdp" shards
    it over all of them, "hsdp" over groups of `shard` processes (0: those of one machine); "auto" is fsdp on GPUs, ddp on CPUs.
    """

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    checkpoint_blocks: float = 0.0
    strategy: Literal["auto", "ddp", "fsdp", "hsdp"] = "auto"
    shard: int = 0


@dataclass(frozen=True)
class Keep:
    """Every `checkpoint` steps a checkpoint (the last `last` are kept, and every `milestones`-th step for good), every
    `validate` steps a validation with texts that go on from `samples`. A run stops after `hours` (0: never) with a checkpoint.
    """

    checkpoint: int = 200
    last: int = 2
    milestones: int = 0
    validate: int = 200
    validate_bytes: int = 200_000  # of held-out text at a time; the end of the run reads all of it
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the finished model's file
    samples: tuple[str, ...] = ()
    hours: float = 0.0
    trackers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Distill:
    """What `leanlm distill` makes the model of: a teacher (a folder, a name or a hub id), in `stages`.

    A stage is a table of settings that it puts over the recipe's own (`schedule = { tokens = ... }`); its `compare`, else its
    name, says what of teacher and student is compared. `init` is that of mixers in the place of attention: as published, or
    the projections of the attention replaced. `freeze_mlp` compares the states right after these mixers, which alone learn.
    `temperature` divides the student's logits. With `top_k` that many of the teacher's probabilities for every token are kept
    in the folder `cache` (by default the stage's own), and the teacher runs once.
    """

    teacher: str
    compare: Literal["", "matrices", "states", "logits"] = ""
    init: Literal["published", "attention"] = "published"
    freeze_mlp: bool = False
    temperature: float = 1.0
    top_k: int = 0
    cache: str = ""
    stages: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    name: str
    model: Model
    data: Data
    optimiser: Optimiser
    schedule: Schedule
    compute: Compute = Compute()
    keep: Keep = Keep()
    distill: Distill | None = None
    seed: int = 0
    threads: int = 0  # 0: torch's own choice

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.schedule.steps or -(-self.schedule.tokens // (self.schedule.batch * self.data.length))


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


def read(path: Path, overrides: tuple[str, ...] = (), size: str = "") -> Recipe:
    """The recipe in a TOML file, as `size` of its [sizes] has it, after `section.key=value` overrides (values in TOML's own
    notation, or plain words). A recipe with sizes needs one, and is named after it."""
    raw = _toml_of(path)
    _choose_size(raw, size, path)
    for override in overrides:
        _override(raw, override)
    model = raw.get("model")
    if isinstance(model, dict) and "from" in model:
        model["from_"] = model.pop("from")  # a word that Python keeps for itself
    recipe = of(raw, path.stem)
    names = _names(recipe.data.held_out, recipe.data.source, path)
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, held_out=names))


def of(raw: dict, name: str) -> Recipe:
    """The recipe whose `dataclasses.asdict` this is, as far as it is given; `name` is that of errors. Raises UsageError."""
    try:
        recipe = from_dict(Recipe, raw, name)
    except CheckpointError as error:
        raise UsageError(str(error)) from None
    _check(recipe)
    return recipe


def sizes(path: Path) -> tuple[str, ...]:
    """The names that a recipe file has in [sizes]; none where it describes one model."""
    return tuple(_toml_of(path).get("sizes", {}))


def _toml_of(path: Path) -> dict:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from None


def _choose_size(raw: dict, size: str, path: Path) -> None:
    """Put the settings of a size, each under its dotted name, in their places."""
    known = raw.pop("sizes", {})
    if not isinstance(known, dict) or not all(isinstance(table, dict) for table in known.values()):
        raise UsageError(f"{path}: [sizes] holds one table for each size")
    if size not in known and (size or known):
        near = get_close_matches(size, known, 1)
        advice = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}"
        raise UsageError(f"{path}: " + (f"no size {size!r}; {advice}" if size else f"choose a size ({', '.join(known)})"))
    for name, value in known.get(size, {}).items():
        _put(raw, name, value, f"{path}: sizes.{size}.{name}")
    if size:
        raw["name"] = f"{raw.get('name', path.stem)}-{size}"


def _override(raw: dict, override: str) -> None:
    name, equals, value = override.partition("=")
    if not equals or not name:
        raise UsageError(f"--set {override}: write it as section.key=value")
    try:
        value = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        value = value.strip()
    _put(raw, name.strip(), value, f"--set {override}")


def _put(raw: dict, name: str, value, where: str) -> None:
    *sections, key = name.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise UsageError(f"{where}: {section} is a value, not a section")
    raw[key] = value


def _check(recipe: Recipe) -> None:
    model, data, optimiser, schedule, distill = recipe.model, recipe.data, recipe.optimiser, recipe.schedule, recipe.distill
    _check_parts(recipe)
    for path, value in (
        ("schedule.batch", schedule.batch),
        ("data.length", data.length),
        ("model.shards", model.shards),
        ("keep.checkpoint", recipe.keep.checkpoint),
        ("keep.last", recipe.keep.last),
        ("keep.validate", recipe.keep.validate),
        ("keep.validate_bytes", recipe.keep.validate_bytes),
    ):
        if value < 1:
            raise UsageError(f"{recipe.name}: {path} = {value}; it must be at least 1")
    for path, fits, meant in (
        ("model.init_std", 0 < model.init_std < math.inf, "above 0"),
        ("optimiser.lr", 0 < optimiser.lr < math.inf, "above 0"),
        (
            "optimiser.betas",
            len(optimiser.betas) == 2 and all(0 <= b < 1 for b in optimiser.betas),
            "two numbers from 0 to below 1",
        ),
        ("optimiser.eps", 0 < optimiser.eps < math.inf, "above 0"),
        ("optimiser.weight_decay", 0 <= optimiser.weight_decay < math.inf, "0 or more"),
        ("optimiser.clip", optimiser.clip >= 0, "0 (no clipping) or more"),
        ("optimiser.z_loss", optimiser.z_loss >= 0, "0 (none) or more"),
        ("schedule.micro", 0 <= schedule.micro <= schedule.batch, f"from 0 (all) to schedule.batch, {schedule.batch}"),
        ("schedule.warmup", schedule.warmup >= 0, "0 or more"),
        ("schedule.final", 0 <= schedule.final <= 1, "a share of lr, from 0 to 1"),
        ("schedule.cooldown", 0 <= schedule.cooldown <= 1, "a share of the steps, from 0 to 1"),
        ("compute.checkpoint_blocks", 0 <= recipe.compute.checkpoint_blocks <= 1, "a fraction from 0 to 1"),
        ("compute.shard", recipe.compute.shard >= 0, "0 (those of one machine) or more"),
        ("keep.milestones", recipe.keep.milestones >= 0, "0 (none) or more"),
        ("keep.hours", recipe.keep.hours >= 0, "0 (no limit) or more"),
        ("distill.temperature", distill is None or 0 < distill.temperature < math.inf, "above 0"),
        ("distill.top_k", distill is None or distill.top_k >= 0, "0 (all, from the teacher itself) or more"),
        ("seed", 0 <= recipe.seed < 2**63, "from 0 to 2^63"),
        ("threads", 0 <= recipe.threads <= MOST_THREADS, f"from 0 (torch's choice) to {MOST_THREADS}"),
        ("name", NAME.fullmatch(recipe.name), "a name fit for a folder: letters, digits, and . _ + - within"),
    ):
        if not fits:
            raise UsageError(f"{recipe.name!r}: {path} must be {meant}")
    if data.source and data.vocab_size < 257:
        raise UsageError(f"{recipe.name}: data.vocab_size = {data.vocab_size}; end of text and 256 bytes need 257")


def _check_parts(recipe: Recipe) -> None:
    """Settings that exclude or need each other."""
    model, data, schedule = recipe.model, recipe.data, recipe.schedule
    fresh = bool(model.family and model.config)
    steps = tuple(c.at for c in schedule.changes)
    for fits, meant in (
        (fresh != bool(model.from_) and bool(model.family) == fresh, "[model] needs family and config, or from, not both"),
        (sum(map(bool, (data.sources, data.source, data.chat))) == 1, "[data] needs one of sources, source and chat"),
        (not (data.held and data.held_out), "[data] has held or held_out, not both"),
        (not data.held_out or bool(data.source), "data.held_out names documents of data.source; give data.held"),
        (all(_is_weight(w) for w in data.sources.values()), "data.sources gives every folder a weight above 0"),
        (
            (schedule.steps > 0) != (schedule.tokens > 0),
            "schedule.steps or schedule.tokens must be at least 1, not both (0 takes one away)",
        ),
        (min(schedule.steps, schedule.tokens) >= 0, "schedule.steps and schedule.tokens must not be below 0"),
        (schedule.shape != "wsd" or schedule.cooldown > 0, 'schedule.shape "wsd" needs a cooldown above 0'),
        (
            schedule.cooldown == 0 or schedule.shape in ("constant", "wsd"),
            f'schedule.cooldown belongs to the shapes "constant" and "wsd", not to {schedule.shape!r}',
        ),
        (all(0 <= at < 1 for at in steps) and list(steps) == sorted(steps), "schedule.changes come by at, from 0 to below 1"),
        (
            all(map(_is_change, schedule.changes)),
            "schedule.changes give an lr above 0, or a weight_decay of 0 or more, or both",
        ),
    ):
        if not fits:
            raise UsageError(f"{recipe.name}: {meant}")


def _is_weight(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _is_change(change: Change) -> bool:
    rates = change.lr is None or 0 < change.lr < math.inf, change.weight_decay is None or 0 <= change.weight_decay < math.inf
    return all(rates) and (change.lr, change.weight_decay) != (None, None)


def _names(held_out: tuple[str, ...], source: str, path: Path) -> tuple[str, ...]:
    """Held-out names, read from the list beside the recipe where the only one ends in .txt and names that, not a document."""
    listed = path.parent / held_out[0] if len(held_out) == 1 and held_out[0].endswith(".txt") else None
    if listed is None or not listed.is_file() or listed.resolve() == (Path(source) / held_out[0]).resolve():
        return held_out
    return tuple(listed.read_text(encoding="utf-8").split())


def text(recipe: Recipe) -> str:
    """A recipe as TOML that `read` gives back unchanged."""
    raw = {key: value for key, value in dataclasses.asdict(recipe).items() if value is not None}
    raw["model"]["from"] = raw["model"].pop("from_")
    lines = [f"{key} = {_toml(value)}" for key, value in raw.items() if not isinstance(value, dict)]
    for section, table in raw.items():
        if isinstance(table, dict):
            lines += ["", f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def write(recipe: Recipe, path: Path) -> None:
    """Store a recipe as `text` gives it."""
    path.write_text(text(recipe), encoding="utf-8")


def _toml(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_toml(item)}" for key, item in value.items() if item is not None) + "}"
    return repr(value)


def _key(key: str) -> str:
    return key if key.isascii() and key.replace("_", "").replace("-", "").isalnum() else _toml(key)
