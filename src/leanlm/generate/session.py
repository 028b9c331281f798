"""A conversation that can be saved, resumed, forked and rewound, and goes on exactly as if it had never stopped.

It is tokens, the state that has read all of them but the newest, random state, and turns. Everything that is computed
depends only on these, so a session cut anywhere, even within an answer, continues bit for bit.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from leanlm.checkpoint import state_file
from leanlm.errors import CheckpointError, UsageError
from leanlm.generate import engine
from leanlm.generate.engine import Row
from leanlm.generate.prompt import as_ids, encode
from leanlm.generate.sampling import Sampling
from leanlm.generate.stopping import CONTEXT, TextStream, stop_strings
from leanlm.generate.vocabulary import Vocabulary
from leanlm.model.config import Attention, ModelConfig
from leanlm.model.language_model import LanguageModel
from leanlm.model.state import State
from leanlm.runtime import device_memory

SNAPSHOTS = 8  # newest turns whose beginning is kept as a state; earlier ones are read again when rewound to
ROOM = 256  # tokens by which the capacity of full attention grows


class Speaker(Protocol):
    """What a session needs of a model."""

    module: LanguageModel
    config: ModelConfig
    tokenizer: Any


@dataclass
class Turn:
    """A prompt and what the model said to it: `start` is the tokens before it, `read` those up to the prompt's end.

    `random` is the random state before it, `before` the state (None: to be read again), `text` whether its prompt was text,
    `told` how many characters of the answer were returned.
    """

    start: int
    read: int
    random: Tensor
    text: bool
    before: State | None = None
    told: int = 0


class Session:
    """A conversation with `model`. `seed` None draws the random state from torch's; `finish` says how the last call ended."""

    def __init__(self, model: Speaker, seed: int | None = None):
        self.model = model
        self.vocabulary = Vocabulary.of(model.config, model.tokenizer)
        self.tokens: list[int] = []
        self.turns: list[Turn] = []
        self.random = engine.seeded(seed, 1)[0].get_state()
        self.finish = ""
        self._state = model.module.new_state(1, ROOM)
        self._sound = True  # False while a step changes the state, and after one that was interrupted

    def __repr__(self) -> str:
        return f"Session({len(self.turns)} turns, {len(self.tokens)} tokens, {self._state.nbytes} bytes of state)"

    @property
    def state(self) -> State:
        """The state after all tokens but those of `pending`."""
        self._mend()
        return self._state

    @property
    def pending(self) -> list[int]:
        """Tokens the state has not read yet: the newest one, or a prompt that nothing was said to."""
        return self.tokens[int(self.state.position[0]) :]

    @property
    def text(self) -> str:
        """The whole conversation as text. Raises UsageError without a tokenizer."""
        if self.model.tokenizer is None:
            raise UsageError("this model has no tokenizer: a session's tokens cannot be shown as text")
        return self.model.tokenizer.decode(self.tokens)

    def generate(
        self,
        prompt: str | Sequence[int] | Tensor | None = None,
        max_new_tokens: int | None = None,
        *,
        stop: str | Sequence[str] | None = None,
        stream: Callable[[str | list[int]], None] | bool | None = None,
        seed: int | None = None,
        add_special: bool | None = None,
        sampling: Sampling | None = None,
        **filters,
    ) -> str | list[int] | Iterator[str] | Iterator[list[int]]:
        """Say `prompt` in a new turn and return what the model answers; without a prompt, go on with the last answer.

        Text is answered by the new text, ids by prompt and new ids. What may be half a character or half a stop string is
        held back for a call that goes on; `text` shows it. `filters` are those of `Sampling`; `seed` starts the random state
        anew; `add_special` (by default in the first turn only) lets the tokenizer add its own tokens. `stream` as in
        `Model.generate`.
        """
        sampling = Sampling.given(sampling, filters)
        limit = engine.new_token_limits([0], max_new_tokens, None, 0)[0]
        stops = stop_strings(stop)
        if stops and self.model.tokenizer is None:
            raise UsageError("stop strings need a tokenizer, and this model has none")
        said = self._say(prompt, add_special)
        if seed is not None:
            self.random = engine.seeded(seed, 1)[0].get_state()
        row = self._row(limit, stops)
        pieces = self._continue(row, sampling)
        if stream is True:
            return pieces
        for piece in pieces:
            if stream:
                stream(piece)
        return row.text if self.turns[-1].text else said + row.new

    def fork(self) -> "Session":
        """An independent session that has heard and said the same, and would go on in the same way."""
        twin = Session(self.model)
        twin.tokens, twin.random, twin.finish = list(self.tokens), self.random, self.finish
        twin._state = self.state.clone()
        twin.turns = [dataclasses.replace(turn) for turn in self.turns]  # snapshots are never changed: shared
        return twin

    def rewind(self, turn: int) -> None:
        """Back to before this turn (0 is the first, -1 the last), as if it and all later ones had never been.

        Turns before the newest few are reached by reading the conversation again. Raises UsageError for a turn not there.
        """
        index = turn if turn >= 0 else len(self.turns) + turn
        if not 0 <= index < len(self.turns):
            raise UsageError(f"turn {turn}: this session has {len(self.turns)} turns (0 is the first, -1 the last)")
        self._state, self._sound = self._state_before(index), True
        self.tokens, self.random = self.tokens[: self.turns[index].start], self.turns[index].random
        self.turns, self.finish = self.turns[:index], ""

    def save(self, file: str | Path) -> None:
        """Write the session into one file, replacing an older one when this is complete."""
        tensors = {"tokens": torch.tensor(self.tokens, dtype=torch.int64), "random": self.random}
        turns = []
        for number, turn in enumerate(self.turns):
            about = {"start": turn.start, "read": turn.read, "text": turn.text, "told": turn.told, "capacity": None}
            tensors[f"turn.{number}.random"] = turn.random
            if turn.before is not None:
                packed, about["capacity"] = state_file.pack(self.model.module, turn.before)
                tensors |= {f"turn.{number}.state.{name}": tensor for name, tensor in packed.items()}
            turns.append(about)
        extra = {"session": 1, "tokens": len(self.tokens), "turns": turns, "finish": self.finish}
        if self.model.tokenizer is not None:
            extra["text"] = self.text
        state_file.write(file, self.model.module, self.state, extra, tensors)

    @classmethod
    def load(cls, model: Speaker, file: str | Path) -> "Session":
        """The session in `file`. Raises NotFound, or CheckpointError where it is damaged or belongs to another model."""
        state, extra, tensors = state_file.read(file, model.module)
        if extra.get("session") != 1:
            raise CheckpointError(f"{file}: holds a state and no session: read it with load_state")
        session = cls(model)
        try:
            session._state, session.tokens, session.random = state, tensors["tokens"].tolist(), tensors["random"]
            session.finish = extra["finish"]
            session.turns = [_turn(model.module, number, about, tensors) for number, about in enumerate(extra["turns"])]
            session.vocabulary.check(session.tokens)
        except (KeyError, TypeError, UsageError) as error:
            raise CheckpointError(f"{file}: damaged session ({error})") from None
        return session

    def _say(self, prompt, add_special: bool | None) -> list[int]:
        """Begin a turn with `prompt`, if there is one; returns its ids."""
        if prompt is None and self.turns:
            return []
        text = isinstance(prompt, str) or (prompt is None and self.model.tokenizer is not None)
        first = not self.tokens
        if text:
            ids = encode(prompt or "", self.model.tokenizer, first if add_special is None else add_special)
        else:
            ids = as_ids([] if prompt is None else prompt)
        ids = self.vocabulary.start(ids) if first else ids
        self.vocabulary.check(ids)
        before = self.state.clone() if self.tokens else None
        self.turns.append(Turn(len(self.tokens), len(self.tokens) + len(ids), self.random, text, before))
        for old in self.turns[:-SNAPSHOTS]:
            old.before = None
        self.tokens += ids
        return ids

    def _row(self, limit: int, stops: Sequence[str]) -> Row:
        turn, stream = self.turns[-1], None
        if self.model.tokenizer is not None:
            before, after = self.tokens[max(0, turn.read - CONTEXT) : turn.read], self.tokens[turn.read :]
            stream = TextStream(self.model.tokenizer.decode, before, stops, after, turn.told)
        generator = torch.Generator()
        generator.set_state(self.random)
        return Row(self.pending, limit, generator, list(self.tokens), stream)

    def _continue(self, row: Row, sampling: Sampling) -> Iterator[str] | Iterator[list[int]]:
        """Run the row, keeping the session whole at every yield; the new pieces of text, or ids."""
        if not row.limit:
            return
        capacity = len(self.tokens) + row.limit
        with device_memory.enough(self.model.module, 1, capacity, min(engine.CHUNK, len(row.unread))):
            yield from self._extend(row, sampling, capacity)

    def _extend(self, row: Row, sampling: Sampling, capacity: int) -> Iterator[str] | Iterator[list[int]]:
        module, turn, v = self.model.module, self.turns[-1], self.vocabulary
        self._state = with_room(module, self._state, capacity)
        self._sound = False
        logits = engine.read(module, [row.unread], self._state)
        for _ in engine.extend(module, [row], self._state, logits, sampling, v.size, v.eos_ids):
            if row.finish == "eos":
                row.flush()
            self.tokens.append(row.new[-1])
            self.random, self.finish = row.generator.get_state(), row.finish
            turn.told = row.stream.told if row.stream else 0
            self._sound = True
            if row.stream is None:
                yield [row.new[-1]]
            elif row.piece:
                yield row.piece
            self._sound = False
        self._sound = True

    def _mend(self) -> None:
        """After an interrupted step, which may have left the state half changed: read the last turn again."""
        if not self._sound:
            self._state = self._state_before(len(self.turns) - 1)
            self._reread(self._state, len(self.turns) - 1)
            self._sound = True

    def _state_before(self, index: int) -> State:
        """A new state as it was at the start of this turn."""
        kept = max((i for i in range(index + 1) if self.turns[i].before is not None), default=0)
        snapshot = self.turns[kept].before
        state = self.model.module.new_state(1, ROOM) if snapshot is None else snapshot.clone()
        state = with_room(self.model.module, state, len(self.tokens))
        for turn in range(kept, index):
            self._reread(state, turn)
        return state

    def _reread(self, state: State, index: int) -> None:
        """Read a turn with the very calls that read it first, so that the bits are the same."""
        turn = self.turns[index]
        end = self.turns[index + 1].start if index + 1 < len(self.turns) else len(self.tokens)
        if end == turn.read:  # nothing was said: the prompt waits to be read with what follows
            return
        engine.read(self.model.module, [self.tokens[int(state.position[0]) : turn.read]], state)
        for token in self.tokens[turn.read : end - 1]:
            engine.read(self.model.module, [[token]], state)


def _turn(module: LanguageModel, number: int, about: dict, tensors: dict[str, Tensor]) -> Turn:
    prefix, before = f"turn.{number}.state.", None
    if about["capacity"] is not None:
        named = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        before = state_file.unpack(module, named, about["capacity"])
    return Turn(about["start"], about["read"], tensors[f"turn.{number}.random"], about["text"], before, about["told"])


def with_room(module: LanguageModel, state: State, tokens: int) -> State:
    """`state` itself, or where its full attention cannot remember so many tokens, a roomier copy."""
    mixers = enumerate(module.config.sublayers)
    full = [i for i, mixer in mixers if isinstance(mixer, Attention) and mixer.window is None]
    if all(state.memories[i]["k"].shape[1] >= tokens for i in full):
        return state
    roomy = module.new_state(state.batch, -(-tokens // ROOM) * ROOM, state.dtype, state.cache_dtype)
    for mine, theirs in zip(roomy.memories, state.memories, strict=True):
        for name, tensor in (theirs or {}).items():
            mine[name] = mine[name].to(tensor.dtype)
            mine[name][tuple(map(slice, tensor.shape))] = tensor
    roomy.position = state.position.clone()
    return roomy
