"""States carried from chunk to chunk, in either direction: what the chunked scans have in common."""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256


def carry(added: Tensor, survival: Tensor, given: Tensor | None, backward: bool = False) -> Tensor:
    """Replaces added [B, c, S], what every chunk adds to the state, by the state that it is given, and returns the last
    [B, S]. Of a state a chunk hands on the share survival [B, c, s], each for S / s neighbours; it begins as given [B, S]
    (None: zeros). `backward` goes from the last chunk to the first. All float32 and contiguous."""
    batch, chunks, size = added.shape
    last = added.new_empty(batch, size)
    grid = (batch * triton.cdiv(size, BLOCK),)
    _carry[grid](added, survival, given, last, chunks, size, size // survival.shape[2], backward, BLOCK)
    return last


@triton.jit
def _carry(added, survival, given, last, chunks, size, width, BACKWARD: tl.constexpr, BLOCK: tl.constexpr):
    blocks = tl.cdiv(size, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    at = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    there = at < size
    state = tl.zeros([BLOCK], tl.float32)
    if given is not None:
        state = tl.load(given + row * size + at, there, 0.0)
    for step in range(chunks):
        chunk = row * chunks + (chunks - 1 - step if BACKWARD else step)
        new = tl.load(added + chunk * size + at, there, 0.0)
        tl.store(added + chunk * size + at, state, there)
        state = state * tl.load(survival + chunk * (size // width) + at // width, there, 0.0) + new
    tl.store(last + row * size + at, state, there)
