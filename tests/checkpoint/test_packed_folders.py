"""Folders with packed weights: every family, format and container comes back bit for bit, and damage is named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import leanlm
from golden_cases import OWN, checkpoint_cases
from hybrid_models import build
from leanlm import families
from leanlm.checkpoint import compressed_tensors, gptq
from leanlm.checkpoint.load import load_module
from leanlm.checkpoint.save import save_module
from leanlm.errors import CheckpointError, UsageError
from leanlm.model.config import Attention, GatedMLP, ModelConfig, Norm, Rope
from leanlm.model.format import Grouped
from leanlm.model.packed import GroupedWeight, Packed
from leanlm.quantize.convert import convert

LLAMA = OWN / "trilm/trilm_mp3"
CASES = [case for case in checkpoint_cases() if not case.case.startswith("bf16")]
TRILM = [case for case in CASES if case.case.startswith("trilm")]
FORMATS = [Grouped(4), Grouped(8, 0, False), Grouped(3), Grouped(6, 4)]


def inside(module) -> list[str]:
    return [name for name in module.matrices() if name.startswith("layers") and "dt_proj" not in name]


def equal(a, b) -> bool:
    a, b = a.weights(), b.weights()
    return a.keys() == b.keys() and all(
        a[n].equal(b[n]) if isinstance(a[n], Packed) else torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a
    )


@pytest.mark.parametrize("container", [None, "leanlm"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_family_holds_packed_weights(case, container, tmp_path):
    loaded = load_module(case.folder)
    for i, name in enumerate(inside(loaded.module)):
        convert(loaded.module, {name: FORMATS[i % 3] if container and loaded.family.name == "hf_llama" else FORMATS[0]})
    table = "embedding.weight"
    convert(loaded.module, {table: Grouped(8)})
    save_module(tmp_path / "out", loaded.module, loaded.family, loaded.raw, container=container)
    again = load_module(tmp_path / "out")
    assert again.config == loaded.config and equal(again.module, loaded.module)
    assert again.raw["quantization_config"]["quant_method"] == (container or "compressed-tensors")
    save_module(tmp_path / "twice", again.module, again.family, again.raw)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "twice"))
    assert first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)
    with torch.no_grad():
        ids = torch.arange(12)[None] + 3
        assert torch.equal(again.module(ids), loaded.module(ids))


@pytest.mark.parametrize("container", [None, "leanlm"])
@pytest.mark.parametrize("case", TRILM, ids=lambda case: case.name)
def test_ternary_models_lose_nothing(case, container, tmp_path):
    """Every weight equal after unpacking, from memory and from disk; a file of five trits a byte takes 1.7 bits at most."""
    original = load_module(case.folder).module.weights()
    loaded = load_module(case.folder)
    convert(loaded.module, dict.fromkeys(inside(loaded.module), "ternary"))
    save_module(tmp_path / "out", loaded.module, loaded.family, loaded.raw, container=container)
    again = load_module(tmp_path / "out").module
    for module in (loaded.module, again):
        for name, weight in module.weights().items():
            values = weight.dequantize() if isinstance(weight, Packed) else weight
            assert torch.equal(values, original[name]) and values.dtype == original[name].dtype, name
    assert all(str(again.weights()[name].format) == "ternary" for name in inside(again))
    expected = load_file(case.folder / "expected.safetensors")
    for name, weight in again.weights().items():
        if f"scale.{name}" in expected:
            assert torch.equal(weight.scales.sort().values, expected[f"scale.{name}"].unique())


def test_a_models_dtype_is_no_matter_of_what_is_packed(tmp_path):
    model = leanlm.load(LLAMA)
    convert(model.module, dict.fromkeys(model.module.matrices(), Grouped(8)))
    model.save(tmp_path / "out")
    for dtype in ("float32", "bfloat16", "float16"):
        again = leanlm.load(tmp_path / "out", dtype=dtype)
        assert again.dtype == getattr(torch, dtype) == again([[1, 2, 3]]).dtype
        assert again.n_parameters == leanlm.load(LLAMA).n_parameters
        assert all(w.scales.dtype == torch.float16 for w in again.module.weights().values() if isinstance(w, Packed))
        state = again.new_state(1)
        assert state.memories[0]["k"].dtype == again.dtype


def test_parts_of_one_published_matrix_need_one_format(tmp_path):
    loaded = load_module(OWN / "rene/gqa_groups")
    name = next(name for name in inside(loaded.module) if "q_proj" in name)
    convert(loaded.module, {name: Grouped(4)})
    with pytest.raises(UsageError, match=r"q_proj.*stored as one matrix.*int4-channel.*float|float.*int4-channel"):
        save_module(tmp_path / "out", loaded.module, loaded.family)
    assert not (tmp_path / "out").exists()


def test_a_quantised_model_turned_float_again_says_so(tmp_path):
    loaded = load_module(LLAMA)
    convert(loaded.module, dict.fromkeys(inside(loaded.module), Grouped(4)))
    save_module(tmp_path / "packed", loaded.module, loaded.family, loaded.raw)
    again = load_module(tmp_path / "packed")
    convert(again.module, dict.fromkeys(inside(again.module), "float"))
    save_module(tmp_path / "float", again.module, again.family, again.raw)
    assert "quantization_config" not in json.loads((tmp_path / "float/config.json").read_text())
    assert equal(load_module(tmp_path / "float").module, again.module)


@pytest.fixture
def folder(tmp_path):
    loaded = load_module(LLAMA)
    convert(loaded.module, dict.fromkeys(inside(loaded.module), Grouped(4)))
    save_module(tmp_path / "out", loaded.module, loaded.family, loaded.raw)
    return tmp_path / "out"


def settings(folder, **changes):
    raw = json.loads((folder / "config.json").read_text())
    raw["quantization_config"] = {**raw["quantization_config"], **changes}
    (folder / "config.json").write_text(json.dumps(raw))


def refused(folder, message):
    with pytest.raises(CheckpointError, match=message) as raised:
        load_module(folder)
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


def test_a_container_that_is_not_known(folder):
    settings(folder, quant_method="bitsandbytes")
    refused(folder, "config.json: .*'bitsandbytes' are not read; known: compressed-tensors, gptq, leanlm")


def test_a_packed_file_cut_short(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(folder, "damaged or cut short")


def test_a_missing_part(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight_scale"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refused(folder, "model.layers.0.mlp.up_proj.weight_scale")


def test_floats_beside_the_packed_form(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(120, 72)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refused(folder, "'model.layers.0.mlp.up_proj.weight' is stored twice, as floats and packed")


@pytest.mark.parametrize("codec", [gptq, compressed_tensors], ids=lambda codec: codec.METHOD)
def test_ternary_in_groups_of_others_comes_back(codec):
    """Two bits in groups of 64, as another program may write them: the scales decide, not our usual groups."""
    codes = torch.randint(1, 4, (32, 256), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    scales = torch.tensor([0.5, 0.25, 0.5, 0.125]).half().expand(32, 4).contiguous()
    name, weight = "model.layers.0.mlp.up_proj.weight", GroupedWeight.of(Grouped(2, 64), codes, scales)
    held = codec.read(codec.settings({name: weight}, []), name, codec.write(name, weight))
    assert str(held.format) == "ternary" and torch.equal(held.dequantize(), weight.dequantize())
    assert codec.refusal(name, held) is None
    again = codec.write(name, held)
    assert all(torch.equal(again[part], tensor) for part, tensor in codec.write(name, weight).items())


def test_a_shape_that_is_not_the_models(folder):
    tensors = load_file(folder / "model.safetensors")
    for part in ("packed", "scale", "shape"):
        tensors[f"model.layers.0.mlp.up_proj.weight_{part}"] = tensors[f"model.layers.0.mlp.down_proj.weight_{part}"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refused(folder, r"shapes do not fit config.json: 'model.layers.0.mlp.up_proj.weight' is")


def test_a_manifest_that_lies_about_shapes(tmp_path):
    loaded = load_module(LLAMA)
    convert(loaded.module, dict.fromkeys(inside(loaded.module), Grouped(4)))
    save_module(tmp_path / "out", loaded.module, loaded.family, loaded.raw, container="leanlm")
    raw = json.loads((tmp_path / "out/config.json").read_text())
    matrix = raw["quantization_config"]["matrices"]["model.layers.0.mlp.up_proj.weight"]
    matrix["shape"][0] += 1
    (tmp_path / "out/config.json").write_text(json.dumps(raw))
    refused(tmp_path / "out", "tensor 'model.layers.0.mlp.up_proj.weight_codes' is")


def test_settings_in_a_file_of_their_own(tmp_path):
    """As early GPTQ folders have them."""
    layer = Attention(2, 2, 32, rope=Rope(32)), GatedMLP(96)
    module = build(ModelConfig(64, 96, (layer,), norm=Norm(round_first=True), context_length=64))
    convert(module, dict.fromkeys(inside(module), Grouped(4, 32)))
    save_module(tmp_path, module, families.get("hf_llama"), container="gptq")
    raw = json.loads((tmp_path / "config.json").read_text())
    settings = raw.pop("quantization_config")
    assert settings.pop("quant_method") == "gptq"
    (tmp_path / "config.json").write_text(json.dumps(raw))
    (tmp_path / "quantize_config.json").write_text(json.dumps(settings))
    assert equal(load_module(tmp_path).module, module)
