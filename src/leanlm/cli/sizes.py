"""Counts and bytes as people read them, and a model's layers in run-length form."""

import dataclasses
from itertools import groupby

from leanlm.model.config import Attention, Mixer, ModelConfig, Telescoping

Run = tuple[str, int]  # a sublayer's name, how often it comes in a row


def count(number: float) -> str:
    """1340000000 -> "1.34B"."""
    return scaled(number, "", "k", "M", "B")


def size(nbytes: float) -> str:
    """2700000000 -> "2.70 GB": decimal units, three digits."""
    return scaled(nbytes, " B", " kB", " MB", " GB")


def scaled(number: float, *units: str) -> str:
    power = next((p for p in (3, 2, 1) if number >= 1000**p), 0)
    value = number / 1000**power
    digits = 3 - len(str(int(value))) if power else 0
    return f"{value:.{max(digits, 0)}f}{units[power]}"


def layers(config: ModelConfig) -> str:
    """Sublayers in order, repeats folded: "4 x (5 mamba2, 2 mlp, attention w=2048)"."""
    return folded([(name, len(list(same))) for name, same in groupby(map(named, config.sublayers))])


def named(mixer: Mixer) -> str:
    if isinstance(mixer, Telescoping):
        return f"{mixer.kind} c={mixer.slots}"
    return f"{mixer.kind} w={mixer.window}" if isinstance(mixer, Attention) and mixer.window else mixer.kind


def folded(runs: list[Run]) -> str:
    """Left to right, each time the repetition that leaves out most."""
    parts, at = [], 0
    while at < len(runs):
        length, times = longest_repeat(runs[at:])
        if times > 1:
            parts.append(f"{times} x ({folded(runs[at : at + length])})")
        else:
            name, n = runs[at]
            parts.append(f"{n} {name}" if n > 1 else name)
        at += length * times
    return ", ".join(parts)


def longest_repeat(runs: list[Run]) -> tuple[int, int]:
    """(length, times) of the repetition at the start of `runs` that covers most beyond its first turn; (1, 1) if none."""
    best, saved = (1, 1), 0
    for length in range(1, len(runs) // 2 + 1):
        times = 1
        while runs[length * times : length * (times + 1)] == runs[:length]:
            times += 1
        if length * (times - 1) > saved:
            best, saved = (length, times), length * (times - 1)
    return best


def settings(config: ModelConfig) -> dict[str, str]:
    """Every distinct kind of sublayer with its numbers, defaults left out, in order of first use:
    {"mamba2": "d_inner=4096 head_dim=64", "attention": ...}."""
    found = {}
    for mixer in dict.fromkeys(config.sublayers):
        chosen = ((f.name, getattr(mixer, f.name)) for f in dataclasses.fields(mixer) if getattr(mixer, f.name) != f.default)
        found.setdefault(named(mixer), " ".join(f"{name}={_word(value)}" for name, value in chosen))
    return found


def _word(value) -> str:
    if not dataclasses.is_dataclass(value):
        return str(value)
    return "(" + ", ".join(f"{f.name}={_word(getattr(value, f.name))}" for f in dataclasses.fields(value)) + ")"
