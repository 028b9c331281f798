"""AdamW with decay groups, and the step it takes on clipped, unscaled gradients."""

import math

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from leanlm.train.recipe import Optimiser
from leanlm.train.schedule import Rates

NEVER_DECAYED = ("A_log", "D", "dt_bias", "z_bias", "norm_weight")


def build(module: nn.Module, settings: Optimiser) -> torch.optim.AdamW:
    """AdamW over the weights that learn, in two groups, matrices with weight decay and everything else without; its memory is
    made at once (all zero)."""
    decayed, free = [], []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        leaf = name.rpartition(".")[2]
        (decayed if parameter.ndim >= 2 and leaf not in NEVER_DECAYED else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": free, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)
    for parameter in (*decayed, *free):
        optimiser.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimiser


def apply(optimiser: torch.optim.AdamW, rates: Rates, clip: float, scale: float) -> float:
    """Take the step on gradients that are `scale` times too large, clipped to the norm `clip` (0: not at all), and clear them.

    Returns the norm of the whole gradient before clipping; where it is not finite, no weight was touched.
    """
    gradients = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item() / scale
    if math.isfinite(norm):
        factor = min(1.0, clip / (norm + 1e-6)) / scale if clip else 1 / scale
        if factor != 1.0:
            torch._foreach_mul_(gradients, factor)
        decayed, free = optimiser.param_groups
        decayed["lr"] = free["lr"] = rates.lr
        decayed["weight_decay"] = rates.weight_decay
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm
