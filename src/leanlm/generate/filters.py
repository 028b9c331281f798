"""From logits to the distribution the next token is drawn from, and the draw.

B rows  V tokens that may be produced
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from leanlm.generate.sampling import MAMBA_SSM, Sampling
from leanlm.model.state import sent

OUT = float("-inf")
ALONE = threading.Lock()
NOT_FINITE = -1  # in the place of a token
LIKELIEST = 256  # tokens among which a nucleus is looked for first


def probabilities(logits: Tensor, seen: Tensor | None, sampling: Sampling) -> Tensor:
    """Distribution [B, V], float32, for logits [B, V] where `seen` [B, V] (bool) marks the tokens of the text so far.

    Greedy settings give all probability to one token. Order as in transformers' generate: repetition penalty, temperature,
    top-k, top-p, min-p; with compat "mamba_ssm" as in that package's generation.py, which reads min_p differently.
    """
    logits = penalise(logits.float(), seen, sampling.repetition_penalty)
    if sampling.greedy:
        return torch.zeros_like(logits).scatter_(1, logits.argmax(-1, keepdim=True), 1.0)
    if sampling.compat == MAMBA_SSM:
        kept = mamba_ssm_filters(logits, sampling)
    else:
        scaled = scale(logits, sampling.temperature)
        kept = min_p(top_p(top_k(scaled, sampling.top_k), sampling.top_p), sampling.min_p)
    return kept.softmax(-1)


def choose(logits: Tensor, seen: Tensor | None, sampling: Sampling, generators: Sequence[torch.Generator]) -> list[int]:
    """One token per row of logits [B, V]; every row draws one number from its own CPU generator (none when greedy).

    On other devices than the CPU a row whose logits are not all finite gets NOT_FINITE: the tokens are all that is waited for.
    """
    with one_thread():
        numbers = None
        if not sampling.greedy:
            numbers = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
        if logits.device.type != "cpu":
            numbers = None if numbers is None else sent(numbers, logits.device)
            return on_device(logits, seen, sampling, numbers).tolist()
        if sampling.greedy:
            return likeliest(penalise(logits.float(), seen, sampling.repetition_penalty))
        return draw(probabilities(logits, seen, sampling), numbers).tolist()


def on_device(logits: Tensor, seen: Tensor | None, sampling: Sampling, numbers: Tensor | None) -> Tensor:
    """The tokens [B] of `choose`, without waiting for the device."""
    if sampling.greedy:
        tokens = penalise(logits.float(), seen, sampling.repetition_penalty).argmax(-1)
    else:
        tokens = draw(probabilities(logits, seen, sampling), numbers)
    return tokens.where(torch.isfinite(logits).all(-1), NOT_FINITE)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes by one thread: others take longer to wake than a vocabulary takes, most of all where the native
    library's own threads are waiting for the next token."""
    with ALONE:  # the number is the whole process's
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def likeliest(logits: Tensor) -> list[int]:
    """The first of the largest of each row, on the CPU."""
    # numpy's search is ten times as fast as torch's, which would be a noticeable part of a small model's token.
    return logits.numpy().argmax(-1).tolist()


def draw(distribution: Tensor, numbers: Tensor) -> Tensor:
    """The tokens [B] at which the cumulated distribution [B, V] passes `numbers` [B] (float64 in [0, 1), on its device).

    By inversion and not by torch.multinomial: a seed then means the same on every device, and in any batch.
    """
    reached = distribution.double().cumsum(-1)
    at = numbers[:, None] * reached[:, -1:]
    return torch.searchsorted(reached, at, right=True).squeeze(1)


def mark(texts: Iterable[Sequence[int]], vocabulary: int, device: torch.device | str = "cpu") -> Tensor:
    """Which of `vocabulary` tokens occur in each text: bool [B, V]."""
    texts = list(texts)
    seen = torch.zeros(len(texts), vocabulary, dtype=torch.bool)
    for row, ids in enumerate(texts):
        ids = torch.tensor(list(ids), dtype=torch.int64)
        seen[row, ids[ids < vocabulary]] = True
    return seen.to(device)


def penalise(logits: Tensor, seen: Tensor | None, penalty: float) -> Tensor:
    """Logits of tokens seen before, once however often: negative ones times the penalty, others divided by it (Keskar et
    al. 2019, arXiv 1909.05858, section 4.1, in the form every library uses)."""
    if penalty == 1.0 or seen is None:
        return logits
    limit = torch.finfo(logits.dtype).max
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty).clamp(-limit, limit), logits)


def scale(logits: Tensor, temperature: float) -> Tensor:
    """Logits over temperature, relative to the largest of each row, so that no temperature makes them overflow."""
    return (logits - logits.max(-1, keepdim=True).values) / temperature


def top_k(logits: Tensor, k: int) -> Tensor:
    """All but the k largest of each row out; ties with the k-th stay."""
    if not 0 < k < logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(k).values[:, -1:], OUT)


def top_p(logits: Tensor, p: float) -> Tensor:
    """The least likely tokens that together hold at most 1 - p out; the likeliest always stays."""
    if not 0 < p < 1:
        return logits
    total, vocabulary = logits.logsumexp(-1, keepdim=True), logits.shape[-1]
    # Few hold p as a rule, and an order of all takes long; on a GPU it takes less than to ask whether it is needed.
    for count in (min(LIKELIEST, vocabulary), vocabulary) if logits.device.type == "cpu" else (vocabulary,):
        values, order = logits.topk(count)
        held = (values - total).exp().cumsum(-1)
        if count == vocabulary or bool((held[:, -1] > p).all()):
            break
    out = held.roll(1, -1) >= p  # those before hold it already
    out[:, 0] = False
    return torch.full_like(logits, OUT).scatter(1, order, values.masked_fill(out, OUT))


def min_p(logits: Tensor, p: float) -> Tensor:
    """Tokens less likely than p times the likeliest out (Nguyen et al. 2024, arXiv 2407.01082)."""
    if p == 0:
        return logits
    distribution = logits.softmax(-1)
    return logits.masked_fill(distribution < p * distribution.max(-1, keepdim=True).values, OUT)


def mamba_ssm_filters(logits: Tensor, sampling: Sampling) -> Tensor:
    """The filters of mamba_ssm's utils/generation.py: top-k (exactly k) then temperature and top-p, min_p unused; without
    top-k either top-p, or min_p times the raw logit of token 0 as a bound on raw logits if it lies between 0 and 1."""
    if sampling.top_k > 0:
        values, kept = logits.topk(min(sampling.top_k, logits.shape[-1]))
        only = torch.full_like(logits, OUT).scatter(1, kept, values)
        return top_p(scale(only, sampling.temperature), sampling.top_p)
    if sampling.min_p > 0:
        bound = logits[:, :1] * sampling.min_p
        out = (bound > 0) & (bound < 1) & (logits < bound)
        return scale(logits.masked_fill(out, OUT), sampling.temperature)
    return top_p(scale(logits, sampling.temperature), sampling.top_p)
