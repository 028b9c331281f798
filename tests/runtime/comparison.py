"""The native runtime beside the module it stands in for."""

import torch

from leanlm.model.language_model import LanguageModel
from leanlm.model.state import State
from leanlm.ops.native import EXACT
from leanlm.runtime.native import NativeRuntime

TOLERANCE = 1e-4  # of the largest value, in float32


def agree(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert found.shape == wanted.shape
    empty = wanted == -torch.inf
    assert torch.equal(found == -torch.inf, empty)
    found, wanted = found[~empty], wanted[~empty]
    scale = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
    off = float((found - wanted).abs().max()) / scale if wanted.numel() else 0.0
    assert off <= tolerance, f"off by {off:.2g} of the largest value"


def same_state(a: State, b: State, tolerance: float = TOLERANCE) -> None:
    for (name, x), (other, y) in zip(a.tensors().items(), b.tensors().items(), strict=True):
        assert name == other and x.dtype == y.dtype
        agree(x.double(), y.double(), tolerance)


@torch.no_grad()
def compare(module: LanguageModel, tokens: torch.Tensor, pieces: list[int], tolerance: float = TOLERANCE) -> None:
    """Native in pieces beside the module in one go: logits and states."""
    runtime, mine, theirs = NativeRuntime(module, EXACT), module.new_state(len(tokens)), module.new_state(len(tokens))
    wanted = module(tokens, theirs).float()
    found = torch.cat([runtime(piece, mine) for piece in tokens.split(pieces, 1)], 1)
    agree(found, wanted, tolerance)
    same_state(mine, theirs, tolerance)
