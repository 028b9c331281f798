"""Random models exported to GGUF, beside llama.cpp: how far its logits lie from ours, format by format.

    python -m leanlm.bench.exports

llama.cpp rounds what it multiplies with integer weights to 8 bits, per 32 or 256 values, so low-bit logits differ a little
where the weights are exactly the same; `left` is what remains of the difference when ours are computed with that rounding.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

from leanlm.export import check, gguf
from leanlm.model.config import Attention, GatedMLP, Mamba1, Mamba2, ModelConfig, Norm, Rope
from leanlm.model.language_model import LanguageModel
from leanlm.model.packed import TernaryWeight
from leanlm.ops.packing import Trits
from leanlm.quantize.convert import to_format

WIDTH, TOKENS = 256, 320
LAYERS = {
    "llama": (Attention(4, 2, 64, rope=Rope(64)), GatedMLP(512)),
    "mamba": (Mamba1(512, 16, 4, 16),),
    "mamba2": (Mamba2(512, 64, 64),),
}
FORMATS = ("float", "int8", "int6", "int4", "int3", "ternary")


def model(name: str, format: str) -> LanguageModel:
    """Two layers with random weights and a tied head; the embedding ten times the rest, so that logits have a clear maximum,
    and the final norm a tenth, so that they are of the usual size."""
    torch.manual_seed(0)
    module = LanguageModel(ModelConfig(WIDTH, TOKENS, (LAYERS[name],) * 2, norm=Norm()))
    module.reset(0.1)
    with torch.no_grad():
        module.embedding.weight.mul_(10)
        module.norm.weight.mul_(0.1)
    if format == "ternary":
        ternarise(module)
    elif format != "float":
        to_format(module, format)
    return module.eval()


def ternarise(module: LanguageModel) -> None:
    """In place: the matrices inside the layers rounded to -1, 0 and 1 times their mean magnitude."""
    for name, matrix in module.matrices().items():
        if name.startswith("layers") and not name.endswith("dt_proj.weight"):
            weight = matrix.weight.detach()
            scale = weight.abs().mean().half()
            trits = (weight / scale.float()).round().clamp(-1, 1).to(torch.int8)
            matrix.hold(TernaryWeight.of(Trits(trits, scale[None], torch.zeros(1, dtype=torch.int32), True)))
            matrix.weight.dtype = weight.dtype


def measure(name: str, format: str, tokens: int) -> dict:
    """The check's findings on one exported model."""
    module = model(name, format)
    with tempfile.TemporaryDirectory() as folder:
        written = gguf.export(Path(folder) / "model.gguf", module)
        report = check.gguf_file(written, module, tokens=tokens)
    types = [type for type in written.types.values() if type != "F32"]
    found = report["llama.cpp"]
    alike = found["with_inputs_rounded_as_it_does"]
    return {
        "model": name,
        "format": format,
        "type": types[0] if types else "F32",
        "largest_logit_difference": found["largest_logit_difference"],
        "relative_difference": found["relative_difference"],
        "left": alike["relative_difference"],
        "argmax_agreement": found["argmax_agreement"],
        "failures": report["failures"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=400)
    arguments = parser.parse_args()
    print(json.dumps([measure(name, format, arguments.tokens) for name in LAYERS for format in FORMATS], indent=1))


if __name__ == "__main__":
    main()
