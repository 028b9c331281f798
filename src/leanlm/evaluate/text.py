"""Perplexity and bits per byte of documents, and how both fall the more of a document has been read."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from leanlm.api import Model
from leanlm.errors import UsageError
from leanlm.evaluate import loss
from leanlm.evaluate.store import Store, fingerprint

FIRST = 64  # tokens of the first span; every further one is as long as all before it


def evaluate(
    model: Model,
    documents: Sequence[str],
    window: int | None = None,
    store: Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> dict:
    """What the model makes of texts: `window`, documents, tokens, bytes, `nats_per_token`, `perplexity`, `bits_per_byte`, and
    `by_position`, spans of tokens read before with their bits per byte.

    Each document is read as one continuous text; with `window`, as windows of so many tokens that know nothing of each other,
    by default only for attention that sees all tokens, as long as its context. Every token is predicted, the first of a text
    from the token that ends texts. Results are kept in the file `store` document by document, and a second call goes on behind
    them; `progress` is told how many are done. Raises UsageError without tokenizer or text, and what `Store` raises.
    """
    if model.tokenizer is None:
        raise UsageError("bits per byte are of text, and this model has no tokenizer: give --tokenizer")
    documents = [text for text in documents if text]
    if not documents:
        raise UsageError("there is no text to read")
    window = window or (None if model.config.bounded else model.config.context_length)
    stored = Store(store, fingerprint(model, repr(window), repr(documents)), len(documents))
    progress(len(stored.results))
    for text in documents[len(stored.results) :]:
        stored.add([spans(model, text, window)])
        progress(len(stored.results))
    return {"window": window, **summarise(stored.results)}


def spans(model: Model, text: str, window: int | None) -> list[list[float]]:
    """[tokens, bytes, nats] of each span of positions in one document."""
    ids, sizes = model.tokenizer.measured(text)
    length = window or len(ids)
    nats = torch.cat([by_token(model, part) for part in loss.windows(ids, length)])
    positions = torch.arange(len(ids)) % length
    number = torch.frexp((positions // FIRST).double()).exponent  # 0, 1, 2 to 3, 4 to 7 times FIRST: 0, 1, 2, 3
    count = int(number.max()) + 1
    columns = (torch.ones(len(ids)), torch.tensor(sizes), nats)
    sums = [torch.zeros(count, dtype=torch.float64).index_add_(0, number, column.double()).tolist() for column in columns]
    return [list(span) for span in zip(*sums)]


def by_token(model: Model, ids: Sequence[int]) -> Tensor:
    """Nats of every token of one text [L], on the CPU."""
    return torch.cat([part.cpu() for part in loss.by_token(model.module, ids, end_of_text(model))])


def end_of_text(model: Model) -> int:
    """The id that begins and ends texts: the tokenizer's, or the model's, or else 0."""
    return next(iter((*model.tokenizer.eos_ids, *model.config.eos_ids)), 0)


def summarise(results: Sequence[Sequence[Sequence[float]]]) -> dict:
    count = max(map(len, results))
    spans = [[sum(found[n][i] for found in results if n < len(found)) for i in range(3)] for n in range(count)]
    tokens, size, nats = (sum(span[i] for span in spans) for i in range(3))
    starts = [0, *(FIRST * 2**n for n in range(count))]
    return {
        "documents": len(results),
        "tokens": int(tokens),
        "bytes": int(size),
        "nats_per_token": nats / tokens,
        "perplexity": math.exp(min(nats / tokens, 700)),
        "bits_per_byte": nats / math.log(2) / size,
        "by_position": [
            {"from": start, "to": end, "tokens": int(span[0]), "bits_per_byte": span[2] / math.log(2) / span[1]}
            for start, end, span in zip(starts, starts[1:], spans)
            if span[1]
        ],
    }
