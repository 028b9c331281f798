"""What a family is: how a published config and its tensor names are translated, both ways. Loads no torch, knows no files."""

import dataclasses
import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from leanlm.errors import CheckpointError, UsageError
from leanlm.model import config
from leanlm.model.config import ModelConfig


@dataclass(frozen=True)
class Rule:
    """One published tensor and the parameters of ours stacked along its rows (`rows` each, where there are several).

    `interleaved`: per part, the head width whose rotary channels the format stores as neighbouring pairs (0: half-split, as
    ours). `columns`: the same for the columns, in all. `optional`: the file may lack it.
    """

    theirs: str
    ours: tuple[str, ...]
    rows: tuple[int, ...] = ()
    interleaved: tuple[int, ...] = ()
    columns: int = 0
    optional: bool = False


@dataclass(frozen=True)
class Family:
    """A published format.

    `matches(raw)`: whether a config.json is of this family. `read(raw, names)` and `write(config)` are the bare translations
    of `to_config` and `from_config`. `rules`: every tensor of the format. `prefixes` may stand before any tensor name, in
    this order, and are dropped. `pickled`: the original reads its weights only as a torch
    pickle with a tied head repeated.
    """

    name: str
    matches: Callable[[dict], bool]
    read: Callable[[dict, Collection[str]], ModelConfig]
    write: Callable[[ModelConfig], dict]
    rules: Callable[[ModelConfig], list[Rule]]
    prefixes: tuple[str, ...] = ()
    pickled: bool = False

    def to_config(self, raw: dict, names: Collection[str] = frozenset()) -> ModelConfig:
        """Our config of a published one. `names` are the tensors in the file, where known: some formats leave it to them
        whether the head is tied. Raises CheckpointError naming the key that is missing, mistyped or not supported."""
        try:
            config = self.read(raw, names)
            _check_types(config)
        except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
            raise CheckpointError(f"config.json: a {self.name} setting has the wrong type or value ({error})") from None
        return config

    def to_fresh_config(self, raw: dict, path: str) -> ModelConfig:
        """`to_config` for a model that is to be made. Raises UsageError for a setting under `path` that means nothing."""
        watched = Watched(raw)
        config = self.to_config(watched)
        watched.seen |= {"model_type", "architectures", *self.write(config)}  # what is published without having an effect
        for name, seen in watched.unread(path):
            near = difflib.get_close_matches(name.rpartition(".")[2], seen, 1)
            raise UsageError(f"{name}: unknown to {self.name}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return config

    def from_config(self, config: ModelConfig) -> dict:
        """A config.json as the family publishes it; raises CheckpointError where the format cannot say what the model is."""
        try:
            raw = self.write(config)
            read = self.to_config(raw)
        except (CheckpointError, TypeError, ValueError, AttributeError, LookupError) as error:
            raise CheckpointError(f"the {self.name} format cannot hold this model ({error})") from None
        # Formats without a padding rule know only the padded vocabulary.
        if dataclasses.replace(config, vocab_size=read.vocab_size) != read:
            lost = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(read, f.name)]
            raise CheckpointError(f"the {self.name} format cannot hold this model: it would lose {', '.join(lost)}")
        return raw


class Watched(dict):
    """A table of settings that knows which of them were looked at."""

    def __init__(self, raw: Mapping):
        super().__init__({key: Watched(value) if isinstance(value, dict) else value for key, value in raw.items()})
        self.seen: set[str] = set()

    def __getitem__(self, key):
        self.seen.add(key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        self.seen.add(key)
        return super().get(key, default)

    def __contains__(self, key) -> bool:
        self.seen.add(key)
        return super().__contains__(key)

    def unread(self, path: str) -> Iterator[tuple[str, set[str]]]:
        """Every setting that was not looked at, by its dotted name after `path`, and those that were beside it."""
        for key, value in self.items():
            if key not in self.seen:
                yield f"{path}.{key}", self.seen
            elif isinstance(value, Watched) and value.seen:
                yield from value.unread(f"{path}.{key}")


def _check_types(config: ModelConfig) -> None:
    """Every setting has the type it is declared with; each different mixer is looked at once."""
    distinct = tuple(dict.fromkeys(config.sublayers))
    ModelConfig.from_dict(dataclasses.replace(config, layers=(distinct,)).to_dict())


def same(theirs: str, ours: str, **options) -> Rule:
    return Rule(theirs, (ours,), **options)


def need(raw: Mapping, key: str, family: str):
    """raw[key]; raises CheckpointError naming key and family where it is missing."""
    if raw.get(key) is None:
        raise CheckpointError(f"config.json: {key!r} is missing, and a {family} checkpoint needs it")
    return raw[key]


def only(raw: Mapping, key: str, allowed: Collection, default, family: str):
    """raw[key] (or the default), which must be one of `allowed`; raises CheckpointError otherwise."""
    value = raw.get(key, default)
    if value not in allowed:
        choices = ", ".join(map(str, allowed))
        raise CheckpointError(f"config.json: {key} = {value!r} is not supported for {family} (only {choices})")
    return value


def number(value) -> float:
    """A JSON number; transformers 5 writes infinities as {"__float__": "Infinity"}."""
    return float(value["__float__"]) if isinstance(value, dict) else float(value)


def limits(raw: Mapping, key: str) -> tuple[float, float | None]:
    """The range dt is clamped to, from raw[key] = [low, high]; no limits where it is missing, None for an infinite high."""
    low, high = (number(value) for value in raw.get(key) or (0.0, float("inf")))
    return low, None if high == float("inf") else high


def tokens(raw: Mapping, context: int | None = None) -> dict:
    """Context length (`context` where the config has none) and special tokens, as ModelConfig's keyword arguments."""
    eos = raw.get("eos_token_id")
    return {
        "context_length": raw.get("max_position_embeddings", context),
        "bos_id": raw.get("bos_token_id"),
        "eos_ids": tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        "pad_id": raw.get("pad_token_id"),
    }


def token_settings(config: ModelConfig, nulls: bool = True) -> dict:
    """The inverse of `tokens`; `nulls` writes absent tokens as null, for readers that have defaults of their own."""
    eos = config.eos_ids[0] if len(config.eos_ids) == 1 else list(config.eos_ids) or None
    ids = {"bos_token_id": config.bos_id, "eos_token_id": eos, "pad_token_id": config.pad_id}
    raw = {key: value for key, value in ids.items() if nulls or value is not None}
    return raw if config.context_length is None else {"max_position_embeddings": config.context_length, **raw}


def check_heads(heads: int | None, head_dim: int, inner: int, key: str) -> None:
    """Raises CheckpointError unless `heads`, where given, of `head_dim` make up the inner width."""
    if heads and heads * head_dim != inner:
        raise CheckpointError(f"config.json: {key} = {heads} heads of {head_dim} channels do not make up {inner}")


def layers_at(raw: Mapping, key: str, n_layers: int) -> frozenset[int]:
    """The layers that raw[key] lists; raises CheckpointError where the model has none of that number."""
    listed = raw.get(key) or []
    if not isinstance(listed, list | tuple) or not all(type(i) is int for i in listed):
        raise CheckpointError(f"config.json: {key} = {listed!r} is no list of layers")
    at = frozenset(listed)
    if beyond := [i for i in at if not 0 <= i < n_layers]:
        raise CheckpointError(f"config.json: {key} names layer {beyond[0]}, and the model has layers 0 to {n_layers - 1}")
    return at


def ratio(inner: int, width: int) -> int | float:
    """A factor that int(factor * width) turns back into `inner`: whole where it can be."""
    if inner % width == 0:
        return inner // width
    return inner / width if int(inner / width * width) == inner else (inner + 0.5) / width


def padding(config: ModelConfig) -> int:
    """The multiple to which the vocabulary is padded: the smallest usual one that gives the padded size."""
    fits = (m for m in (1, 8, 16, 32, 64, 128, 256) if round_up(config.vocab_size, m) == config.padded_vocab_size)
    return next(fits, config.padded_vocab_size)


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def linear_rules(theirs: str, ours: str, bias: bool) -> list[Rule]:
    """weight, and bias where there is one: of a linear layer, a convolution or a norm."""
    return [same(f"{theirs}.{kind}", f"{ours}.{kind}") for kind in (("weight", "bias") if bias else ("weight",))]


def norm_rules(theirs: str, ours: str, norm: config.Norm) -> list[Rule]:
    return linear_rules(theirs, ours, norm.kind == "layer")


def stacked_rules(
    theirs: str, ours: str, parts: Mapping[str, int], bias: bool, interleaved: tuple[int, ...] = ()
) -> list[Rule]:
    """A linear layer that holds several of ours, `parts` = our layer -> its rows, in their order."""
    names, rows = tuple(parts), tuple(parts.values())
    kinds = ("weight", "bias") if bias else ("weight",)
    return [Rule(f"{theirs}.{kind}", tuple(f"{ours}.{name}.{kind}" for name in names), rows, interleaved) for kind in kinds]


def head_rules(config: ModelConfig, theirs: str = "lm_head") -> list[Rule]:
    """The head, which a file may repeat where it is tied to the embedding."""
    if config.tied:
        return [same(f"{theirs}.weight", "embedding.weight", optional=True)]
    return linear_rules(theirs, "head", config.head_bias)


def mamba1_rules(theirs: str, ours: str, mixer: config.Mamba1) -> list[Rule]:
    """Names shared by mamba_ssm and Hugging Face."""
    return [
        *linear_rules(f"{theirs}.in_proj", f"{ours}.in_proj", mixer.bias),
        *linear_rules(f"{theirs}.conv1d", f"{ours}.conv", mixer.conv_bias),
        same(f"{theirs}.x_proj.weight", f"{ours}.x_proj.weight"),
        *linear_rules(f"{theirs}.dt_proj", f"{ours}.dt_proj", True),
        same(f"{theirs}.A_log", f"{ours}.A_log"),
        same(f"{theirs}.D", f"{ours}.D"),
        *linear_rules(f"{theirs}.out_proj", f"{ours}.out_proj", mixer.bias),
    ]


def mamba2_rules(theirs: str, ours: str, mixer: config.Mamba2) -> list[Rule]:
    """Names shared by mamba_ssm, Rene and Hugging Face."""
    rules = [
        *linear_rules(f"{theirs}.in_proj", f"{ours}.in_proj", mixer.bias),
        *linear_rules(f"{theirs}.conv1d", f"{ours}.conv", mixer.conv_bias),
        *(same(f"{theirs}.{name}", f"{ours}.{name}") for name in ("dt_bias", "A_log", "D")),
        *linear_rules(f"{theirs}.out_proj", f"{ours}.out_proj", mixer.bias),
    ]
    return [*rules, same(f"{theirs}.norm.weight", f"{ours}.norm_weight")] if mixer.norm else rules
