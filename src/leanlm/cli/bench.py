"""leanlm bench MODEL: tokens per second, the bytes they move, and other programs on the same weights."""

import json
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from leanlm import env
from leanlm.cli import options
from leanlm.errors import UsageError

Append = tyro.conf.UseAppendAction


@dataclass(frozen=True)
class Command:
    """Measure MODEL on a CPU or a CUDA device: prefill and decode in tokens per second, the bytes that a token moves, and the
    share they reach of the rate at which memory is read, measured in the same run. --peer runs another program on the same
    weights in turn. Every side is a process of its own; medians are told, with their spread.

    Random weights (--random) need no download and change no speed."""

    model: tyro.conf.Positional[str] = "builtin"
    """A folder, a name from `leanlm list`, or a hub id; with --random a config.json will do."""
    random: bool = False
    """Random weights in the model's shape; ternary ones with --format ternary."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the floats; auto: as stored, random ones bfloat16."""
    format: str | None = None
    """Of the matrices inside the layers: int8, int4, int4-g32 ... (rounded to nearest), ternary, float."""
    embedding: str | None = None
    """Format of the embedding, and of a head tied to it; floats by default."""
    head: str | None = None
    """Format of an untied head."""
    state_dtype: options.StateDtype = "auto"
    """Of recurrent memories; auto: float32."""
    cache_dtype: options.CacheDtype = "auto"
    """Of keys and values; auto: the model's."""
    context: tuple[int, ...] = (0,)
    """Tokens before those decoded; several are measured one after the other."""
    batch: tuple[int, ...] = (1,)
    """Texts at once; several are measured one after the other, and those that memory does not hold are told."""
    prompt: int = 512
    """Tokens of prefill."""
    new: int = 32
    """Tokens decoded in a turn."""
    repeats: int = 5
    """Turns of every measurement, after one to warm up."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where every side runs."""
    threads: int | None = None
    """Of every side; as many as there are physical cores by default."""
    peer: Append[tuple[Literal["llama.cpp", "transformers"], ...]] = ()
    """Another program to run in turn; may be repeated."""
    peer_type: Literal["auto", "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q4_0", "TQ1_0", "TQ2_0", "Q2_0"] = "auto"
    """What its weights are rounded to; auto: as ours are, exactly (transformers: to the floats' dtype)."""
    peer_option: Annotated[Append[tuple[str, ...]], tyro.conf.arg(metavar="OPTION=VALUE")] = ()
    """llama.cpp: flash_attn=auto|on|off, kv=f16|f32|bf16|q8_0; transformers: attn=auto|sdpa|eager; may be repeated."""
    profile: bool = False
    """Also time every kind of step of one token and of a piece of the prompt."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    offline: bool = False
    """Use only what is already on disk."""
    json: bool = False
    """Print JSON."""


def run(command: Command) -> None:
    settings = check(command)
    from leanlm.bench import speed

    subject = speed.Subject(
        command.model,
        command.random,
        given(command.dtype),
        command.format,
        command.embedding,
        command.head,
        command.revision,
        command.offline,
    )
    try:
        found = speed.measure(subject, settings, progress)
    finally:
        progress("")
    if command.json:
        print(json.dumps(found, indent=2))
    else:
        from leanlm.cli import bench_tables

        bench_tables.show(found)


def check(command: Command):
    """The `speed.Settings` asked for; raises UsageError for flags that cannot be meant, before anything is loaded."""
    from leanlm.bench import peers, speed

    for name in ("prompt", "new", "repeats", "threads", "batch", "context"):
        value = getattr(command, name)
        least = 0 if name == "context" else 1
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and number < least:
                raise UsageError(f"--{name} {number}: must be at least {least}")
    if command.threads and command.threads > env.MOST_THREADS:
        raise UsageError(f"--threads {command.threads}: at most {env.MOST_THREADS}")
    for name in ("context", "batch"):
        if not getattr(command, name):
            raise UsageError(f"--{name}: give at least one number")
    if command.peer_type != "auto" and not command.peer:
        raise UsageError(f"--peer-type {command.peer_type} says how a peer's weights are held, and there is no --peer")
    return speed.Settings(
        contexts=command.context,
        batches=command.batch,
        prompt=command.prompt,
        new=command.new,
        repeats=command.repeats,
        threads=command.threads,
        device=command.device,
        state_dtype=given(command.state_dtype),
        cache_dtype=given(command.cache_dtype),
        profile=command.profile,
        peers=tuple(dict.fromkeys(command.peer)),
        peer_type=command.peer_type,
        peer_options=peers.parse_options(command.peer, command.peer_option),
    )


def given(word: str) -> str | None:
    return None if word == "auto" else word


def progress(text: str) -> None:
    """One line on the terminal, written over by the next; nothing elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
