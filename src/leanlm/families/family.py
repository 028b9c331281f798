"""What a family is: how a published config and its tensor names are translated, both ways. Loads no torch, knows no files."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from leanlm.errors import CheckpointError
from leanlm.model import config
from leanlm.model.config import ModelConfig


@dataclass(frozen=True)
class Rule:
    """One published tensor and the parameters of ours stacked along its rows (`rows` each, where there are several).

    `interleaved`: per part, the head width whose rotary channels the format stores as neighbouring pairs (0: half-split, as
    ours). `optional`: the file may lack it.
    """

    theirs: str
    ours: tuple[str, ...]
    rows: tuple[int, ...] = ()
    interleaved: tuple[int, ...] = ()
    optional: bool = False


@dataclass(frozen=True)
class Family:
    """A published format.

    `matches(raw)`: whether a config.json is of this family. `to_config(raw, names)`: our config; `names` are the tensors in
    the file, where known, because some formats leave it to them whether the head is tied. `from_config`: a config.json as
    the family publishes it. `rules`: every tensor of the format. `prefixes` may stand before any tensor name and are dropped.
    """

    name: str
    matches: Callable[[dict], bool]
    to_config: Callable[..., ModelConfig]
    from_config: Callable[[ModelConfig], dict]
    rules: Callable[[ModelConfig], list[Rule]]
    prefixes: tuple[str, ...] = ()


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


def eos(raw: Mapping) -> tuple[int, ...]:
    ids = raw.get("eos_token_id")
    return () if ids is None else tuple(ids) if isinstance(ids, list) else (ids,)


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def norm_rules(theirs: str, ours: str, norm: config.Norm) -> list[Rule]:
    kinds = ("weight", "bias") if norm.kind == "layer" else ("weight",)
    return [same(f"{theirs}.{kind}", f"{ours}.{kind}") for kind in kinds]


def linear_rules(theirs: str, ours: str, bias: bool) -> list[Rule]:
    return [same(f"{theirs}.{kind}", f"{ours}.{kind}") for kind in (("weight", "bias") if bias else ("weight",))]


def conv_rules(theirs: str, ours: str, bias: bool = True) -> list[Rule]:
    return linear_rules(theirs, ours, bias)


def stacked_rules(theirs: str, ours: str, parts: Mapping[str, int], bias: bool) -> list[Rule]:
    """A linear layer that holds several of ours, `parts` = our layer -> its rows, in their order."""
    names, rows = tuple(parts), tuple(parts.values())
    kinds = ("weight", "bias") if bias else ("weight",)
    return [Rule(f"{theirs}.{kind}", tuple(f"{ours}.{name}.{kind}" for name in names), rows) for kind in kinds]


def head_rules(config: ModelConfig, theirs: str = "lm_head") -> list[Rule]:
    """The head, which a file may repeat where it is tied to the embedding."""
    if config.tied:
        return [same(f"{theirs}.weight", "embedding.weight", optional=True)]
    return linear_rules(theirs, "head", config.head_bias)


def mamba1_rules(theirs: str, ours: str, mixer: config.Mamba1) -> list[Rule]:
    """Names shared by mamba_ssm and Hugging Face."""
    return [
        *linear_rules(f"{theirs}.in_proj", f"{ours}.in_proj", mixer.bias),
        *conv_rules(f"{theirs}.conv1d", f"{ours}.conv", mixer.conv_bias),
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
        *conv_rules(f"{theirs}.conv1d", f"{ours}.conv", mixer.conv_bias),
        *(same(f"{theirs}.{name}", f"{ours}.{name}") for name in ("dt_bias", "A_log", "D")),
        *linear_rules(f"{theirs}.out_proj", f"{ours}.out_proj", mixer.bias),
    ]
    return [*rules, same(f"{theirs}.norm.weight", f"{ours}.norm_weight")] if mixer.norm else rules
