"""One table chooses the implementation of every operation, once per device, and can say why."""

import functools
import importlib
from collections.abc import Callable

from leanlm import env
from leanlm.errors import UsageError

# (operation, device type) -> implementations, best first; "*" stands for every device.
OPERATIONS = (
    "linear",
    "grouped_linear",
    "ternary_linear",
    "conv",
    "ssd",
    "selective_scan",
    "attend",
    "causal_attend",
    "telescope",
    "rms_norm",
    "layer_norm",
    "gated_norm",
    "rotate",
)
TABLE: dict[tuple[str, str], tuple[str, ...]] = {(op, "*"): ("eager", "reference") for op in OPERATIONS}


def implementation(op: str, device: str) -> Callable:
    """The function that performs `op` on tensors of `device`."""
    return choose(op, device, env.IMPL.get())[0]


def explain(op: str, device: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Name of the implementation chosen for `op` on `device`, and (name, reason) of those passed over."""
    _, name, refused = choose(op, device, env.IMPL.get())
    return name, refused


@functools.cache
def choose(op: str, device: str, forced: str) -> tuple[Callable, str, tuple[tuple[str, str], ...]]:
    names = TABLE.get((op, device)) or TABLE[op, "*"]
    if forced:
        known = {name for order in TABLE.values() for name in order}
        if forced not in known:
            raise UsageError(f"LEANLM_IMPL={forced}: no such implementation; choose from {', '.join(sorted(known))}")
        names = (forced, *names) if forced in names else names
    refused = []
    for name in names:
        try:
            return getattr(importlib.import_module(f"leanlm.ops.{name}"), op), name, tuple(refused)
        except ImportError as error:
            refused.append((name, str(error)))
    raise UsageError(f"{op} has no implementation for {device}: {refused}")
