"""The arithmetic of a measurement: medians, ratios, shares; and which options peers know."""

import importlib.util

import pytest

from leanlm.bench import peers, speed
from leanlm.cli import bench_tables
from leanlm.errors import OutOfMemory, UsageError


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


class Side:
    """A side in this process, with memory for decoding so many texts, and for holding one more."""

    def __init__(self, memory, fallbacks=None):
        self.memory, self.slower = memory, fallbacks or {}

    def call(self, method, **given):
        return getattr(self, method)(**given)

    def fill(self, batch, context, room):
        self.batch = batch
        if batch > self.memory + 1:
            raise OutOfMemory(f"out of memory, asked for {batch} texts")
        return {"bytes": 1, "dtypes": {"ssm": "float32"}}

    def decode(self, count):
        if self.batch > self.memory:
            raise OutOfMemory(f"out of memory while decoding {self.batch} texts")
        return 0.5

    def prefill(self, length):
        return self.decode(length)

    def traffic(self, count):
        return {"weights": 6, "state": 3, "keys_values": 1}

    def fallbacks(self):
        return self.slower


@pytest.fixture
def bench(monkeypatch):
    """bench(ours, peer): a Bench on a device, over these two sides."""
    monkeypatch.setattr(speed, "PAUSE", 0)

    def made(ours, peer):
        made = speed.Bench.__new__(speed.Bench)
        made.settings, made.progress, made.reader = speed.Settings(device="cuda", repeats=2), lambda text: None, None
        made.sides = {"leanlm": ours, "transformers": peer}
        return made

    return made


@pytest.mark.parametrize("read", ["prefill", "decode"])
def test_rows_are_kept_where_memory_ends(bench, read):
    run = bench(Side(16, {"graphs": "out of memory for a graph"}), Side(4))
    rows = [run.prefill(n) if read == "prefill" else run.decode(n, 0) for n in (1, 5, 16, 17, 99)]
    assert [list(row["sides"]) for row in rows] == [["leanlm", "transformers"], ["leanlm"], ["leanlm"], [], []]
    assert rows[0]["ratios"]["transformers"]["median"] == 1.0 and not any(row["ratios"] for row in rows[1:])
    assert rows[1]["failed"] == {"transformers": "out of memory while decoding 5 texts"} and "failed" not in rows[0]
    assert rows[4]["failed"]["leanlm"] == "out of memory, asked for 99 texts"
    assert all(row["fallbacks"] == {"graphs": "out of memory for a graph"} for row in rows)


def test_tables_of_rows_without_sides(bench, capsys):
    run = bench(Side(16, {"rms_norm": "a kernel did not compile"}), Side(0))
    prefill, decode = [run.prefill(n) for n in (1, 99)], [run.decode(n, 0) for n in (99, 1)]
    ours = {"formats": ["bfloat16"], "parameters": 1, "weight_bytes": 2, "runtime": "CUDA graphs", "load_seconds": 1.0}
    ours |= {"processor": "a card", "instruction_set": "torch"}
    theirs = {"version": "5", "weights": ["BF16"], "file_bytes": 2, "options": {}}
    found = {"model": "m", "random": True, "threads": 1, "repeats": 2, "sides": {"leanlm": ours, "transformers": theirs}}
    bench_tables.show({**found, "prefill": prefill, "decode": decode, "peak_resident_bytes": {}})
    shown = capsys.readouterr().out
    assert "out of memory, asked for 99 texts" in shown and "leanlm: CUDA graphs, torch; state: ssm float32" in shown
    assert shown.count("slower here, rms_norm: a kernel did not compile") == 2  # under both tables
