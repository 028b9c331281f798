"""How near GPU kernels come to the card: the SSD forward and backward beside other packages' kernels, and products of one row.

    python -m leanlm.bench.gpu_kernels [--tokens 2048 8192 65536] [--rows 4096] [--columns 4096] [--rounds 9]

A round times every entry once, in turn. The SSD has the shape of a layer of Mamba-2 1.3B. Peers are those that are installed:
mamba_ssm's chunked scan, and of flash-linear-attention the simple gated linear attention, which is the same sum with a key and
a query for every head. Matrices are as many as leave no cache of use.
"""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from leanlm import ops
from leanlm.api import as_device
from leanlm.bench.kernels import matrix
from leanlm.errors import LeanLMError
from leanlm.model import packed
from leanlm.model.packed import Packed
from leanlm.runtime import card

HEADS, WIDTH, STATE = 64, 64, 128  # of a layer of Mamba-2 1.3B, one group
CHUNK = 64  # of which operations are counted, whatever a kernel's own is
BEYOND_CACHES = 512 << 20
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
    found = medians({name: both_passes(*side(x, log_decay, B, C)) for name, side in sides().items()}, rounds, device)
    milliseconds = {f"{name}_ms": round(1000 * seconds, 3) for name, seconds in found.items()}
    return {**milliseconds, "share_of_matrix_rate": round(operations(tokens, heads) / found["leanlm"] / rate, 3)}


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
        product = lambda: [packed.matmul(x, weight) for weight in weights]  # noqa: E731
        found = medians({"product": product}, rounds, device)
        read = card.read_seconds(size * len(weights), rounds) if device.type == "cuda" else None
    speed = size * len(weights) / found["product"]
    share = {} if read is None else {"share_of_read": round(read / found["product"], 3)}
    return {"gb_per_second": float(f"{speed / 1e9:.3g}"), **share}


def _copies(weight: Tensor | Packed, count: int) -> Iterator[Tensor | Packed]:
    for _ in range(count):
        yield weight.take(torch.arange(len(weight), device=weight.device)) if isinstance(weight, Packed) else weight.clone()


def medians(entries: dict[str, Pass], rounds: int, device: torch.device) -> dict[str, float]:
    """Seconds of every entry, the median of rounds of all of them in turn, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in entries}
    for turn in range(rounds + 1):
        for name, entry in entries.items():
            card.wait(device)
            began = time.perf_counter()
            entry()
            card.wait(device)
            seconds[name] += [time.perf_counter() - began] if turn else []
    return {name: statistics.median(taken) for name, taken in seconds.items()}


if __name__ == "__main__":
    main()
