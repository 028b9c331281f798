"""The ids a model may read, produce, start from and end with: its config and its tokenizer taken together."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from leanlm.errors import UsageError
from leanlm.model.config import ModelConfig


@dataclass(frozen=True)
class Vocabulary:
    """`size` ids may be produced and `readable` ids be read; the rows of the model beyond are padding."""

    size: int
    readable: int
    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    pad_id: int | None = None

    @classmethod
    def of(cls, config: ModelConfig, tokenizer=None) -> "Vocabulary":
        """`tokenizer`: an object with vocab_size, bos_id, eos_ids and pad_id, or None."""
        size = config.vocab_size if tokenizer is None else min(config.vocab_size, tokenizer.vocab_size)
        known = (config.bos_id, config.pad_id, *config.eos_ids)
        bos, pad, *eos = (i if i is not None and 0 <= i < config.vocab_size else None for i in known)
        if tokenizer is not None:
            bos = tokenizer.bos_id if bos is None else bos
            pad = tokenizer.pad_id if pad is None else pad
            eos = [*eos, *tokenizer.eos_ids]
        eos = [i for i in eos if i is not None]
        if pad is None and eos:
            pad = eos[0]
        return cls(size, config.vocab_size, bos, frozenset(eos), pad)

    def ending(self, eos_ids: Sequence[int] | None) -> "Vocabulary":
        """The same with these end tokens; None: with its own."""
        return self if eos_ids is None else dataclasses.replace(self, eos_ids=frozenset(eos_ids))

    def check(self, ids: Sequence[int]) -> None:
        """Raises UsageError naming the first id that the model has no embedding for."""
        if ids and min(ids) >= 0 and max(ids) < self.readable:
            return
        for place, token in enumerate(ids):
            if not 0 <= token < self.readable:
                raise UsageError(f"token {token} at position {place}: this model knows ids 0 to {self.readable - 1}")

    def start(self, ids: Sequence[int]) -> list[int]:
        """The ids a prompt really begins with: themselves, or the begin token of an empty one. Raises UsageError."""
        self.check(ids)
        if not ids and self.bos_id is None:
            raise UsageError("the prompt is empty and this model has no token to begin with: give at least one token")
        return list(ids) or [self.bos_id]
