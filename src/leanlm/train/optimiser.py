"""AdamW with decay groups, and the learning rate of every step."""

import math

import torch
from torch import nn

from leanlm.train.recipe import Optimiser, Schedule

NEVER_DECAYED = ("A_log", "D", "dt_bias", "z_bias", "norm_weight")


def build(module: nn.Module, settings: Optimiser) -> torch.optim.AdamW:
    """AdamW over two groups: matrices with weight decay, everything else without."""
    decayed, free = [], []
    for name, parameter in module.named_parameters():
        leaf = name.rpartition(".")[2]
        (decayed if parameter.ndim >= 2 and leaf not in NEVER_DECAYED else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


def learning_rate(step: int, peak: float, schedule: Schedule) -> float:
    """The rate of step 0, 1, ...: linear warm-up to `peak`, then the schedule's shape down to peak x final."""
    if step < schedule.warmup:
        return peak * (step + 1) / schedule.warmup
    done = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    left = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}[schedule.shape]
    return peak * (schedule.final + (1 - schedule.final) * left)
