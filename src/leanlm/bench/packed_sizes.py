"""True sizes of packed Spectra models of all nine shapes, beside the paper's rule of size.

    python -m leanlm.bench.packed_sizes [--whole]

One layer of every shape is packed for real, with random weights and the model-parallel bands of scales; sizes of the whole
model follow from it (--whole packs and measures every layer). The rule is that of Spectra's table 4 (arXiv 2407.12327), in
units of 1e9 bits: 16 bits for each of the 2 x 50,277 x width numbers of embedding and head and for the norms, and so many
for each weight of the layers.
"""

import argparse
import json
import sys
from collections.abc import Iterator

import torch

from leanlm.checkpoint import manifest
from leanlm.families.catalog import SPECTRA, resolve
from leanlm.model import cost
from leanlm.model.config import Attention
from leanlm.model.format import Grouped
from leanlm.model.packed import GroupedWeight, Packed, TernaryWeight
from leanlm.ops import packing

TOKENS = 50277  # of the tokenizer; the paper leaves the padding of the vocabulary out
RULE = {"float": 16.0, "quantlm-8": 8.0, "quantlm-6": 6.0, "quantlm-4": 4.25, "quantlm-3": 3.25, "ternary": 1.58}
FORMATS = {"quantlm-8": Grouped(8), "quantlm-6": Grouped(6), "quantlm-4": Grouped(4, 128), "quantlm-3": Grouped(3, 128)}
PRINTED = {  # Spectra, table 4
    "99M": (1.60, 1.21, 1.11, 1.03, 0.98, 0.90),
    "190M": (3.05, 2.14, 1.92, 1.72, 1.60, 1.42),
    "390M": (6.28, 3.96, 3.38, 2.88, 2.59, 2.11),
    "560M": (9.11, 5.58, 4.70, 3.93, 3.49, 2.76),
    "830M": (13.34, 7.91, 6.55, 5.36, 4.68, 3.55),
    "1.1B": (18.39, 10.64, 8.70, 7.00, 6.03, 4.42),
    "1.5B": (24.23, 13.77, 11.15, 8.86, 7.55, 5.36),
    "2.4B": (39.38, 21.55, 17.09, 13.18, 10.95, 7.23),
    "3.9B": (63.83, 34.39, 27.03, 20.59, 16.91, 10.76),
}


def rule(size: str, scheme: str) -> float:
    """The paper's size in 1e9 bits."""
    config = resolve(f"floatlm-{size}").model
    inside, width = cost.linear_parameters(config), config.d_model
    norms = (len(config.sublayers) + 1) * width
    return (16 * (2 * TOKENS * width + norms) + RULE[scheme] * inside) / 1e9


def matrices(size: str) -> Iterator[tuple[int, int, bool]]:
    """(rows, columns, whether its scales lie along columns) of one layer: what is computed from a shard of the inputs has a
    scale per band of columns."""
    attention, mlp = resolve(f"trilm-{size}").model.layers[0]
    width, inner = resolve(f"trilm-{size}").model.d_model, attention.n_heads * attention.head_dim
    assert isinstance(attention, Attention)
    yield from [(inner, width, False)] * 3 + [(width, inner, True)]
    yield from [(mlp.d_ff, width, False)] * 2 + [(width, mlp.d_ff, True)]


def packed(size: str, scheme: str, seed: int) -> Iterator[Packed]:
    """One layer's matrices, random."""
    chance = torch.Generator().manual_seed(seed)
    shards = SPECTRA[size][-1]
    for R, n, along_columns in matrices(size):
        if scheme == "ternary":
            trits = torch.randint(-1, 2, (R, n), generator=chance, dtype=torch.int8)
            starts = torch.arange(shards, dtype=torch.int32) * ((n if along_columns else R) // shards)
            scales = (torch.rand(shards, generator=chance) / 50 + 0.01).half()
            yield TernaryWeight.of(packing.Trits(trits, scales, starts, not along_columns))
        else:
            format = FORMATS[scheme]
            codes = torch.randint(1 << format.bits, (R, n), generator=chance, dtype=torch.uint8)
            yield GroupedWeight.of(format, codes, torch.rand(R, format.groups(n), generator=chance).half())


def measure(size: str, scheme: str, whole: bool = False) -> dict:
    """Bits per weight of the layers in memory and on disk (ternary: five trits a byte), and bytes of the whole model with
    embedding, head and norms in 16 bits."""
    config = resolve(f"trilm-{size}").model
    layers = len(config.layers)
    weights = memory = disk = 0
    for seed in range(layers if whole else 1):
        for weight in packed(size, scheme, seed):
            weights += weight.numel()
            memory += weight.nbytes
            disk += sum(tensor.nbytes for tensor in manifest.write("x", weight).values())
    repeats = 1 if whole else layers
    rest = 2 * (cost.parameters(config) - cost.linear_parameters(config))
    assert weights * repeats == cost.linear_parameters(config)
    return {
        "bits_in_memory": 8 * memory / weights,
        "bits_on_disk": 8 * disk / weights,
        "model_bytes_in_memory": memory * repeats + rest,
        "model_bytes_on_disk": disk * repeats + rest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--whole", action="store_true", help="pack every layer, not the first alone")
    arguments = parser.parse_args()
    rows = []
    for size, printed in PRINTED.items():
        for scheme, billions in zip(RULE, printed, strict=True):
            found = {"size": size, "scheme": scheme, "printed": billions, "rule": round(rule(size, scheme), 4)}
            if scheme != "float":
                found |= measure(size, scheme, arguments.whole)
            rows.append(found)
            print(json.dumps(found), file=sys.stderr)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
