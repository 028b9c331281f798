"""The bytes that one decoding step of a model must move, counted from its weights and its state."""

from leanlm.model.language_model import LanguageModel
from leanlm.model.state import State

FLOAT32 = 4  # bytes; in which the runtime holds what is no matrix
KEYS = ("k", "v", "k_scale", "v_scale")
NUMBERS = ("position", "start")  # a few bytes


def of_step(module: LanguageModel, state: State, tokens: int = 1) -> dict[str, int]:
    """Bytes of a step (one token of every text), the mean over the next `tokens` of them.

    weights: every matrix once as it is stored, of an embedding apart from the head one row per text. state: recurrent
    memories and convolution tails, read and written. keys_values: those seen, read, and those of the new token, written.
    """
    memories = [memory for memory in state.memories if memory]
    recurrent = sum(t.nbytes for m in memories for name, t in m.items() if name not in (*KEYS, *NUMBERS))
    position = int(state.position.max())
    keys = sum(_keys(memory, position, tokens) for memory in memories if "k" in memory)
    return {"weights": _weights(module, state.batch), "state": 2 * recurrent, "keys_values": keys}


def _weights(module: LanguageModel, batch: int) -> int:
    matrices = module.matrices()
    total = 0
    for name, weight in module.weights().items():
        if name == "embedding.weight" and module.head is not None:
            total += batch * weight.nbytes // len(weight)
        else:
            total += weight.nbytes if name in matrices else FLOAT32 * weight.numel()
    return total


def _keys(memory: dict, position: int, tokens: int) -> int:
    """Of one attention, with all texts at the same position."""
    slots = memory["k"].shape[1]
    seen = sum(min(position + i, slots) for i in range(1, tokens + 1)) / tokens
    each = sum(memory[name][:, :1].nbytes for name in KEYS if name in memory)  # of one position of every text
    return round(each * (seen + 1))
