"""The CUDA runtime: one token of every text as a graph, captured once and replayed, so that a token costs one launch.

It runs the module's own parts over the same state tensors, so a state may go from one to the other at any token. Several
tokens, as of a prompt, are read by the module. Attention looks at a power of two of slots, and each has a graph of its own.
"""

import threading
import warnings
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import chain
from operator import is_

import torch
from torch import Tensor

from leanlm.errors import first_line
from leanlm.model.attention import Attention
from leanlm.model.language_model import LanguageModel
from leanlm.model.packed import TernaryWeight
from leanlm.model.state import Memory, State, sent
from leanlm.model.telescoping import Telescoping
from leanlm.runtime.snapshot import Placement

LEAST_SLOTS = 64  # that a graph looks at
KEPT = 1 << 30  # bytes of a state's tensors that graphs may keep for the next state
ALONE = threading.Lock()  # torch captures one graph at a time


def not_captured(module: LanguageModel) -> str:
    """Why tokens of this model cannot be a graph; empty where they can."""
    if any(isinstance(sublayer.mixer, Telescoping) for sublayer in module.sublayers()):
        return "the slots that a telescoping cache merges depend on the tokens read"
    if isinstance(module.embedding.weight, TernaryWeight):
        return "rows of a ternary embedding are looked up on the CPU"
    return ""


def captured(step: Callable[[], Tensor], stream: torch.cuda.Stream, pool: tuple[int, int]) -> Callable[[], Tensor]:
    """What does `step` again on the device, in the caller's stream, and returns its result, always the same tensor.

    Capturing runs nothing there; raises what ended it, after which the caller's stream is the current one and torch works on.
    A stream of one's own also means products with workspaces of one's own, beside graphs replayed elsewhere.
    """
    graph, failed = torch.cuda.CUDAGraph(), None
    with torch.cuda.device(stream.device), torch.cuda.stream(stream):  # which torch.cuda.graph leaves set where it fails
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                try:
                    result = step()
                except Exception as error:
                    failed = error
                    raise
        except Exception as error:
            _end_failed(stream, pool)
            raise failed or error from None  # the step's own, not that the capture cannot be ended

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def _end_failed(stream: torch.cuda.Stream, pool: tuple[int, int]) -> None:
    """Ends what torch has begun for a capture and leaves begun where it fails: its allocator's part, and the random
    generator's, which the next capture that succeeds ends."""
    with suppress(AttributeError, RuntimeError):  # where it was ended
        torch._C._cuda_endAllocateToPool(stream.device_index, pool)
        torch._C._cuda_releasePool(stream.device_index, pool)
    with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream, capture_error_mode="thread_local"):
        torch.zeros(1, device=stream.device)


class Binding:
    """Graphs over one set of memories, and the state that lives in them: first the one whose memories they are, later others of
    the same shapes. Never two at a time: where one is still used, its tensors are its own."""

    def __init__(self, module: LanguageModel, state: State):
        self.memories, self.shapes = [_numbers(memory) for memory in state.memories], _shapes(state)
        self.graphs: dict[int, Callable[[], Tensor]] = {}
        self.refused = ""
        # Of these graphs alone: torch gives up a pool with its last graph. Results are copied before another one is replayed.
        self.pool = torch.cuda.graph_pool_handle() if module.device.type == "cuda" else (0, 0)
        with torch.inference_mode(False):  # written to within and without it
            shapes = (state.batch, 1), (state.batch,), (state.batch,)
            given = (torch.zeros(shape, dtype=torch.int64, device=module.device) for shape in shapes)
            self.tokens, self.position, self.start = given
        self._hold(state)

    def _hold(self, state: State) -> None:
        self.state = weakref.ref(state)
        self.attending = [memory for memory in state.memories if memory and "k" in memory]

    def holds(self, state: State) -> bool:
        """Whether the state lives here."""
        mine, theirs = _tensors(self.memories), _tensors(map(_numbers, state.memories))
        return len(mine) == len(theirs) and all(map(is_, mine, theirs))

    def free_for(self, state: State) -> bool:
        """Whether the last state is gone, and this one has the same shapes."""
        return self.state() is None and self.shapes == _shapes(state)

    def take(self, state: State) -> None:
        """Have the state live here, which costs a copy."""
        for mine, theirs in zip(self.memories, state.memories, strict=True):
            for name, tensor in mine.items():
                theirs[name] = tensor.copy_(theirs[name])
        self._hold(state)

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

    def read(self, graph: Callable[[], Tensor], tokens: Tensor, state: State) -> Tensor:
        """The module's logits [B, 1, V] of tokens [B, 1], which the state has read then."""
        self.tokens.copy_(tokens)
        self.position.copy_(sent(state.position, self.position.device))
        if self.attending:
            self.start.copy_(sent(self.attending[0]["start"], self.start.device))
        logits = graph()
        for memory in self.attending:
            memory["position"] += 1
        state.position += 1
        return logits.clone()  # the next token overwrites them


class CudaGraphRuntime:
    """Stands in for `LanguageModel.forward` with a state and without gradients or packed documents, on a CUDA device.

    Graphs belong to the shapes of a state; the first token of other shapes is the module's, which compiles and tunes kernels.
    Weights may be written to in place; where others are given to the module, graphs are captured anew. That is noticed as
    `Placement` says, closely at the first token after a prompt.
    """

    def __init__(self, module: LanguageModel):
        self.held = weakref.ref(module)
        self.refused = not_captured(module)
        self.stream = torch.cuda.Stream(module.device) if module.device.type == "cuda" else None
        self.weights: Placement | None = None
        self.closely = True
        self.bound: weakref.WeakKeyDictionary[State, Binding] = weakref.WeakKeyDictionary()  # of the last state only
        self.kept: Binding | None = None  # for the next one

    def __call__(self, tokens: Tensor, state: State, last_only: bool = False) -> Tensor:
        """As the module does; raises what it raises, with the state unchanged."""
        module = self.held()
        if tokens.shape[-1] != 1 or self.refused or torch.is_grad_enabled() or not len(tokens):
            self.closely = True
            return module(tokens, state, last_only=last_only)
        module.check_fits(tokens, state)
        with ALONE:
            binding = self._binding(module, state)
            graph = binding and self._graph(binding, module, binding.slots(state))
            if graph:
                return binding.read(graph, tokens, state)
        return module(tokens, state, last_only=last_only)

    @property
    def without_graphs(self) -> str:
        """Why the last tokens were decoded without graphs; empty where they were not."""
        return self.refused or next((binding.refused for binding in self.bound.values()), "")

    def _binding(self, module: LanguageModel, state: State) -> Binding | None:
        """What the state lives in, from now on where it has the shapes of the last one, which is gone; else None, this once."""
        if self.weights is None or not self.weights.same(self.closely or state not in self.bound):
            self.weights, self.kept = Placement(module), None
            self.bound.clear()
        self.closely = False
        found = self.bound.get(state)
        if found is not None and found.holds(state):
            return found
        self.bound.clear()
        found = self.kept
        if found is not None and found.free_for(state):
            found.take(state)
            self.bound[state] = found
            return found
        self.kept = None  # before there are others
        self.bound[state] = made = Binding(module, state)
        self.kept = made if state.nbytes <= KEPT else None
        return None

    def _graph(self, binding: Binding, module: LanguageModel, slots: int) -> Callable[[], Tensor] | None:
        """The graph that looks at so many slots; None where it cannot be captured, which is said once: of these shapes for lack
        of memory, else of any."""
        if slots not in binding.graphs and not binding.refused:
            try:
                binding.graphs[slots] = captured(lambda: binding.step(module, slots), self.stream, binding.pool)
            except torch.OutOfMemoryError:
                binding.refused = f"out of memory on {module.device} for a graph of {len(binding.tokens)} texts"
            except RuntimeError as error:
                binding.refused = self.refused = first_line(error)
            if binding.refused:
                warnings.warn(f"tokens are decoded without CUDA graphs, slower: {binding.refused}", stacklevel=3)
        return None if binding.refused else binding.graphs[slots]


def _numbers(memory: Memory | None) -> Memory:
    """What is remembered on the device: all but positions."""
    return {name: tensor for name, tensor in (memory or {}).items() if tensor.dtype != torch.int64}


def _tensors(memories: Iterable[Memory]) -> list[Tensor]:
    return list(chain.from_iterable(memory.values() for memory in memories))


def _shapes(state: State) -> tuple[int, list[tuple]]:
    """Of all that is remembered; torch lets tensors made in inference mode be written to in it alone."""
    remembered = _tensors(map(_numbers, state.memories))
    return state.batch, [(t.shape, t.dtype, t.device, t.is_inference()) for t in remembered]
