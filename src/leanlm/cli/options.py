"""Flags that several verbs share: which model, and how tokens are chosen. Loads no torch."""

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from leanlm.generate.sampling import Sampling

StateDtype = Literal["auto", "float32", "bfloat16", "int8"]
CacheDtype = Literal["auto", "float32", "bfloat16", "float16", "int8"]


def optional(cls: type) -> type:
    """The dataclass with every field left out by default (None): a flag not given is told apart from its default."""
    hints = typing.get_type_hints(cls)
    fields = [(f.name, flag(hints[f.name], f), field(default=None)) for f in dataclasses.fields(cls)]
    return dataclasses.make_dataclass("Choice", fields, frozen=True)


def flag(hint, f: dataclasses.Field):
    """The type of one flag, with the field's own help and default."""
    if typing.get_origin(hint) is Literal:  # an empty word is what leaving the flag out means
        hint = Literal[tuple(word for word in typing.get_args(hint) if word)]
    default = "" if f.default in (None, "") else f"(default: {f.default:g})"
    return Annotated[hint | None, tyro.conf.arg(help=f.metadata["help"], help_behavior_hint=default)]


Choice = optional(Sampling)


def sampling(choice: Choice) -> Sampling:
    """Raises UsageError for values that cannot be meant."""
    return Sampling.of(**dataclasses.asdict(choice))


@dataclass(frozen=True)
class Source:
    """Which model, and how it is held."""

    model: str = "builtin"
    """A folder, a name from `leanlm list`, or a hub id."""
    tokenizer: str | None = None
    """Folder, file or hub id of a tokenizer, where the model's own is not wanted or missing."""
    dtype: str = "auto"
    """float32, bfloat16, float16; auto: as stored."""
    format: str | None = None
    """Hold the matrices inside the layers in another format than stored: int8, int4, int4-g64 ... (rounded to nearest),
    ternary (if they are), float."""
    device: str = "cpu"
    """cpu, cuda, cuda:1 ...; auto: a GPU if there is one."""
    state_dtype: StateDtype = "auto"
    """Of recurrent memories; auto: float32, int8: with a scale per row, about a quarter of it."""
    cache_dtype: CacheDtype = "auto"
    """Of keys and values; auto: the model's, int8: half of 16 bits, with a scale per token and head."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    offline: bool = False
    """Use only what is already on disk."""


def load(source: Source):
    """The `leanlm.Model` that the flags ask for."""
    from leanlm.api import load

    model = load(
        source.model,
        dtype=source.dtype,
        device=source.device,
        tokenizer=source.tokenizer,
        revision=source.revision,
        offline=source.offline,
    )
    if source.format:
        from leanlm.quantize import convert

        convert.to_format(model.module, source.format)
    return model.keep_states(*(None if word == "auto" else word for word in (source.state_dtype, source.cache_dtype)))
