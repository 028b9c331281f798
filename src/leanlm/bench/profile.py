"""Where a model's time goes: the steps of its native program run and timed one at a time."""

import ctypes
import statistics
import time

import torch
from torch import Tensor

from leanlm.errors import LeanLMError
from leanlm.model.language_model import LanguageModel
from leanlm.model.state import State
from leanlm.ops import native
from leanlm.runtime import steps
from leanlm.runtime.lowering import Program


@torch.inference_mode()
def of_call(module: LanguageModel, tokens: Tensor, state: State, rounds: int) -> list[dict]:
    """Kinds of steps of a call with tokens [B, L] that continues `state`, the slowest first: how many, their seconds
    together (medians over the rounds), their share. The state needs room for all rounds, and has read them afterwards."""
    dtypes = {
        (index, name): tensor.dtype
        for index, memory in enumerate(state.memories)
        for name, tensor in (memory or {}).items()
        if tensor.dtype != torch.int64
    }
    program = Program(module, tokens.numel(), dtypes)
    logits = torch.empty(len(tokens), 1, module.config.padded_vocab_size)
    memories = program.bind(state)
    run = steps.run(native.library())
    call = tokens.data_ptr(), *tokens.shape, memories, None, logits.data_ptr(), logits.shape[-1], True
    times = [[_timed(run, step, call) for step in program.array] for _ in range(rounds)]
    state.position += rounds * tokens.shape[1]
    return _by_kind(program, [statistics.median(column) for column in zip(*times, strict=True)])


def _timed(run, step: steps.Step, call: tuple) -> float:
    began = time.perf_counter()
    refused = run(ctypes.byref(step), 1, *call)
    taken = time.perf_counter() - began
    if refused:
        raise LeanLMError(f"the native library refused a step ({kind_of(step)}) of this model")
    return taken


def _by_kind(program: Program, seconds: list[float]) -> list[dict]:
    found: dict[str, list[float]] = {}
    for step, taken in zip(program.array, seconds, strict=True):
        found.setdefault(kind_of(step), []).append(taken)
    total = sum(seconds)
    rows = [
        {"step": kind, "count": len(taken), "seconds": sum(taken), "share": sum(taken) / total} for kind, taken in found.items()
    ]
    return sorted(rows, key=lambda row: -row["seconds"])


def kind_of(step: steps.Step) -> str:
    """ "ssd", "matmul 4192 x 1024", "matmul 2816 + 2816 x 1024" (products of the same activations), "head 50288 x 1024"."""
    kind = steps.FIELD[step.op]
    if step.op == steps.HEAD:
        weights = [step.head.weight]
    elif step.op == steps.MATMUL:
        weights = [product.weight for product in step.matmul.products[: step.matmul.count]]
    else:
        return kind
    return f"{kind} {' + '.join(str(weight.rows) for weight in weights)} x {weights[0].columns}"
