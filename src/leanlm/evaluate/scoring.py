"""Log-likelihoods of continuations: what texts have in common is read once, and its state copied for each of them.

A state of constant size makes this cheap: the examples before a question, the question, its choices are a tree, and every
branch of it is read once. Texts that end at a branch are read together, filled up with tokens that nobody looks at.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from leanlm import runtime
from leanlm.model.language_model import LanguageModel
from leanlm.model.state import State
from leanlm.runtime import device_memory

CHUNK = 512  # tokens of a text read per call
WORTH = 16  # tokens in common that are worth a copy of the state
LOGITS, STATES = 256 << 20, 1 << 30  # bytes that the logits of a call, and the states of a batch, take at most
FILL = 0  # the token behind the end of a text


class Request(NamedTuple):
    """What is asked for: the likelihood of `continuation` after `context`, which has at least one token."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        """What is read: all but the last token."""
        return (*self.context, *self.continuation)[:-1]


class Score(NamedTuple):
    """The natural logarithm of the continuation's probability, and whether each of its tokens was the likeliest."""

    log_likelihood: float
    greedy: bool


class Branch(NamedTuple):
    """Requests, in the order of their inputs, that share the first `read` tokens."""

    requests: Sequence[int]
    read: int


@torch.no_grad()
def score(
    module: LanguageModel, requests: Sequence[Request], rows: int | None = None, run: runtime.Run | None = None
) -> Iterator[tuple[int, Score]]:
    """(number of a request, its score), in an order that reads what is shared once.

    `rows` is the number of texts that are read together (None: as many as memory for logits and states allows). `run` is what
    computes the logits (default: what runs the module best). A continuation without tokens scores 0. Raises ValueError for a
    request without context.
    """
    reader = _Reader(module, requests, rows, run or runtime.of(module))
    order = []
    for number, request in enumerate(requests):
        if not request.context:
            raise ValueError(f"request {number} has no context to predict its first token from")
        if request.continuation:
            order.append(number)
        else:
            yield number, Score(0.0, True)
    order.sort(key=lambda number: reader.inputs[number])
    yield from reader.visit(Branch(order, 0), None)


class _Reader:
    def __init__(self, module: LanguageModel, requests: Sequence[Request], rows: int | None, run: runtime.Run):
        self.module, self.run, self.rows = module, run, rows
        self.requests, self.inputs = requests, [request.inputs for request in requests]

    def visit(self, branch: Branch, state: State | None) -> Iterator[tuple[int, Score]]:
        """`state` has read what the branch shares (None where that is nothing)."""
        ends = []
        for part in self.parts(branch):
            if part.read == branch.read:
                ends += part.requests
            else:
                begun = self.module.new_state(1, self.capacity(part.requests)) if state is None else state.clone()
                self.skip([self.inputs[part.requests[0]][branch.read : part.read]], begun)
                yield from self.visit(part, begun)
        for batch in self.batches(ends):
            with device_memory.enough(self.module, len(batch), self.capacity(batch), CHUNK, CHUNK):
                yield from self.read(batch, branch.read, state)

    def parts(self, branch: Branch) -> list[Branch]:
        """The branch in branches that share WORTH tokens more, and single requests, which share no more than it."""
        parts: list[Branch] = []
        for number in branch.requests:
            last = parts[-1] if parts else None
            shared = self.shared(last.requests[0], number) if last else 0
            if last and shared >= branch.read + WORTH:
                parts[-1] = Branch([*last.requests, number], min(shared, last.read if len(last.requests) > 1 else shared))
            else:
                parts.append(Branch([number], branch.read))
        return parts

    def shared(self, one: int, other: int) -> int:
        """Tokens that two requests share before either's continuation is to be predicted."""
        most = min(len(self.requests[one].context), len(self.requests[other].context)) - 1
        return min(common(self.inputs[one], self.inputs[other]), most)

    def capacity(self, numbers: Sequence[int]) -> int:
        """Room that any of the requests may need."""
        return max(len(self.inputs[number]) for number in numbers)

    def batches(self, numbers: list[int]) -> Iterator[list[int]]:
        """Requests that are read together, those of like lengths, the longest first."""
        numbers = sorted(numbers, key=lambda n: -len(self.inputs[n]))
        while numbers:
            count = self.rows or self.fitting(len(self.inputs[numbers[0]]))
            yield numbers[:count]
            numbers = numbers[count:]

    def fitting(self, length: int) -> int:
        """How many texts of this length memory is there for."""
        logits = min(length, CHUNK) * self.module.config.padded_vocab_size * 4
        with torch.device("meta"):
            state = self.module.new_state(1, length).nbytes
        return max(1, min(LOGITS // logits, STATES // max(1, state)))

    def read(self, batch: list[int], already: int, state: State | None) -> Iterator[tuple[int, Score]]:
        """The scores of requests of which `state` has read so many tokens."""
        state = self.module.new_state(len(batch), self.capacity(batch)) if state is None else state.select([0] * len(batch))
        starts = [len(self.requests[n].context) - 1 for n in batch]  # where logits are looked at
        first = min(starts)
        self.skip([self.inputs[n][already:first] for n in batch], state)
        longest = self.capacity(batch)
        texts = torch.full((len(batch), longest - first), FILL)
        targets = torch.full((len(batch), longest - first), FILL)
        asked = torch.zeros(len(batch), longest - first, dtype=torch.bool)
        for row, (n, start) in enumerate(zip(batch, starts)):
            inputs, continuation = self.inputs[n], self.requests[n].continuation
            texts[row, : len(inputs) - first] = torch.tensor(inputs[first:])
            targets[row, start - first : len(inputs) - first] = torch.tensor(continuation)
            asked[row, start - first : len(inputs) - first] = True
        totals, greedy = torch.zeros(len(batch), dtype=torch.float64), torch.ones(len(batch), dtype=torch.bool)
        for text, target, wanted in zip(*(t.split(CHUNK, 1) for t in (texts, targets, asked))):
            logits = self.run(text.to(self.module.device), state).float()
            likelihoods, best = _likelihoods(logits, target.to(logits.device))
            totals += likelihoods.cpu().double().masked_fill(~wanted, 0).sum(1)
            greedy &= (best.cpu() | ~wanted).all(1)
        yield from ((n, Score(total, one)) for n, total, one in zip(batch, totals.tolist(), greedy.tolist()))

    def skip(self, texts: Sequence[Sequence[int]], state: State) -> None:
        """Read texts of equally many tokens, whose logits nobody asks for."""
        tokens = torch.tensor(texts, dtype=torch.int64)
        for part in tokens.split(CHUNK, 1) if tokens.shape[1] else ():
            self.run(part.to(self.module.device), state, last_only=True)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def _likelihoods(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Of logits [B, L, V]: log-likelihoods [B, L] of the targets, and whether they are the likeliest."""
    chosen = logits.gather(2, targets[..., None])[..., 0]
    return chosen - logits.logsumexp(2), logits.argmax(2) == targets
