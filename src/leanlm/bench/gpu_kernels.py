"""How near GPU kernels come to the card: the SSD forward and backward beside other packages' kernels, and products of one row.

    python -m leanlm.bench.gpu_kernels [--tokens 2048 8192 65536] [--rows 4096] [--columns 4096] [--rounds 9]

A round times every entry once, in turn: a card's work by its own clock, replayed from a CUDA graph so that launches are no part
of it; sides that cannot be captured are named in "with_launches". The SSD has the shape of a layer of Mamba-2 1.3B. Peers are
those that are installed: mamba_ssm's chunked scan, and flash-linear-attention's simple gated linear attention, the same sum
with a key and a query for every head. Matrices are as many as leave no cache of use.
"""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import torch
from torch import Tensor

from leanlm import ops
from leanlm.api import as_device
from leanlm.bench.kernels import matrix
from leanlm.errors import LeanLMError
from leanlm.model import packed
from leanlm.model.packed import Packed
from leanlm.ops import dispatch
from leanlm.runtime import card
from leanlm.runtime.cuda_graph import captured

HEADS, WIDTH, STATE = 64, 64, 128  # of a layer of Mamba-2 1.3B, one group
CHUNK = 64  # of which operations are counted, whatever a kernel's own is
BEYOND_CACHES = 512 << 20
BURST = 0.02  # seconds between two looks at a card's clock, at least
FORMATS = ("ternary", "int4-g128", "int8", "bfloat16")

Pass = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="*", default=[2048, 8192, 65536])
    for name, default in (("rows", 4096), ("columns", 4096), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    try:
        device = as_device("cuda")
    except LeanLMError as error:
        parser.error(str(error))
    rate = card.matrix_rate(torch.bfloat16)
    for tokens in chosen.tokens:
        print(json.dumps({"tokens": tokens, **ssd(tokens, chosen.rounds, device, rate)}), flush=True)
    for format in FORMATS:
        found = one_row(format, chosen.rows, chosen.columns, chosen.rounds, device)
        print(json.dumps({"format": format, **found}), flush=True)


def ssd(tokens: int, rounds: int, device: torch.device, rate: float, heads: int = HEADS) -> dict:
    """Milliseconds of every side forward and backward, and the share of `rate` operations a second that leanlm's reaches."""
    torch.manual_seed(0)
    new = {"device": device, "dtype": torch.bfloat16}
    x, B, C = (torch.randn(1, tokens, *shape, **new) for shape in ((heads, WIDTH), (1, STATE), (1, STATE)))
    log_decay = -torch.rand(1, tokens, heads, device=device)
    entries = {name: Entry(both_passes(*side(x, log_decay, B, C)), device) for name, side in sides().items()}
    found = medians(entries, rounds)
    milliseconds = {f"{name}_ms": round(1000 * seconds, 3) for name, seconds in found.items()}
    share = round(operations(tokens, heads) / found["leanlm"] / rate, 3)
    return {**milliseconds, "share_of_matrix_rate": share, **remarks(entries, device)}


def operations(tokens: int, heads: int) -> int:
    """Of the products of both passes: scores, what they weigh, states made and looked at; backward there are twice as many."""
    inside = CHUNK * STATE + heads * CHUNK * WIDTH
    return 3 * 2 * tokens * (inside + 2 * heads * WIDTH * STATE)


def both_passes(forward: Callable[..., Tensor], *arguments: Tensor) -> Pass:
    leaves = [t.detach().requires_grad_() for t in arguments]
    return lambda: torch.autograd.grad(forward(*leaves).sum(), leaves)


def sides() -> dict[str, Callable[..., tuple]]:
    """Of everyone who is installed: from x, log_decay, B and C a function and its arguments, that gives the same outputs."""
    found = {"leanlm": lambda *given: (lambda *leaves: ops.ssd(*leaves)[0], *given)}
    if importlib.util.find_spec("mamba_ssm"):
        found["mamba_ssm"] = _mamba_ssm
    if importlib.util.find_spec("fla"):
        found["flash_linear_attention"] = _flash_linear_attention
    return found


def _mamba_ssm(x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor) -> tuple:
    """It multiplies x with the time step, which is 1 over the rate here."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    dt, A = -log_decay, torch.full((x.shape[2],), -1.0, device=x.device)

    def forward(x, dt, B, C):
        return mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size=256)

    return forward, x / dt[..., None].to(x.dtype), dt, B, C


def _flash_linear_attention(x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor) -> tuple:
    from fla.ops.simple_gla import chunk_simple_gla

    def forward(x, log_decay, keys, queries):
        return chunk_simple_gla(queries, keys, x, g=log_decay, scale=1.0)[0]

    keys, queries = (t.expand(-1, -1, x.shape[2], -1).contiguous() for t in (B, C))
    return forward, x, log_decay, keys, queries


def one_row(format: str, R: int, n: int, rounds: int, device: torch.device) -> dict:
    """GB/s of a product with one row of bfloat16, and its share of a plain read's rate."""
    x = torch.randn(1, n, device=device, dtype=torch.bfloat16)
    first = matrix(format, R, n).to(device)
    size = first.nbytes
    weights = [first, *(_copies(first, max(1, BEYOND_CACHES // size)))]
    with torch.inference_mode():
        entries = {"product": Entry(lambda: [packed.matmul(x, weight) for weight in weights], device)}
        found = medians(entries, rounds)
        read = card.read_seconds(size * len(weights), rounds) if device.type == "cuda" else None
    speed = size * len(weights) / found["product"]
    share = {} if read is None else {"share_of_read": round(read / found["product"], 3)}
    return {"gb_per_second": float(f"{speed / 1e9:.3g}"), **share, **remarks(entries, device)}


def _copies(weight: Tensor | Packed, count: int) -> Iterator[Tensor | Packed]:
    for _ in range(count):
        yield weight.take(torch.arange(len(weight), device=weight.device)) if isinstance(weight, Packed) else weight.clone()


class Entry:
    """Work that is timed: on a card as a graph, where it can be captured, and `times` in a row."""

    def __init__(self, work: Pass, device: torch.device):
        self.work, self.device, self.times, self.launched = work, device, 1, True
        self.seconds()  # compiles and tunes
        if device.type == "cuda":
            with suppress(RuntimeError):
                self.work = captured(work, torch.cuda.Stream(device), torch.cuda.graph_pool_handle())
                self.launched = False
            self.times = max(1, int(BURST / self.seconds()))

    def seconds(self) -> float:
        """Of doing it once, the mean of so many."""
        if self.device.type != "cuda":
            began = time.perf_counter()
            self.work()
            return time.perf_counter() - began
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        for _ in range(self.times):
            self.work()
        ended.record()
        ended.synchronize()
        return began.elapsed_time(ended) / 1000 / self.times


def medians(entries: dict[str, Entry], rounds: int) -> dict[str, float]:
    """Seconds of every entry, the median of rounds of all of them in turn."""
    turns = [{name: entry.seconds() for name, entry in entries.items()} for _ in range(rounds)]
    return {name: statistics.median(turn[name] for turn in turns) for name in entries}


def remarks(entries: dict[str, Entry], device: torch.device) -> dict[str, object]:
    """Whose time holds launches, and which of our operations ran without their kernels; nothing where none did."""
    launched = [name for name, entry in entries.items() if entry.launched and device.type == "cuda"]
    told = {"with_launches": launched, "fallbacks": dispatch.fallbacks(device.type)}
    return {name: found for name, found in told.items() if found}


if __name__ == "__main__":
    main()
