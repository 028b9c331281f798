"""Telescoping caches in configs: what is wrong is refused with its reason, and never read as another model."""

import re

import pytest

from leanlm import families
from leanlm.errors import CheckpointError
from leanlm.model.config import Telescoping

FMS = {"src_vocab_size": 40, "emb_dim": 32, "nheads": 4, "kvheads": 2, "nlayers": 2}
LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 40}
HF = {"model_type": "telescoping_llama", **LLAMA}
RENE = {"model_type": "rene", "d_model": 32, "n_layer": 2, "vocab_size": 40, "attn_layer_idx": [1]}
MAMBA = {"d_model": 32, "n_layer": 2, "vocab_size": 40, "ssm_cfg": {"layer": "Mamba2"}, "attn_layer_idx": [1]}
ATTENTION = {"causal": True, "num_heads": 4}
TABLE = {"cache": "64"}


def read(raw: dict):
    return families.find(raw).to_config(raw)


@pytest.mark.parametrize(
    "raw",
    [
        {**FMS, "telescoping": TABLE},
        {**HF, "telescoping": TABLE},
        {**RENE, "attn_cfg": {**ATTENTION, "telescoping": TABLE}},
        {**MAMBA, "attn_cfg": {**ATTENTION, "telescoping": TABLE}},
    ],
    ids=["fms", "hf", "rene", "mamba_ssm"],
)
def test_it_is_read(raw):
    assert [m.slots for m in read(raw).sublayers if isinstance(m, Telescoping)][-1] == 64


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"model_type": "llama", **LLAMA, "telescoping": TABLE}, '"model_type" is "telescoping_llama"'),
        ({"model_type": "llama", **LLAMA, "full_attention_layers": [0]}, '"model_type" is "telescoping_llama"'),
        (HF, "'telescoping' is missing"),
        ({**HF, "telescoping": TABLE, "full_atention_layers": [0]}, "did you mean 'full_attention_layers'"),
        ({**FMS, "telescopping": TABLE}, "'telescopping' would have no effect here"),
        ({**FMS, "full_attention_layers": [0]}, 'it goes with a table "telescoping"'),
        ({**RENE, "telescoping": TABLE}, "attn_cfg.telescoping"),
        ({**MAMBA, "telescoping": TABLE}, "attn_cfg.telescoping"),
        ({**RENE, "attn_cfg": {**ATTENTION, "telescopping": TABLE}}, "did you mean 'telescoping'"),
        ({**MAMBA, "attn_cfg": {**ATTENTION, "full_attention_layers": [1]}}, "for all its attention"),
        ({**FMS, "telescoping": TABLE, "full_attention_layers": [0, 1]}, "names every layer"),
        ({**HF, "telescoping": TABLE, "full_attention_layers": "0"}, "is no list of layers"),
        ({**HF, "telescoping": TABLE, "full_attention_layers": [0.5]}, "is no list of layers"),
        ({**HF, "telescoping": TABLE, "full_attention_layers": [2]}, "the model has layers 0 to 1"),
    ],
)
def test_a_table_in_the_wrong_place_is_refused(raw, says):
    with pytest.raises(CheckpointError, match=re.escape(says)):
        read(raw)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({}, "telescoping needs a cache, or slots and merges"),
        ({"cache": "65"}, "telescoping.cache = '65'; choose from 32, 64"),
        ({"cache": "64", "slots": 9}, "give slots and merges instead"),
        ({"cach": "64"}, "telescoping.cach is unknown; there are"),
        ({"slots": 9, "merges": 5}, "telescoping.merges: expected a list, got 5"),
        ({"slots": "9", "merges": [2]}, "telescoping.slots: expected int, got '9'"),
        ({"slots": 9, "merges": [None]}, "telescoping.merges[0]: expected int"),
        ({"slots": 9, "merges": [2.5]}, "telescoping.merges[0]: expected int"),
        ({"slots": True, "merges": [2]}, "telescoping.slots: expected int"),
        ({"slots": 9, "merges": [1]}, "two newer slots"),
        ({"cache": "64", "merge": "bogus"}, "telescoping.merge: 'bogus' is none of 'learned'"),
        ({"cache": "64", "softcap": "30"}, "telescoping.softcap: expected float"),
        ({"cache": "64", "softcap": float("nan")}, "softcap: nan"),
        ({"cache": "64", "entry_norm_eps": -1.0}, "entry_norm_eps: -1.0"),
        ("64", "telescoping = '64' is no table"),
    ],
)
@pytest.mark.parametrize("place", ["Llama", "hybrid"])
def test_a_table_that_cannot_be_is_refused_with_its_reason(place, table, says):
    raw = {**HF, "telescoping": table} if place == "Llama" else {**RENE, "attn_cfg": {**ATTENTION, "telescoping": table}}
    with pytest.raises(CheckpointError, match=re.escape(says)):
        read(raw)


def test_values_that_are_keys_have_their_width():
    table = {**TABLE, "value_is_key": True}
    mixer = read({**FMS, "emb_kq": 12, "telescoping": table}).layers[0][0]
    assert (mixer.head_dim, mixer.v_head_dim) == (12, 12)
