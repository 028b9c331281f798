"""One table chooses the implementation of every operation, once per device, and can say why."""

import functools
import importlib
import sys
import warnings
from collections.abc import Callable

from leanlm import env
from leanlm.errors import UsageError

# Operations, and the module that holds the Triton kernels of those that have any.
KERNELS = {
    "grouped_linear": "triton_packed",
    "ternary_linear": "triton_packed",
    "conv": "triton_conv",
    "ssd": "triton_ssd",
    "selective_scan": "triton_scan",
    "telescope": "triton_telescope",
    "rms_norm": "triton_norm",
    "gated_norm": "triton_norm",
}
OPERATIONS = (
    "linear",
    "grouped_linear",
    "ternary_linear",
    "conv",
    "ssd",
    "selective_scan",
    "attend",
    "causal_attend",
    "packed_attend",
    "telescope",
    "rms_norm",
    "layer_norm",
    "gated_norm",
    "rotate",
)
# (operation, device type) -> implementations, best first; "*" stands for every device.
TABLE: dict[tuple[str, str], tuple[str, ...]] = {(op, "*"): ("eager", "reference") for op in OPERATIONS}
TABLE |= {(op, "cuda"): ("triton", "eager", "reference") for op in KERNELS}
TABLE["packed_attend", "cuda"] = ("flash", "eager", "reference")


def implementation(op: str, device: str) -> Callable:
    """The function that performs `op` on tensors of `device`."""
    return choose(op, device, env.IMPL.get())[0]


def explain(op: str, device: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Name of the implementation chosen for `op` on `device`, and (name, reason) of those passed over."""
    _, name, refused = choose(op, device, env.IMPL.get())
    return name, refused


def fallbacks(device: str) -> dict[str, str]:
    """The operations that something else than their best implementation for `device` serves, and why; also those whose kernels
    turned out not to compile."""
    passed = {op: explain(op, device)[1] for op in OPERATIONS}
    found = {op: "; ".join(f"not {name}: {reason}" for name, reason in refused) for op, refused in passed.items() if refused}
    launch = sys.modules.get("leanlm.ops.triton_launch")  # where kernels are used at all
    return found | (launch.BROKEN if launch else {})


@functools.cache
def choose(op: str, device: str, forced: str) -> tuple[Callable, str, tuple[tuple[str, str], ...]]:
    names = TABLE.get((op, device)) or TABLE[op, "*"]
    if forced:
        known = {name for order in TABLE.values() for name in order}
        if forced not in known:
            raise UsageError(f"LEANLM_IMPL={forced}: no such implementation; choose from {', '.join(sorted(known))}")
        # Kernels can be forced on a CPU too, where Triton's interpreter may run them.
        there = forced in names or (forced == "triton" and op in KERNELS)
        names = (forced, *names) if there else names
    refused = []
    for name in names:
        try:
            return load(op, name, device), name, tuple(refused)
        except ImportError as error:
            refused.append((name, str(error)))
            if name == "triton":
                _say_once(f"no GPU kernels here, plain torch serves instead, slower: {error}")
    raise UsageError(f"{op} has no implementation for {device}: {refused}")


def load(op: str, name: str, device: str) -> Callable:
    """The function of this name; raises ImportError with the reason where it cannot run here."""
    if name != "triton":
        return getattr(importlib.import_module(f"leanlm.ops.{name}"), op)
    launch = importlib.import_module("leanlm.ops.triton_launch")
    launch.check(device)
    kernels = getattr(importlib.import_module(f"leanlm.ops.{KERNELS[op]}"), op)
    return launch.guarded(op, kernels, load(op, "eager", device))


@functools.cache
def _say_once(text: str) -> None:
    warnings.warn(text, stacklevel=5)
