"""Proof of an export: the file is read back and compared, and then run by the program it was written for, if it is installed.

L tokens  V rows of the vocabulary
"""

import copy
import io
import json
import math
from collections.abc import Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from leanlm.api import cast
from leanlm.checkpoint.aside import replacing
from leanlm.checkpoint.load import load_module
from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.errors import CheckFailed, first_line
from leanlm.export import gguf, gguf_activations, gguf_architecture, gguf_container, hf
from leanlm.export.gguf_container import GGUF
from leanlm.export.gguf_types import FLOATS
from leanlm.model.language_model import LanguageModel
from leanlm.model.packed import Packed

SAMPLE = (
    'def mean(values):\n    """The arithmetic mean."""\n    total = sum(values)\n\n    return total / len(values)  # 3.14159\n'
    "\nDescartes wrote, in 1637: « Je pense, donc je suis »; 我思故我在 ½ – it's   what we'd\tcall a start 😀\n"
)
TOKENS = 64
# How far logits may lie apart, as root mean square in parts of their own spread: in float32; and, where llama.cpp rounds what
# it multiplies and ours then does too, in parts of what that rounding alone does to ours. Deep random models magnify the few
# roundings that fall differently until the logits have nothing in common, and magnify the rounding itself as much.
EXACT, ROUNDED = 1e-3, 1.5


def gguf_file(
    written: gguf.Written,
    module: LanguageModel,
    tokenizer: Tokenizer | None = None,
    tokens: int = TOKENS,
    ids: Sequence[int] | None = None,
) -> dict:
    """The report on a GGUF file written from `module`: every tensor read back, then logits of llama.cpp for these `ids`, or
    for `tokens` tokens of a sample.

    `failures` lists what is wrong. Where tensors were rounded, their largest difference is told, and logits have no tolerance.
    """
    report = {"file": str(written.path), "architecture": written.architecture, "tensors": _gguf_tensors(written, module)}
    report["failures"] = [f"tensor {name} differs from the model's" for name in report["tensors"]["different"]]
    try:
        import llama_cpp
    except ImportError:
        return report | {"llama.cpp": {"skipped": "llama-cpp-python is not installed"}}
    ids = ids or _ids(module, tokenizer, tokens)
    report["llama.cpp"] = {"version": f"llama-cpp-python {llama_cpp.__version__}"}
    with _silence(llama_cpp):
        try:
            # Keys and values in float32, which they are in ours; elsewhere llama.cpp keeps them in 16 bits.
            theirs = llama_cpp.Llama(str(written.path), n_ctx=len(ids), logits_all=True, verbose=False, type_k=0, type_v=0)
        except (ValueError, RuntimeError) as error:
            report["failures"].append(f"llama.cpp cannot load it ({first_line(error)})")
            return report
        theirs.eval(ids)
        logits = torch.from_numpy(np.array(theirs._scores[: len(ids)]))
        if tokenizer is not None and "tokenizer.ggml.tokens" in GGUF(written.path).keys:
            same = theirs.tokenize(SAMPLE.encode(), add_bos=True, special=True) == tokenizer.encode(SAMPLE)
            _add_tokenizer(report, "llama.cpp", same)
        theirs.close()
    module = _in_float32(module)
    plain = _logits(module, ids)
    with gguf_activations.rounding(module, written.types):
        alike = _logits(module, ids)
    effect = _compared(plain, alike)["relative_difference"]
    report["llama.cpp"] |= _compared(logits, plain)
    report["llama.cpp"]["with_inputs_rounded_as_it_does"] = _compared(logits, alike) | {"effect_of_rounding": effect}
    _judge(report, "llama.cpp", _compared(logits, alike), None if written.rounded else EXACT + ROUNDED * effect)
    return report


def hf_folder(written: hf.Written, module: LanguageModel, tokenizer: Tokenizer | None = None, tokens: int = TOKENS) -> dict:
    """The report on a Hugging Face folder written from `module`: every weight loaded back, then logits of transformers."""
    report = {"folder": str(written.path), "family": written.family, "tensors": _hf_tensors(written, module)}
    report["failures"] = [f"weight {name} differs from the model's" for name in report["tensors"]["different"]]
    try:
        import transformers
    except ImportError:
        return report | {"transformers": {"skipped": "transformers is not installed"}}
    ids = _ids(module, tokenizer, tokens)
    report["transformers"] = {"version": f"transformers {transformers.__version__}"}
    level, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):  # progress bars of the packages it calls
            theirs = transformers.AutoModelForCausalLM.from_pretrained(written.path, dtype=torch.float32).eval()
        with torch.no_grad():
            logits = theirs(torch.tensor([ids]), use_cache=False).logits[0].float()
        if tokenizer is not None:
            same = transformers.AutoTokenizer.from_pretrained(written.path).encode(SAMPLE) == tokenizer.encode(SAMPLE)
            _add_tokenizer(report, "transformers", same)
    except ImportError as error:  # what it needs for packed weights is a matter of the machine
        return report | {"transformers": {"skipped": first_line(error)}}
    except Exception as error:  # whatever another program fails with is a finding
        if unread := _unread_by_transformers(written, module):
            return report | {"transformers": {"skipped": unread}}
        report["failures"].append(f"transformers cannot load it ({type(error).__name__}: {first_line(error)})")
        return report
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()
    report["transformers"] |= _compared(logits, _logits(_in_float32(module), ids))
    _judge(report, "transformers", report["transformers"], EXACT)
    return report


def _unread_by_transformers(written: hf.Written, module: LanguageModel) -> str | None:
    """What transformers 5 cannot load of packed folders, right as they are; None where it should."""
    if not written.container:
        return None
    if written.family not in ("hf_llama", "hf_bamba"):
        return f"transformers cannot load packed weights of {written.family.removeprefix('hf_')} models"
    if any(getattr(weight, "zeros", None) is not None for weight in module.weights().values()):
        return "transformers cannot load packed weights with zero points of their own"
    return None


def store(report: dict) -> None:
    """Write the report beside what it is about, as NAME.check.json; raises CheckFailed where it tells of a failure."""
    target = Path(report.get("file") or report["folder"])
    name = f"{target.name}.check.json"
    with replacing(target.parent) as aside:
        aside(name).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if report["failures"]:
        more = f" (and {len(report['failures']) - 1} more)" if len(report["failures"]) > 1 else ""
        raise CheckFailed(f"{target}: {report['failures'][0]}{more}; see {target.parent / name}")


def _gguf_tensors(written: gguf.Written, module: LanguageModel) -> dict:
    """Every tensor of the file beside the model's, read by our own reader and, where it knows the type, by the package's."""
    package, file = gguf_container.package(), GGUF(written.path)
    theirs = {int(kind) for kind in package.GGMLQuantizationType}
    different, largest, twice, count = [], 0.0, 0, 0
    for piece in gguf_architecture.pieces(module):
        want = piece.weight.dequantize(torch.float32) if isinstance(piece.weight, Packed) else piece.weight.detach().float()
        got, info, count = file.tensor(piece.name), file.infos[piece.name], count + 1
        readings = [got]
        if info.type not in FLOATS and info.type.code in theirs:
            kind = package.GGMLQuantizationType(info.type.code)
            readings.append(torch.from_numpy(package.quants.dequantize(file.data(piece.name), kind)))
            twice += 1
        apart = max(float((reading - want).abs().max()) for reading in readings)
        largest = max(largest, apart)
        if piece.name not in written.rounded and not all(torch.equal(reading, want) for reading in readings):
            different.append(piece.name)
    surplus = sorted(file.infos.keys() - written.types.keys())
    return {
        "count": count,
        "rounded": len(written.rounded),
        "different": different + surplus,
        "largest_difference": largest,
        "read_by_gguf_too": twice,
    }


def _hf_tensors(written: hf.Written, module: LanguageModel) -> dict:
    loaded = load_module(written.path).module.weights()
    different, largest = [], 0.0
    for name, weight in module.weights().items():
        want = weight.dequantize(torch.float32) if isinstance(weight, Packed) else weight.detach().float()
        found = loaded[name]
        got = found.dequantize(torch.float32) if isinstance(found, Packed) else found.detach().float()
        largest = max(largest, float((got - want).abs().max()))
        if written.exact and not torch.equal(got, want):
            different.append(name)
    return {"count": len(loaded), "different": different, "largest_difference": largest}


def _ids(module: LanguageModel, tokenizer: Tokenizer | None, tokens: int) -> list[int]:
    """The first tokens of the sample, or random ones where there is no tokenizer."""
    if tokenizer is not None:
        return tokenizer.encode(SAMPLE)[:tokens]
    return torch.randint(0, module.config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()


def _in_float32(module: LanguageModel) -> LanguageModel:
    """The model itself, or a copy that computes in float32."""
    if module.dtype == torch.float32:
        return module
    module = copy.deepcopy(module)
    cast(module, torch.float32)
    return module


@torch.no_grad()
def _logits(module: LanguageModel, ids: Sequence[int]) -> Tensor:
    """Our logits [L, V]."""
    return module(torch.tensor([ids], device=module.device))[0].cpu()


def _add_tokenizer(report: dict, program: str, same: bool) -> None:
    report[program]["same_tokens"] = same
    if not same:
        report["failures"].append(f"{program} cuts the sample text into other tokens")


def _compared(theirs: Tensor, ours: Tensor) -> dict:
    """How far apart logits [L, V] are; relative: root mean squares, of the difference over the spread within a token's."""
    apart = theirs - ours
    spread = (ours - ours.mean(-1, keepdim=True)).square().mean().sqrt()
    return {
        "tokens": len(ours),
        "largest_logit_difference": float(apart.abs().max()),
        "relative_difference": float(apart.square().mean().sqrt() / spread),
        "argmax_agreement": float((theirs.argmax(-1) == ours.argmax(-1)).double().mean()),
    }


def _judge(report: dict, program: str, found: dict, tolerance: float | None) -> None:
    """Add a failure where the relative difference is beyond the tolerance (None: any that is finite will do)."""
    report[program]["tolerance"] = tolerance
    relative = found["relative_difference"]
    if not math.isfinite(relative):
        report["failures"].append(f"{program} computes logits that are not finite")
    elif tolerance is not None and relative > tolerance:
        report["failures"].append(f"the logits of {program} differ by {relative:.2g} of their spread; {tolerance:g} is allowed")


@contextmanager
def _silence(llama_cpp):
    """llama.cpp prints warnings to the terminal, whatever it is told at loading."""
    nothing = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(nothing, None)
    try:
        yield
    finally:
        llama_cpp.llama_log_set(llama_cpp._logger.llama_log_callback, None)
