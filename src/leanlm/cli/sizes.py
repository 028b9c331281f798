"""Counts and bytes as people read them, and a model's layers in run-length form."""

import dataclasses
from itertools import groupby

from leanlm.model.config import Attention, Mixer, ModelConfig


def count(number: int) -> str:
    """1340000000 -> "1.34B"."""
    for limit, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return str(number)


def size(nbytes: float) -> str:
    """2700000000 -> "2.70 GB": decimal units, three digits."""
    for limit, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if nbytes >= limit:
            return f"{nbytes / limit:.{3 - len(str(int(nbytes // limit)))}f} {unit}"
    return f"{nbytes:.0f} B"


def layers(config: ModelConfig) -> str:
    """Sublayers in order, repeats folded: "4 x (5 mamba2, 2 mlp, attention w=2048)"."""
    runs = [(named(mixer), len(list(same))) for mixer, same in groupby(config.sublayers)]
    period, times = shortest_period(runs)
    inside = ", ".join(f"{n} {name}" if n > 1 else name for name, n in runs[:period])
    rest = ", ".join(f"{n} {name}" if n > 1 else name for name, n in runs[period * times :])
    folded = f"{times} x ({inside})" if times > 1 else inside
    return f"{folded}, {rest}" if rest else folded


def shortest_period(runs: list) -> tuple[int, int]:
    """Length p and repeats k of the prefix for which p + (what is left after k repeats) is shortest."""
    best = (len(runs), 1)
    for p in range(1, len(runs) // 2 + 1):
        k = 1
        while runs[k * p : (k + 1) * p] == runs[:p]:
            k += 1
        written = p + len(runs) - k * p
        if k > 1 and written < best[0] + len(runs) - best[0] * best[1]:
            best = (p, k)
    return best


def named(mixer: Mixer) -> str:
    return f"{mixer.kind} w={mixer.window}" if isinstance(mixer, Attention) and mixer.window else mixer.kind


def details(config: ModelConfig) -> dict[str, str]:
    """Every distinct mixer with its settings, in order of first use: {"mamba2": "d_inner=4096 head_dim=64 ..."}."""
    found = {}
    for mixer in dict.fromkeys(config.sublayers):
        settings = ((f.name, getattr(mixer, f.name)) for f in dataclasses.fields(mixer))
        found.setdefault(named(mixer), " ".join(f"{name}={value}" for name, value in settings if short(value)))
    return found


def short(value) -> bool:
    return value is not None and value is not False and not dataclasses.is_dataclass(value)
