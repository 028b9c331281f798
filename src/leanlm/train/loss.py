"""What a step minimises: the cross-entropy of every target and the z-loss.

B batch  L tokens  V rows of the vocabulary
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from leanlm.data.batches import IGNORED
from leanlm.model.language_model import LanguageModel
from leanlm.model.state import State

PART = 1 << 26  # logits at a time; more are computed in parts, and once more in the backward pass


class Objective(nn.Module):
    """A model and its loss in one module, as torch's engines of several processes want it."""

    def __init__(self, model: LanguageModel, z_loss: float = 0.0):
        super().__init__()
        self.model, self.z_loss = model, z_loss

    def forward(
        self, tokens: Tensor, targets: Tensor | None = None, segments: Tensor | None = None, state: State | None = None
    ) -> Tensor:
        """[2], summed over the targets that are not `IGNORED`: what is to be minimised, and its part that is cross-entropy in
        nats (without gradient). The rest is z_loss x (log sum exp logits)^2 (PaLM, arXiv 2204.02311, section 5).

        tokens, targets and segments are [B, L]. Without targets: the logits [B, L, V], as the model itself gives them.
        """
        if targets is None:
            return self.model(tokens, state, segments)
        for stream in self.model.streams(tokens, state, segments):
            x = stream
        x, targets = x.flatten(0, 1), targets.flatten()
        rows = max(1, PART // self.model.config.padded_vocab_size)
        if len(x) <= rows:
            return self._summed(x, targets)
        parts = zip(x.split(rows), targets.split(rows))
        return torch.stack([checkpoint(self._summed, *part, use_reentrant=False) for part in parts]).sum(0)

    def _summed(self, x: Tensor, targets: Tensor) -> Tensor:
        logits = self.model.logits(x)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nats = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        total = nats
        if self.z_loss:
            total = nats + self.z_loss * logits.logsumexp(-1).masked_fill(targets == IGNORED, 0).square().sum()
        return torch.stack([total, nats.detach()])
