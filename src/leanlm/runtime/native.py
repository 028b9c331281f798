"""The CPU runtime: a model lowered once into steps over fixed buffers, run by one C call per token or chunk of a prompt.

It computes in float32 over the same weights and the same state tensors as the module, so a state may go from one to the
other at any token. Packed weights are multiplied with activations rounded to 8 bits per 32 of them.
"""

import ctypes
import weakref

import torch
from torch import Tensor

from leanlm.errors import LeanLMError
from leanlm.model.language_model import LanguageModel
from leanlm.model.packed import Packed
from leanlm.model.state import State
from leanlm.ops import native
from leanlm.runtime import steps
from leanlm.runtime.lowering import INT8, Program

ROWS = 128  # of a call at least; longer prompts are read in pieces, which bounds the buffers
STATES = (torch.float32, torch.bfloat16)
CACHES = (torch.float32, torch.bfloat16, torch.float16)


class NativeRuntime:
    """Stands in for `LanguageModel.forward` with a state and without gradients or packed documents, on the CPU."""

    def __init__(self, module: LanguageModel, precision: int = INT8):
        self.held, self.precision = weakref.ref(module), precision
        self.library = native.library()
        self.run = steps.run(self.library)
        self.program: Program | None = None
        self.made_for: tuple = ()

    @property
    def module(self) -> LanguageModel:
        return self.held()

    def __call__(self, tokens: Tensor, state: State, last_only: bool = False) -> Tensor:
        """Logits [B, L, V] (or [B, 1, V]) float32 of tokens [B, L]; continues and updates `state` in place.

        Raises what the module raises, with the state unchanged, and runs the module itself for states that the library does
        not know (16-bit floats other than bfloat16 in a scan).
        """
        self.module.check_fits(tokens, state)
        dtypes = self._dtypes(state)
        if dtypes is None:
            return self.module(tokens, state, last_only=last_only).float()
        B, L = tokens.shape
        program = self._program(B, dtypes)
        rows = self.module.config.padded_vocab_size
        memories, tokens = program.bind(state), tokens.contiguous()
        logits = torch.empty(B, 1 if last_only else L, rows)
        piece = max(1, program.rows // B)
        for start in range(0, L, piece):
            part = tokens if piece >= L else tokens[:, start : start + piece].contiguous()
            wanted = logits if last_only or piece >= L else torch.empty(B, part.shape[1], rows)
            self._run(program, part, memories, wanted, last_only)
            if wanted is not logits:
                logits[:, start : start + piece] = wanted
        state.position += L
        return logits

    def _run(self, program: Program, tokens: Tensor, memories: ctypes.Array, logits: Tensor, last_only: bool) -> None:
        refused = self.run(
            program.array,
            len(program.array),
            tokens.data_ptr(),
            *tokens.shape,
            memories,
            logits.data_ptr(),
            logits.shape[-1],
            last_only,
        )
        if refused:
            kind = steps.FIELD[program.array[refused - 1].op]
            raise LeanLMError(
                f"the native library refused step {refused} ({kind}) of this model; LEANLM_IMPL=eager does without it"
            )

    def _program(self, B: int, dtypes: dict) -> Program:
        """The program for this many texts, made anew where the weights are not those it was made for."""
        wanted = (*dtypes.values(), *(mark for weight in self.module.weights().values() for mark in marks(weight)))
        if self.program is None or self.made_for != wanted or self.program.rows < B:
            rows = max(ROWS, B)
            self.program, self.made_for = Program(self.module, rows, dtypes, self.precision), wanted
        return self.program

    def _dtypes(self, state: State) -> dict[tuple[int, str], torch.dtype] | None:
        """Of the state's floats; None where the library does not know one of them."""
        found = {}
        for index, memory in enumerate(state.memories):
            for name, tensor in (memory or {}).items():
                if tensor.is_floating_point():
                    if tensor.dtype not in (STATES if name == "ssm" else CACHES) or not tensor.is_contiguous():
                        return None
                    found[index, name] = tensor.dtype
        return found


def marks(weight: Tensor | Packed) -> tuple:
    """What changes when a weight is replaced or written to."""
    if isinstance(weight, Packed):
        return tuple(mark for tensor in weight.buffers() for mark in (tensor.data_ptr(), tensor._version))
    return weight.data_ptr(), weight._version
