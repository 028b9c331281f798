"""The arithmetic of a measurement: medians, ratios, shares; and which options peers know."""

import importlib.util

import pytest

from leanlm.bench import peers, speed
from leanlm.errors import UsageError


def test_rates_are_of_the_median_turn():
    found = speed.rates([2.0, 1.0, 4.0], tokens=8)
    assert found == {"tokens_per_second": 4.0, "seconds": 2.0, "spread": 4.0}


def test_ratios_compare_medians_and_turns():
    found = speed.ratios({"leanlm": [1.0, 2.0, 3.0], "slow": [4.0, 4.0, 4.0], "fast": [0.5, 1.0, 3.0]})
    assert found["slow"] == {"median": 2.0, "lowest": 4 / 3, "highest": 4.0}
    assert found["fast"] == {"median": 0.5, "lowest": 0.5, "highest": 1.0}


def test_shares_are_of_a_read_of_as_many_bytes():
    moved = {"weights": 600, "state": 300, "keys_values": 100}
    found = speed.shares(moved, batch=4, count=10, ours=[2.0, 2.0], read=[1.0, 1.0])
    assert found["bytes_per_step"]["total"] == 1000 and found["bytes_per_token"] == 250
    assert found["read_bytes_per_second"] == 10_000  # ten reads a second
    assert found["share"]["median"] == 0.5 and found["weights_share"] == pytest.approx(0.3)
    assert "share" not in speed.shares(moved, 1, 10, [2.0], None)


def test_options_of_peers():
    asked = peers.parse_options(["llama.cpp"], ["flash_attn=on"])
    assert peers.options("llama.cpp", asked) == {"flash_attn": "on", "kv": "f16"}
    for names, word in (
        (["llama.cpp"], "flash_attn=perhaps"),
        (["transformers"], "kv=f16"),
        ([], "kv=f16"),
        (["llama.cpp"], "x"),
    ):
        with pytest.raises(UsageError, match="--peer-option"):
            peers.parse_options(names, [word])


def test_a_missing_peer_names_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"--peer llama.cpp needs llama_cpp: pip install 'leanlm\[judges,gguf\]'"):
        peers.check(["llama.cpp"])


def test_peers_that_do_not_run_on_the_device_are_refused():
    with pytest.raises(UsageError, match=r"--peer llama.cpp is measured on cpu only, not with --device cuda"):
        peers.check(["llama.cpp"], "cuda")
