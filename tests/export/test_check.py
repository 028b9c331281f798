"""The check of exports finds what is wrong: a changed byte, rows in the wrong order, another tokenizer."""

import json
import sys

import pytest
import torch
from exported_models import model

from leanlm.errors import CheckFailed
from leanlm.export import check, gguf, gguf_activations, gguf_architecture, hf
from leanlm.export.gguf_container import GGUF

pytest.importorskip("gguf")


def test_a_sound_file_passes_and_the_report_lies_beside_it(tmp_path):
    module = model("mamba", scheme="int8")
    report = check.gguf_file(gguf.export(tmp_path / "m.gguf", module), module)
    check.store(report)
    assert json.loads((tmp_path / "m.gguf.check.json").read_text()) == report
    assert report["tensors"] == {
        "count": 22,
        "rounded": 0,
        "different": [],
        "largest_difference": 0.0,
        "read_by_gguf_too": 6,
    }


def test_one_changed_byte_is_found(tmp_path):
    module = model("mamba", scheme="int4")
    written = gguf.export(tmp_path / "m.gguf", module)
    data = bytearray(written.path.read_bytes())
    data[data.find(GGUF(written.path).data("blk.1.ssm_out.weight").tobytes()) + 7] ^= 1
    written.path.write_bytes(data)
    report = check.gguf_file(written, module)
    assert report["tensors"]["different"] == ["blk.1.ssm_out.weight"] and report["tensors"]["largest_difference"] > 0
    with pytest.raises(CheckFailed, match=r"m.gguf: tensor blk.1.ssm_out.weight differs .* see .*check.json"):
        check.store(report)
    assert (tmp_path / "m.gguf.check.json").exists()


def test_llama_cpp_finds_rows_in_the_wrong_order(tmp_path, monkeypatch):
    """Written and read back alike, but not what llama.cpp computes with."""
    pytest.importorskip("llama_cpp")
    monkeypatch.setattr(gguf_architecture, "_neighbours", lambda heads, width, rotated: torch.arange(heads * width))
    module = model("llama", scheme="int8")
    report = check.gguf_file(gguf.export(tmp_path / "m.gguf", module), module)
    assert not report["tensors"]["different"] and "the logits of llama.cpp differ by" in report["failures"][0]


def test_a_file_that_llama_cpp_cannot_load_is_told(tmp_path, monkeypatch):
    pytest.importorskip("llama_cpp")
    real = gguf_architecture.keys
    monkeypatch.setattr(gguf_architecture, "keys", lambda cfg: {**real(cfg), "mamba.ssm.inner_size": 500})
    module = model("mamba")
    report = check.gguf_file(gguf.export(tmp_path / "m.gguf", module), module)
    assert "llama.cpp cannot load it" in report["failures"][0]


def test_a_missing_program_is_skipped_with_the_reason(tmp_path, monkeypatch):
    module = model("mamba")
    for name in ("llama_cpp", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    report = check.gguf_file(gguf.export(tmp_path / "m.gguf", module), module)
    assert report["llama.cpp"] == {"skipped": "llama-cpp-python is not installed"} and not report["failures"]
    report = check.hf_folder(hf.export(tmp_path / "out", module), module)
    assert report["transformers"] == {"skipped": "transformers is not installed"} and not report["failures"]


def test_a_changed_weight_of_a_folder_is_found(tmp_path):
    pytest.importorskip("transformers")
    module = model("mamba")
    written = hf.export(tmp_path / "out", module)
    with torch.no_grad():
        module.layers[0][0].mixer.D.mul_(3)
    report = check.hf_folder(written, module)
    assert report["failures"][0] == "weight layers.0.0.mixer.D differs from the model's"
    assert "logits of transformers differ" in report["failures"][1]
    with pytest.raises(CheckFailed, match=r"and 1 more\)"):
        check.store(report)


def test_inputs_are_rounded_only_inside(tmp_path):
    module, ids = model("llama", scheme="int8"), torch.arange(20)[None]
    written = gguf.export(tmp_path / "m.gguf", module)
    with torch.no_grad():
        before = module(ids)
        with gguf_activations.rounding(module, written.types):
            inside = module(ids)
        assert torch.equal(module(ids), before) and not torch.equal(inside, before)


def test_rounded_inputs_are_multiples_of_a_step():
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(0))
    for rounding, width in ((gguf_activations.q8_0, 32), (gguf_activations.q8_k, 256)):
        blocks = rounding(x).view(-1, width)
        step = blocks.abs().amax(1, keepdim=True) / 127
        assert torch.allclose(blocks / step, (blocks / step).round(), atol=1e-3)
        assert float((rounding(x) - x).abs().max()) <= 0.51 * float(step.max())
        assert not rounding(torch.zeros(1, 256)).any()
