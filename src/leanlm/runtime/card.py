"""A CUDA device: what it is, how fast its memory is read and written, and how fast it multiplies matrices."""

import functools
import time

import torch

BLOCK = 1 << 30  # bytes of a copy, beyond caches
SIZE = 8192  # of the matrices
ROUNDS = 10


def wait(device: torch.device) -> None:
    """Until all that was asked of it is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    """Gives the memory that no tensor has back to the device, for other processes."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def describe(number: int) -> str:
    """Name, compute capability, memory and multiprocessors."""
    found = torch.cuda.get_device_properties(number)
    size, capability = found.total_memory / 1e9, f"{found.major}.{found.minor}"
    return f"{found.name}, compute capability {capability}, {size:.0f} GB, {found.multi_processor_count} multiprocessors"


@functools.lru_cache(maxsize=1)
def _block(nbytes: int) -> torch.Tensor:
    return torch.ones(-(-nbytes // 4), device="cuda")


def read_seconds(nbytes: int, times: int) -> float:
    """Seconds of a plain read of so many bytes (their sum), the mean of so many in a row: of a block of at most `BLOCK`, as
    often as that takes, so that models have the rest of the memory."""
    pieces = -(-nbytes // BLOCK)
    block = _block(-(-nbytes // pieces))
    return pieces * _seconds(lambda: block.sum(), pieces * times)


def copy_rate() -> float:
    """Bytes per second read and written by a plain copy."""
    size = min(BLOCK, torch.cuda.mem_get_info()[0] // 4)
    source, target = (torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2))
    return 2 * size / _seconds(lambda: target.copy_(source), ROUNDS)


def matrix_rate(dtype: torch.dtype) -> float:
    """Operations per second of a large product in this dtype."""
    a, b = (torch.randn(SIZE, SIZE, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * SIZE**3 / _seconds(lambda: a @ b, ROUNDS)


def _seconds(work, times: int) -> float:
    """The mean of so many in a row, after one."""
    work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / times
