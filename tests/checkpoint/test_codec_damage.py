"""Packed matrices whose tensors and settings do not agree: each one line that names the tensor or the setting."""

import pytest
import torch

from leanlm.checkpoint import codecs, compressed_tensors, gptq, manifest
from leanlm.errors import CheckpointError
from packed_matrices import MODULE, NAME, grouped, stored, ternary


@pytest.mark.parametrize(
    "config", [{"quant_method": "bitsandbytes"}, {"quant_method": "awq", "bits": 4}, {}, [], {"quant_method": [1]}]
)
def test_unknown_methods(config):
    with pytest.raises(CheckpointError, match="are not read; known: compressed-tensors, gptq, leanlm"):
        codecs.of({"quantization_config": config})
    assert codecs.of({"hidden_size": 3}) is None


ASYMMETRIC = grouped(32, 64, 4, 32, symmetric=False, low=1)
UNORDERED = grouped(32, 64, 4, 32, ordered=False)
BANDS = ternary(32, 64, (0, 8, 20))


def cut(name):
    return lambda config, tensors: tensors.update({name: tensors[name][:-1]})


def drop(name):
    return lambda config, tensors: tensors.pop(name)


def put(name, value):
    return lambda config, tensors: tensors.update({name: value(tensors[name])})


def say(**changes):
    return lambda config, tensors: config.update(changes)


def entry(**changes):
    return lambda config, tensors: config["matrices"][NAME].update(changes)


def weights(**changes):
    return lambda config, tensors: config["config_groups"]["group_0"]["weights"].update(changes)


def group(**changes):
    return lambda config, tensors: config["config_groups"]["group_0"].update(changes)


DAMAGE = {
    "gptq: qweight cut": (gptq, ASYMMETRIC, cut(f"{MODULE}.qweight"), "56 inputs, no multiple"),
    "gptq: scales cut": (gptq, ASYMMETRIC, cut(f"{MODULE}.scales"), r"'\S+scales' is \[1, 32\] and should be \[2, 32\]"),
    "gptq: qzeros cut": (gptq, ASYMMETRIC, cut(f"{MODULE}.qzeros"), r"'\S+qzeros' is \[1, 4\] and should be \[2, 4\]"),
    "gptq: g_idx cut": (gptq, UNORDERED, cut(f"{MODULE}.g_idx"), r"'\S+g_idx' is \[63\] and should be \[64\]"),
    "gptq: no scales": (gptq, ASYMMETRIC, drop(f"{MODULE}.scales"), r"'\S+scales' is missing"),
    "gptq: no qzeros": (gptq, ASYMMETRIC, drop(f"{MODULE}.qzeros"), r"'\S+qzeros' is missing"),
    "gptq: no qweight": (gptq, ASYMMETRIC, drop(f"{MODULE}.qweight"), r"'\S+qweight' is missing"),
    "gptq: group outside": (gptq, UNORDERED, put(f"{MODULE}.g_idx", lambda t: t + 1), "names groups outside 0 to 1"),
    "gptq: float codes": (gptq, ASYMMETRIC, put(f"{MODULE}.qweight", torch.Tensor.float), "is float32 and should be int32"),
    "gptq: NaN scale": (gptq, ASYMMETRIC, put(f"{MODULE}.scales", lambda t: t / 0 * 0), "scales' holds NaN or infinite"),
    "gptq: other group": (gptq, ASYMMETRIC, say(group_size=16), r"should be \[4, 32\]"),
    "gptq: uneven group": (gptq, ASYMMETRIC, say(group_size=48), "64 inputs, no multiple of its group of 48"),
    "gptq: other bits": (gptq, ASYMMETRIC, say(bits=8), r"g_idx' is \[64\] and should be \[32\]"),
    "gptq: five bits": (gptq, ASYMMETRIC, say(bits=5), "5 bits for"),
    "gptq: three bits": (gptq, ASYMMETRIC, say(bits=3), "8 rows, which 3-bit codes do not fill"),
    "gptq: bits missing": (gptq, ASYMMETRIC, say(bits=None), "'bits' is missing"),
    "gptq: bits a word": (gptq, ASYMMETRIC, say(bits="four"), "'bits' is 'four', which is no int"),
    "gptq: sym, but is not": (gptq, ASYMMETRIC, say(sym=True), "zero points other than 8"),
    "gptq: version one said to be two": (gptq, grouped(32, 64, 4), say(checkpoint_format="gptq_v2"), "points other than 8"),
    "gptq: marlin": (gptq, ASYMMETRIC, say(checkpoint_format="marlin"), "'marlin' is not read"),
    "gptq: words of 16 bits": (gptq, ASYMMETRIC, say(pack_dtype="int16"), "'int16' is not read"),
    "gptq: no pattern": (gptq, ASYMMETRIC, say(dynamic={"(": {}}), "is no regular expression"),
    "ct: packed cut": (
        compressed_tensors,
        ASYMMETRIC,
        cut(f"{MODULE}.weight_packed"),
        r"packed' is \[31, 8\] and should be \[32, 8\]",
    ),
    "ct: scale cut": (compressed_tensors, ASYMMETRIC, cut(f"{MODULE}.weight_scale"), r"scale' is \[31, 2\]"),
    "ct: zeros cut": (compressed_tensors, ASYMMETRIC, cut(f"{MODULE}.weight_zero_point"), r"zero_point' is \[3, 2\]"),
    "ct: no shape": (compressed_tensors, ASYMMETRIC, drop(f"{MODULE}.weight_shape"), "weight_shape' is missing"),
    "ct: no scale": (compressed_tensors, ASYMMETRIC, drop(f"{MODULE}.weight_scale"), "weight_scale' is missing"),
    "ct: no zeros": (compressed_tensors, ASYMMETRIC, drop(f"{MODULE}.weight_zero_point"), "weight_zero_point' is missing"),
    "ct: shape lies": (compressed_tensors, ASYMMETRIC, put(f"{MODULE}.weight_shape", lambda t: t * 2), r"should be \[64, 16\]"),
    "ct: shape negative": (compressed_tensors, ASYMMETRIC, put(f"{MODULE}.weight_shape", lambda t: -t), r"says \[-32, -64\]"),
    "ct: other bits": (compressed_tensors, ASYMMETRIC, weights(num_bits=8), r"should be \[32, 16\]"),
    "ct: five bits": (compressed_tensors, ASYMMETRIC, weights(num_bits=5), "5 bits: weights are held in"),
    "ct: floats": (
        compressed_tensors,
        ASYMMETRIC,
        weights(type="float"),
        "float weights with one scale per group are not read",
    ),
    "ct: tensor": (compressed_tensors, ASYMMETRIC, weights(strategy="tensor"), "one scale per tensor are not read"),
    "ct: no group size": (compressed_tensors, ASYMMETRIC, weights(group_size=None), "'group' with a group_size of -1"),
    "ct: of no group": (compressed_tensors, ASYMMETRIC, group(targets=["re:^lm_head$"]), "no group of config_groups is for"),
    "ct: no pattern": (compressed_tensors, ASYMMETRIC, group(targets=["re:("]), "is no regular expression"),
    "ct: another layout": (compressed_tensors, ASYMMETRIC, group(format="int-quantized"), "'int-quantized' is not read"),
    "ct: activations too": (
        compressed_tensors,
        ASYMMETRIC,
        group(input_activations={"num_bits": 8}),
        "activations are quantised",
    ),
    "ct: no groups": (compressed_tensors, ASYMMETRIC, say(config_groups={}), "names no scheme"),
    "ours: codes cut": (manifest, ASYMMETRIC, cut(f"{NAME}_codes"), r"codes' is \[31, 32\] and should be \[32, 32\]"),
    "ours: trits cut": (manifest, BANDS, cut(f"{NAME}_codes"), r"codes' is \[31, 13\] and should be \[32, 13\]"),
    "ours: scales cut": (manifest, BANDS, cut(f"{NAME}_scales"), r"scales' is \[2\] and should be \[3\]"),
    "ours: no codes": (manifest, BANDS, drop(f"{NAME}_codes"), "codes' is missing"),
    "ours: no starts": (manifest, BANDS, drop(f"{NAME}_starts"), "starts' is missing"),
    "ours: no zeros": (manifest, ASYMMETRIC, drop(f"{NAME}_zeros"), "zeros' is missing"),
    "ours: no g_idx": (manifest, UNORDERED, drop(f"{NAME}_g_idx"), "g_idx' is missing"),
    "ours: group outside": (manifest, UNORDERED, put(f"{NAME}_g_idx", lambda t: t - 1), "names groups outside 0 to 1"),
    "ours: zeros too wide": (manifest, ASYMMETRIC, put(f"{NAME}_zeros", lambda t: t + 16), "zero points beyond 4 bits"),
    "ours: starts unsorted": (
        manifest,
        BANDS,
        put(f"{NAME}_starts", lambda t: t.flip(0)),
        "does not cut 32 rows into 3 regions",
    ),
    "ours: starts beyond": (manifest, BANDS, put(f"{NAME}_starts", lambda t: t * 3), "does not cut 32 rows into 3 regions"),
    "ours: infinite scale": (manifest, BANDS, put(f"{NAME}_scales", lambda t: t / 0), "NaN or infinite"),
    "ours: shape lies": (manifest, ASYMMETRIC, entry(shape=[32, 96]), r"should be \[32, 48\]"),
    "ours: shape of rows lies": (manifest, BANDS, entry(shape=[33, 64]), r"should be \[33, 13\]"),
    "ours: shape no shape": (manifest, BANDS, entry(shape=[32, "64"]), "of shape"),
    "ours: shape negative": (manifest, BANDS, entry(shape=[-32, 64]), "of shape"),
    "ours: uneven": (manifest, ASYMMETRIC, entry(format="int4-g48-asym"), "64 inputs, no multiple"),
    "ours: symmetric after all": (
        manifest,
        ASYMMETRIC,
        entry(format="int4-g32"),
        "_zeros' does not belong to a weight that is int4",
    ),
    "ours: unknown format": (manifest, ASYMMETRIC, entry(format="int5-g32"), "unknown format 'int5-g32'; update leanlm"),
    "ours: float": (manifest, ASYMMETRIC, entry(format="float"), "unknown format 'float'"),
    "ours: no format": (manifest, ASYMMETRIC, entry(format=None), "'format' is missing"),
    "ours: no regions": (manifest, BANDS, entry(regions=0), "with 0 regions"),
    "ours: axis": (manifest, BANDS, entry(axis="diagonals"), "scales along 'diagonals'"),
    "ours: version": (manifest, BANDS, say(version=2), "version 2 of leanlm's format is not read"),
    "ours: no matrices": (manifest, BANDS, say(matrices=None), "'matrices' is missing"),
    "ours: matrices a list": (manifest, BANDS, say(matrices=[]), "which is no dict"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_one_clear_line(case):
    codec, weight, damage, message = DAMAGE[case]
    config, tensors = stored(codec, weight)
    damage(config, tensors)
    with pytest.raises(CheckpointError, match=message) as caught:
        for name in codec.parts(config, list(tensors)):
            codec.read(config, name, tensors)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert MODULE in str(caught.value) or "quantization_config" in str(caught.value)
