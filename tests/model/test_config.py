"""Configs as plain data and back; every mistake is one line that names the place."""

import json
import math

import pytest
from hypothesis import given, settings

from hybrid_models import ONE_OF_EACH, hybrids
from leanlm.errors import CheckpointError
from leanlm.model.config import (
    MIXERS,
    MLP,
    Attention,
    DiscreteMamba2,
    GatedMLP,
    Llama3Scaling,
    Mamba1,
    Mamba2,
    ModelConfig,
    Norm,
    Rope,
    from_dict,
    to_dict,
)

RICH = ModelConfig(
    16,
    20,
    ((Attention(4, 2, 8, window=3, rope=Rope(8, 5e5, Llama3Scaling(8.0, 1.0, 4.0, 512))), MLP(8)), (Mamba2(32, 8),)),
    final_norm=Norm("layer"),
    eos_ids=(1, 2),
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(hybrids())
def test_plain_data_and_back(config):
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_mixer_alone(name):
    mixer = ONE_OF_EACH[name]
    raw = to_dict(mixer)
    assert raw.pop("kind") == mixer.kind and MIXERS[mixer.kind] is type(mixer)
    assert from_dict(type(mixer), raw, "mixer") == mixer


def test_numbers_keep_their_type_and_integers_may_stand_for_floats():
    rope = from_dict(Rope, {"dim": 8, "theta": 500000}, "rope")
    assert rope == Rope(8, 500000.0) and isinstance(rope.theta, float)
    assert from_dict(Mamba2, {"d_inner": 8, "head_dim": 4, "dt_max": math.inf}, "m").dt_max == math.inf


def test_defaults_that_depend_on_others():
    config = ModelConfig(8, 9, ((MLP(4),),), norm=Norm("layer"))
    assert config.padded_vocab_size == 9 and config.final_norm == Norm("layer")
    assert Mamba2(12, 4).n_heads == 3 and DiscreteMamba2(12, 3, 1).head_dim == 4
    assert config.bounded and RICH.bounded and not ModelConfig(8, 9, ((Attention(1, 1, 8),),)).bounded
    assert len(RICH.sublayers) == 3


def edited(change) -> dict:
    raw = RICH.to_dict()
    change(raw)
    return raw


def first(raw):
    return raw["layers"][0][0]


MISTAKES = {
    "unknown, near a known one": (lambda r: r.update(d_modle=3), r"model\.d_modle: unknown setting; did you mean 'd_model'\?"),
    "unknown, near nothing": (lambda r: r.update(zzz=3), r"model\.zzz: unknown setting$"),
    "unknown in a mixer": (lambda r: first(r).update(windw=3), r"model\.layers\[0\]\[0\]\.windw: .*'window'\?"),
    "missing": (lambda r: r.pop("vocab_size"), r"model\.vocab_size: missing"),
    "missing in a mixer": (lambda r: first(r).pop("head_dim"), r"model\.layers\[0\]\[0\]\.head_dim: missing"),
    "missing kind": (lambda r: first(r).pop("kind"), r"model\.layers\[0\]\[0\]\.kind: None is none of attention, .*mamba2"),
    "unknown kind": (lambda r: first(r).update(kind="rnn"), r"kind: 'rnn' is none of"),
    "mixer is no table": (lambda r: r["layers"][0].__setitem__(0, 7), r"layers\[0\]\[0\]\.kind: None is none of"),
    "text for a number": (lambda r: r.update(d_model="16"), r"model\.d_model: expected int, got '16'"),
    "fraction for a count": (lambda r: r.update(d_model=16.5), r"model\.d_model: expected int, got 16\.5"),
    "flag for a count": (lambda r: r.update(d_model=True), r"model\.d_model: expected int, got True"),
    "flag for a fraction": (lambda r: first(r)["rope"].update(theta=True), r"rope\.theta: expected float, got True"),
    "count for a flag": (lambda r: r.update(tied=1), r"model\.tied: expected bool, got 1"),
    "null where nothing may lack": (lambda r: r.update(d_model=None), r"model\.d_model: expected int, got None"),
    "no list": (lambda r: r.update(layers=3), r"model\.layers: expected a list, got 3"),
    "no list of lists": (lambda r: r.update(layers=[3]), r"model\.layers\[0\]: expected a list, got 3"),
    "wrong item": (lambda r: r.update(eos_ids=[1, "2"]), r"model\.eos_ids\[1\]: expected int, got '2'"),
    "wrong choice": (lambda r: r["norm"].update(kind="batch"), r"model\.norm\.kind: 'batch' is none of 'rms', 'layer'"),
    "no table": (lambda r: r.update(norm=3), r"model\.norm: expected a table of settings, got int"),
    "deep": (lambda r: first(r)["rope"]["scaling"].pop("factor"), r"layers\[0\]\[0\]\.rope\.scaling\.factor: missing"),
    "no layers": (lambda r: r.update(layers=[]), "at least one layer"),
    "an empty layer": (lambda r: r.update(layers=[[]]), "at least one sublayer"),
    "nothing wide": (lambda r: r.update(d_model=0), r"model\.d_model: 0 is not a size"),
    "no words": (lambda r: r.update(vocab_size=-1), r"model\.vocab_size: -1 is not a size"),
    "rows too few": (lambda r: r.update(padded_vocab_size=19), "20 tokens do not fit 19 embedding rows"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_names_its_place(name):
    change, message = MISTAKES[name]
    with pytest.raises(CheckpointError, match=message) as caught:
        ModelConfig.from_dict(edited(change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("raw", [None, 3, "model", [1]])
def test_a_config_must_be_a_table(raw):
    with pytest.raises(CheckpointError, match="model: expected a table of settings"):
        ModelConfig.from_dict(raw)


IMPOSSIBLE = {
    "heads shared unevenly": (lambda: Attention(5, 2, 8), "5 heads cannot share 2 key/value heads"),
    "no heads": (lambda: Attention(0, 1, 8), r"attention\.n_heads: 0 is not a size"),
    "no shared heads": (lambda: Attention(4, 0, 8), r"attention\.n_kv_heads: 0 is not a size"),
    "blind window": (lambda: Attention(2, 2, 8, window=0), "window of 0 sees nothing"),
    "odd rotation": (lambda: Attention(2, 2, 8, rope=Rope(7)), "cannot rotate 7 of 8"),
    "rotation too wide": (lambda: Attention(2, 2, 8, rope=Rope(10)), "cannot rotate 10 of 8"),
    "mamba2 heads": (lambda: Mamba2(30, 8), "30 channels do not divide into heads of 8"),
    "mamba2 groups": (lambda: Mamba2(24, 8, n_groups=2), "3 heads do not divide into 2 groups"),
    "mamba2 head width 0": (lambda: Mamba2(24, 0), r"mamba2\.head_dim: 0 is not a size"),
    "mamba2 groups 0": (lambda: Mamba2(24, 8, n_groups=0), r"mamba2\.n_groups: 0 is not a size"),
    "discrete heads": (lambda: DiscreteMamba2(30, 4, 2), "30 channels do not divide into 4 heads"),
    "discrete qk heads": (lambda: DiscreteMamba2(30, 5, 2), "5 heads cannot share 2 qk heads"),
    "mamba1 without taps": (lambda: Mamba1(8, d_conv=0), r"mamba1\.d_conv: 0 is not a size"),
    "empty mlp": (lambda: MLP(0), r"mlp\.d_ff: 0 is not a size"),
    "empty gated mlp": (lambda: GatedMLP(-4), r"gated_mlp\.d_ff: -4 is not a size"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_sizes_are_refused(name):
    make, message = IMPOSSIBLE[name]
    with pytest.raises(CheckpointError, match=message):
        make()


def test_configs_are_frozen_and_hashable():
    assert hash(RICH) == hash(ModelConfig.from_dict(RICH.to_dict()))
    with pytest.raises(AttributeError):
        RICH.d_model = 3
