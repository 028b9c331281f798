"""This machine as the native library sees it: instruction sets, threads, the rate at which memory is read, and what that
lets one expect of a model."""

import dataclasses
import re
import time
from pathlib import Path

import torch
from torch import Tensor

from leanlm import runtime
from leanlm.model import cost
from leanlm.model.config import Attention, ModelConfig
from leanlm.model.format import Format
from leanlm.ops.pages import Arena

BLOCK = 256 << 20  # bytes of a read, beyond caches
BUDGET = 0.4  # seconds that measuring one rate may take
SHARE = 0.8  # of the rate of a plain read that decoding is expected to reach
SETS = ("portable", "avx2", "avx512")


def processor() -> str:
    """Its name; empty where the system does not tell."""
    found = re.search(r"^model name\s*:\s*(.*)$", _cpuinfo(), re.MULTILINE)
    return found[1] if found else ""


def instruction_sets() -> list[str]:
    """The processor's vector extensions that matter to matrix products, as Linux names them; empty elsewhere."""
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", _cpuinfo(), re.MULTILINE)
    wanted = re.compile(r"avx|fma$|f16c|amx|asimd|sve|bf16|i8mm")
    return [flag for flag in flags[1].split() if wanted.match(flag)] if flags else []


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def instruction_set() -> str:
    """The one that the library uses."""
    return _library().leanlm_isa().decode()


def available_sets() -> list[str]:
    """Those of the library's that this processor has."""
    library, chosen = _library(), instruction_set()
    try:
        return [name for name in SETS if not library.leanlm_set_isa(name.encode())]
    finally:
        library.leanlm_set_isa(chosen.encode())


def threads() -> int:
    return _library().leanlm_threads()


def set_threads(count: int) -> None:
    """Of the library, where there is one, and of torch."""
    torch.set_num_threads(count)
    if not runtime.unavailable():
        _library().leanlm_set_threads(count)


def read_seconds(block: Tensor, times: int = 1) -> float:
    """Seconds of a plain read of the block by the library's threads, the mean of so many in a row."""
    library = _library()
    began = time.perf_counter()
    for _ in range(times):
        library.leanlm_read(block.data_ptr(), block.nbytes)
    return (time.perf_counter() - began) / times


def read_rates() -> dict[int, float]:
    """Bytes per second of plain reads by one thread and by all, by their number; the fastest of some, in about a second."""
    block, all_threads, library, found = Arena(BLOCK).zeros((BLOCK,), torch.uint8).fill_(1), threads(), _library(), {}
    try:
        for count in sorted({1, all_threads}):
            library.leanlm_set_threads(count)
            found[count] = block.nbytes / _fastest(block)
    finally:
        library.leanlm_set_threads(all_threads)
    return found


def _fastest(block: Tensor) -> float:
    until, best = time.perf_counter() + BUDGET, float("inf")
    while time.perf_counter() < until:
        best = min(best, read_seconds(block))
    return best


def decode_bytes(config: ModelConfig, format: Format) -> int:
    """Bytes that a token moves at the beginning of a text: the matrices inside the layers in `format`, the rest in 16 bits, of
    an embedding apart from the head one row; the state read and written."""
    table = 0 if config.tied else 2 * (config.padded_vocab_size - 1) * config.d_model
    return cost.weight_bytes(config, format) - table + 2 * cost.state_bytes(_unbounded(config), capacity=1)


def _unbounded(config: ModelConfig) -> ModelConfig:
    """With attention that keeps as many keys as there is room for, instead of a window of them."""
    layers = (
        tuple(dataclasses.replace(mixer, window=None) if isinstance(mixer, Attention) else mixer for mixer in layer)
        for layer in config.layers
    )
    return dataclasses.replace(config, layers=tuple(layers))


def expected_rate(config: ModelConfig, format: Format, read_rate: float) -> float:
    """Tokens per second of decoding to expect where memory is read at `read_rate` bytes per second: an estimate."""
    return SHARE * read_rate / decode_bytes(config, format)


def _library():
    from leanlm.ops import native  # ImportError where it was not built

    return native.library()
