"""The built-in model beside `xz -9e` on the text it never saw: bits per byte of the same files, measured in one run.

    python -m leanlm.bench.held_out

The files are those the recipe holds out, taken from the running interpreter's standard library, so the figures differ a
little between versions of Python. The compressor gets all files as one stream, the model one file at a time.
"""

import argparse
import json
import lzma
import platform

from leanlm import api
from leanlm.data import sources
from leanlm.evaluate import loss
from leanlm.train import recipe


def compare(model: str, recipe_name: str, most_files: int | None = None) -> dict:
    """Bits per byte of a model with a tokenizer, and of xz, on the held-out files of a recipe."""
    settings = recipe.read(recipe.path_of(recipe_name))
    _, held = sources.split(sources.read(settings.data.source, settings.data.suffix), settings.data.held_out)
    held = held[:most_files]
    texts = [document.text.encode() for document in held]
    size = sum(map(len, texts))
    loaded = api.load(model)
    documents = [(loaded.tokenizer.encode(document.text), len(text)) for document, text in zip(held, texts)]
    measured = loss.measure(loaded.module, documents, loaded.tokenizer.eos_ids[0])
    packed = len(lzma.compress(b"".join(texts), preset=9 | lzma.PRESET_EXTREME))
    return {
        "files": len(held),
        "bytes": size,
        "model": model,
        "model_bits_per_byte": round(measured.bits_per_byte, 4),
        "xz_bits_per_byte": round(8 * packed / size, 4),
        "tokens": measured.tokens,
        "nats_per_token": round(measured.per_token, 4),
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--recipe", default="builtin")
    parser.add_argument("--files", type=int, help="only the first so many files")
    arguments = parser.parse_args()
    print(json.dumps(compare(arguments.model, arguments.recipe, arguments.files), indent=1))


if __name__ == "__main__":
    main()
