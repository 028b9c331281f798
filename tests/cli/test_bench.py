"""leanlm bench on tiny models with random weights: real processes, real peers where they are installed."""

import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from leanlm.bench import peers

QUICK = ("--repeats", "2", "--new", "3", "--prompt", "8", "--threads", "1")
LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "max_position_embeddings": 512,
}
MAMBA2 = {"d_model": 64, "n_layer": 2, "vocab_size": 512, "ssm_cfg": {"layer": "Mamba2", "headdim": 16, "d_state": 32}}


@pytest.fixture
def config(tmp_path):
    """config(raw) is a config.json that says it."""

    def write(raw: dict) -> Path:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(raw))
        return path

    return write


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def exported(temporary: Path) -> list[Path]:
    return list(temporary.glob("leanlm-bench-*"))


def installed(peer: str) -> bool:
    return all(importlib.util.find_spec(package) for package in peers.PEERS[peer].packages)


def test_json_of_a_stored_model(leanlm):
    ran = leanlm("bench", "builtin-float", *QUICK, "--context", "0", "5", "--batch", "1", "2", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["threads"] == 1 and 5e6 < found["sides"]["leanlm"]["parameters"] < 5.1e6
    assert [(row["context"], row["batch"]) for row in found["decode"]] == [(0, 1), (0, 2), (5, 1), (5, 2)]
    assert [row["batch"] for row in found["prefill"]] == [1, 2]
    for row in (*found["prefill"], *found["decode"]):
        assert row["sides"]["leanlm"]["tokens_per_second"] > 1 and row["sides"]["leanlm"]["spread"] >= 1
    moved = [row["bytes_per_step"] for row in found["decode"]]
    assert moved[1]["state"] == 2 * moved[0]["state"] > 0 and moved[2]["keys_values"] > moved[0]["keys_values"]
    if found["sides"]["leanlm"]["native"]:
        assert all(row["share"]["lowest"] <= row["share"]["median"] <= row["share"]["highest"] for row in found["decode"])
    assert found["peak_resident_bytes"]["leanlm"] > found["sides"]["leanlm"]["weight_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize(("raw", "format", "type"), [(LLAMA, "ternary", "TQ2_0"), (MAMBA2, "int8", "Q8_0")])
def test_peers_run_the_same_weights(leanlm, config, temporary, raw, format, type):
    there = [peer for peer in peers.PEERS if installed(peer)]
    if not there:
        pytest.skip("neither llama.cpp nor transformers is installed")
    flags = ("--random", "--format", format, "--context", "0", "5", "--json")
    ran = leanlm("bench", config(raw), *QUICK, *flags, *(word for peer in there for word in ("--peer", peer)))
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert list(found["sides"]) == ["leanlm", *there] == list(found["peak_resident_bytes"])
    for row in (*found["prefill"], *found["decode"]):
        for peer in there:
            assert row["sides"][peer]["tokens_per_second"] > 1
            ratio = row["sides"]["leanlm"]["tokens_per_second"] / row["sides"][peer]["tokens_per_second"]
            assert row["ratios"][peer]["median"] == pytest.approx(ratio)
    if "llama.cpp" in there:
        assert type in found["sides"]["llama.cpp"]["weights"]
    assert not exported(temporary)


def test_tables(leanlm, config):
    pytest.importorskip("leanlm.ops.native", reason="the native library was not built")
    ran = leanlm("bench", config(MAMBA2), "--random", "--format", "int4-g32", *QUICK, "--profile")
    assert ran.code == 0, ran.err
    lines = [line.split() for line in ran.out.splitlines()]
    assert "random weights in bfloat16, int4-g32" in ran.out and "peak resident memory: leanlm" in ran.out
    (decode,) = (lines[i + 1] for i, words in enumerate(lines) if words[:2] == ["decode", "batch"])
    assert decode[:2] == ["0", "1"] and float(decode[2]) > 1
    assert any(words[:1] == ["ssd"] and words[1] == "2" for words in lines), "the profile counts the scans"


@pytest.mark.parametrize(
    ("message", "flags"),
    [
        ("--prompt 0: must be at least 1", ("--prompt", "0")),
        ("--batch 0: must be at least 1", ("--batch", "2", "0")),
        ("there is no --peer", ("--peer-type", "F16")),
        ("--peer-option kv=f7", ("--peer", "llama.cpp", "--peer-option", "kv=f7")),
        ("--peer", ("--peer", "vllm")),
        ("groups of 96", ("--random", "--format", "int4-g96")),
    ],
)
def test_what_cannot_be_meant(leanlm, config, message, flags):
    ran = leanlm("bench", config(MAMBA2), *flags)
    assert ran.code == 2 and ran.err.count("\n") == 1 and not ran.out
    assert message in ran.err


def test_without_the_native_runtime(leanlm, config, monkeypatch):
    monkeypatch.setenv("LEANLM_IMPL", "eager")
    ran = leanlm("bench", config(MAMBA2), "--random", *QUICK, "--state-dtype", "bfloat16")
    assert ran.code == 0 and "modules in PyTorch" in ran.out and "ssm bfloat16" in ran.out and "plain read" not in ran.out
    ran = leanlm("bench", config(MAMBA2), "--random", *QUICK, "--profile")
    assert ran.code == 2 and "--profile times the native runtime" in ran.err


def test_a_model_that_a_peer_has_not(leanlm, temporary):
    for peer, why in (("llama.cpp", "llama.cpp has no discrete mamba2"), ("transformers", "stock transformers has no model")):
        if installed(peer):
            ran = leanlm("bench", "llamba-1b", "--random", "--peer", peer)
            assert ran.code == 2 and why in ran.err and ran.err.count("\n") == 1
    assert not exported(temporary)


def test_a_format_that_the_peer_rounds(leanlm, config):
    if not installed("llama.cpp"):
        pytest.skip("llama.cpp is not installed")
    flags = ("--random", "--format", "int8-asym", "--peer", "llama.cpp")
    ran = leanlm("bench", config(LLAMA), *flags, *QUICK)
    assert ran.code == 2 and "--peer-type chooses, and rounds" in ran.err
    ran = leanlm("bench", config(LLAMA), *flags, *QUICK, "--peer-type", "Q4_0", "--json")
    assert ran.code == 0 and "Q4_0" in json.loads(ran.out)["sides"]["llama.cpp"]["weights"]


def test_an_interrupt_leaves_nothing(config, temporary):
    command = [sys.executable, "-m", "leanlm", "bench", str(config(MAMBA2)), "--random", *QUICK, "--repeats", "100000"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not list(temporary.glob("leanlm-bench-*/leanlm/config.json")) and time.monotonic() < until:
        time.sleep(0.05)
    assert exported(temporary), "the measurement never began"
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert (running.returncode, out, err) == (130, "", "interrupted\n")
    assert not exported(temporary)
