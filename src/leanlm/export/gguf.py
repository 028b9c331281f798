"""A model as one GGUF file for llama.cpp: every matrix in blocks made of its own integers, nothing requantised unless asked."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from leanlm.checkpoint.aside import replacing
from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.errors import UsageError
from leanlm.export import gguf_architecture, gguf_blocks, gguf_container, gguf_rounding
from leanlm.export.gguf_architecture import Piece
from leanlm.export.gguf_container import Info
from leanlm.export.gguf_tokenizer import vocabulary
from leanlm.export.gguf_types import FLOATS, TYPES, Float, Quantised
from leanlm.model.format import Ternary
from leanlm.model.language_model import LanguageModel
from leanlm.model.packed import Packed

AUTO = "auto"
USUAL = ("TQ2_0", "Q4_0", "Q6_K", "Q8_0")  # what auto chooses from: read by every build of llama.cpp, smallest first


class Choice(NamedTuple):
    """How a tensor is written; `rounded`: not exactly."""

    type: Float | Quantised
    rounded: bool = False


class Written(NamedTuple):
    """What an export made: types by the file's tensor names, names of the tensors that were rounded, and remarks to tell."""

    path: Path
    architecture: str
    types: dict[str, str]
    rounded: tuple[str, ...]
    notes: tuple[str, ...]


def export(
    path: str | Path,
    module: LanguageModel,
    tokenizer: Tokenizer | None = None,
    type: str = AUTO,
    lossy: bool = False,
    name: str | None = None,
) -> Written:
    """Write the model, which is on the CPU, to the file `path`.

    `type` is for the matrices inside the layers ("F32", "F16" and "BF16" for embedding and head too); "auto" takes, matrix by
    matrix, the smallest of `USUAL` that holds a packed one exactly, and for a float one its own dtype. Raises UsageError where
    llama.cpp has no such model, or where a type cannot hold a matrix exactly and not `lossy`, which rounds to the nearest.
    """
    path = Path(path)
    if type != AUTO and type not in TYPES:
        raise UsageError(f"GGUF type {type!r}: choose {', '.join(TYPES)} or {AUTO}")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; give the name of the GGUF file to write")
    gguf_container.package()  # before the work of choosing, if it is missing
    architecture = gguf_architecture.name_of(module.config)
    choices = choose(module, type, lossy)
    words = vocabulary(tokenizer, module.config)
    keys = {
        "general.name": name or path.stem,
        "general.file_type": _main(module, choices).file_type,
        "general.quantization_version": 2,
        **gguf_architecture.keys(module.config),
        **words.keys,
    }
    infos = {p.name: Info(tuple(p.weight.shape), choices[p.name].type) for p in gguf_architecture.pieces(module)}
    with replacing(path.parent) as aside:
        gguf_container.write(aside(path.name), architecture, keys, infos, _data(module, choices))
    notes = ((f"no tokenizer in the file: {words.absent}",) if words.absent else ()) + words.notes
    rounded = tuple(name for name, choice in choices.items() if choice.rounded)
    return Written(path, architecture, {name: choice.type.name for name, choice in choices.items()}, rounded, notes)


def choose(module: LanguageModel, type: str = AUTO, lossy: bool = False) -> dict[str, Choice]:
    """How every tensor of the file is written, by its name there. Raises UsageError naming the first matrix that cannot be."""
    return {piece.name: _choice(piece, type, lossy) for piece in gguf_architecture.pieces(module)}


def _choice(piece: Piece, asked: str, lossy: bool) -> Choice:
    if piece.kind == "float32":
        return _take(piece, TYPES["F32"], lossy)
    everywhere = asked in {type.name for type in FLOATS}
    if everywhere or (asked != AUTO and piece.kind == "layer"):
        return _take(piece, TYPES[asked], lossy)
    if not isinstance(piece.weight, Packed):
        return Choice(_own(piece.weight))
    for name in USUAL:
        if gguf_blocks.refusal(piece.weight, TYPES[name]) is None:
            return Choice(TYPES[name])
    if lossy:
        return Choice(_nearest(piece.weight), True)
    usual = "; ".join(f"{name}: {gguf_blocks.refusal(piece.weight, TYPES[name])}" for name in USUAL[1:])
    raise UsageError(f"{piece.ours}: no block of GGUF holds it exactly ({usual}); choose --type F32, or round with --lossy")


def _take(piece: Piece, type: Float | Quantised, lossy: bool) -> Choice:
    """This type and no other."""
    reason = gguf_blocks.refusal(piece.weight, type)
    if reason is None:
        return Choice(type)
    width = gguf_blocks.width_refusal(piece.weight, type)
    if lossy and not width:
        return Choice(type, True)
    others = gguf_blocks.holding(piece.weight) if isinstance(piece.weight, Packed) else []
    ways = [f"--type {others[0]} holds it"] if others else []
    ways += [] if width else ["--lossy rounds it"]
    advice = f"; {', '.join(ways)}" if ways else "; choose another --type"
    raise UsageError(f"{piece.ours}: {type.name} cannot hold it exactly, because {reason}{advice}")


def _own(weight: Tensor) -> Float:
    """The type of a float tensor's dtype (float64 is written as F32)."""
    return next((type for type in FLOATS if type.dtype == weight.dtype), TYPES["F32"])


def _nearest(weight: Packed) -> Float | Quantised:
    """The smallest usual type with no fewer bits than the matrix has and a block that fits its rows."""
    bits = 2 if isinstance(weight.format, Ternary) else weight.format.bits
    wide = {"TQ2_0": 1, "Q4_0": 4, "Q6_K": 6, "Q8_0": 8} | ({"TQ2_0": 2} if isinstance(weight.format, Ternary) else {})
    fits = (name for name in USUAL if wide[name] >= bits and not gguf_blocks.width_refusal(weight, TYPES[name]))
    return TYPES[next(fits, "F32")]


def _data(module: LanguageModel, choices: dict[str, Choice]) -> Iterator[np.ndarray]:
    for piece in gguf_architecture.pieces(module):
        type, rounded = choices[piece.name]
        with torch.no_grad():
            yield gguf_rounding.rounded(piece.weight, type) if rounded else gguf_blocks.write(piece.weight, type)


def _main(module: LanguageModel, choices: dict[str, Choice]) -> Float | Quantised:
    """The type that most weights inside the layers are written in."""
    counts: Counter[str] = Counter()
    for piece in gguf_architecture.pieces(module):
        if piece.kind == "layer":
            counts[choices[piece.name].type.name] += piece.weight.numel()
    return TYPES[counts.most_common(1)[0][0]]
