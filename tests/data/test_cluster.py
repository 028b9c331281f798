"""datatrove runs the shares of a job."""

import json

import pytest

from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.data import cluster
from leanlm.data import tokenize as tokenising
from leanlm.data.tokenize import tokenize
from leanlm.errors import UsageError


@pytest.mark.slow
def test_tasks_make_the_same_shards(tmp_path, tokenizer_folder, monkeypatch):
    pytest.importorskip("datatrove")
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": f"the cat {i}"}) + "\n" for i in range(3000)))
    tokenizer = Tokenizer.from_folder(tokenizer_folder)
    alone = tokenize([tmp_path / "text.jsonl"], tmp_path / "alone", tokenizer, processes=1)
    made = cluster.tokenize([tmp_path / "text.jsonl"], tmp_path / "data", tokenizer, {}, "local", 2, {})
    assert made == alone
    assert (tmp_path / "data.logs").is_dir()


def test_what_a_cluster_needs(tmp_path, tokenizer_folder):
    tokenizer = Tokenizer.from_folder(tokenizer_folder)
    with pytest.raises(UsageError, match="partition"):
        cluster.tokenize([tmp_path], tmp_path / "data", tokenizer, {}, "slurm", 2, {"time": "1:00:00"})
    with pytest.raises(UsageError, match="--tasks 0"):
        cluster.tokenize([tmp_path], tmp_path / "data", tokenizer, {}, "local", 0, {})


def test_a_share_reads_what_it_is_sent(tmp_path, tokenizer_folder, monkeypatch):
    """What datatrove calls on another machine: the tokenizer comes along, no path to it."""
    monkeypatch.setattr(tokenising, "SMALLEST", 1000)
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": f"the cat {i}"}) + "\n" for i in range(300)))
    tokenizer = Tokenizer.from_folder(tokenizer_folder)
    for rank in range(3):
        assert not (tmp_path / "data" / "manifest.json").exists()
        cluster.share([tmp_path / "text.jsonl"], tmp_path / "data", tokenizer.files, {}, None, rank, 3)
    alone = tokenize([tmp_path / "text.jsonl"], tmp_path / "alone", tokenizer, processes=1)
    assert (tmp_path / "data" / "manifest.json").read_text() == (tmp_path / "alone" / "manifest.json").read_text()
    assert alone.documents == 300
