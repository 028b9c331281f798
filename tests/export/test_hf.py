"""Hugging Face folders from every family that transformers has an equal of, loaded and run by transformers."""

import dataclasses
import json

import pytest
import tokenizers
import torch
from exported_models import CONFIGS, V, model

from leanlm.checkpoint.load import load_module
from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.errors import UsageError
from leanlm.export import check, hf
from leanlm.model.config import MLP, ModelConfig, Norm
from leanlm.model.packed import Packed
from tiny_models import tokenizer as tiny_tokenizer

HERE = {"llama": "hf_llama", "llama-3": "hf_llama", "mamba": "hf_mamba", "mamba2": "hf_mamba2", "hybrid": "hf_bamba"}


@pytest.mark.parametrize("name", HERE)
def test_transformers_loads_it_and_gives_our_logits(name, tmp_path):
    """From configs as mamba_ssm has them: norms that round at the end, residual stream in float32, no context length."""
    pytest.importorskip("transformers")
    module = model(dataclasses.replace(CONFIGS[name], residual_in_fp32=True))
    written = hf.export(tmp_path / "out", module)
    report = check.hf_folder(written, module)
    assert written.family == HERE[name] and report["failures"] == []
    assert report["transformers"]["largest_logit_difference"] < 1e-4 and report["transformers"]["argmax_agreement"] == 1


@pytest.mark.parametrize("scheme", ["int4", "ternary"])
def test_packed_matrices_become_the_same_floats(scheme, tmp_path):
    module = model("mamba2", torch.bfloat16, scheme)
    written = hf.export(tmp_path / "out", module)
    loaded = load_module(tmp_path / "out").module
    assert written.dtype == torch.float32  # bfloat16 does not hold them
    for name, weight in module.weights().items():
        want = weight.dequantize(torch.float32) if isinstance(weight, Packed) else weight.float()
        assert torch.equal(loaded.weights()[name].float(), want), name
    assert check.hf_folder(written, module)["failures"] == []


def test_a_half_precision_ternary_model_stays_in_half_precision(tmp_path):
    assert hf.export(tmp_path, model("llama", torch.float16, "ternary")).dtype == torch.float16


def test_an_asked_dtype_is_taken(tmp_path):
    module = model("mamba", scheme="int4")
    written = hf.export(tmp_path / "out", module, dtype=torch.float16)
    raw = json.loads((tmp_path / "out/config.json").read_text())
    assert raw["torch_dtype"] == "float16" and not written.exact
    report = check.hf_folder(written, module)
    assert report["tensors"]["different"] == [] and 0 < report["tensors"]["largest_difference"] < 0.01


def test_packed_matrices_stay_packed_in_a_container(tmp_path):
    module = model("llama", scheme="int4")
    hf.export(tmp_path / "out", module, container="gptq")
    weights = load_module(tmp_path / "out").module.weights()
    assert all(weights[name].equal(weight) for name, weight in module.weights().items() if isinstance(weight, Packed))


def test_the_config_it_came_with_is_kept_where_it_is_of_that_family(tmp_path):
    module = model("mamba")
    hf.export(tmp_path / "a", module)
    loaded = load_module(tmp_path / "a")
    raw = {**loaded.raw, "remark": "kept"}
    hf.export(tmp_path / "b", loaded.module, raw=raw)
    assert json.loads((tmp_path / "b/config.json").read_text())["remark"] == "kept"
    hf.export(tmp_path / "c", module, raw={"d_model": 256, "n_layer": 2, "ssm_cfg": {}})
    assert json.loads((tmp_path / "c/config.json").read_text())["model_type"] == "mamba"


@pytest.mark.parametrize("layer", [(MLP(512),), CONFIGS["mamba"].layers[0] + (MLP(512),)])
def test_what_transformers_has_not_is_refused_in_one_line(layer, tmp_path):
    module = model(ModelConfig(256, V, (layer,), norm=Norm()))
    with pytest.raises(UsageError, match="stock transformers has no model like this one"):
        hf.export(tmp_path / "out", module)
    assert not (tmp_path / "out").exists()


def test_transformers_cuts_texts_as_we_do(tmp_path):
    pytest.importorskip("transformers")
    core: tokenizers.Tokenizer = tiny_tokenizer()
    module = model("llama")
    written = hf.export(tmp_path / "out", module, Tokenizer(core))
    report = check.hf_folder(written, module, Tokenizer(core))
    assert report["transformers"]["same_tokens"] and report["failures"] == []
