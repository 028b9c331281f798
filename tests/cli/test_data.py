"""leanlm data: from text to shards, told and checked."""

import json

import pytest

from leanlm.data.shards import Shards
from tiny_models import add_tokenizer


@pytest.fixture
def made(leanlm, tmp_path):
    """Shards of four documents, one of them empty."""
    add_tokenizer(tmp_path / "tokenizer")
    lines = "".join(json.dumps({"body": text}) + "\n" for text in ("the and", "was", "", "of the"))
    (tmp_path / "text.jsonl").write_text(lines)
    argv = ["data", "tokenize", tmp_path / "text.jsonl", "--out", tmp_path / "data", "--field", "body", "--processes", "1"]
    ran = leanlm(*argv, "--tokenizer", tmp_path / "tokenizer")
    assert ran.code == 0, ran.err
    assert "3 documents, 1 shards, 1 too short" in ran.out
    return tmp_path / "data"


def test_info(leanlm, made):
    found = json.loads(leanlm("data", "info", made, "--json").out)
    assert found["documents"] == 3 and found["text_bytes"] == 16 and found["end_of_text"] == 0
    assert "documents" in leanlm("data", "info", made).out
    assert leanlm("data", "info", made, "--document", "1").out == "was<|endoftext|>\n"
    assert leanlm("data", "info", made, "--document", "3").code == 2


def test_again_is_nothing_new(leanlm, made, tmp_path):
    argv = ["data", "tokenize", tmp_path / "text.jsonl", "--out", made, "--tokenizer", tmp_path / "tokenizer"]
    ran = leanlm(*argv, "--field", "body", "--json")
    assert ran.code == 0 and json.loads(ran.out)["documents"] == 3
    assert leanlm(*argv, "--field", "body", "--min-tokens", "2").code == 2


def test_verify(leanlm, made, tmp_path):
    ran = leanlm("data", "verify", made, "--tokenizer", tmp_path / "tokenizer")
    assert ran.code == 0 and "as they were written" in ran.out
    assert leanlm("data", "verify", made, "--tokenizer", "builtin").code == 4
    path = made / Shards(made).shards[0].file
    path.write_bytes(bytes(path.stat().st_size))
    ran = leanlm("data", "verify", made)
    assert ran.code == 5 and path.name in ran.out and path.name in ran.err
    path.unlink()
    assert json.loads(leanlm("data", "verify", made, "--json").out)["damaged"] == [f"{path}: missing"]
    assert leanlm("data", "info", made).code == 3


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["tokenize"], 2, "files or folders"),
        (["tokenize", "x"], 2, "--out"),
        (["tokenize", "x", "--out", "y"], 2, "--tokenizer"),
        (["tokenize", "nowhere", "--out", "y", "--tokenizer", "builtin"], 3, "nowhere"),
        (["tokenize", "x", "--out", "y", "--tokenizer", "builtin", "--share", "3"], 2, "I/N"),
        (["tokenize", "x", "--out", "y", "--tokenizer", "builtin", "--cluster", "slurm"], 2, "partition"),
        (["import", "x", "--out", "y"], 2, "--vocab-size"),
        (["info", "nowhere"], 3, "nowhere"),
        (["verify", "nowhere"], 3, "nowhere"),
        ([], 2, "tokenize"),
    ],
)
def test_mistakes(leanlm, tmp_path, monkeypatch, argv, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.tar").touch()
    ran = leanlm("data", *argv)
    assert ran.code == code and message in ran.err and ran.err.count("\n") == 1
