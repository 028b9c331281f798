"""Lack of memory: how it is known, and how many texts would fit, for whoever asked for more."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from leanlm.errors import OutOfMemory
from leanlm.model.language_model import LanguageModel

SAYINGS = ("not enough memory", "can't allocate memory", "out of memory")  # of torch's allocators, which raise RuntimeError
SHARE = 0.9  # of the memory beside the weights that states and activations may take; the rest is torch's own


def ran_out(error: BaseException) -> bool:
    """Whether this is a lack of memory, of whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | OutOfMemory):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error).lower() for saying in SAYINGS)


@contextmanager
def enough(module: LanguageModel, batch: int, capacity: int, tokens: int, asked: int = 1) -> Iterator[None]:
    """Raises OutOfMemory with the largest batch that fits where the device runs out of memory meanwhile: of texts of
    `capacity` tokens that are read `tokens` at a time, of which `asked` have logits."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        held = f"{batch} text{'s' if batch > 1 else ''} of {capacity} tokens"
        number = largest_batch(module, capacity, tokens, asked)
        if batch > number >= 1:
            remedy = f"about {number} at once fit"
        else:
            remedy = "try fewer at once, shorter ones, or weights of fewer bits"
        raise OutOfMemory(f"out of memory on {module.device}, asked for {held}: {remedy}") from error


def largest_batch(module: LanguageModel, capacity: int, tokens: int, asked: int = 1) -> int:
    """An estimate, from the memory that other programs leave, the sizes of weights and state, and the widest activations."""
    free, _ = torch.cuda.mem_get_info(module.device)
    ours = torch.cuda.memory_reserved(module.device)
    weights = sum(weight.nbytes for weight in module.weights().values())
    return max(0, int(SHARE * (free + ours - weights) / text_bytes(module, capacity, tokens, asked)))


def text_bytes(module: LanguageModel, capacity: int, tokens: int, asked: int = 1) -> int:
    """Of one text: its state, the activations of the widest matrix, in and out in float32, and logits, which are copied."""
    widest = max(sum(matrix.weight.shape) for name, matrix in module.matrices().items() if name.startswith("layers."))
    shapes = module.new_state(1, capacity, device="meta")
    return shapes.nbytes + 4 * (2 * tokens * widest + 2 * asked * module.config.padded_vocab_size)
