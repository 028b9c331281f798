"""What a process computes with: peak rate and memory, of known GPUs from their makers' tables, of this machine measured."""

import functools
import os
import time
from dataclasses import dataclass

import torch

from leanlm.errors import UsageError

MEASURED = 0.3  # seconds that measuring a processor may take
SIZE = 1024  # rows of the matrices it multiplies


@dataclass(frozen=True)
class Device:
    """`half` and `single` are the peak rates, in FLOP/s, of dense products in 16 bits and in float32; memory in bytes."""

    name: str
    half: float
    single: float
    memory: float
    gpu: bool = True

    def peak(self, dtype: str) -> float:
        return self.single if dtype == "float32" else self.half


GPUS = {
    "v100": Device("V100", 125e12, 15.7e12, 16e9),
    "a100": Device("A100", 312e12, 19.5e12, 80e9),
    "h100": Device("H100", 989e12, 67e12, 80e9),
    "h200": Device("H200", 989e12, 67e12, 141e9),
    "b200": Device("B200", 2250e12, 80e12, 180e9),
}


def named(name: str) -> Device:
    """A GPU of the table, or "here": this machine's. Raises UsageError naming those there are."""
    if name == "here":
        return here()
    if name.lower() not in GPUS:
        raise UsageError(f"device {name!r}: choose here, {', '.join(GPUS)}")
    return GPUS[name.lower()]


@functools.cache
def here() -> Device:
    """The first GPU, with its own memory, where there is one that the table knows; else this processor, measured."""
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        for key, device in GPUS.items():
            if key in found.name.lower():
                return Device(found.name, device.half, device.single, found.total_memory)
        rate = measured("cuda")
        return Device(found.name, measured("cuda", torch.bfloat16), rate, found.total_memory)
    rate = measured("cpu")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return Device(f"this processor, {torch.get_num_threads()} threads", rate, rate, memory, gpu=False)


def measured(device: str, dtype: torch.dtype = torch.float32) -> float:
    """FLOP/s of a product of large matrices: the fastest of some, in about a third of a second."""
    a = torch.ones(SIZE, SIZE, device=device, dtype=dtype)
    a @ a
    until, best = time.perf_counter() + MEASURED, 0.0
    while time.perf_counter() < until:
        _wait(device)
        began = time.perf_counter()
        a @ a
        _wait(device)
        best = max(best, 2 * SIZE**3 / (time.perf_counter() - began))
    return best


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
