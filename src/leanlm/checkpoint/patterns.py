"""Modules named by as few regular expressions as tell them from the others. Loads no torch."""

import re
from collections.abc import Collection, Iterable


def module_of(name: str) -> str:
    """The module that has the weight of this name."""
    return name.removesuffix(".weight")


def patterns(wanted: Iterable[str], others: Collection[str]) -> list[str]:
    """Regular expressions, anchored at both ends, for all modules in `wanted` and for none in `others`.

    Modules that differ in layer numbers alone become one expression, unless one of `others` would match it too.
    """
    kinds: dict[str, list[str]] = {}
    for module in wanted:
        escaped = re.escape(module)
        kinds.setdefault(re.sub(r"(?<![^.])\d+(?=\\\.|$)", r"\\d+", escaped), []).append(escaped)
    found = []
    for general, members in kinds.items():
        alone = len(members) > 1 and not any(re.fullmatch(general, other) for other in others)
        found += [f"^{pattern}$" for pattern in ([general] if alone else members)]
    return found
