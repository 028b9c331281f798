"""The CPU runtime: a model lowered once into steps over fixed buffers, run by one C call per token or chunk of a prompt.

It computes in float32 over the same weights and the same state tensors as the module, so a state may go from one to the
other at any token. Packed weights are multiplied with activations rounded to 8 bits.
"""

import os
import threading
import weakref
from itertools import product
from operator import is_

import torch
from torch import Tensor

from leanlm.errors import LeanLMError, UsageError
from leanlm.model import telescoping
from leanlm.model.config import Attention
from leanlm.model.language_model import LanguageModel
from leanlm.model.state import State
from leanlm.ops import native
from leanlm.runtime import steps
from leanlm.runtime.lowering import INT8, UNBOUNDED, Program
from leanlm.runtime.snapshot import Memory, Snapshot

Dtypes = dict[tuple[int, str], torch.dtype]  # of a state's numbers, by sublayer and name

ROWS = 128  # of a call at least; longer prompts are read in pieces, which bounds the buffers
STATES = (torch.float32, torch.bfloat16)
CACHES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
POSITIONS = (torch.int64,)
KNOWN = {"position": POSITIONS, "start": POSITIONS, "ssm": STATES, **dict.fromkeys(telescoping.PARTS, (torch.float32,))}
ALONE = threading.Lock()  # the library runs on one pool of threads and is called by one thread at a time


def _alone_again() -> None:
    global ALONE
    ALONE = threading.Lock()


if hasattr(os, "register_at_fork"):  # a child's other threads are gone, with what they held
    os.register_at_fork(after_in_child=_alone_again)


class Binding:
    """A program bound to one state: the table of its tensors, good while these are the ones it was made of."""

    def __init__(self, program: Program, state: State):
        self.program, self.position = program, state.position
        self.memory = Memory(_memories(state))
        self.table = program.bind(state)
        self.room = min((one.attend.slots for one in program.attending if not one.attend.window), default=UNBOUNDED)

    def same(self, state: State, closely: bool) -> bool:
        now, then = _memories(state), self.memory.tables
        tables = state.position is self.position and len(now) == len(then) and all(map(is_, now, then))
        return tables and self.memory.same(closely)

    def fits(self, tokens: Tensor, positions: list[int]) -> bool:
        """Whether the state has rows and, where attention keeps all, room for the tokens [B, L] after those read."""
        return tokens.ndim == 2 and len(tokens) == len(positions) and max(positions) + tokens.shape[1] <= self.room


class NativeRuntime:
    """Stands in for `LanguageModel.forward` with a state and without gradients or packed documents, on the CPU.

    Weights that changed since the last call are noticed: however it was done where a text begins and where several tokens are
    read, before a single next token where they were given to a module anew or torch counted writing to a parameter (see
    `Snapshot`).
    """

    def __init__(self, module: LanguageModel, precision: int = INT8):
        self.held, self.precision = weakref.ref(module), precision
        self.library = native.library()
        self.run = steps.run(self.library)
        self.growing = [isinstance(mixer, Attention) and mixer.window is None for mixer in module.config.sublayers]
        held = product((torch.float32, torch.int8), repeat=2)
        self.shapes = [self._shapes(module.new_state(1, 1, *dtypes)) for dtypes in held]
        self.program: Program | None = None
        self.snapshot: Snapshot | None = None
        self.bound: weakref.WeakKeyDictionary[State, Binding] = weakref.WeakKeyDictionary()  # of the last state only

    @property
    def module(self) -> LanguageModel:
        return self.held()

    def __call__(self, tokens: Tensor, state: State, last_only: bool = False) -> Tensor:
        """Logits [B, L, V] (or [B, 1, V]) float32 of tokens [B, L]; continues and updates `state` in place.

        Raises what the module raises, and UsageError for the state of another model, with the state unchanged. Runs the
        module itself for what the library does not know: tokens that are no ids, to be refused, and states in other dtypes
        than STATES and CACHES.
        """
        with ALONE:
            positions = state.position.tolist()
            binding = self._binding(state, tokens.shape[-1] > 1 or 0 in positions)
            # The module says what does not fit.
            if binding is not None and binding.fits(tokens, positions) and self._are_ids(tokens):
                return self._read(binding, tokens.long(), last_only)
        return self.module(tokens, state, last_only=last_only).float()

    def takes(self, state: State) -> bool:
        """Whether the library runs over such a state, and not the module in its place."""
        return self._dtypes(state) is not None

    def _read(self, binding: Binding, tokens: Tensor, last_only: bool) -> Tensor:
        B, L = tokens.shape
        logits = torch.empty(B, 1 if last_only else L, self.module.config.padded_vocab_size)
        piece = max(1, ROWS // B)  # whatever was read before, so that the same text has the same logits
        for start in range(0, L, piece):
            part = tokens.contiguous() if piece >= L else tokens[:, start : start + piece].contiguous()
            if last_only:
                self._run(binding, part, logits if start + piece >= L else None, True)
            else:
                self._run_into(binding, part, logits[:, start : start + piece])
        return logits

    def _run_into(self, binding: Binding, tokens: Tensor, logits: Tensor) -> None:
        whole = logits if logits.is_contiguous() else torch.empty(logits.shape)
        self._run(binding, tokens, whole, False)
        if whole is not logits:
            logits.copy_(whole)

    def _run(self, binding: Binding, tokens: Tensor, logits: Tensor | None, last_only: bool) -> None:
        """One call of the library; without logits the last step, the head, is left out. It moves the state's position itself:
        Ctrl-C, which Python hears of right after the call, then finds a whole state."""
        array = binding.program.array
        count, address, stride = len(array) - 1, None, 0
        if logits is not None:
            count, address, stride = len(array), logits.data_ptr(), logits.shape[-1]
        state = binding.table, binding.position.data_ptr()
        refused = self.run(array, count, tokens.data_ptr(), *tokens.shape, *state, address, stride, last_only)
        if refused:
            kind = steps.FIELD[array[refused - 1].op]
            raise LeanLMError(
                f"the native library refused step {refused} ({kind}) of this model; LEANLM_IMPL=eager does without it"
            )

    def _binding(self, state: State, closely: bool) -> Binding | None:
        """The program for the weights as they are, looked at closely or not, bound to the state; None where the library does
        not know the state's dtypes."""
        if not (self.snapshot and (self.snapshot.same() if closely else self.snapshot.same_at_a_glance())):
            self.program, self.snapshot = None, None
            self.bound.clear()
        found = self.bound.get(state)
        if found is None or not found.same(state, closely):
            self.bound.clear()
            dtypes = self._dtypes(state)
            if dtypes is None:
                return None
            found = self.bound[state] = Binding(self._program(state.batch, dtypes), state)
        return found

    def _program(self, B: int, dtypes: Dtypes) -> Program:
        """The program for this many texts and for states of these dtypes."""
        if self.program is None or self.program.dtypes != dtypes or self.program.rows < B:
            self.program = None  # before there is another one
            self.snapshot = Snapshot(self.module)
            self.program = Program(self.module, max(ROWS, B), dtypes, self.precision)
        return self.program

    def _are_ids(self, tokens: Tensor) -> bool:
        if tokens.dtype not in (torch.int64, torch.int32) or not tokens.is_cpu or not tokens.numel():
            return False
        if tokens.shape[1] == 1:  # few, and plain numbers ask for the least code
            ids = tokens.flatten().tolist()
            return min(ids) >= 0 and max(ids) < self.module.config.padded_vocab_size
        ids = tokens.numpy()  # which wakes none of torch's threads
        return int(ids.min()) >= 0 and int(ids.max()) < self.module.config.padded_vocab_size

    def _dtypes(self, state: State) -> Dtypes | None:
        """Of the state's numbers other than positions; None where the library does not know one of them.

        Raises UsageError for a state whose tensors have other sizes than this model's, which the library would overrun.
        """
        tensors = [state.position, *(tensor for memory in _memories(state) for tensor in memory.values())]
        if self._shapes(state) not in self.shapes or any(len(tensor) != state.batch for tensor in tensors):
            raise UsageError("the state is of another model: what it remembers has other sizes than this model's memory")
        found: Dtypes = {}
        if state.position.dtype not in POSITIONS or not state.position.is_contiguous():
            return None
        for index, memory in enumerate(state.memories):
            for name, tensor in (memory or {}).items():
                known = KNOWN.get(name, CACHES)
                if tensor.dtype not in known or not tensor.is_contiguous() or not tensor.is_cpu:
                    return None
                if known is not POSITIONS:
                    found[index, name] = tensor.dtype
        return found

    def _shapes(self, state: State) -> list[dict[str, torch.Size]]:
        """Of one row of every memory; caches of full attention without their capacity."""
        return [
            {name: tensor.shape[2 if growing and name[0] in "kv" else 1 :] for name, tensor in (memory or {}).items()}
            for memory, growing in zip(state.memories, self.growing, strict=True)
        ]


def _memories(state: State) -> list[dict[str, Tensor]]:
    return [memory for memory in state.memories if memory]
