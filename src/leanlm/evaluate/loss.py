"""Loss of a model on whole documents: each is read as one continuous text, state carried from chunk to chunk."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from leanlm import runtime
from leanlm.data.shards import Shards
from leanlm.model.language_model import LanguageModel
from leanlm.runtime import device_memory

CHUNK = 512  # tokens per call


@dataclass(frozen=True)
class Loss:
    """Summed over all documents: negative log-likelihood in nats, tokens predicted, bytes of text (0: not known)."""

    nats: float
    tokens: int
    bytes: int

    @property
    def per_token(self) -> float:
        """Mean nats per token."""
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float | None:
        """Bits needed per byte of text: comparable between tokenizers and with a compressor. None where the bytes are not
        known."""
        return self.nats / math.log(2) / self.bytes if self.bytes else None


def measure(
    module: LanguageModel, documents: Iterable[tuple[Sequence[int], int]], start_id: int, run: runtime.Run | None = None
) -> Loss:
    """Loss over documents of (token ids, bytes of text); every token is predicted, the first one from `start_id`.

    `run` is what computes the logits (default: what runs the module best)."""
    nats, tokens, size = 0.0, 0, 0
    for ids, n_bytes in documents:
        nats += sum(part.sum().item() for part in by_token(module, ids, start_id, run))
        tokens += len(ids)
        size += n_bytes
    return Loss(nats, tokens, size)


@torch.no_grad()
def by_token(
    module: LanguageModel, ids: Sequence[int], start_id: int, run: runtime.Run | None = None
) -> Iterator[torch.Tensor]:
    """Nats of every token of one document, float32 [CHUNK] at a time (the last fewer)."""
    run = run or runtime.of(module)
    text = torch.tensor([[start_id, *ids]], dtype=torch.int64, device=module.device)
    with device_memory.enough(module, 1, text.shape[1], CHUNK, CHUNK):
        state = module.new_state(1, capacity=text.shape[1])
        for begin in range(0, text.shape[1] - 1, CHUNK):
            part = text[:, begin : begin + CHUNK + 1]
            yield F.cross_entropy(run(part[:, :-1], state).float().flatten(0, 1), part[0, 1:], reduction="none")


def in_windows(module: LanguageModel, held: Shards, length: int) -> Loss:
    """Loss over documents cut into windows of `length` tokens, each read from an empty state: no model is asked for more than
    it was trained on."""
    start_id = int(held.document(0)[-1])
    texts = [held.document(n)[:-1].tolist() for n in range(len(held.bytes))]
    found = measure(module, [(window, 0) for text in texts for window in windows(text, length)], start_id)
    return Loss(found.nats, found.tokens, int(held.bytes.sum()))


def windows(ids: Sequence[int], length: int) -> list[Sequence[int]]:
    """A text cut into pieces of `length` tokens, the last as long as is left."""
    return [ids[at : at + length] for at in range(0, len(ids), length)]
