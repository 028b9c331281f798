"""What a step minimises: the cross-entropy of every target and the z-loss.

B batch  L tokens  V rows of the vocabulary
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from leanlm.data.batches import IGNORED, Batch
from leanlm.model.language_model import LanguageModel
from leanlm.model.state import State

PART = 1 << 26  # logits at a time; more are computed in parts, and once more in the backward pass


class Objective(nn.Module):
    """A model and its loss in one module, as torch's engines of several processes want it.

    Others inherit from it. Their `forward` takes what `Batch.extra` holds after `segments`, and may give more numbers than two:
    the same sum taken apart, to be reported. `teacher` is the model they learn from, if there is one."""

    teacher: LanguageModel | None = None

    def __init__(self, model: LanguageModel, z_loss: float = 0.0):
        super().__init__()
        self.model, self.z_loss = model, z_loss

    def count(self, batch: Batch) -> int:
        """What the sums of this batch are divided by."""
        return int((batch.targets != IGNORED).sum())

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        segments: Tensor | None = None,
        *extra: Tensor,
        state: State | None = None,
    ) -> Tensor:
        """[2], summed over the targets that are not `IGNORED`: what is to be minimised, and its part that is cross-entropy in
        nats (without gradient). The rest is z_loss x (log sum exp logits)^2 (PaLM, arXiv 2204.02311, section 5).

        tokens, targets and segments are [B, L], what `_summed` wants beside [B, L, ...]. Without targets: the logits [B, L, V],
        as the model itself gives them.
        """
        if targets is None:
            return self.model(tokens, state, segments)
        for stream in self.model.streams(tokens, state, segments):
            x = stream
        flat = [each.flatten(0, 1) for each in (x, targets, *extra)]
        rows = max(1, PART // self.model.config.padded_vocab_size)
        if len(flat[0]) <= rows:
            return self._summed(*flat)
        parts = zip(*(each.split(rows) for each in flat))
        return torch.stack([checkpoint(self._summed, *part, use_reentrant=False) for part in parts]).sum(0)

    def _summed(self, x: Tensor, targets: Tensor) -> Tensor:
        logits = self.model.logits(x)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nats = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        total = nats
        if self.z_loss:
            total = nats + self.z_loss * logits.logsumexp(-1).masked_fill(targets == IGNORED, 0).square().sum()
        return torch.stack([total, nats.detach()])
