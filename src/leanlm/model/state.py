"""What a model remembers of the tokens it has read: one dict of tensors per sublayer, updated by every call.

A memory may be held in 8 bits: codes [..., N] under its name, and one float32 scale [...] for every N of them under the name
with `_scale`. Mixers neither see nor make codes: `recall` gives the numbers, `remember` rounds them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from leanlm.errors import UsageError
from leanlm.ops.pages import Arena

Memory = dict[str, Tensor]  # a mixer's memory by name; axis 0 of every tensor is the batch


def blank(name: str, shape: Sequence[int], device: torch.device | str, dtype: torch.dtype) -> Memory:
    """An empty memory of one name, zeros [*shape] in `dtype`, a float's or int8."""
    memory = {name: torch.zeros(*shape, device=device, dtype=dtype)}
    if dtype == torch.int8:
        memory[scale_of(name)] = torch.zeros(*shape[:-1], device=device)
    return memory


def sent(numbers: Tensor, device: torch.device) -> Tensor:
    """Numbers of the CPU, such as positions, on the device: through pinned memory, so that nobody waits for what a card is
    doing meanwhile."""
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers.to(device)


def recall(memory: Memory | None, name: str) -> Tensor | None:
    """memory[name] to compute from (None without a memory), float32 where it is held in 8 bits: under autograd a copy, since
    the memory itself is overwritten before the backward pass reads what the forward pass was given."""
    if memory is None:
        return None
    if scale_of(name) in memory:
        return memory[name] * memory[scale_of(name)][..., None]
    return memory[name].clone() if torch.is_grad_enabled() else memory[name]


def remember(memory: Memory, name: str, value: Tensor) -> None:
    """Overwrite memory[name], in place, by `value`, rounded to how it is held; no gradient flows into it."""
    value = value.detach()
    if scale_of(name) in memory:
        value, scales = quantised(value)
        memory[scale_of(name)].copy_(scales)
    memory[name].copy_(value)


def scale_of(name: str) -> str:
    """Under which name the scales of a memory in 8 bits are held."""
    return f"{name}_scale"


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes [..., N] and float32 scales [...] of x [..., N]: the largest size is code 127, all zeros have the scale 0.

    To nearest, so that what only fades keeps its codes and rounding it again changes nothing."""
    x = x.float()
    scales = x.abs().amax(-1) / 127
    return (x / scales.where(scales > 0, 1)[..., None]).round().to(torch.int8), scales


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
    def dtype(self) -> torch.dtype | None:
        """In which recurrent memories are held; None without any."""
        return self._dtype_of("ssm", "entry_k")

    @property
    def cache_dtype(self) -> torch.dtype | None:
        """In which keys and values are held; None without attention."""
        return self._dtype_of("k")

    def _dtype_of(self, *names: str) -> torch.dtype | None:
        return next((m[name].dtype for m in self.memories if m for name in names if name in m), None)

    def clone(self) -> "State":
        """An independent copy: a fork of the texts read so far."""
        return self._map(Arena(self.nbytes).copy)

    def materialised(self) -> "State":
        """Zeros on the CPU in place of what is on the meta device."""
        arena = Arena(self.nbytes)
        return self._map(lambda t: arena.zeros(t.shape, t.dtype) if t.is_meta else t)

    def to(self, device: torch.device | str) -> "State":
        """A copy of the state on `device`; positions stay on the CPU."""
        return self._map(lambda t: t.clone() if t.dtype == torch.int64 else t.to(device, copy=True))

    def select(self, rows: Sequence[int]) -> "State":
        """A new state holding copies of these rows, in this order; a row may be taken more than once."""
        index = torch.tensor(list(rows), dtype=torch.int64)
        return self._map(lambda t: t.index_select(0, index.to(t.device)))

    def write(self, rows: Sequence[int], other: "State") -> None:
        """Overwrite `rows` of this state, in place, by the rows of `other`, a state of the same model and capacity. Raises
        UsageError where one of the two is held in 8 bits and the other is not."""
        if self.tensors().keys() != other.tensors().keys():
            raise UsageError("one state is held in int8 and the other is not: make both with the same dtypes")
        index = torch.tensor(list(rows), dtype=torch.int64)
        for mine, theirs in zip(self.memories, other.memories, strict=True):
            for name in mine or ():
                mine[name].index_copy_(0, index.to(mine[name].device), theirs[name].to(mine[name]))
        self.position.index_copy_(0, index, other.position)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name: `position`, and `<sublayer>.<name>` for the memories. They are the state's own, written to as
        it reads, and by another state once it is gone: copy what is to be kept."""
        named = {f"{i}.{n}": t for i, memory in enumerate(self.memories) if memory for n, t in memory.items()}
        return {"position": self.position, **named}

    def _map(self, change) -> "State":
        memories = [memory and {name: change(t) for name, t in memory.items()} for memory in self.memories]
        return State(memories, change(self.position))
