"""The containers of packed weights: what is written is what is read, laid out as the formats define it."""

import json
import random
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from golden_cases import golden_cases
from leanlm.checkpoint import codecs, compressed_tensors, gptq, manifest
from leanlm.checkpoint.patterns import patterns
from leanlm.errors import UsageError
from leanlm.model.format import BITS, Grouped
from leanlm.model.packed import GroupedWeight, Packed, TernaryWeight
from leanlm.ops import packing
from packed_matrices import MODULE, NAME, grouped, stored, ternary


def again(codec, weight: Packed, name: str = NAME) -> Packed:
    config, tensors = stored(codec, weight, name)
    assert codecs.of({"quantization_config": config}) is codec
    held = codec.parts(config, [*tensors, "model.norm.weight"])
    assert held.keys() == {name} and set(held[name]) == set(tensors)
    return codec.read(config, name, tensors)


def big_integer(codes, bits: int) -> int:
    """A row of codes as one number, the first in its lowest bits: the oracle of every layout here."""
    return sum(int(code) << (bits * i) for i, code in enumerate(codes))


def words_as_integer(words) -> int:
    return sum((int(word) & 0xFFFFFFFF) << (32 * i) for i, word in enumerate(words))


shapes = st.tuples(st.integers(1, 4), st.integers(1, 6), st.sampled_from([0, 1, 2, 8, 24, 32, 128]))


@settings(max_examples=60, deadline=None)
@given(shapes, st.sampled_from(BITS), st.booleans(), st.booleans(), st.integers(0, 99))
def test_our_manifest_holds_everything(shape, bits, symmetric, ordered, seed):
    R, G, group = shape
    weight = grouped(3 * R, G * group or 7 * G, bits, group, symmetric, ordered or not group, seed)
    assert manifest.refusal(NAME, weight) is None
    assert again(manifest, weight).equal(weight)


@settings(max_examples=60, deadline=None)
@given(shapes, st.sampled_from(BITS), st.booleans(), st.integers(0, 99))
def test_compressed_tensors_holds_groups(shape, bits, symmetric, seed):
    R, G, group = shape
    weight = grouped(3 * R, G * group or 7 * G, bits, group, symmetric, True, seed)
    assert compressed_tensors.refusal(NAME, weight) is None
    assert again(compressed_tensors, weight).equal(weight)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([32, 64]),
    st.integers(1, 4),
    st.sampled_from([0, 32, 64, 128]),
    st.sampled_from(gptq.BITS),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_gptq_holds_groups(R, G, group, bits, symmetric, ordered, seed):
    weight = grouped(R, G * (group or 32), bits, group, symmetric, ordered or G == 1 or not group, seed, low=1)
    assert gptq.refusal(NAME, weight) is None
    assert again(gptq, weight).equal(weight)


def test_gptq_second_version_and_files_without_g_idx():
    weight = grouped(32, 64, 4, 32, symmetric=False)
    assert weight.zeros.min() == 0
    config, tensors = stored(gptq, grouped(32, 64, 4, 32, symmetric=False, low=1), checkpoint_format="gptq_v2")
    zeros = [big_integer(row, 4) for row in weight.zeros.T]
    words = [[(row >> (32 * i)) & 0xFFFFFFFF for i in range(4)] for row in zeros]
    tensors[f"{MODULE}.qzeros"] = torch.tensor(words).to(torch.int32)
    tensors |= {f"{MODULE}.scales": weight.scales.T, f"{MODULE}.qweight": gptq.to_words(weight.codes).T}
    del tensors[f"{MODULE}.g_idx"]
    assert gptq.read(config, NAME, tensors).equal(weight)


def test_act_order_that_turns_out_to_be_none_is_none():
    weight = grouped(32, 64, 4, 32)
    config, tensors = stored(gptq, weight, desc_act=True)
    assert gptq.read(config, NAME, tensors).equal(weight)


@pytest.mark.parametrize("codec", [compressed_tensors, gptq, manifest])
@pytest.mark.parametrize("starts, along_rows", [((0,), True), ((0, 5, 40), True), ((0, 128), False), ((0, 128, 384), False)])
def test_ternary_comes_back_as_it_was(codec, starts, along_rows):
    weight = ternary(64, 512, starts, along_rows)
    assert again(codec, weight).equal(weight)
    codes = weight.unpacked()
    codes[4:12] = 0  # rows, and below a whole group of columns, that hold zeros alone
    codes[:, 100:300] = 0
    hollow = TernaryWeight.of(packing.Trits(codes, weight.scales, weight.starts, along_rows))
    assert again(codec, hollow).equal(hollow)


def test_ternary_on_disk_is_within_what_is_promised():
    weight = ternary(300, 1001, (0, 17, 200), False)
    tensors = manifest.write(NAME, weight)
    assert sum(tensor.nbytes for tensor in tensors.values()) * 8 / weight.numel() <= 1.7
    assert again(manifest, weight).equal(weight)


def test_two_bits_with_a_fourth_level_or_mixed_scales_stay_groups():
    plain = grouped(32, 256, 2, 128)
    mixed = GroupedWeight.of(Grouped(2, 128), plain.unpacked().clamp(min=1), plain.scales)
    for codec in (compressed_tensors, gptq):
        assert again(codec, plain).equal(plain)
        assert again(codec, mixed).equal(mixed)


@pytest.mark.parametrize("case", golden_cases("trilm"), ids=lambda case: case.name)
def test_golden_ternary_matrices(case):
    expected, found = load_file(case.folder / "expected.safetensors"), 0
    for name, tensor in load_file(case.folder / "model.safetensors").items():
        trits = packing.ternarise(tensor) if re.search(r"(proj|_layer)\.weight$", name) else None
        if trits is None:
            continue
        found += 1
        weight = TernaryWeight.of(trits)
        codec = codecs.choose({name: weight})
        assert codec is (compressed_tensors if weight.along_rows else manifest)
        read = again(codec, weight, name)
        assert read.equal(weight) and torch.equal(read.dequantize(), tensor)
        if f"ternary.{name}" in expected:
            assert torch.equal(read.unpacked(), expected[f"ternary.{name}"])
    assert found or case.case == "floatlm"


def test_shards_of_one_matrix_go_into_one_file(tmp_path):
    whole = grouped(96, 64, 4, 32, ordered=False)
    for codec in (gptq, manifest):
        tensors = {}
        for i, part in enumerate(whole.split([32, 32, 32])):
            tensors |= codec.write(f"layer.{i}.weight", part)
        save_file(tensors, tmp_path / "m.safetensors")


@pytest.mark.parametrize("bits", gptq.BITS)
def test_gptq_words(bits):
    weight = grouped(32, 96, bits, 32, symmetric=False, low=1, seed=3)
    tensors = gptq.write(NAME, weight)
    qweight, qzeros = tensors[f"{MODULE}.qweight"], tensors[f"{MODULE}.qzeros"]
    assert (qweight.dtype, tuple(qweight.shape)) == (torch.int32, (96 * bits // 32, 32))
    assert (qzeros.dtype, tuple(qzeros.shape)) == (torch.int32, (3, bits))
    for column, codes in zip(qweight.T, weight.unpacked()):
        assert words_as_integer(column) == big_integer(codes, bits)
    for row, zeros in zip(qzeros, weight.zeros.T):
        assert words_as_integer(row) == big_integer(zeros - 1, bits)
    assert torch.equal(tensors[f"{MODULE}.scales"], weight.scales.T)
    assert tensors[f"{MODULE}.g_idx"].tolist() == [i // 32 for i in range(96)]


@pytest.mark.parametrize("bits, word", [(2, 0x55555555), (4, 0x77777777), (8, 0x7F7F7F7F)])
def test_gptq_symmetric_zeros(bits, word):
    tensors = gptq.write(NAME, grouped(32, 32, bits))
    assert (tensors[f"{MODULE}.qzeros"] == word).all()


def test_compressed_tensors_of_other_versions():
    """Unpacked signed zero points, g_idx of act-order, and classes as targets, as earlier versions wrote them."""
    weight = grouped(32, 64, 4, 32, symmetric=False, ordered=False)
    plain = GroupedWeight(Grouped(4, 32, False), 64, weight.codes, weight.scales, weight.zeros)
    config, tensors = stored(compressed_tensors, plain)
    config["config_groups"]["group_0"]["targets"] = ["Linear"]
    tensors[f"{MODULE}.weight_zero_point"] = (weight.zeros.int() - 8).to(torch.int8)
    assert compressed_tensors.read(config, NAME, tensors).equal(plain)
    tensors[f"{MODULE}.weight_g_idx"] = weight.g_idx
    assert compressed_tensors.read(config, NAME, tensors).equal(weight)
    assert "0.20" in compressed_tensors.refusal(NAME, weight)


def llama(count: int = 3):
    for layer in range(count):
        for matrix in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"):
            yield f"model.layers.{layer}.{matrix}.weight"


@pytest.mark.parametrize("codec", [compressed_tensors, gptq, manifest])
def test_several_formats_in_one_folder(codec):
    weights = {name: grouped(32, 64, 8 if "up" in name else 4, 0 if "up" in name else 32) for name in llama()}
    weights["model.layers.1.mlp.up_proj.weight"] = grouped(32, 64, 3, 64)
    weights["lm_head.weight"] = grouped(64, 64, 8, 32)
    plain = ["model.embed_tokens.weight", *(f"model.layers.{i}.mixer.dt_proj.weight" for i in range(3))]
    config = json.loads(json.dumps(codec.settings(weights, plain)))
    tensors = {part: tensor for name, weight in weights.items() for part, tensor in codec.write(name, weight).items()}
    held = codec.parts(config, list(tensors))
    assert held.keys() == weights.keys() and {part for parts in held.values() for part in parts} == tensors.keys()
    for name, weight in weights.items():
        assert codec.read(config, name, tensors).equal(weight), name


def test_gptq_settings():
    weights = {name: grouped(32, 64, 4, 32) for name in llama()}
    config = gptq.settings(weights, ["model.embed_tokens.weight", "lm_head.weight"])
    expected = {"bits": 4, "group_size": 32, "sym": True, "desc_act": False, "lm_head": False, "checkpoint_format": "gptq"}
    assert expected.items() <= config.items() and "dynamic" not in config
    config = gptq.settings(weights, ["model.layers.0.x_proj.weight", "model.layers.1.x_proj.weight"])
    assert config["dynamic"] == {r"-:^model\.layers\.\d+\.x_proj$": {}}


def test_compressed_tensors_settings_name_every_module_once():
    weights = {name: grouped(32, 64, 8 if "up" in name else 4, 32) for name in llama()}
    config = compressed_tensors.settings(weights, ["lm_head.weight"])
    assert config["ignore"] == ["re:^lm_head$"]
    four, eight = config["config_groups"].values()
    assert [target.rpartition(".")[2] for target in four["targets"]] == ["q_proj$", "o_proj$"]
    assert eight["targets"] == [r"re:^model\.layers\.\d+\.mlp\.up_proj$"]
    assert eight["weights"]["num_bits"] == 8 and eight["weights"]["group_size"] == 32


@given(st.sets(st.sampled_from([f"m.{i}.{kind}" for i in range(12) for kind in ("a", "b1", "b")])), st.randoms())
def test_patterns_match_what_they_should_and_nothing_else(modules, chance: random.Random):
    modules = sorted(modules)
    wanted = [module for module in modules if chance.random() < 0.6]
    others = [module for module in modules if module not in wanted]
    found = patterns(wanted, others)
    for module in modules:
        assert any(re.match(pattern, module) for pattern in found) == (module in wanted)
    if not others:
        assert len(found) <= 3


def test_the_container_is_the_first_that_holds_everything():
    fits, crooked = ternary(64, 256, (0, 128), False), ternary(64, 256, (0, 100), False)
    assert codecs.choose({"a.weight": fits}) is compressed_tensors
    assert codecs.choose({"a.weight": fits, "b.weight": crooked}) is manifest
    assert codecs.choose({"a.weight": fits}, "gptq") is gptq
    with pytest.raises(
        UsageError, match=r"gptq cannot hold 'b\.weight' exactly: its scale changes at column 100, inside a group"
    ):
        codecs.choose({"a.weight": fits, "b.weight": crooked}, "gptq")
    with pytest.raises(UsageError, match="'awq' is no container of packed weights; choose compressed-tensors, gptq, leanlm"):
        codecs.choose({"a.weight": fits}, "awq")


REFUSED = {
    "three bits, 40 inputs": (gptq, grouped(32, 40, 3), "multiples of 32 outputs and inputs, and it is 32 x 40"),
    "48 outputs": (gptq, grouped(48, 64, 4), "and it is 48 x 64"),
    "six bits": (gptq, grouped(32, 64, 6), "no 6-bit codes"),
    "zero of 0": (gptq, grouped(32, 64, 4, 32, symmetric=False), "zero points of 0"),
    "float32 scales": (gptq, ternary(32, 64, dtype=torch.float32), "scales are float32"),
    "narrow columns": (
        compressed_tensors,
        ternary(32, 96, (0, 48), False),
        "changes at column 48, inside a group of 32 columns",
    ),
    "odd columns": (compressed_tensors, ternary(32, 72, (0, 24), False), "72 columns, which do not divide into groups of 32"),
    "columns askew": (compressed_tensors, ternary(32, 256, (0, 128, 200), False), "changes at column 200, inside"),
    "act-order": (compressed_tensors, grouped(32, 64, 4, 32, ordered=False), "act-order"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_why(case):
    codec, weight, reason = REFUSED[case]
    assert reason in codec.refusal(NAME, weight)
    with pytest.raises(UsageError, match=reason):
        codec.write(NAME, weight)
    holding = next(other for other in (compressed_tensors, gptq, manifest) if other.refusal(NAME, weight) is None)
    assert codecs.choose({NAME: weight}) is holding is not codec


def test_gptq_has_no_embeddings():
    for name in ("model.embed_tokens.weight", "backbone.embedding.weight", "shared.emb.weight", "wte.weight", "odd"):
        assert "embeddings" in gptq.refusal(name, grouped(32, 64, 4))
    assert gptq.refusal("lm_head.weight", grouped(32, 64, 4)) is None
