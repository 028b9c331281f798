"""What was given to continue, as rows of token ids, and how to hand back what became of them in the same form."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leanlm.errors import UsageError
from leanlm.generate.engine import Row
from leanlm.generate.vocabulary import Vocabulary

FORMS = "text, a list of texts, token ids, a list of token ids, or a tensor of them [L] or [B, L]"


@dataclass(frozen=True)
class Prompt:
    """`rows` of token ids, not empty; `texts` where text was given, `tensor` where a tensor was; `many`: a list of prompts."""

    rows: list[list[int]]
    many: bool
    texts: tuple[str, ...] | None = None
    tensor: Tensor | None = None

    @classmethod
    def of(cls, given: Any, vocabulary: Vocabulary, tokenizer=None, add_special: bool = True) -> "Prompt":
        """From any of `FORMS`; raises UsageError for anything else, and for ids the model does not know."""
        if isinstance(given, Tensor):
            return cls(*_tensor_rows(given, vocabulary), tensor=given)
        many = isinstance(given, Sequence) and not isinstance(given, str) and any(not _is_id(item) for item in given)
        items = list(given) if many else [given]
        if any(isinstance(item, str) for item in items):
            if not all(isinstance(item, str) for item in items):
                raise UsageError(f"the prompts are partly text and partly not: give {FORMS}")
            ids = [encode(item, tokenizer, add_special) for item in items]
            return cls([vocabulary.start(row) for row in ids], many, texts=tuple(items))
        return cls([vocabulary.start(as_ids(item)) for item in items], many)

    def answer(self, rows: Sequence[Row], pad_id: int | None, echo: bool) -> str | list | Tensor:
        """Text for text (the new one; all of it with `echo`); for ids all of them, padded with `pad_id` in a tensor."""
        if self.texts is not None:
            texts = [(text if echo else "") + row.text for text, row in zip(self.texts, rows)]
            return texts if self.many else texts[0]
        ids = [prompt + row.new for prompt, row in zip(self.rows, rows)]
        if self.tensor is None:
            return ids if self.many else ids[0]
        longest = max(map(len, ids))
        padded = [row + [pad_id or 0] * (longest - len(row)) for row in ids]
        return torch.tensor(padded if self.many else padded[0], dtype=torch.int64, device=self.tensor.device)


def encode(text: str, tokenizer, add_special: bool = True) -> list[int]:
    """Token ids of `text`; raises UsageError without a tokenizer."""
    if tokenizer is None:
        raise UsageError("this model has no tokenizer: give token ids, or load it with tokenizer=FOLDER (--tokenizer)")
    return tokenizer.encode(text, add_special)


def as_ids(given: Any) -> list[int]:
    """Token ids from a list or a tensor [L]; raises UsageError."""
    if isinstance(given, Tensor):
        given = given.tolist() if given.ndim == 1 else None
    if not isinstance(given, Sequence) or isinstance(given, str | bytes) or not all(map(_is_id, given)):
        raise UsageError(f"a prompt of type {type(given).__name__} is not understood: give {FORMS}")
    return [operator.index(item) for item in given]


def _tensor_rows(given: Tensor, vocabulary: Vocabulary) -> tuple[list[list[int]], bool]:
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise UsageError(f"a prompt of dtype {str(given.dtype).removeprefix('torch.')}: token ids are whole numbers (int64)")
    if given.ndim not in (1, 2) or (given.ndim == 2 and not len(given)):
        raise UsageError(f"a prompt tensor of shape {list(given.shape)}: must be [L] or [B, L] with at least one row")
    rows = given.tolist() if given.ndim == 2 else [given.tolist()]
    return [vocabulary.start(row) for row in rows], given.ndim == 2


def _is_id(item: Any) -> bool:
    return hasattr(item, "__index__") and not isinstance(item, bool | Tensor)
