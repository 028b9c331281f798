"""Loss on held-out documents, shared out among the processes of a run."""

from collections.abc import Callable

import torch
from torch.distributed.fsdp import FSDPModule

from leanlm.data.shards import Shards
from leanlm.evaluate import loss
from leanlm.evaluate.loss import CHUNK, Loss
from leanlm.model import ternary
from leanlm.model.language_model import LanguageModel
from leanlm.train.processes import ALONE, Processes

A_TOKEN = 4  # bytes of text, about


def validate(
    module: LanguageModel,
    held: Shards,
    most_bytes: int | None = None,
    processes: Processes = ALONE,
    objective: FSDPModule | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Loss | None:
    """Loss on the first documents, up to `most_bytes` of text (None: all), a token counting as A_TOKEN where that is not
    known; None where `stop` came true in any process.

    Latent weights are packed, as they will be in the finished model; a sharded model computes with just the packed values.
    `objective` computes the logits of a sharded model, whose processes can only compute together; without one each process
    runs `module` by itself.
    """
    module.eval()
    packed = module if objective is not None else ternary.packed(module)
    text_bytes = held.bytes
    numbers = first_documents(held, most_bytes)
    start_id = int(held.document(0)[-1])
    nats = tokens = size = 0.0
    known = True  # the bytes of all texts
    for begin in range(0, len(numbers), processes.size):
        if processes.any(stop()):
            return None
        round_ = numbers[begin : begin + processes.size]
        mine = round_[processes.rank : processes.rank + 1]
        documents = [(held.document(n)[:-1].tolist(), int(text_bytes[n])) for n in mine]
        run = None if objective is None else lambda tokens, state: objective(tokens, state=state)
        found = loss.measure(packed, documents, start_id, run)
        if objective is not None:
            _keep_pace(objective, held, round_, mine, start_id)
            objective.reshard()  # without a backward pass embedding and head would stay whole, apart from what is saved
        nats, tokens, size = nats + found.nats, tokens + found.tokens, size + found.bytes
        known = known and all(n_bytes for _, n_bytes in documents)
    module.train()
    nats, tokens, size, unknown = processes.sums(nats, tokens, size, not known)
    return Loss(nats, int(tokens), 0 if unknown else int(size))


def first_documents(held: Shards, most_bytes: int | None) -> list[int]:
    """Numbers of the first documents that reach `most_bytes` of text together."""
    numbers, size = [], 0
    for number, n_bytes in enumerate(held.bytes.tolist()):
        if most_bytes is not None and size >= most_bytes:
            break
        numbers.append(number)
        size += n_bytes or A_TOKEN * len(held.document(number))
    return numbers


@torch.no_grad()
def _keep_pace(objective: FSDPModule, held: Shards, round_: list[int], mine: list[int], start_id: int) -> None:
    """As many calls more as make this process's calls equal to those of the process with the longest document."""
    calls = {n: -(-len(held.document(n)[:-1]) // CHUNK) for n in round_}
    token = torch.full((1, 1), start_id, device=next(objective.parameters()).device)
    for _ in range(max(calls.values()) - sum(calls[n] for n in mine)):
        objective(token)
