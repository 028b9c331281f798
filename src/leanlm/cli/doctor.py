"""leanlm doctor: what runs here, which implementation serves each operation and why, what is missing, what is set."""

import importlib.metadata
import json
import os
import platform
import re
from dataclasses import dataclass

from leanlm import env

Section = dict[str, object]

# Shapes whose decoding speed is estimated from the rate at which memory is read, and what their layers are held in.
EXPECTED = {"mamba2-370m": "int4", "trilm-390m": "ternary", "rene": "int4"}


@dataclass(frozen=True)
class Command:
    """What this machine offers, which implementation serves each operation and why, what is missing, what is set."""

    json: bool = False
    """Print JSON."""


def run(command: Command) -> None:
    found = {
        "machine": machine(),
        "runtime": runtime(),
        "speed": speed(),
        "gpu": gpu(),
        "operations": operations(),
        "optional packages": optional_packages(),
        "environment": environment(),
    }
    if command.json:
        print(json.dumps(found, indent=2))
        return
    notes = {"speed": " (an estimate: 80 % of a plain read's rate over the bytes of a token)"}
    for title, section in found.items():
        width = max(map(len, section), default=0) + 2
        print(
            title + notes.get(title, ""), *(f"  {name:{width}}{text}" for name, text in section.items()), sep="\n", end="\n\n"
        )


def machine() -> Section:
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    from leanlm.runtime.machine import instruction_sets

    return {
        "leanlm": importlib.metadata.version("leanlm"),
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "processor": ", ".join(instruction_sets()) or "instruction sets unknown",
        "vector code of torch": torch.backends.cpu.get_cpu_capability(),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} processors",
        "model cache": str(HF_HUB_CACHE),
    }


def runtime() -> Section:
    """What runs models on the CPU, and why."""
    from leanlm.runtime import unavailable

    if env.IMPL.get():
        return {"cpu": f"the modules themselves, because LEANLM_IMPL is {env.IMPL.get()}"}
    if reason := unavailable():
        return {"cpu": f"the modules themselves, slower; {reason}"}
    from leanlm.runtime import machine

    return {
        "cpu": f"native library, {machine.instruction_set()}, {machine.threads()} threads",
        "states": "scans in float32 and bfloat16, telescoping caches in float32; others (int8) the modules run, slower",
        "instruction sets": f"{', '.join(machine.available_sets())} of {', '.join(machine.SETS)}",
    }


def speed() -> Section:
    """How fast memory is read, in GB/s, and the tokens per second that lets one expect; empty without the native library."""
    from leanlm.runtime import unavailable

    if unavailable():
        return {}
    from leanlm.families import catalog
    from leanlm.model import format
    from leanlm.runtime import machine

    rates = machine.read_rates()
    found: Section = {f"GB/s, {n} thread{'s' if n > 1 else ''}": round(rate / 1e9, 1) for n, rate in rates.items()}
    for name, scheme in EXPECTED.items():
        entry = catalog.resolve(name)
        held = entry.format if scheme == "ternary" else format.parse(scheme)
        rate = machine.expected_rate(entry.model, held, max(rates.values()))
        found[f"tokens/s to expect, {entry.name} in {scheme}"] = round(rate, 1)
    return found


def gpu() -> Section:
    """Every CUDA device, its measured rates, and what runs models there; why there is none."""
    import torch

    from leanlm.runtime import card

    if not torch.cuda.is_available():
        return {"cuda": "torch was built without CUDA" if torch.version.cuda is None else "no device"}
    found: Section = {f"cuda:{i}": card.describe(i) for i in range(torch.cuda.device_count())}
    found["kernels"] = kernels()
    found["GB/s, read and written by a copy"] = round(card.copy_rate() / 1e9)
    for dtype in (torch.bfloat16, torch.float32):
        word = str(dtype).removeprefix("torch.")
        found[f"TFLOP/s, a large product in {word}"] = round(card.matrix_rate(dtype) / 1e12, 1)
    return found


def kernels() -> str:
    """What the GPU kernels are compiled by, or why there are none, or not on every card."""
    try:
        from leanlm.ops import triton_launch

        triton_launch.check("cuda")
    except ImportError as error:
        return f"plain torch, slower; {error}"
    import torch

    old = {f"cuda:{number}": triton_launch.too_old(number) for number in range(torch.cuda.device_count())}
    without = (f"plain torch on {name}, slower: {reason}" for name, reason in old.items() if reason)
    return "; ".join([f"Triton {importlib.metadata.version('triton')}", *without])


def operations() -> Section:
    """The implementation chosen per operation and device, and why better ones were passed over."""
    import torch

    from leanlm.ops import dispatch

    found = {}
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for op in dispatch.OPERATIONS:
            name, refused = dispatch.explain(op, device)
            passed = "; ".join(f"not {other}: {reason}" for other, reason in refused)
            found[f"{op} ({device})"] = f"{name} ({passed})" if passed else name
    return found


def optional_packages() -> Section:
    """Every package of every extra: its version, or the extra that installs it."""
    found = {}
    for requirement in importlib.metadata.requires("leanlm") or ():
        package = re.match(r"[\w.-]+", requirement)[0]
        extra = re.search(r"""extra\s*==\s*["']([\w-]+)["']""", requirement)
        if extra:
            try:
                found[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                found[package] = f"missing; pip install 'leanlm[{extra[1]}]'"
    return found


def environment() -> Section:
    """Every variable leanlm reads, its value (a token only as set) and its meaning."""
    found = {}
    for variable in env.VARIABLES:
        value = variable.get()
        shown = "(set)" if value and variable is env.HF_TOKEN else value or "(not set)"
        found[variable.name] = f"{shown}  {variable.meaning}"
    return found
