"""What llama.cpp does to the inputs of a matrix product: it rounds them to the precision that belongs to the weights' type.

Its CPU code: vec_dot_type in ggml-cpu.c, quantize_row_q8_0 and quantize_row_q8_K in ggml-quants.c. Doing the same in our model
leaves only what an error would leave.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from leanlm.export import gguf_architecture
from leanlm.model.language_model import LanguageModel
from leanlm.model.linear import Linear


def q8_0(x: Tensor) -> Tensor:
    """x [..., n] in blocks of 32: whole multiples, up to 127, of a half-precision step."""
    blocks = x.unflatten(-1, (-1, 32))
    step = blocks.abs().amax(-1, keepdim=True) / 127
    return (torch.where(step > 0, blocks / step, 0).round() * step.half().float()).flatten(-2)


def q8_k(x: Tensor) -> Tensor:
    """x [..., n] in blocks of 256: whole multiples of a step that makes the entry of largest magnitude -127."""
    blocks = x.unflatten(-1, (-1, 256))
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    multiples = torch.where(largest != 0, -127 * blocks / largest, 0).round().clamp(max=127)
    return (multiples * (largest / -127)).flatten(-2)


ROUNDING: dict[str, Callable[[Tensor], Tensor]] = {
    "F16": lambda x: x.half().float(),
    "BF16": lambda x: x.bfloat16().float(),
    **dict.fromkeys(("Q2_0", "Q4_0", "Q8_0"), q8_0),
    **dict.fromkeys(("Q6_K", "TQ1_0", "TQ2_0"), q8_k),
}


@contextmanager
def rounding(module: LanguageModel, types: Mapping[str, str]) -> Iterator[None]:
    """Inside, linear layers of `module`, and a tied head, round what they are given; `types` by the file's tensor names."""
    linears = {f"{name}.weight": layer for name, layer in module.named_modules() if isinstance(layer, Linear)}
    hooks = []
    for piece in gguf_architecture.pieces(module):
        round_to = ROUNDING.get(types[piece.name])
        if piece.ours in linears and round_to:
            hooks.append(linears[piece.ours].register_forward_pre_hook(lambda _, given, round_to=round_to: round_to(given[0])))
    tied = ROUNDING.get(types["token_embd.weight"]) if module.head is None else None
    if tied:
        hooks.append(module.norm.register_forward_hook(lambda _, given, normed: tied(normed)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
