"""Telescoping attention read in parallel beside torch's own full causal attention: forward and backward, in turn.

    python -m leanlm.bench.telescoping [--cache 128] [--heads 16] [--shared 4] [--width 64] [--threads 2] [--repeats 7]

For ever longer texts: the median of the ratios of neighbouring runs, and the megabytes that telescoping keeps for its backward
pass, its inputs included, which grow with the length as a line does.
"""

import argparse
import json
import math
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from leanlm.ops import merging
from leanlm.ops.merging import Cache, Reading
from leanlm.slots import NAMED, Table

LENGTHS = (1024, 2048, 4096, 8192)


class Text:
    """Random queries, keys, values and weights of one text, and the norms of what is looked at."""

    def __init__(self, table: Table, length: int, heads: int, shared: int, width: int):
        torch.manual_seed(0)
        self.q, self.k, self.v = (torch.randn(1, length, n, width, requires_grad=True) for n in (heads, shared, shared))
        self.weights = torch.randn(1, length, shared, requires_grad=True)
        norms = (torch.ones(width, requires_grad=True) for _ in range(2))
        self.reading = Reading(table, width**-0.5, None, *norms)
        empty = torch.full((1, table.size, shared), -math.inf)
        self.cache = Cache(*(torch.zeros(1, table.size, shared, width) for _ in range(2)), empty, None)
        self.back = torch.randn(1, length, heads, width)

    def telescoping(self) -> Tensor:
        new = self.q, self.k, self.v, self.weights, None
        return merging.telescope(*new, self.cache, [0], None, self.reading)[0]

    def full(self) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)

    def seconds(self, how) -> tuple[float, float]:
        """Of the forward pass, and of both."""
        began = time.perf_counter()
        y = how()
        forward = time.perf_counter() - began
        y.backward(self.back)
        return forward, time.perf_counter() - began

    def kept(self) -> int:
        """Bytes kept for the backward pass of telescoping."""
        storages = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.telescoping()
        return sum(storages.values())


def measure(table: Table, length: int, heads: int, shared: int, width: int, repeats: int) -> dict:
    text = Text(table, length, heads, shared, width)
    turns = [(text.seconds(text.telescoping), text.seconds(text.full)) for _ in range(repeats + 1)][1:]
    forward, both = ([ours[i] / full[i] for ours, full in turns] for i in (0, 1))
    return {
        "length": length,
        "milliseconds": 1000 * statistics.median(ours[1] for ours, _ in turns),
        "full": 1000 * statistics.median(full[1] for _, full in turns),
        "forward_ratio": statistics.median(forward),
        "ratio": statistics.median(both),
        "spread": [min(both), max(both)],
        "kept_megabytes": text.kept() / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", choices=NAMED, default="128")
    for name, default in (("heads", 16), ("shared", 4), ("width", 64), ("threads", 2), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    shape = given.heads, given.shared, given.width, given.repeats
    print(json.dumps([measure(NAMED[given.cache], length, *shape) for length in LENGTHS], indent=2))


if __name__ == "__main__":
    main()
