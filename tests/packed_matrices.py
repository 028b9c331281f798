"""Random packed matrices, and what a file holds of them."""

import json

import torch

from leanlm.model.format import Grouped
from leanlm.model.packed import GroupedWeight, Packed, TernaryWeight
from leanlm.ops import packing

NAME = "model.layers.0.mlp.up_proj.weight"
MODULE = NAME.removesuffix(".weight")


def grouped(
    R: int, n: int, bits: int, group: int = 0, symmetric: bool = True, ordered: bool = True, seed: int = 0, low: int = 0
):
    """A random matrix; codes 0 occur, so that no two-bit one is ternary. `low` is the least zero point."""
    chance = torch.Generator().manual_seed(seed)
    format = Grouped(bits, group, symmetric, ordered)
    G = format.groups(n)
    codes = torch.randint(1 << bits, (R, n), generator=chance, dtype=torch.uint8)
    codes[0, 0] = 0
    scales = (torch.rand(R, G, generator=chance) + 0.01).half()
    zeros = None if symmetric else torch.randint(low, 1 << bits, (R, G), generator=chance, dtype=torch.uint8)
    g_idx = None
    if not ordered:
        g_idx = (torch.arange(n) // group)[torch.randperm(n, generator=chance)].to(torch.int32)
    return GroupedWeight.of(format, codes, scales, zeros, g_idx)


def ternary(R: int, n: int, starts=(0,), along_rows: bool = True, seed: int = 0, dtype=torch.float16) -> TernaryWeight:
    chance = torch.Generator().manual_seed(seed)
    trits = torch.randint(-1, 2, (R, n), generator=chance, dtype=torch.int8)
    scales = torch.linspace(0.013, 0.047, len(starts)).to(dtype)
    return TernaryWeight.of(packing.Trits(trits, scales, torch.tensor(starts, dtype=torch.int32), along_rows))


def stored(codec, weight: Packed, name: str = NAME, **changes) -> tuple[dict, dict]:
    """(quantization_config, tensors) as a file gives them back, settings replaced by `changes`."""
    config = {**codec.settings({name: weight}, ["model.embed_tokens.weight", "lm_head.weight"]), **changes}
    return json.loads(json.dumps(config)), codec.write(name, weight)
