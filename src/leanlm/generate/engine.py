"""The token loop: read the prompts, then one token per row and step until every row has ended.

Rows never influence each other, and a row of a batch gets the tokens it would get alone, whatever the lengths of the others:
prompts of different lengths are read apart and decoded together, each row at its own position.

B rows  L tokens in a call  V tokens that may be produced
"""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from leanlm import runtime
from leanlm.errors import CheckFailed, UsageError
from leanlm.generate import filters
from leanlm.generate.sampling import Sampling
from leanlm.generate.stopping import TextStream
from leanlm.generate.vocabulary import Vocabulary
from leanlm.model.language_model import LanguageModel
from leanlm.model.state import State, sent
from leanlm.runtime import device_memory

CHUNK = 512  # tokens of a prompt read per call: bounds the memory of reading, whatever the prompt's length
NEW_TOKENS = 100  # where no limit is given


@dataclass
class Row:
    """One text of a batch: what its state has not read yet, what it may become, and what became of it.

    `seen` are the tokens the repetition penalty counts; `new` grows; `finish` is "" while running, then "eos", "stop" (a
    stop string) or "length"; `piece` is the text that the newest token completed, `text` all of it.
    """

    unread: list[int]
    limit: int
    generator: torch.Generator
    seen: Sequence[int]
    stream: TextStream | None = None
    new: list[int] = field(default_factory=list)
    finish: str = ""
    piece: str = ""
    text: str = ""

    def accept(self, token: int, eos_ids: frozenset[int], eos_ends: bool) -> None:
        """Take the next token. An end token is kept, as the last one."""
        self.new.append(token)
        self.piece = self.stream.push(token) if self.stream else ""
        self.text += self.piece
        if eos_ends and token in eos_ids:
            self.finish = "eos"
        elif self.stream and self.stream.stopped:
            self.finish = "stop"
        elif len(self.new) >= self.limit:
            self.finish = "length"

    def flush(self) -> None:
        """Show what was held back; for the end of a text that will not be continued."""
        rest = self.stream.flush() if self.stream else ""
        self.piece += rest
        self.text += rest


def new_token_limits(lengths: Sequence[int], max_new_tokens: int | None, max_length: int | None, at_least: int) -> list[int]:
    """How many tokens each prompt of these lengths may get. max_length counts the prompt. Raises UsageError."""
    if max_new_tokens is not None and max_length is not None:
        raise UsageError("max_new_tokens counts new tokens and max_length all of them: give one of the two")
    if max_length is None:
        limit = NEW_TOKENS if max_new_tokens is None else max_new_tokens
        if limit < 0:
            raise UsageError(f"max_new_tokens={limit}: must be 0 or more")
        return [limit] * len(lengths)
    limits = [max(max_length - length, at_least) for length in lengths]
    if min(limits) < 1:
        raise UsageError(f"max_length={max_length} leaves no room after a prompt of {max(lengths)} tokens")
    return limits


def seeded(seed: int | None, rows: int) -> list[torch.Generator]:
    """A generator per row, seeded with seed + row; without a seed, from torch's global random state."""
    base = int(torch.randint(2**62, ())) if seed is None else int(seed)
    return [torch.Generator().manual_seed(base + row) for row in range(rows)]


@torch.no_grad()
def read(module: LanguageModel, tokens: Sequence[Sequence[int]], state: State) -> Tensor:
    """Feed rows of equally many tokens to `state`, in chunks; logits [B, V] after the last one."""
    tokens = torch.tensor(tokens, dtype=torch.int64)
    run = runtime.of(module)
    for part in tokens.split(CHUNK, 1):
        logits = run(part.to(module.device), state, last_only=True)
    return logits[:, -1]


def read_ragged(module: LanguageModel, texts: Sequence[Sequence[int]], capacity: int) -> tuple[State, Tensor]:
    """A new state of one row per text, all of it read, and the logits [B, V] after each text. Texts of one length are read
    together, others apart, so none is padded."""
    by_length: dict[int, list[int]] = {}
    for row, text in enumerate(texts):
        by_length.setdefault(len(text), []).append(row)
    if len(by_length) == 1:
        state = module.new_state(len(texts), capacity)
        return state, read(module, texts, state)
    whole, parts = module.new_state(len(texts), capacity), {}
    for rows in by_length.values():
        state = module.new_state(len(rows), capacity)
        logits = read(module, [texts[row] for row in rows], state)
        whole.write(rows, state)
        parts |= dict(zip(rows, logits))
    return whole, torch.stack([parts[row] for row in range(len(texts))])


@torch.no_grad()
def extend(
    module: LanguageModel,
    rows: Sequence[Row],
    state: State,
    logits: Tensor,
    sampling: Sampling,
    size: int,
    eos_ids: frozenset[int],
) -> Iterator[Sequence[Row]]:
    """Continue `rows`, in place, from `state` and its newest `logits` [B, V]; yields them after every token until all ended.

    Only the first `size` ids are produced. When `extend` yields, the state has read everything but each row's newest token.
    A row that has ended is still computed, so that the others do not change, but gets no tokens. Raises CheckFailed when
    logits are not finite.
    """
    seen = filters.mark([row.seen for row in rows], size, logits.device) if sampling.repetition_penalty != 1 else None
    warn_past_context, run = context_warning(module.config.context_length), runtime.of(module)
    while True:
        warn_past_context(state)
        logits = logits[:, :size]
        if logits.device.type == "cpu":
            check_finite(logits, rows)
        tokens = filters.choose(logits, seen, sampling, [row.generator for row in rows])
        if filters.NOT_FINITE in tokens:
            check_finite(logits, rows)
        for row, token in zip(rows, tokens):
            if not row.finish:
                row.accept(token, eos_ids, not sampling.stop_together)
        if sampling.stop_together:
            end_together(rows, eos_ids)
        yield rows
        if all(row.finish for row in rows):
            return
        column = sent(torch.tensor([[row.new[-1]] for row in rows]), module.device)
        if seen is not None:
            seen.scatter_(1, column, True)
        logits = run(column, state, last_only=True)[:, -1]


def end_together(rows: Sequence[Row], eos_ids: frozenset[int]) -> None:
    """mamba_ssm's rule: an end token ends nothing until it is the newest token of every row."""
    if all(row.new[-1] in eos_ids for row in rows):
        for row in rows:
            row.finish = row.finish or "eos"


def check_finite(logits: Tensor, rows: Sequence[Row]) -> None:
    """Raises CheckFailed naming the first running row of logits [B, V] with a NaN or an infinity."""
    # A sum is finite only where all its terms are; an overflow of it is looked into. By numpy, which wakes no other threads.
    with np.errstate(all="ignore"):
        if np.isfinite(logits.float().numpy(force=True).sum()) or torch.isfinite(logits).all():
            return
    for number, (row, finite) in enumerate(zip(rows, torch.isfinite(logits).all(-1).tolist())):
        if not row.finish and not finite:
            raise CheckFailed(
                f"logits are not finite at new token {len(row.new) + 1} of row {number}: the weights are damaged, "
                f"or {str(logits.dtype).removeprefix('torch.')} overflows (try dtype float32)"
            )


def context_warning(context: int | None) -> Callable[[State], None]:
    """A check to run on every step that warns once, when a row has read more than the model was trained on."""
    warned = context is None

    def check(state: State) -> None:
        nonlocal warned
        if not warned and max(state.position.tolist()) > context:
            warned = True
            warnings.warn(f"going past the {context} tokens of context that the model was trained on", stacklevel=2)

    return check


class Generation:
    """A batch being continued: iterate for the pieces of its only row, or call `finish`; then read what came of it.

    `prompt_seconds` is the time to the first token of every row, `decode_seconds` that of all later ones, `state_bytes` the
    size of the state of all rows.
    """

    def __init__(self, module: LanguageModel, rows: Sequence[Row], sampling: Sampling, vocabulary: Vocabulary):
        self.module, self.rows, self.sampling, self.vocabulary = module, list(rows), sampling, vocabulary
        self.prompt_seconds = self.decode_seconds = 0.0
        self.state_bytes = 0

    def steps(self) -> Iterator[Sequence[Row]]:
        """The rows after every step. The last piece of a row that has ended shows all that was held back."""
        if not all(row.limit for row in self.rows):
            return
        steps = self._start()
        while True:
            began = time.perf_counter()
            rows = next(steps, None)
            took = time.perf_counter() - began
            if rows is None:
                return
            if self.prompt_seconds:
                self.decode_seconds += took
            else:
                self.prompt_seconds = took
            for row in rows:
                if row.finish:
                    row.flush()
            yield rows

    def _start(self) -> Iterator[Sequence[Row]]:
        texts = [row.unread for row in self.rows]
        longest = max(map(len, texts))
        capacity = longest + max(row.limit for row in self.rows)
        with device_memory.enough(self.module, len(texts), capacity, min(CHUNK, longest)):
            state, logits = read_ragged(self.module, texts, capacity)
            self.state_bytes = state.nbytes
            v = self.vocabulary
            yield from extend(self.module, self.rows, state, logits, self.sampling, v.size, v.eos_ids)

    def __iter__(self) -> Iterator[str] | Iterator[list[int]]:
        """The pieces of text of the only row; without a tokenizer its new ids, in lists."""
        if len(self.rows) != 1:
            raise UsageError(f"streaming takes one prompt, not {len(self.rows)}")
        return self._pieces()

    def _pieces(self):
        for (row,) in self.steps():
            if row.stream is None:
                yield [row.new[-1]]
            elif row.piece:
                yield row.piece

    def finish(self) -> "Generation":
        for _ in self.steps():
            pass
        return self
