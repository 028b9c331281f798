"""GGUF files run by llama.cpp, and what is refused before anything is written."""

import dataclasses
import sys

import pytest
import torch
from exported_models import CONFIGS, MLP, SCHEMES, V, model

from leanlm.errors import CheckpointError, LeanLMError, UsageError
from leanlm.export import check, gguf, gguf_architecture, gguf_container
from leanlm.export.gguf_container import GGUF
from leanlm.model.config import MLP as PlainMLP
from leanlm.model.config import Attention, Mamba1, Mamba2, ModelConfig, Norm, Rope
from packed_matrices import grouped, ternary

pytest.importorskip("gguf")


def run(tmp_path, module, tokens=200, **options) -> tuple[gguf.Written, dict]:
    """Write, and judge by llama.cpp."""
    pytest.importorskip("llama_cpp")
    written = gguf.export(tmp_path / "model.gguf", module, **options)
    report = check.gguf_file(written, module, tokens=tokens)
    assert report["failures"] == [] and report["tensors"]["different"] == []
    return written, report["llama.cpp"]


@pytest.mark.parametrize("name", CONFIGS)
def test_float32_gives_llama_cpp_our_logits(name, tmp_path):
    written, found = run(tmp_path, model(name, spread=1))
    assert set(written.types.values()) == {"F32"}
    assert found["largest_logit_difference"] < 1e-4 and found["argmax_agreement"] == 1


@pytest.mark.parametrize(("dtype", "type"), [(torch.float16, "F16"), (torch.bfloat16, "BF16")])
def test_sixteen_bits_stay_what_they_are(dtype, type, tmp_path):
    written, found = run(tmp_path, model("mamba", dtype))
    assert written.types["blk.0.ssm_in.weight"] == written.types["token_embd.weight"] == type
    assert written.types["blk.0.ssm_a"] == written.types["blk.0.attn_norm.weight"] == "F32"
    assert found["relative_difference"] < 0.01 and found["argmax_agreement"] == 1


TYPE = {"int8": "Q8_0", "int6": "Q6_K", "int4": "Q4_0", "int3": "Q4_0", "ternary": "TQ2_0"}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["llama", "mamba", "mamba2", "hybrid"])
def test_few_bits_become_blocks_that_llama_cpp_computes_with(name, scheme, tmp_path):
    """llama.cpp rounds activations to 8 bits; ours do too in the closer comparison, which leaves a fraction of it."""
    written, found = run(tmp_path, model(name, scheme=scheme))
    assert {TYPE[scheme], "F32"} == set(written.types.values()) and not written.rounded
    alike = found["with_inputs_rounded_as_it_does"]
    assert found["relative_difference"] == pytest.approx(alike["effect_of_rounding"], rel=0.05)  # which explains all of it
    assert found["relative_difference"] < 0.06 and alike["relative_difference"] < 0.015
    if name != "hybrid":  # whose logits come from a random head, and have near ties
        assert found["argmax_agreement"] >= 0.99
    assert alike["argmax_agreement"] >= 0.96


@pytest.mark.parametrize("type", ["TQ1_0", "TQ2_0", "Q2_0", "Q4_0", "Q6_K", "Q8_0", "F16", "F32"])
def test_a_ternary_model_in_every_type_that_holds_it(type, tmp_path):
    module = model("mamba", torch.float16, "ternary")
    written, found = run(tmp_path, module, type=type)
    assert written.types["blk.1.ssm_out.weight"] == type
    assert written.types["token_embd.weight"] == (type if type in ("F16", "F32") else "F16")
    assert GGUF(written.path).keys["general.file_type"] == gguf.TYPES[type].file_type
    assert found["argmax_agreement"] >= 0.99


def test_a_packed_table_takes_its_own_type(tmp_path):
    module = model("mamba2-groups", scheme="ternary")
    module.embedding.hold(grouped(V, 256, 8))
    module.head.hold(grouped(V, 256, 4, 32))
    written, _ = run(tmp_path, module, type="TQ1_0")
    kinds = [written.types[f"{name}.weight"] for name in ("token_embd", "output", "blk.0.ssm_in")]
    assert kinds == ["Q8_0", "Q4_0", "TQ1_0"]


def test_every_scale_band_of_q_and_k_follows_its_rows(tmp_path):
    """Rows of q and k change places on the way; scales per band of rows go with them."""
    module = model("llama", scheme="ternary")
    for layer in module.layers:
        layer[0].mixer.q_proj.hold(ternary(256, 256, starts=(0, 70, 128), seed=3))
        layer[0].mixer.k_proj.hold(grouped(128, 256, 4, 32))
    run(tmp_path, module)


def test_keys_say_what_the_model_is(tmp_path):
    keys = GGUF(gguf.export(tmp_path / "m.gguf", model("hybrid"), name="a hybrid").path).keys
    assert keys["general.architecture"] == "granitehybrid" and keys["general.name"] == "a hybrid"
    assert keys["granitehybrid.attention.head_count_kv"] == [0, 2] and keys["granitehybrid.rope.scaling.finetuned"] is True
    assert keys["granitehybrid.block_count"] == 2 and keys["granitehybrid.vocab_size"] == V
    assert keys["tokenizer.ggml.model"] == "no_vocab"


# What llama.cpp lacks, and the words that say so.
LAYER = CONFIGS["llama"].layers[0]
SCAN = CONFIGS["mamba2"].layers[0][0]
LACKING = {
    "window": ((dataclasses.replace(LAYER[0], window=16), MLP), {}),
    "rotary": ((dataclasses.replace(LAYER[0], rope=None), MLP), {}),
    "part of each head": ((dataclasses.replace(LAYER[0], rope=Rope(32)), MLP), {}),
    "scale": ((dataclasses.replace(LAYER[0], scale=0.5), MLP), {}),
    "convolution": ((dataclasses.replace(LAYER[0], d_conv=4), MLP), {}),
    "layer norm": (LAYER, {"norm": Norm("layer")}),
    "bias of the head": (LAYER, {"tied": False, "head_bias": True}),
    "epsilon for the final": (LAYER, {"final_norm": Norm(eps=1e-3)}),
    "mlp sublayer": ((SCAN, PlainMLP(512)), {}),
    "not twice": ((Mamba1(256, 16, 4, 16),), {}),
    "bias of Mamba projections": ((Mamba1(512, 16, 4, 16, bias=True),), {}),
    "bias of Mamba-2": ((dataclasses.replace(SCAN, bias=True),), {}),
    "gated norm after": ((dataclasses.replace(SCAN, norm_before_gate=True),), {}),
    "epsilon for Mamba-2": ((dataclasses.replace(SCAN, norm_eps=1e-3),), {}),
    "beside the scan": ((dataclasses.replace(SCAN, d_mlp=64),), {}),
    "every channel": ((dataclasses.replace(SCAN, d_per_channel=True),), {}),
    "limits of dt": ((dataclasses.replace(SCAN, dt_max=0.1),), {}),
    r"layers \(attention\)": ((LAYER[0],), {}),
}


@pytest.mark.parametrize("words", LACKING)
def test_what_llama_cpp_lacks_is_refused_in_one_line(words):
    layer, changes = LACKING[words]
    with pytest.raises(UsageError, match=f"llama.cpp has no .*{words}"):
        gguf_architecture.name_of(ModelConfig(256, V, (layer,) * 2, **changes))


def test_layers_that_differ_are_refused():
    layers = (LAYER, (Attention(4, 4, 64, rope=Rope(64)), MLP))
    with pytest.raises(UsageError, match="differ from one another"):
        gguf_architecture.name_of(ModelConfig(256, V, layers))
    with pytest.raises(UsageError, match="layers"):
        gguf_architecture.name_of(ModelConfig(256, V, ((Mamba1(512),), (Mamba2(512, 64, 64),))))


def test_a_type_that_cannot_hold_a_matrix_is_refused_by_its_name(tmp_path):
    module = model("mamba", scheme="int4")
    for type, words in (("TQ2_0", "levels run from"), ("Q2_0", "holds -1 to 2"), ("F16", "would be rounded")):
        with pytest.raises(UsageError, match=rf"weight: {type} cannot hold it exactly, because .*{words}"):
            gguf.export(tmp_path / "m.gguf", module, type=type)
    with pytest.raises(UsageError, match=r"in_proj.weight: .* --type Q4_0 holds it, --lossy rounds it"):
        gguf.export(tmp_path / "m.gguf", module, type="TQ1_0")
    with pytest.raises(UsageError, match=r"floating point; --lossy"):
        gguf.export(tmp_path / "m.gguf", model("mamba"), type="Q8_0")
    with pytest.raises(UsageError, match="choose F32"):
        gguf.export(tmp_path / "m.gguf", module, type="Q5_K")
    assert not list(tmp_path.iterdir())


def test_act_order_has_no_block_but_can_be_rounded_or_written_as_float32(tmp_path):
    module = model("mamba", scheme="int4")
    shuffled = grouped(1024, 256, 4, 32, ordered=False)
    shuffled.scales.mul_(0.1)
    module.layers[0][0].mixer.in_proj.hold(shuffled)
    with pytest.raises(UsageError, match=r"in_proj.weight: no block of GGUF holds it exactly \(Q4_0: columns"):
        gguf.export(tmp_path / "m.gguf", module)
    written, _ = run(tmp_path, module, lossy=True)
    assert written.rounded == ("blk.0.ssm_in.weight",)
    assert set(run(tmp_path, module, type="F32")[0].types.values()) == {"F32"}


@pytest.mark.parametrize("type", ["Q8_0", "Q6_K", "Q4_0"])
def test_lossy_rounds_a_float_model_and_says_so(type, tmp_path):
    module = model("mamba2")
    written, found = run(tmp_path, module, type=type, lossy=True)
    assert set(written.rounded) == {f"blk.{i}.ssm_{name}.weight" for i in (0, 1) for name in ("in", "out")}
    assert found["tolerance"] is None and found["relative_difference"] < {"Q8_0": 0.03, "Q6_K": 0.06, "Q4_0": 0.2}[type]


def test_lossy_rounds_nothing_that_can_be_exact(tmp_path):
    assert run(tmp_path, model("mamba", scheme="int6"), lossy=True)[0].rounded == ()


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "m.gguf"
    path.write_text("precious")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_container.package().GGUFWriter, "write_tensor_data", full)
    with pytest.raises(LeanLMError, match="No space left on device"):
        gguf.export(path, model("mamba"))
    assert path.read_text() == "precious" and list(tmp_path.iterdir()) == [path]


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match=r'pip install "leanlm\[gguf\]"'):
        gguf.export(tmp_path / "m.gguf", model("mamba"))


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UsageError, match="is a folder"):
        gguf.export(tmp_path, model("mamba"))


DAMAGE = {
    "header cut": lambda data: data[:100],
    "tensors cut": lambda data: data[:-64],
    "another format": lambda data: b"GGML" + data[4:],
    "empty": lambda _: b"",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused(damage, tmp_path):
    path = gguf.export(tmp_path / "m.gguf", model("mamba")).path
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(CheckpointError, match="damaged or no GGUF file"):
        GGUF(path)
