"""What the stages minimise (MOHAWK, Bick et al. 2024, arXiv 2408.10189, section 4): matrices, states, logits.

The teacher is read without gradients, and is no part of the module: it is neither trained, nor sharded, nor kept.
B batch  L tokens  D width  H heads  V tokens of the vocabulary  K of them kept
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from leanlm.data.batches import IGNORED, Batch
from leanlm.distill import student
from leanlm.model.language_model import LanguageModel, ordinals
from leanlm.model.state import State
from leanlm.train.loss import Objective

AFTER_MIXING = ("out_proj", "z_bias", "norm_weight")  # parts of a mixer that its matrix does not pass through


class Taught(Objective):
    """An objective that gives the student's replaced layers the teacher's inputs."""

    def __init__(self, model: LanguageModel, teacher: LanguageModel):
        super().__init__(model)
        object.__setattr__(self, "teacher", teacher)  # not a submodule
        self.changed = student.replaced(teacher.config, model.config)

    def learn(self, *modules: nn.Module) -> None:
        """Have these modules' weights learn, and no others."""
        self.model.requires_grad_(False)
        for module in modules:
            module.requires_grad_(True)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        segments: Tensor | None = None,
        *extra: Tensor,
        state: State | None = None,
    ) -> Tensor:
        """[2 + n], sums over the rows: the loss, the same without gradient, and of every replaced layer. Without targets: the
        model's logits."""
        if targets is None:
            return super().forward(tokens, state=state)
        with torch.no_grad():
            streams = [x.to(self.model.dtype) for x in self.teacher.streams(tokens, None, segments)]
        segments = None if segments is None else ordinals(segments)
        losses = torch.stack([self.distance(i, streams[i], streams[i + 1], segments) for i in self.changed])
        return torch.cat([losses.sum()[None], losses.detach().sum()[None], losses.detach()])

    def distance(self, layer: int, x: Tensor, target: Tensor, segments: Tensor | None) -> Tensor:
        """The loss of a layer given the teacher's stream before it, x [B, L, D], and after it, summed over the rows."""
        raise NotImplementedError


class Matrices(Taught):
    """Matrix orientation: mean over rows and heads of the Frobenius norm of the mixer's matrix minus the attention's, summed
    over the layers. A step holds the matrices of one layer at a time."""

    def __init__(self, model: LanguageModel, teacher: LanguageModel):
        super().__init__(model, teacher)
        student.check_matrices(model.config, self.changed)
        mixers = [model.layers[i][0].mixer for i in self.changed]
        self.learn(*mixers)
        for mixer in mixers:
            for name, weight in mixer.named_parameters():
                weight.requires_grad_(name.partition(".")[0] not in AFTER_MIXING)

    def count(self, batch: Batch) -> int:
        return len(batch.tokens)

    def distance(self, layer: int, x: Tensor, target: Tensor, segments: Tensor | None) -> Tensor:
        return checkpoint(self._matrices, layer, x, segments, use_reentrant=False)

    def _matrices(self, layer: int, x: Tensor, segments: Tensor | None) -> Tensor:
        with torch.no_grad():
            wanted = self.teacher.layers[layer][0].matrix(x, segments)
        return matrix_distance(self.model.layers[layer][0].matrix(x, segments), wanted)


class States(Taught):
    """Hidden-state alignment: mean over tokens of the norm of a layer's output minus the teacher's, both read from the
    teacher's stream, summed over the layers. The last layer's target is the stream before the final norm. With `freeze_mlp`
    the stream right after the mixer is compared, and the mixers alone learn."""

    def __init__(self, model: LanguageModel, teacher: LanguageModel, freeze_mlp: bool = False):
        super().__init__(model, teacher)
        self.freeze_mlp = freeze_mlp
        chosen = [model.layers[i][0].mixer if freeze_mlp else model.layers[i] for i in self.changed]
        self.learn(*chosen)

    def count(self, batch: Batch) -> int:
        return batch.tokens.numel()

    def distance(self, layer: int, x: Tensor, target: Tensor, segments: Tensor | None) -> Tensor:
        sublayers = self.model.layers[layer]
        if self.freeze_mlp:
            sublayers = sublayers[:1]
            with torch.no_grad():
                target = self.teacher.layers[layer][0](x, None, segments)
        for sublayer in sublayers:
            x = sublayer(x, None, segments)
        return state_distance(x, target)


class Logits(Objective):
    """Distillation: mean over the targets of the cross-entropy of the student's softmax, its logits divided by `temperature`,
    with the teacher's. All weights learn."""

    def __init__(self, model: LanguageModel, teacher: LanguageModel | None, temperature: float = 1.0):
        super().__init__(model)
        object.__setattr__(self, "teacher", teacher)
        self.temperature = temperature
        model.requires_grad_(True)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        segments: Tensor | None = None,
        *extra: Tensor,
        state: State | None = None,
    ) -> Tensor:
        if targets is not None and self.teacher is not None:
            with torch.no_grad():
                for stream in self.teacher.streams(tokens, None, segments):
                    taught = stream
            extra = (taught,)
        return super().forward(tokens, targets, segments, *extra, state=state)

    def _summed(self, x: Tensor, targets: Tensor, *taught: Tensor) -> Tensor:
        logits = self.model.logits(x)[:, : self.model.config.vocab_size].float() / self.temperature
        nats = self._each(logits, *taught).masked_fill(targets == IGNORED, 0).sum()
        return torch.stack([nats, nats.detach()])

    def _each(self, logits: Tensor, taught: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.teacher.logits(taught)[:, : logits.shape[-1]].float().softmax(-1)
        return soft_cross_entropy(logits, wanted)


class KeptLogits(Logits):
    """`Logits` with what a cache holds of a teacher that is not there: after `segments` come ids and log-probabilities
    [B, L, K] of its most probable tokens."""

    def __init__(self, model: LanguageModel, temperature: float = 1.0):
        super().__init__(model, None, temperature)

    def _each(self, logits: Tensor, ids: Tensor, log_p: Tensor) -> Tensor:
        return kept_cross_entropy(logits, ids, log_p)


def matrix_distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Summed over rows, the mean over heads of ||found - wanted||_F: matrices [B, H, L, L]; heads of `wanted` are paired."""
    if wanted.shape[1] != found.shape[1]:
        wanted = wanted[:, student.paired(wanted.shape[1], found.shape[1])]
    return (found - wanted).flatten(2).norm(dim=-1).mean(1).sum()


def state_distance(found: Tensor, wanted: Tensor) -> Tensor:
    """The sum over all tokens of ||found - wanted||_2: streams [B, L, D]."""
    return (found.float() - wanted.float()).norm(dim=-1).sum()


def soft_cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """[R], in nats: of logits [R, V] with probabilities [R, V]."""
    return -(wanted * logits.log_softmax(-1)).sum(-1)


def kept_cross_entropy(logits: Tensor, ids: Tensor, log_p: Tensor) -> Tensor:
    """`soft_cross_entropy` where of the probabilities those of the tokens `ids` [R, K] are known, `log_p` [R, K]: all others
    are one event, whose probability is what is left."""
    log_q, p = logits.log_softmax(-1), log_p.float().exp()
    rest = logits.scatter(-1, ids.long(), float("-inf")).logsumexp(-1) - logits.logsumexp(-1)
    return -(p * log_q.gather(-1, ids.long())).sum(-1) - (1 - p.sum(-1)).clamp(min=0) * rest
