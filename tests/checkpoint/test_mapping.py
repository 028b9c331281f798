"""What of a packed model stays in the file, and what is taken out of it."""

import re
import sys
from pathlib import Path

import pytest
import torch

from leanlm import families
from leanlm.checkpoint import published, two_bit
from leanlm.checkpoint.load import load_module
from leanlm.checkpoint.save import save_module
from leanlm.model.format import Grouped
from leanlm.model.language_model import LanguageModel
from leanlm.model.packed import GroupedWeight, TernaryWeight
from packed_matrices import grouped, ternary

RAW = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 100}
RAW |= {"num_hidden_layers": 2, "tie_word_embeddings": True}


def folder_of(tmp_path: Path, packed, container: str) -> tuple[Path, LanguageModel]:
    """A small model whose layers are made by `packed(R, n)`, in a folder."""
    family = families.find(RAW)
    module = LanguageModel(family.to_config(RAW)).half()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    for name, matrix in module.matrices().items():
        if name.startswith("layers"):
            matrix.hold(packed(*matrix.weight.shape))
    save_module(tmp_path, module, family, RAW, weights="safetensors", container=container)
    return tmp_path, module


def mapped(folder: Path) -> list[range]:
    """Where files of the folder lie in this process's memory."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    return [range(*(int(end, 16) for end in re.match(r"(\w+)-(\w+)", line).groups())) for line in lines]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the mappings from /proc")
@pytest.mark.parametrize(
    ("packed", "container", "stays"),
    [
        (lambda R, n: grouped(R, n, 4, 32), "leanlm", True),
        (lambda R, n: grouped(R, n, 4, 32), "compressed-tensors", True),
        (lambda R, n: grouped(R, n, 4), "gptq", False),
        (lambda R, n: ternary(R, n, (0, R // 2)), "leanlm", False),
        (lambda R, n: ternary(R, n, (0, R // 2)), "compressed-tensors", False),
        (lambda R, n: ternary(R, n), "gptq", False),
    ],
)
def test_codes_in_the_run_layout_stay_in_the_file_and_nothing_else(tmp_path, monkeypatch, packed, container, stays):
    monkeypatch.setattr(published, "MAPPED_BYTES", 0)
    folder, saved = folder_of(tmp_path, packed, container)
    module = load_module(folder).module
    places = mapped(folder)
    assert any(module.embedding.weight.data_ptr() in place for place in places)
    for name, matrix in module.matrices().items():
        if name.startswith("layers"):
            assert matrix.weight.equal(saved.matrices()[name].weight), name
            inside = [any(t.data_ptr() in place for place in places) for t in matrix.weight.buffers()]
            assert inside[0] == stays and (stays or not any(inside)), name
    assert stays or len(places) == 1  # the floats' mapping; those of the codes are given up


@pytest.mark.parametrize("n", [1, 2, 3, 4, 31, 32])
@pytest.mark.parametrize("along_rows", [True, False])
def test_two_bits_are_ternary_where_no_code_is_0(n, along_rows):
    weight = ternary(5, n, (0, 2) if along_rows else (0,), along_rows)
    stored = two_bit.to_groups(weight, 0)
    found = two_bit.from_groups(stored)
    assert isinstance(found, TernaryWeight) and torch.equal(found.codes, weight.codes)
    assert torch.equal(found.dequantize(), stored.dequantize())
    for column in range(n):
        codes = stored.unpacked().clone()
        codes[3, column] = 0
        assert isinstance(two_bit.from_groups(GroupedWeight.of(Grouped(2), codes, stored.scales)), GroupedWeight)
