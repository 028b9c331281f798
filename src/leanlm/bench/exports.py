"""Small models exported to GGUF, beside llama.cpp: how far its logits lie from ours, format by format.

    python -m leanlm.bench.exports

A Llama, a Mamba-1 and a Mamba-2 of two layers are trained for a few steps on the Python standard library, so that their logits
mean something; then each is exported in every format and run on held-out text. llama.cpp rounds what it multiplies with integer
weights to 8 bits, per 32 or 256 values, so low-bit logits differ a little where the weights are exactly the same; `left` is
what remains of the difference when ours are computed with that rounding.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from leanlm import api
from leanlm.bench.subject import ternarise
from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.export import check, gguf
from leanlm.model.config import Attention, GatedMLP, Mamba1, Mamba2, ModelConfig, Norm, Rope
from leanlm.model.language_model import LanguageModel
from leanlm.quantize import job
from leanlm.quantize.convert import to_format

WIDTH = 256
LAYERS = {
    "llama": (Attention(4, 2, 64, rope=Rope(64)), GatedMLP(512)),
    "mamba": (Mamba1(512, 16, 4, 16),),
    "mamba2": (Mamba2(512, 64, 64),),
}
FORMATS = ("float", "int8", "int6", "int4", "int3", "ternary")


def windows(tokenizer: Tokenizer, held_out: bool, count: int, length: int) -> Tensor:
    """[count, length] token ids from the first documents of the built-in corpus."""
    ids: list[int] = []
    for text in job.texts(job.BUILTIN, held_out):
        ids += [*tokenizer.encode(text), *tokenizer.eos_ids]
        if len(ids) >= count * length:
            return torch.tensor(ids[: count * length]).view(count, length)
    raise ValueError("the corpus is too short")


def trained(name: str, text: Tensor, vocabulary: int) -> LanguageModel:
    """A model of two layers after one pass over text [steps, 4 x length]."""
    torch.manual_seed(0)
    module = LanguageModel(ModelConfig(WIDTH, vocabulary, (LAYERS[name],) * 2, norm=Norm(), tied=False))
    module.reset(0.05)
    optimiser = torch.optim.AdamW(module.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    for step, batch in enumerate(text):
        tokens = batch.view(4, -1)
        loss = F.cross_entropy(module(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 49:
            print(f"{name}: step {step + 1}, loss {loss.item():.3f}", file=sys.stderr)
    return module.eval()


def measure(name: str, module: LanguageModel, format: str, ids: list[int]) -> dict:
    """The check's findings on the model exported in a format; the model is given back as it was."""
    held = {name: matrix.weight.detach() for name, matrix in module.matrices().items()}
    if format == "ternary":
        ternarise(module)
    elif format != "float":
        to_format(module, format)
    with tempfile.TemporaryDirectory() as folder:
        written = gguf.export(Path(folder) / "model.gguf", module)
        report = check.gguf_file(written, module, ids=ids)
    for name_, weight in held.items():
        module.matrices()[name_].hold(weight)
    types = [type for type in written.types.values() if type != "F32"]
    found = report["llama.cpp"]
    alike = found["with_inputs_rounded_as_it_does"]
    return {
        "model": name,
        "format": format,
        "type": types[0] if types else "F32",
        "largest_logit_difference": found["largest_logit_difference"],
        "relative_difference": found["relative_difference"],
        "argmax_agreement": found["argmax_agreement"],
        "left": alike["relative_difference"],
        "argmax_agreement_left": alike["argmax_agreement"],
        "failures": report["failures"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="of training, 4 x 128 tokens each")
    parser.add_argument("--tokens", type=int, default=1000, help="of held-out text")
    arguments = parser.parse_args()
    tokenizer = api.load("builtin").tokenizer
    text = windows(tokenizer, False, arguments.steps, 4 * 128)
    ids = windows(tokenizer, True, 1, arguments.tokens)[0].tolist()
    rows = []
    for name in LAYERS:
        module = trained(name, text, tokenizer.vocab_size)
        rows += [measure(name, module, format, ids) for format in FORMATS]
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
