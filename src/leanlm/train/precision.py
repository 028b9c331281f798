"""Matrix products in 16 bits over float32 master weights; the scale that keeps float16 gradients from vanishing."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from leanlm.errors import CheckFailed
from leanlm.train.recipe import Compute

FIRST_SCALE = 2.0**16
GROWTH_INTERVAL = 2000  # steps whose gradients fitted, after which the scale is doubled


def autocast(compute: Compute, device: torch.device) -> AbstractContextManager:
    """The context of every forward pass. Weights, norms, scans (with A_log, D and dt) and the loss stay in float32.

    Casts are not kept: a weight is used once a pass, and kept ones would undo what sharding saves.
    """
    dtype = getattr(torch, compute.dtype)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False)


@dataclass(frozen=True)
class LossScale:
    """What the loss is multiplied by before the backward pass. A step whose gradient overflows is skipped and halves it."""

    value: float = 1.0
    steady: int = 0  # steps since it changed
    skipped: int = 0  # steps of the run so far that changed no weight

    @classmethod
    def first(cls, compute: Compute) -> "LossScale":
        return cls(FIRST_SCALE) if compute.dtype == "float16" else cls()

    @property
    def dynamic(self) -> bool:
        return self.value != 1.0

    def after(self, fitted: bool) -> "LossScale":
        """The scale of the next step. Raises CheckFailed where nothing remains to be halved."""
        if not self.dynamic:
            return self
        if not fitted:
            if self.value <= 2.0:
                raise CheckFailed("gradients overflow float16 at every loss scale; lower optimiser.lr, or use bfloat16")
            return LossScale(self.value / 2, 0, self.skipped + 1)
        if self.steady + 1 == GROWTH_INTERVAL:
            return LossScale(self.value * 2, 0, self.skipped)
        return LossScale(self.value, self.steady + 1, self.skipped)
