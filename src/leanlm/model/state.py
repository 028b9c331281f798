"""What a model remembers of the tokens it has read: one dict of tensors per sublayer, updated by every call."""

from collections.abc import Sequence

import torch
from torch import Tensor

from leanlm.ops.pages import Arena

Memory = dict[str, Tensor]  # a mixer's memory by name; axis 0 of every tensor is the batch


def recall(memory: Memory | None, name: str) -> Tensor | None:
    """memory[name] to compute from (None without a memory): under autograd a copy, since the memory itself is overwritten
    before the backward pass reads what the forward pass was given."""
    if memory is None:
        return None
    return memory[name].clone() if torch.is_grad_enabled() else memory[name]


class State:
    """The memory of a batch of texts, in the order of the model's sublayers (None where a sublayer remembers nothing).

    `model(tokens, state)` continues from it and updates it in place. `position` [B] int64, on the CPU, counts the tokens
    each row has read.
    """

    def __init__(self, memories: Sequence[Memory | None], position: Tensor):
        self.memories = list(memories)
        self.position = position

    def __repr__(self) -> str:
        return f"State(batch={self.batch}, position={self.position.tolist()}, nbytes={self.nbytes})"

    @property
    def batch(self) -> int:
        return len(self.position)

    @property
    def nbytes(self) -> int:
        """Bytes of all memories together; does not depend on how many tokens were read."""
        return sum(t.nbytes for memory in self.memories if memory for t in memory.values())

    @property
    def cache_dtype(self) -> torch.dtype | None:
        """In which keys and values are held; None without attention."""
        return next((memory["k"].dtype for memory in self.memories if memory and "k" in memory), None)

    def clone(self) -> "State":
        """An independent copy: a fork of the texts read so far."""
        return self._map(Arena(self.nbytes).copy)

    def materialised(self) -> "State":
        """Zeros on the CPU in place of what is on the meta device."""
        arena = Arena(self.nbytes)
        return self._map(lambda t: arena.zeros(t.shape, t.dtype) if t.is_meta else t)

    def to(self, device: torch.device | str) -> "State":
        """The same state on `device`; positions stay on the CPU."""
        return self._map(lambda t: t if t.dtype == torch.int64 else t.to(device))

    def select(self, rows: Sequence[int]) -> "State":
        """A new state holding copies of these rows, in this order; a row may be taken more than once."""
        index = torch.tensor(list(rows), dtype=torch.int64)
        return self._map(lambda t: t.index_select(0, index.to(t.device)))

    def write(self, rows: Sequence[int], other: "State") -> None:
        """Overwrite `rows` of this state, in place, by the rows of `other`, a state of the same model and capacity."""
        index = torch.tensor(list(rows), dtype=torch.int64)
        for mine, theirs in zip(self.memories, other.memories, strict=True):
            for name in mine or ():
                mine[name].index_copy_(0, index.to(mine[name].device), theirs[name].to(mine[name]))
        self.position.index_copy_(0, index, other.position)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name: `position`, and `<sublayer>.<name>` for the memories."""
        named = {f"{i}.{n}": t for i, memory in enumerate(self.memories) if memory for n, t in memory.items()}
        return {"position": self.position, **named}

    def _map(self, change) -> "State":
        memories = [memory and {name: change(t) for name, t in memory.items()} for memory in self.memories]
        return State(memories, change(self.position))
