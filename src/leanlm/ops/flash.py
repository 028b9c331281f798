"""Attention over packed documents and windows on a GPU, by torch's flash kernel for texts of different lengths: no mask is
made, so memory grows with the tokens and not with their square.

L tokens  H heads
"""

import inspect

import torch
import torch.nn.functional as F

from leanlm.ops import eager

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None
if varlen_attn is None or not {"window_size", "enable_gqa", "scale"} <= inspect.signature(varlen_attn).parameters.keys():
    raise ImportError(f"torch {torch.__version__} has no flash attention over packed documents with windows; 2.13 has")

CAPABILITY = (8, 0)  # of the cards that the kernel is for
WIDEST = 256  # head it takes, and by the multiple of 8


def fits(q: torch.Tensor) -> bool:
    """Whether the kernel is made for such numbers and heads."""
    return q.dtype in eager.HALF and q.shape[-1] <= WIDEST and q.shape[-1] % 8 == 0


def taken(q: torch.Tensor) -> bool:
    """Whether the kernel takes these queries."""
    return fits(q) and q.is_cuda and torch.cuda.get_device_capability(q.device) >= CAPABILITY


@torch.compiler.disable  # how many documents there are is a number of the device
def packed_attend(q, k, v, first, scale, window=None):
    """Asks the device where documents begin, and waits for it."""
    if not taken(q):
        return eager.packed_attend(q, k, v, first, scale, window)
    L, H = q.shape[1:3]
    begins = first == torch.arange(L, device=first.device)
    bounds = F.pad(begins.flatten(), (0, 1), value=True).nonzero().flatten().int()
    seen = -1 if window is None else window - 1  # before the query itself, which counts in a window
    shared = {"scale": scale, "window_size": (seen, 0), "enable_gqa": k.shape[2] != H}
    return varlen_attn(*(t.flatten(0, 1) for t in (q, k, v)), bounds, bounds, L, L, **shared).view_as(q)
