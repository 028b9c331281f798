"""GPTQ through a whole model: sublayer after sublayer, every matrix on the inputs it will see, those of the matrices
quantised before it.

S samples  L tokens of each  D width of the model  R rows (outputs)  n columns (inputs)
"""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leanlm.errors import UsageError
from leanlm.model.format import Grouped
from leanlm.model.language_model import LanguageModel, Sublayer
from leanlm.model.packed import Packed
from leanlm.quantize import gptq, rtn

TOKENS = 4096  # per forward pass


@dataclass(frozen=True)
class Calibrated:
    """What became of a matrix: ||W - Q||^2 / ||W||^2, the same of its outputs on the calibration text, the damping it took,
    and the seconds for choosing its codes."""

    name: str
    weight_error: float
    output_error: float
    damping: float
    seconds: float


def samples(documents: Iterable[Sequence[int]], end_of_text: int, count: int, length: int, seed: int = 0) -> Tensor:
    """Calibration tokens int64 [count, length]: windows that do not overlap, drawn at random from the documents' token ids
    one after another, each ended by `end_of_text`. Raises UsageError where there are too few."""
    if count < 1 or length < 1:
        raise UsageError(f"{count} samples of {length} tokens: give at least one of each")
    text = torch.cat([torch.empty(0, dtype=torch.int64), *(torch.tensor([*ids, end_of_text]) for ids in documents)])
    windows = len(text) // length
    if windows < count:
        raise UsageError(
            f"calibration text has {len(text):,} tokens; {count} samples of {length} need {count * length:,}: "
            "give more text, or fewer samples (--samples) or shorter ones"
        )
    chosen = torch.randperm(windows, generator=torch.Generator().manual_seed(seed))[:count]
    return text[: windows * length].view(windows, length)[chosen]


@torch.no_grad()
def calibrate(
    module: LanguageModel,
    tokens: Tensor,
    plan: Mapping[str, Grouped],
    *,
    act_order: bool = False,
    damping: float = gptq.DAMPING,
    progress: Callable[[Calibrated], None] | None = None,
) -> dict[str, Calibrated]:
    """Quantise in place the matrices of `plan` (names of `module.weights()` inside layers) on samples `tokens` [S, L].

    Samples are read as texts of their own. Their residual streams are kept in the model's residual dtype; the sublayer at
    work is copied to float32 (float64 in a float64 model), one at a time. Raises, before anything is changed, UsageError for
    names, formats or tokens that do not fit, and CheckpointError for NaN weights; later, what `gptq.quantize` raises, and
    then the matrices done so far stay quantised.
    """
    _check(module, tokens, plan)
    results: dict[str, Calibrated] = {}
    streams = [next(module.streams(part)) for part in tokens.to(module.device).split(max(1, TOKENS // tokens.shape[1]))]
    for prefix, sublayer in _named(module):
        formats = {name.removeprefix(prefix): format for name, format in plan.items() if name.startswith(prefix)}
        work = copy.deepcopy(sublayer).to(torch.float64 if module.dtype == torch.float64 else torch.float32)
        for stage in _stages(work, streams[0][:1], formats, prefix):
            hessian = _second_moments(work, streams, work.get_submodule(_owner(stage[0])))
            for name in stage:
                result = _quantise(sublayer, work, name, hessian, formats[name], act_order, damping, prefix)
                results[result.name] = result
                if progress:
                    progress(result)
        if len(results) == len(plan):
            break
        for number, x in enumerate(streams):
            streams[number] = work(x.to(_dtype(work))).to(x.dtype)
    return results


def _quantise(
    sublayer: Sublayer,
    work: Sublayer,
    name: str,
    hessian: Tensor,
    format: Grouped,
    act_order: bool,
    damping: float,
    prefix: str,
) -> Calibrated:
    """Quantise one matrix of a sublayer, in the model and, as floats again, in the working copy."""
    start = time.perf_counter()
    kept, held = sublayer.get_submodule(_owner(name)), work.get_submodule(_owner(name))
    weight = held.weight.detach()
    done = gptq.quantize(weight, hessian, format, act_order=act_order, damping=damping, name=prefix + name)
    rounded = done.weight.dequantize()
    done.weight.dtype = kept.weight.dtype
    kept.hold(done.weight)
    held.hold(rounded)
    return Calibrated(
        prefix + name,
        _share((weight - rounded).square().sum().item(), weight.square().sum().item()),
        _share(done.objective, gptq.objective(weight, hessian)),
        done.damping,
        time.perf_counter() - start,
    )


def _stages(work: Sublayer, x: Tensor, formats: Mapping[str, Grouped], prefix: str) -> list[list[str]]:
    """The matrices in the order of their calls, those that are given the same input together."""
    if not formats:
        return []
    inputs: list[Tensor] = []
    stages: list[list[str]] = []

    def see(name: str, given: Tensor) -> None:
        at = next((at for at, other in enumerate(inputs) if other is given), None)
        if at is None:
            inputs.append(given)
            stages.append([name])
        else:
            stages[at].append(name)

    with _watched({name: work.get_submodule(_owner(name)) for name in formats}, see):
        work(x.to(_dtype(work)))
    for name in formats.keys() - {name for stage in stages for name in stage}:
        raise UsageError(f"{prefix}{name}: what it is multiplied with cannot be seen; leave it float or round to nearest")
    return stages


class _Seen(Exception):
    """Ends a forward pass at the matrix whose input was wanted."""


def _second_moments(work: Sublayer, streams: Sequence[Tensor], matrix: nn.Module) -> Tensor:
    """2 / N sum x x^T over the N tokens' inputs x of a matrix: [n, n], a running mean."""
    hessian = torch.zeros(matrix.weight.shape[1], matrix.weight.shape[1], dtype=_dtype(work), device=streams[0].device)
    seen = 0

    def see(_: str, given: Tensor) -> None:
        nonlocal seen
        x = given.flatten(0, -2)
        total = seen + len(x)
        hessian.addmm_(x.T, x, beta=seen / total, alpha=2 / total)
        seen = total
        raise _Seen

    with _watched({"": matrix}, see):
        for x in streams:
            try:
                work(x.to(_dtype(work)))
            except _Seen:
                continue
    return hessian


@contextmanager
def _watched(matrices: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """`see(name, input)` before every call of one of the matrices."""
    hooks = [
        matrix.register_forward_pre_hook(lambda _, inputs, name=name: see(name, inputs[0])) for name, matrix in matrices.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check(module: LanguageModel, tokens: Tensor, plan: Mapping[str, Grouped]) -> None:
    prefixes = tuple(prefix for prefix, _ in _named(module))
    matrices = {name: matrix for name, matrix in module.matrices().items() if name.startswith(prefixes)}
    for name, format in plan.items():
        if name not in matrices:
            raise UsageError(f"{name}: no matrix of a layer, and only those are calibrated; round it to nearest")
        weight = matrices[name].weight
        if isinstance(weight, Packed):
            raise UsageError(f"{name}: is {weight.format} already; quantise the float model it was made from")
        rtn.check(weight, format, name)
    low, high = map(int, tokens.aminmax())
    if low < 0 or high >= module.config.vocab_size:
        bad = low if low < 0 else high
        raise UsageError(f"token {bad} in the calibration text: this model knows ids 0 to {module.config.vocab_size - 1}")


def _named(module: LanguageModel) -> Iterator[tuple[str, Sublayer]]:
    """Every sublayer in the order of execution, with what its weights' names begin with."""
    for i, layer in enumerate(module.layers):
        for j, sublayer in enumerate(layer):
            yield f"layers.{i}.{j}.", sublayer


def _owner(name: str) -> str:
    """The layer that holds the matrix of this name."""
    return name.removesuffix(".weight")


def _dtype(work: Sublayer) -> torch.dtype:
    return work.norm.weight.dtype


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
