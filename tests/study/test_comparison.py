"""Rows of a comparison: formats and states as asked for, measured alike, gone on with after an interrupt."""

import json
import shutil

import pytest

from hybrid_models import build
from leanlm.api import Model
from leanlm.checkpoint import locate
from leanlm.cli.main import main
from leanlm.errors import UsageError
from leanlm.evaluate import suites, text
from leanlm.evaluate.items import Item
from leanlm.model.config import Attention, GatedMLP, Mamba2, ModelConfig, Rope
from leanlm.study import comparison
from leanlm.study.comparison import Measures, Subject, compare, metrics, parse

MEASURES = Measures(
    documents=("import os\n" * 20, "def f(x):\n    return x\n"),
    items={"mini.jsonl": (Item("multiple choice", "import o", ("s\n", "xyz"), 0),)},
    recall=("copy",),
    distances=(12, 24),
    loads=(1,),
    probes=2,
    turns=0,
)


def test_specs(tmp_path, monkeypatch):
    assert parse("builtin") == ("builtin", None)
    assert parse("models/a@int4-g64") == ("models/a", "int4-g64")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a@b").mkdir()
    assert parse("a@b") == ("a@b", None)
    with pytest.raises(UsageError, match="'nonsense' is no format"):
        parse("builtin@nonsense")


@pytest.mark.slow
def test_a_bit_less_costs_less_and_loses_more(tmp_path):
    formats = (None, "int8", "int4", "int3", "ternary")
    rows = compare([Subject("builtin-float", held) for held in formats], MEASURES, tmp_path)
    bits = [row["matrix_bits"] for row in rows]
    assert bits[0] == 16 and bits == sorted(bits, reverse=True) and bits[-1] == pytest.approx(2, abs=0.1)
    sizes = [row["weight_bytes"] for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert [row["rounded"] for row in rows] == [False] * 4 + [True]
    per_byte = [row["text"]["bits_per_byte"] for row in rows]
    assert per_byte[1] == pytest.approx(per_byte[0], rel=0.01) and per_byte[4] > 1.1 * per_byte[0]
    assert all(row["items"]["mini.jsonl"]["multiple choice"]["items"] == 1 for row in rows)
    assert {(point["kind"], point["distance"]) for point in rows[0]["recall"]} == {("copy", 12), ("copy", 24)}


def test_an_interrupted_comparison_comes_to_the_same(tmp_path, monkeypatch):
    subjects = [Subject("builtin-float"), Subject("builtin-float", state="bfloat16")]
    whole = compare(subjects, MEASURES, tmp_path / "whole")
    measured, told = text.evaluate, []

    def stop(*args, **kwargs):
        if len(told) == 1:
            raise KeyboardInterrupt
        told.append(1)
        return measured(*args, **kwargs)

    monkeypatch.setattr(text, "evaluate", stop)
    with pytest.raises(KeyboardInterrupt):
        compare(subjects, MEASURES, tmp_path / "cut")
    monkeypatch.setattr(text, "evaluate", measured)
    done = []
    assert compare(subjects, MEASURES, tmp_path / "cut", done.append) == whole
    assert all("2 of 2" in doing for doing in done)  # the first is not measured again
    assert whole[0]["state_bytes"]["1024"] > whole[1]["state_bytes"]["1024"]


def test_rows_belong_to_their_model(tmp_path):
    for folder in ("a/x", "a-x"):
        shutil.copytree(locate.resolve("builtin-float"), tmp_path / folder)
    asked = Measures(documents=("import os\n",), turns=0)
    compare([Subject(str(tmp_path / "a/x"))], asked, tmp_path / "out")
    done = []
    compare([Subject(str(tmp_path / "a-x"))], asked, tmp_path / "out", done.append)
    assert done
    done.clear()
    compare([Subject(str(tmp_path / "a-x"))], asked, tmp_path / "out", done.append)
    assert not done
    (tmp_path / "a-x" / "config.json").touch()
    compare([Subject(str(tmp_path / "a-x"))], asked, tmp_path / "out", done.append)
    assert done


def test_two_of_one_name_are_refused(tmp_path):
    with pytest.raises(UsageError, match="named twice"):
        compare([Subject("builtin"), Subject("builtin")], MEASURES, tmp_path)


def test_metrics_of_the_harness():
    scores = {
        "alias": "x",
        "acc,none": 0.5,
        "acc_stderr,none": 0.1,
        "exact_match,strict": 0.25,
        "exact_match_stderr,strict": "N/A",
    }
    assert metrics(suites.metrics({"results": {"task": scores}}, "task")) == {
        "acc": {"value": 0.5, "stderr": 0.1},
        "exact_match (strict)": {"value": 0.25, "stderr": None},
    }


def test_the_command_writes_a_table_json_and_a_page(tmp_path, capsys):
    words = [
        "compare",
        "builtin-float",
        "builtin-float@int8",
        "--text-bytes",
        "500",
        "--turns",
        "0",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(words) == 0
    assert "builtin-float@int8" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["builtin-float", "builtin-float@int8"]
    assert "<svg" in (tmp_path / "out" / "comparison.html").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "nothing to compare"),
        (["builtin", "--turns", "-1"], "--turns -1: must be at least 0"),
        (["builtin@int5"], "5 bits"),
        (["builtin", "builtin"], "named twice"),
        (["builtin", "--items", "none.jsonl"], "none.jsonl: cannot be read"),
    ],
)
def test_wrong_flags_are_said_in_one_line(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *words]) in (2, 3)
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_state_bytes_end_at_the_context_of_full_attention():
    config = ModelConfig(16, 50, ((Attention(2, 2, 8, rope=Rope(8)), GatedMLP(24)),), context_length=1024)
    told = comparison.state_bytes(Model(build(config), "hf_llama"))
    assert list(told) == ["256", "1024"] and told["1024"] > 3 * told["256"]


def test_whether_a_state_has_a_precision():
    attention = Attention(2, 2, 8, rope=Rope(8)), GatedMLP(24)
    for layers, expected in (((attention,), False), ((attention, (Mamba2(32, 8, 8),)), True)):
        config = ModelConfig(16, 50, layers, context_length=64)
        assert comparison.recurrent(Model(build(config), "hf_llama").keep_states("int8")) == expected
