"""The one model class: embedding, residual sublayers, final norm, head.

B batch  L tokens  D width  V rows of the vocabulary (padding included)
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from leanlm.errors import CapacityError, UsageError
from leanlm.model import config
from leanlm.model.attention import Attention
from leanlm.model.config import ModelConfig
from leanlm.model.discrete_mamba2 import DiscreteMamba2
from leanlm.model.linear import Embedding, Linear, Matrix
from leanlm.model.mamba1 import Mamba1
from leanlm.model.mamba2 import Mamba2
from leanlm.model.mlp import MLP, GatedMLP
from leanlm.model.norm import Norm
from leanlm.model.packed import Packed, matmul
from leanlm.model.state import Memory, State
from leanlm.model.telescoping import Telescoping

MIXERS = {
    config.Attention: Attention,
    config.Telescoping: Telescoping,
    config.MLP: MLP,
    config.GatedMLP: GatedMLP,
    config.Mamba1: Mamba1,
    config.Mamba2: Mamba2,
    config.DiscreteMamba2: DiscreteMamba2,
}


UNKNOWN_CONTEXT = 2048  # tokens of full attention to make room for where a config states no context length


class Sublayer(nn.Module):
    """x + mixer(norm(x)); the sum has the dtype of x. Where `recompute` is set, training keeps x alone of what it computes, and
    computes the rest again in the backward pass."""

    recompute = False

    def __init__(self, width: int, norm: config.Norm, mixer: config.Mixer):
        super().__init__()
        self.norm = Norm(width, norm)
        self.mixer = MIXERS[type(mixer)](width, mixer)

    def forward(self, x: Tensor, memory: Memory | None = None, segments: Tensor | None = None) -> Tensor:
        if self.recompute and memory is None and torch.is_grad_enabled():
            return checkpoint(self._added, x, None, segments, use_reentrant=False)
        return self._added(x, memory, segments)

    def matrix(self, x: Tensor, segments: Tensor | None = None) -> Tensor:
        """The mixer's `matrix` of the stream [B, L, D]: [B, H, L, L]."""
        return self.mixer.matrix(self.norm(x), segments)

    def reset(self, std: float, out_std: float) -> None:
        self.norm.reset()
        self.mixer.reset(std, out_std)

    def _added(self, x: Tensor, memory: Memory | None, segments: Tensor | None) -> Tensor:
        return x + self.mixer(self.norm(x), memory, segments).to(x.dtype)


class LanguageModel(nn.Module):
    """Every model of every family. Parameters: embedding, layers.{i}.{j}.norm / .mixer, norm, head (absent if tied).

    `state_dtype` and `cache_dtype` say how new states hold recurrent memories and keys and values, where nobody asks for
    something else."""

    state_dtype: torch.dtype | None = None
    cache_dtype: torch.dtype | None = None

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.config = cfg
        self.embedding = Embedding(cfg.padded_vocab_size, cfg.d_model)
        self.layers = nn.ModuleList(
            nn.ModuleList(Sublayer(cfg.d_model, cfg.norm, mixer) for mixer in layer) for layer in cfg.layers
        )
        self.norm = Norm(cfg.d_model, cfg.final_norm)
        self.head = None if cfg.tied else Linear(cfg.d_model, cfg.padded_vocab_size, cfg.head_bias)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    def weights(self) -> dict[str, nn.Parameter | Packed]:
        """Every weight by name, in the order of the modules; a packed matrix counts as one."""
        found: dict[str, nn.Parameter | Packed] = {}
        for prefix, module in self.named_modules():
            if not isinstance(module, Packed):
                held = dict(module.named_parameters(prefix, recurse=False))
                if isinstance(module, Matrix) and isinstance(module.weight, Packed):
                    held = {f"{prefix}.weight": module.weight, **held}
                found |= held
        return found

    def matrices(self) -> dict[str, Matrix]:
        """The layers that hold a matrix, by the name of their weight: embedding and head, and all linear ones."""
        return {f"{name}.weight": module for name, module in self.named_modules() if isinstance(module, Matrix)}

    def take(self, weights: Mapping[str, Tensor | Packed]) -> None:
        """Have these weights in place of those of the same names, without copying them; all are floats, or packed matrices."""
        matrices = self.matrices()
        packed = {name: weight for name, weight in weights.items() if isinstance(weight, Packed)}
        for name, weight in packed.items():
            matrices[name].hold(weight)
        floats = {name: weight.detach() for name, weight in weights.items() if name not in packed}
        self.load_state_dict(floats, strict=False, assign=True)

    def sublayers(self) -> Iterator[Sublayer]:
        """All sublayers in the order of execution, which is the order of `State.memories`."""
        for layer in self.layers:
            yield from layer

    def streams(self, tokens: Tensor, state: State | None = None, segments: Tensor | None = None) -> Iterator[Tensor]:
        """The residual stream [B, L, D]: after the embedding, after every layer, and at last after the final norm.

        Running it to its end updates `state` in place.
        """
        if state:
            self.check_fits(tokens, state)
        if segments is not None:
            segments = ordinals(segments)
        x = self.embedding(tokens)
        if self.config.residual_in_fp32 and x.dtype != torch.float64:
            x = x.float()
        yield x
        memories = iter(state.memories) if state else None
        for layer in self.layers:
            for sublayer in layer:
                x = sublayer(x, next(memories) if memories else None, segments)
            yield x
        if state:
            state.position += tokens.shape[1]
        yield self.norm(x)

    def check_fits(self, tokens: Tensor, state: State) -> None:
        """Refuse, before any sublayer has written, tokens [B, L] that `state` has no rows or no room for."""
        batch, L = tokens.shape
        if batch != state.batch:
            raise UsageError(f"the state holds {state.batch} texts and tokens of {batch} were given: make one for {batch}")
        needed = max(state.position.tolist()) + L
        for mixer, memory in zip(self.config.sublayers, state.memories, strict=True):
            if isinstance(mixer, config.Attention) and mixer.window is None and needed > memory["k"].shape[1]:
                raise CapacityError(
                    f"the state holds {memory['k'].shape[1]} tokens of full attention and {needed} are needed: "
                    "make it with new_state(batch, capacity=...) large enough"
                )

    def forward(
        self, tokens: Tensor, state: State | None = None, segments: Tensor | None = None, last_only: bool = False
    ) -> Tensor:
        """Logits [B, L, V] (or [B, 1, V] of the last token) for tokens [B, L] int64.

        `state` (from `new_state`) is continued and updated in place. `segments` [B, L] marks packed documents by any
        integers that differ between neighbours; nothing crosses their boundaries, and the first continues `state`.
        Raises CapacityError, with the state unchanged, where full attention would overrun its capacity.
        """
        if not tokens.shape[-1]:  # which change nothing
            return self.logits(self.embedding(tokens))
        for stream in self.streams(tokens, state, segments):
            x = stream
        return self.logits(x[:, -1:] if last_only else x)

    def logits(self, x: Tensor) -> Tensor:
        """Head applied to the normed stream [B, L, D] -> [B, L, V]."""
        return self.head(x) if self.head is not None else matmul(x, self.embedding.weight)

    def new_state(
        self,
        batch: int,
        capacity: int | None = None,
        dtype: torch.dtype | None = None,
        cache_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> State:
        """An empty state for `batch` texts on the model's device, or another; on torch's "meta" one it takes no memory.

        `capacity` is the tokens that full attention can remember (default: the model's context length, 2,048 where it is
        unknown). `dtype` is that of the recurrent states (default: `state_dtype`, else float32); `cache_dtype` that of keys
        and values (default: `dtype`, else the model's own `cache_dtype`, else its dtype). Each is a
        float's or int8.
        """
        capacity = capacity or self.config.context_length or UNKNOWN_CONTEXT
        caches, recurrent = cache_dtype or dtype or self.cache_dtype, dtype or self.state_dtype
        place = device or self.device
        device = "meta" if torch.device(place).type == "cpu" else place
        memories = [
            s.mixer.new_state(batch, capacity, device, caches if isinstance(s.mixer, Attention) else recurrent)
            for s in self.sublayers()
        ]
        state = State(memories, torch.zeros(batch, dtype=torch.int64))
        return state if torch.device(place).type == "meta" else state.materialised()

    def reset(self, std: float = 0.02) -> None:
        """Fresh weights for training: normal(0, std), the projections back into the stream divided by sqrt(sublayers)."""
        for _ in self.reset_parts(std):
            pass

    def parts(self) -> Iterator[nn.Module]:
        """The embedding, every layer, the norm, the head where there is one."""
        yield from (self.embedding, *self.layers, self.norm, *([] if self.head is None else [self.head]))

    def reset_parts(self, std: float = 0.02) -> Iterator[nn.Module]:
        """`reset` part by part: the embedding, every layer, the norm, the head. A part that has no memory yet (torch's meta
        device) gets it on the CPU. As weights are drawn in this order from torch's generator of the CPU, a seed means the same
        weights wherever each part is taken next."""
        yield from self._reset(self.embedding, lambda part: nn.init.normal_(part.weight, std=std))
        out_std = std / len(self.config.sublayers) ** 0.5
        for layer in self.layers:
            yield from self._reset(layer, lambda part: [sublayer.reset(std, out_std) for sublayer in part])
        yield from self._reset(self.norm, Norm.reset)
        if self.head is not None:
            yield from self._reset(self.head, lambda part: part.reset(std))

    @staticmethod
    def _reset(part: nn.Module, draw: Callable[[nn.Module], object]) -> Iterator[nn.Module]:
        if any(parameter.is_meta for parameter in part.parameters()):
            part.to_empty(device="cpu")
        draw(part)
        yield part


def ordinals(segments: Tensor) -> Tensor:
    """Document marks [B, L] as ordinals: 0 for the first document of a row, then 1, 2, ..."""
    return torch.cat([torch.zeros_like(segments[:, :1]), segments.diff(dim=1).ne(0).cumsum(1)], 1)
