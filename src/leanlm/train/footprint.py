"""Bytes that a training step holds in a process: computed for weights, gradients and optimiser, observed for the rest.

Activations are observed: one forward and backward pass of every distinct sublayer with torch's fake tensors, which have shapes
and no numbers, while the storages that live are counted. So the figures follow the code instead of a formula beside it.
Attention stands in as what fused kernels keep: q, k, v, its mask, its output and a number per query.
"""

import dataclasses
import functools
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from leanlm.model import cost, ternary
from leanlm.model.config import Mamba1, Mixer, ModelConfig, Telescoping
from leanlm.model.language_model import LanguageModel
from leanlm.model.rotary import frequencies
from leanlm.ops import merging
from leanlm.train.loss import PART
from leanlm.train.parallel import recomputed
from leanlm.train.precision import autocast
from leanlm.train.recipe import Compute

MASTER = 4  # bytes of a weight, of its gradient and of each of the optimiser's two moments: all float32
GATHERED = 3  # layers' worth whole at a time where processes share a copy: weights of the one at work and the next, a gradient
FEW = 32  # tokens that a long program is observed on, and twice as many
CPU = torch.device("cpu")  # what the fake tensors pretend to lie on


@dataclass(frozen=True)
class Footprint:
    """Bytes per process. `gathered` are layers made whole of all shares; `activations` what all layers keep for the
    backward pass, `passing` the most that it needs beyond, for the loss or for a layer; `teacher` a model learned from."""

    weights: int
    gradients: int
    optimiser: int
    gathered: int
    activations: int
    passing: int
    teacher: int = 0

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True)
class Activations:
    """Bytes of a sublayer: its input, what it keeps for its backward pass, and the most that this needs beyond."""

    input: int
    kept: int
    passing: int


def of_step(config: ModelConfig, windows: int, length: int, compute: Compute, shared: int = 1, scales: int = 0) -> Footprint:
    """Of a process that works on `windows` of `length` tokens at a time and holds 1 / `shared` of weights and moments.

    The matrices inside the layers are trained ternary with so many `scales` each, or as floats (0).
    """
    parameters = cost.parameters(config)
    held = -(-MASTER * parameters // shared)
    gathered = _gathered(config, parameters) if shared > 1 else 0
    activations, passing = of_layers(config, windows, length, compute, scales)
    passing = max(passing, of_loss(config, windows * length, compute.dtype))
    return Footprint(held, held, 2 * held, gathered, activations, passing)


def of_teacher(config: ModelConfig, compute: Compute, shared: int = 1) -> int:
    """A model that is only read, its layers dealt out to `shared` processes."""
    size, parameters, outside = getattr(torch, compute.dtype).itemsize, cost.parameters(config), _outside(config)
    return size * (outside + -(-(parameters - outside) // shared))


def of_matrices(mixers: Iterable[Mixer], config: ModelConfig, windows: int, length: int, dtype: str) -> int:
    """The most that comparing the mixing matrices of one of these layers' first `mixers` holds. The teacher's own is gone by
    then."""
    return max(sum(_observed(config, mixer, windows, length, dtype, 0, "matrix")) for mixer in set(mixers))


def _outside(config: ModelConfig) -> int:
    """Parameters of the embedding and the head."""
    return config.padded_vocab_size * config.d_model * (1 if config.tied else 2)


def _gathered(config: ModelConfig, parameters: int) -> int:
    """Layers come and go; embedding and head stay whole through a pass, and so does their gradient at its end."""
    outside = _outside(config)
    return MASTER * (GATHERED * (parameters - outside) // len(config.layers) + 2 * outside)


def of_layers(config: ModelConfig, windows: int, length: int, compute: Compute, scales: int = 0) -> tuple[int, int]:
    """What all layers keep between the forward and the backward pass, and the most that one's backward pass needs beyond."""
    observed = {m: of_sublayer(config, m, windows, length, compute.dtype, scales) for m in set(config.sublayers)}
    kept = passing = 0
    for layer, again in zip(config.layers, recomputed(len(config.layers), compute.checkpoint_blocks)):
        for part in (observed[mixer] for mixer in layer):
            kept += part.input if again else part.kept
            passing = max(passing, part.passing + part.kept * again)
    return kept, passing


def of_sublayer(config: ModelConfig, mixer: Mixer, windows: int, length: int, dtype: str, scales: int = 0) -> Activations:
    """Of one sublayer's forward and backward pass. Mamba-1's scan, a long program, is observed on few tokens, which tell what
    each takes."""
    tokens = windows * length
    if isinstance(mixer, Mamba1) and tokens > 2 * FEW:
        few, more = (_observed(config, mixer, 1, n, dtype, scales) for n in (FEW, 2 * FEW))
        found = [max(0, round(first + (second - first) * (tokens - FEW) / FEW)) for first, second in zip(few, more)]
    else:
        found = _observed(config, mixer, windows, length, dtype, scales)
    return Activations(tokens * config.d_model * MASTER, *found)


@functools.lru_cache(maxsize=256)
def _observed(
    config: ModelConfig, mixer: Mixer, windows: int, length: int, dtype: str, scales: int, call: str = "forward"
) -> tuple[int, int]:
    """`observe` for a sublayer of the model, or for another call of it."""
    if getattr(mixer, "rope", None):
        frequencies(mixer.rope, CPU)  # they are remembered, and must not be fake ones
    if isinstance(mixer, Telescoping):
        merging.plan_on(CPU, mixer.table, (((0, length),),))  # and so are plans
    with FakeTensorMode(allow_non_fake_inputs=True):
        module = LanguageModel(dataclasses.replace(config, layers=((mixer,),)))
        if scales:
            ternary.mark(module, scales)
        sublayer = module.layers[0][0]
        x = torch.empty(windows, length, config.d_model, requires_grad=True)
        return observe(lambda: getattr(sublayer, call)(x), dtype, [*sublayer.parameters(), x])


@functools.lru_cache(maxsize=64)
def of_loss(config: ModelConfig, tokens: int, dtype: str) -> int:
    """The most that the head and the cross-entropy of its logits hold; many logits are made in parts, again in the backward
    pass."""
    rows = min(tokens, max(1, PART // config.padded_vocab_size))
    with FakeTensorMode():
        weight = torch.empty(config.padded_vocab_size, config.d_model, requires_grad=True)
        x = torch.empty(rows, config.d_model, requires_grad=True)
        targets = torch.empty(rows, dtype=torch.int64)
        return sum(observe(lambda: F.cross_entropy(F.linear(x, weight).float(), targets), dtype, [weight, x]))


def observe(work: Callable[[], Tensor], dtype: str, leaves: Iterable[Tensor]) -> tuple[int, int]:
    """(bytes alive after `work` on fake tensors, the most that its backward pass adds to them); gradients of `leaves` are freed
    as they are made."""
    for leaf in leaves:
        leaf.register_post_accumulate_grad_hook(_forget)
    with Storages() as storages, FusedAttention():
        with autocast(Compute(dtype=dtype), CPU):
            output = work()
        kept = storages.most = storages.alive
        output.backward(torch.empty_like(output))
    return kept, storages.most - kept


def _forget(leaf: Tensor) -> None:
    leaf.grad = None


class Storages(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, until they are freed."""

    def __init__(self):
        super().__init__()
        self.alive = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = function(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in given | self.known:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, nbytes = id(storage), storage.nbytes()
        self.known.add(key)
        self.alive += nbytes
        self.most = max(self.most, self.alive)
        weakref.finalize(storage, self._free, key, nbytes)

    def _free(self, key: int, nbytes: int) -> None:
        self.known.discard(key)
        self.alive -= nbytes


class FusedAttention(TorchFunctionMode):
    """Puts `_Fused` in the place of torch's scaled_dot_product_attention."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            return _Fused.apply(*args[:3], kwargs.get("attn_mask"))
        return function(*args, **kwargs)


class _Fused(torch.autograd.Function):
    """Attention's shapes: what it keeps, and gradients of the right sizes."""

    @staticmethod
    def forward(ctx, q, k, v, mask):
        output = q.new_empty(*q.shape[:-1], v.shape[-1])
        mask = None if mask is None else q.new_empty(mask.shape)  # kernels add it to scores
        ctx.save_for_backward(q, k, v, mask, output, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx, gradient):
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None
