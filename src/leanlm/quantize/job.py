"""One quantisation from beginning to end: plan, text, matrices, report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leanlm import families
from leanlm.api import Model
from leanlm.checkpoint import codecs
from leanlm.data import sources
from leanlm.errors import UsageError
from leanlm.evaluate import loss
from leanlm.evaluate.text import end_of_text
from leanlm.model import packed
from leanlm.model.format import Grouped
from leanlm.model.packed import Packed
from leanlm.quantize import plan as plans
from leanlm.quantize.calibrate import Calibrated, calibrate, samples
from leanlm.quantize.convert import check_once, convert
from leanlm.quantize.plan import Plan
from leanlm.quantize.report import MatrixReport, Report
from leanlm.train import recipe

BUILTIN = "builtin"
LENGTH = 2048  # tokens of a sample, as the Spectra suite calibrates (arXiv 2407.12327, appendix A.1)
HELD_OUT_BYTES = 300_000  # of held-out text that are read at most: enough to see a tenth of a percent

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How integers are chosen and judged. `calibration` and `held_out` are a file, a folder, or "builtin"; `held_out` None
    measures nothing; `length` None is 2,048 tokens, or the model's context where that is less; `container` is what the result
    must fit, as far as that can be told before GPTQ is run."""

    method: str = "gptq"
    calibration: str = BUILTIN
    samples: int = 512
    length: int | None = None
    act_order: bool = False
    damping: float = 0.01
    held_out: str | None = BUILTIN
    seed: int = 0
    container: str | None = None


def plan(
    model: Model,
    scheme: str,
    embedding: str | None = None,
    head: str | None = None,
    overrides: Sequence[str] = (),
    container: str | None = None,
) -> Plan:
    """`plan.make` for a model, checked against what its family's files and the container can hold. Raises UsageError."""
    shapes = {name: tuple(matrix.weight.shape) for name, matrix in model.module.matrices().items()}
    made = plans.make(shapes, scheme, embedding, head, overrides)
    check_once(model.module, made)
    plans.check_stacked(made, families.get(model.family).rules(model.config))
    if container:
        with torch.device("meta"):
            integers = {n: packed.empty(f, *shapes[n]) for n, f in made.items() if isinstance(f, Grouped)}
        codecs.choose(integers, container)
    return made


def run(model: Model, plan: Plan, scheme: str, settings: Settings, progress: Progress = lambda text: None) -> Report:
    """Quantise the model in place.

    Text is read and the tokenizer asked for only where integers are to be chosen by GPTQ, or a held-out loss is wanted and
    there is a tokenizer. Raises what `convert`, `calibrate` and `samples` raise.
    """
    module = model.module
    chosen = {name: format for name, format in plan.items() if isinstance(format, Grouped)}
    inside = {name: format for name, format in chosen.items() if name not in plans.TABLES and settings.method == "gptq"}
    tokens = calibration_tokens(model, settings) if inside else None
    held_out = held_out_documents(model, settings.held_out) if settings.held_out and model.tokenizer else None
    before = weight_bytes(module.weights())
    bits_before = measured(model, held_out, progress, "held-out text, before")
    errors = convert(module, {n: f for n, f in plan.items() if n not in inside}, lambda name: progress(f"packing {name}"))
    if settings.container:
        ready = {name: weight for name, weight in module.weights().items() if name in errors and isinstance(weight, Packed)}
        codecs.choose(ready, settings.container)
    calibrated: dict[str, Calibrated] = {}
    if inside:
        progress(f"reading {tokens.numel():,} tokens of calibration text")
        calibrated = calibrate(
            module,
            tokens,
            inside,
            act_order=settings.act_order,
            damping=settings.damping,
            progress=lambda done: progress(f"{done.name}: output error {done.output_error:.2e}"),
        )
    bits_after = measured(model, held_out, progress, "held-out text, after")
    matrices = [matrix_report(n, w, errors, calibrated) for n, w in module.weights().items() if n in plan]
    method = settings.method if chosen else "lossless"
    return Report(scheme, method, tuple(matrices), before, weight_bytes(module.weights()), bits_before, bits_after)


def matrix_report(
    name: str, weight: Tensor | Packed, errors: Mapping[str, float], calibrated: Mapping[str, Calibrated]
) -> MatrixReport:
    R, n = weight.shape
    format = str(weight.format) if isinstance(weight, Packed) else "float"
    done = calibrated.get(name)
    error, output = (done.weight_error, done.output_error) if done else (errors[name], None)
    return MatrixReport(name, format, R, n, 8 * weight.nbytes / (R * n), weight.nbytes, error, output)


def weight_bytes(weights: Mapping[str, Tensor | Packed]) -> int:
    return sum(weight.nbytes for weight in weights.values())


def calibration_tokens(model: Model, settings: Settings) -> Tensor:
    """[samples, length] ids; raises UsageError without a tokenizer or with too little text."""
    if model.tokenizer is None:
        raise UsageError("GPTQ reads text, and this model has no tokenizer: give --tokenizer, or --method rtn")
    length = settings.length or min(LENGTH, model.config.context_length or LENGTH)
    documents = (model.tokenizer.encode(text) for text in texts(settings.calibration, held_out=False))
    return samples(documents, end_of_text(model), settings.samples, length, settings.seed)


def held_out_documents(model: Model, source: str) -> list[tuple[list[int], int]]:
    """(ids, bytes of text) of the first documents of a source, up to `HELD_OUT_BYTES`."""
    return [(model.tokenizer.encode(text), len(text.encode())) for text in held_out_texts(source, HELD_OUT_BYTES)]


def held_out_texts(source: str, most_bytes: int) -> list[str]:
    """The first documents of a source, up to so many bytes (of the last, its beginning)."""
    found, left = [], most_bytes
    for text in texts(source, held_out=True):
        if left <= 0:
            break
        found.append(text.encode()[:left].decode(errors="ignore"))
        left -= len(text.encode())
    return found


def texts(source: str, held_out: bool) -> list[str]:
    """The documents of a file or folder; of "builtin" those that the built-in model's recipe holds out, or the others."""
    if source != BUILTIN:
        return [document.text for document in sources.read(source, suffix=".txt")]
    settings = recipe.read(recipe.path_of(BUILTIN))
    learned, held = sources.split(sources.read(settings.data.source, settings.data.suffix), settings.data.held_out)
    return [document.text for document in (held if held_out else learned)]


def measured(model: Model, documents: list | None, progress: Progress, what: str) -> float | None:
    """Bits per byte; None where there is nothing to read."""
    if not documents:
        return None
    progress(what)
    return loss.measure(model.module, documents, end_of_text(model)).bits_per_byte
