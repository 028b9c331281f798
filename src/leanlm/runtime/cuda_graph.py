"""The CUDA runtime: one token of every text as a graph, captured once and replayed, so that a token costs one launch.

It runs the module's own parts over the same state tensors, so a state may go from one to the other at any token. Several
tokens, as of a prompt, are read by the module. Attention looks at a power of two of slots, and each has a graph of its own.
"""

import warnings
import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

from leanlm.errors import first_line
from leanlm.model.attention import Attention
from leanlm.model.language_model import LanguageModel
from leanlm.model.packed import TernaryWeight
from leanlm.model.state import State
from leanlm.model.telescoping import Telescoping
from leanlm.runtime.snapshot import Memory

LEAST_SLOTS = 64  # that a graph looks at


def not_captured(module: LanguageModel) -> str:
    """Why tokens of this model cannot be a graph; empty where they can."""
    if any(isinstance(sublayer.mixer, Telescoping) for sublayer in module.sublayers()):
        return "the slots that a telescoping cache merges depend on the tokens read"
    if isinstance(module.embedding.weight, TernaryWeight):
        return "rows of a ternary embedding are looked up on the CPU"
    return ""


def captured(step: Callable[[], Tensor], pool) -> Callable[[], Tensor]:
    """What does `step` again on the device, and returns its result, always the same tensor. Capturing runs nothing there;
    raises RuntimeError for what cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = step()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


class Binding:
    """The graphs over the tensors of one state."""

    def __init__(self, module: LanguageModel, state: State):
        self.memories = state.memories
        self.memory = Memory([memory for memory in state.memories if memory])
        self.attending = [memory for memory in state.memories if memory and "k" in memory]
        self.graphs: dict[int, Callable[[], Tensor]] = {}
        with torch.inference_mode(False):  # written to within and without it
            shapes = (state.batch, 1), (state.batch,), (state.batch,)
            given = (torch.zeros(shape, dtype=torch.int64, device=module.device) for shape in shapes)
            self.tokens, self.position, self.start = given

    def slots(self, state: State) -> int:
        """How many of attention's slots the next token may look at: a power of two."""
        longest = max((memory["k"].shape[1] for memory in self.attending), default=0)
        needed = int(state.position.max()) + 1
        return min(longest, max(LEAST_SLOTS, 1 << (needed - 1).bit_length()))

    def step(self, module: LanguageModel, slots: int) -> Tensor:
        """One token of every text, from `tokens`, `position` and `start`: logits [B, 1, V]."""
        x = module.embedding(self.tokens)
        if module.config.residual_in_fp32:
            x = x.float()
        for sublayer, memory in zip(module.sublayers(), self.memories, strict=True):
            if isinstance(sublayer.mixer, Attention):
                y = sublayer.mixer.step(sublayer.norm(x), memory, self.position, self.start, slots)
                x = x + y.to(x.dtype)
            else:
                x = sublayer(x, memory)
        return module.logits(module.norm(x))

    def read(self, module: LanguageModel, tokens: Tensor, state: State, pool) -> Tensor:
        """The module's logits [B, 1, V] of tokens [B, 1], which the state has read then."""
        slots = self.slots(state)
        if slots not in self.graphs:
            self.graphs[slots] = captured(lambda: self.step(module, slots), pool)
        self.tokens.copy_(tokens)
        self.position.copy_(state.position, non_blocking=True)
        if self.attending:
            self.start.copy_(self.attending[0]["start"], non_blocking=True)
        logits = self.graphs[slots]()
        for memory in self.attending:
            memory["position"] += 1
        state.position += 1
        return logits.clone()  # the next token overwrites them


class CudaGraphRuntime:
    """Stands in for `LanguageModel.forward` with a state and without gradients or packed documents, on a CUDA device.

    The first token after a prompt is the module's, which compiles and tunes kernels; then graphs are captured. Weights may be
    written to in place; where others are given to the module, graphs are captured anew.
    """

    def __init__(self, module: LanguageModel):
        self.held = weakref.ref(module)
        self.refused = not_captured(module)
        self.pool = torch.cuda.graph_pool_handle() if module.device.type == "cuda" else None
        self.weights: Memory | None = None
        self.bound: weakref.WeakKeyDictionary[State, Binding] = weakref.WeakKeyDictionary()  # of the last state only

    def __call__(self, tokens: Tensor, state: State, last_only: bool = False) -> Tensor:
        """As the module does; raises what it raises, with the state unchanged."""
        module = self.held()
        if tokens.shape[-1] != 1 or self.refused or torch.is_grad_enabled() or not len(tokens):
            return module(tokens, state, last_only=last_only)
        binding = self.bound.get(state)
        if binding is None or not (binding.memory.same() and self.weights.same()):
            self.bound.clear()
            self.weights = Memory(_tables(module))
            self.bound[state] = Binding(module, state)
            return module(tokens, state, last_only=last_only)
        module.check_fits(tokens, state)
        try:
            return binding.read(module, tokens, state, self.pool)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.refused = first_line(error)
            self.bound.clear()
            warnings.warn(f"tokens are decoded without CUDA graphs, slower: {self.refused}", stacklevel=2)
            return module(tokens, state, last_only=last_only)


def _tables(module: nn.Module) -> list[dict]:
    return [table for one in module.modules() for table in (one._parameters, one._buffers, one._modules) if table]
