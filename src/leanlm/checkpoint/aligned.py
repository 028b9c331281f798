"""Safetensors files whose data begin on a line of the processor's cache, so that weights can be run where they are mapped."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save, save_file
from torch import Tensor

from leanlm.ops.pages import LINE

FILLER = "filler"  # the entry of the metadata that fills up the header


def write(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """`safetensors.torch.save_file` with a header that ends at a multiple of LINE. Rows that lie across lines are read a few
    per cent more slowly."""
    save_file(dict(tensors), file, metadata={**metadata, FILLER: filler(tensors, metadata)})


def filler(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """As many spaces as the header falls short."""
    samples = save({name: tensor.new_zeros(1) for name, tensor in tensors.items()})  # the library's order and names of dtypes
    size = int.from_bytes(samples[:8], "little")
    header: dict[str, dict] = {"__metadata__": {**metadata, FILLER: ""}}
    at = 0
    for name, entry in json.loads(samples[8 : 8 + size]).items():
        end = at + tensors[name].nbytes
        header[name] = {"dtype": entry["dtype"], "shape": list(tensors[name].shape), "data_offsets": [at, end]}
        at = end
    return " " * (-(8 + len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())) % LINE)
