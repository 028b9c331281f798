"""How near products come to the machine: one row against a plain read of as many bytes, many rows against torch.

    python -m leanlm.bench.kernels [--rows 4096] [--columns 4096] [--rounds 9] [--threads 2]

A round times every entry once, in turn, each over its own copies of the matrix that together leave no cache of use.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from leanlm.model.format import Grouped
from leanlm.model.packed import GroupedWeight, TernaryWeight
from leanlm.ops import native, packing

BEYOND_CACHES = 256 << 20  # bytes that the copies of a matrix take together
FORMATS = ("float32", "bfloat16", "float16", "int8", "int8-g128", "int6", "int4-g128", "int4-g32", "int3-g128", "ternary")


def matrix(format: str, R: int, n: int) -> torch.Tensor | GroupedWeight | TernaryWeight:
    """A random matrix [R, n]."""
    if "float" in format:
        return torch.randn(R, n).to(getattr(torch, format))
    if format == "ternary":
        trits = torch.randint(-1, 2, (R, n), dtype=torch.int8)
        return TernaryWeight.of(packing.Trits(trits, torch.tensor([0.02]).half(), torch.zeros(1, dtype=torch.int32), True))
    bits, _, group = format.removeprefix("int").partition("-g")
    grouped = Grouped(int(bits), int(group or 0))
    codes = torch.randint(1 << grouped.bits, (R, n), dtype=torch.uint8)
    return GroupedWeight.of(grouped, codes, torch.rand(R, grouped.groups(n)).half() / 100)


class Copies:
    """Copies of one matrix, multiplied one after the other."""

    def __init__(self, format: str, R: int, n: int):
        first = matrix(format, R, n)
        tensors = [first] if isinstance(first, torch.Tensor) else list(first.buffers())
        self.nbytes = sum(tensor.nbytes for tensor in tensors)
        self.main = max(tensors, key=lambda tensor: tensor.nbytes)
        count = max(2, BEYOND_CACHES // self.nbytes)
        self.weights = [native.weight_of(_copy(first)) for _ in range(count)]

    def seconds(self, x: torch.Tensor, precision: int) -> float:
        """Mean time of one product."""
        y, lib = torch.empty(len(x), self.weights[0].rows), native.library()
        began = time.perf_counter()
        for weight in self.weights:
            product = native.Product(weight, y.data_ptr(), y.stride(0))
            lib.leanlm_matmul(product, 1, x.data_ptr(), x.stride(0), len(x), precision)
        return (time.perf_counter() - began) / len(self.weights)


def _copy(weight):
    if isinstance(weight, torch.Tensor):
        return weight.clone()
    return weight.take(torch.arange(len(weight)))


def read_seconds(block: torch.Tensor) -> float:
    """Time of a plain read of one byte in this block, with the library's threads."""
    began = time.perf_counter()
    native.library().leanlm_read(block.data_ptr(), block.nbytes)
    return (time.perf_counter() - began) / block.nbytes


def medians(entries: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of every entry's value over rounds of all of them in turn."""
    values = {name: [] for name in entries}
    for _ in range(rounds):
        for name, entry in entries.items():
            values[name].append(entry())
    return {name: statistics.median(found) for name, found in values.items()}


def one_row(format: str, R: int, n: int, rounds: int) -> dict:
    """GB/s of a product with one row, exact and with int8 activations, and their shares of a plain read's."""
    copies, block, x = Copies(format, R, n), torch.ones(BEYOND_CACHES // 8, dtype=torch.int64), torch.randn(1, n)
    found = medians(
        {
            "read": lambda: read_seconds(block) * copies.nbytes,
            "exact": lambda: copies.seconds(x, native.EXACT),
            "int8": lambda: copies.seconds(x, native.INT8),
        },
        rounds,
    )
    speed = {name: round(copies.nbytes / seconds / 1e9, 1) for name, seconds in found.items()}
    return {
        **speed,
        "exact_share": round(found["read"] / found["exact"], 2),
        "int8_share": round(found["read"] / found["int8"], 2),
    }


def many_rows(format: str, R: int, n: int, M: int, rounds: int) -> dict:
    """GFLOP/s of a product with M rows, beside torch's of float32 matrices."""
    weight, dense, x = native.weight_of(matrix(format, R, n)), torch.randn(R, n), torch.randn(M, n)

    def timed(product: Callable[[], object]) -> float:
        began = time.perf_counter()
        product()
        return time.perf_counter() - began

    found = medians(
        {
            "torch": lambda: timed(lambda: torch.nn.functional.linear(x, dense)),
            "exact": lambda: timed(lambda: native.matmul(weight, x)),
            "int8": lambda: timed(lambda: native.matmul(weight, x, None, native.INT8)),
        },
        rounds,
    )
    return {name: round(2 * M * R * n / seconds / 1e9, 1) for name, seconds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("rows", 4096), ("columns", 4096), ("rounds", 9), ("threads", 0), ("many", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--formats", nargs="*", default=FORMATS)
    chosen = parser.parse_args()
    if chosen.threads:
        native.library().leanlm_set_threads(chosen.threads)
        torch.set_num_threads(chosen.threads)
    with torch.inference_mode():
        for format in chosen.formats:
            found = one_row(format, chosen.rows, chosen.columns, chosen.rounds)
            if chosen.many:
                found[f"gflops_{chosen.many}"] = many_rows(format, chosen.rows, chosen.columns, chosen.many, 3)
            print(json.dumps({"format": format, **found}), flush=True)


if __name__ == "__main__":
    main()
