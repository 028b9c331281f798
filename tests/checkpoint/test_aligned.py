"""Files whose data begin on a cache line, and that are safetensors files like all others."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from leanlm.checkpoint import aligned


@pytest.mark.parametrize("letters", range(0, 70, 3))
def test_data_begin_on_a_line_whatever_the_header(tmp_path, letters):
    tensors = {
        "b" * (letters + 1): torch.randn(3, 40).bfloat16(),
        'é"\\ ': torch.arange(123456),
        "scalar": torch.tensor(2.5),
        "codes": torch.arange(77, dtype=torch.uint8).view(7, 11),
        "none": torch.zeros(0, 4),
    }
    aligned.write(tmp_path / "a.safetensors", tensors, {"format": "pt"})
    data = (tmp_path / "a.safetensors").read_bytes()
    assert (8 + int.from_bytes(data[:8], "little")) % aligned.LINE == 0
    read = load_file(tmp_path / "a.safetensors")
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)
    with safe_open(tmp_path / "a.safetensors", "pt") as opened:
        assert opened.metadata()["format"] == "pt"
