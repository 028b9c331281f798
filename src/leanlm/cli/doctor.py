"""leanlm doctor: what runs here, which implementation serves each operation and why, what is missing, what is set."""

import importlib.metadata
import json
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from leanlm import env

Section = dict[str, object]


@dataclass(frozen=True)
class Command:
    """What this machine offers, which implementation serves each operation and why, what is missing, what is set."""

    json: bool = False
    """Print JSON."""


def run(command: Command) -> None:
    found = {
        "machine": machine(),
        "runtime": runtime(),
        "operations": operations(),
        "optional packages": optional_packages(),
        "environment": environment(),
    }
    if command.json:
        print(json.dumps(found, indent=2))
        return
    for title, section in found.items():
        width = max(map(len, section), default=0) + 2
        print(title, *(f"  {name:{width}}{text}" for name, text in section.items()), sep="\n", end="\n\n")


def machine() -> Section:
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "leanlm": importlib.metadata.version("leanlm"),
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "processor": ", ".join(instruction_sets()) or "instruction sets unknown",
        "vector code of torch": torch.backends.cpu.get_cpu_capability(),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} processors",
        "cuda": ", ".join(devices) or "no device",
        "model cache": str(HF_HUB_CACHE),
    }


def instruction_sets() -> list[str]:
    """The processor's vector extensions that matter to matrix products, as Linux names them; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    wanted = re.compile(r"avx|fma$|f16c|amx|asimd|sve|bf16|i8mm")
    return [flag for flag in flags[1].split() if wanted.match(flag)] if flags else []


def runtime() -> Section:
    """What runs models on the CPU, and why."""
    from leanlm.runtime import unavailable

    if env.IMPL.get():
        return {"cpu": f"the modules themselves, because LEANLM_IMPL is {env.IMPL.get()}"}
    if reason := unavailable():
        return {"cpu": f"the modules themselves, slower; {reason}"}
    from leanlm.ops import native

    library = native.library()
    return {"cpu": f"native library, {library.leanlm_isa().decode()}, {library.leanlm_threads()} threads"}


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
