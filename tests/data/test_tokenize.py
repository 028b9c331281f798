"""Text into shards: any form of input, any number of processes, any interruption: the same shards."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.data import corpus, workers
from leanlm.data import job as jobs
from leanlm.data import tokenize as tokenising
from leanlm.data.shards import Shards, examine
from leanlm.data.tokenize import tokenize
from leanlm.errors import CheckpointError, LeanLMError, NotFound, UsageError

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "the", "hat", "of", "lean", "models", "ünïcode", "日本", "</s>", "<s>"]


def texts(count, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 40))) for _ in range(count)]


def lines(documents):
    return "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(documents)).encode()


@pytest.fixture
def tokenizer(tokenizer_folder):
    return Tokenizer.from_folder(tokenizer_folder)


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of about 4 kB, so that there are many."""
    monkeypatch.setattr(tokenising, "SMALLEST", 4000)


@pytest.fixture
def folder(tmp_path):
    """300 documents in three files, one of them compressed."""
    root = tmp_path / "text"
    root.mkdir()
    documents = texts(300)
    (root / "a.jsonl").write_bytes(lines(documents[:100]))
    (root / "b.json.gz").write_bytes(gzip.compress(lines(documents[100:200])))
    (root / "c.jsonl").write_bytes(lines(documents[200:]))
    (root / "notes.csv").write_text("not text")
    return root


def read_back(path, tokenizer):
    shards = Shards(path)
    end = shards.manifest.end_of_text
    found = []
    for i in range(shards.documents):
        ids = shards.document(i).tolist()
        assert ids[-1] == end and end not in ids[:-1]
        found.append(tokenizer.decode(ids[:-1], skip_special=False))
    assert shards.bytes.tolist() == [len(text.encode()) for text in found]
    return found


def test_documents_come_back(folder, tmp_path, tokenizer, small_parts):
    made = tokenize([folder], tmp_path / "data", tokenizer, processes=1)
    assert made.documents == 300 and len(made.shards) > 5
    assert read_back(tmp_path / "data", tokenizer) == texts(300)  # special tokens spelt in a text are text
    assert not examine(tmp_path / "data")
    assert sorted(p.name for p in (tmp_path / "data").iterdir() if not p.name.startswith("tokens-")) == [
        "documents.npy",
        "manifest.json",
        "tokenizer",
    ]
    Shards(tmp_path / "data").check_tokenizer(made.tokenizer_sha256, tokenizer.vocab_size)


def contents(path):
    return {p.name: p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_processes_shares_and_restarts_make_the_same_shards(folder, tmp_path, tokenizer, small_parts):
    one = tokenize([folder], tmp_path / "one", tokenizer, processes=1)
    tokenize([folder], tmp_path / "two", tokenizer, processes=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    for share in range(3):
        made = tokenize([folder], tmp_path / "shares", tokenizer, processes=1, share=(share, 3))
        assert (made is None) == (share < 2)
    assert contents(tmp_path / "one") == contents(tmp_path / "shares")
    assert tokenize([folder], tmp_path / "one", tokenizer, processes=1) == one  # done: nothing is written


@pytest.mark.parametrize("fails_at", [0, 1, 5])
def test_what_is_done_is_not_done_again(folder, tmp_path, tokenizer, small_parts, monkeypatch, fails_at):
    tokenize([folder], tmp_path / "whole", tokenizer, processes=1)
    worked, real = [], tokenising.documents

    def failing(job, where, pieces, count):
        worked.append(pieces[0])
        if len(worked) == fails_at + 1:
            raise OSError(28, "No space left on device")
        return real(job, where, pieces, count)

    monkeypatch.setattr(tokenising, "documents", failing)
    with pytest.raises((LeanLMError, OSError), match="No space"):
        tokenize([folder], tmp_path / "data", tokenizer, processes=1)
    with pytest.raises(NotFound, match="same command again"):
        Shards(tmp_path / "data")
    before = list(worked)
    tokenize([folder], tmp_path / "data", tokenizer, processes=1)
    assert set(worked[len(before) :]) & set(before) == {before[-1]}
    assert contents(tmp_path / "whole") == contents(tmp_path / "data")


def test_a_full_disk_loses_nothing(folder, tmp_path, tokenizer, small_parts, monkeypatch):
    """At whatever file the disk fills up: one line, no half-written file under a good name, and the rest goes on from there."""
    from leanlm.checkpoint import aside

    tokenize([folder], tmp_path / "whole", tokenizer, processes=1)
    real = aside._flush
    for written in range(40):
        left = written

        def flush(path):
            nonlocal left
            left -= 1
            if left < 0:
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
                raise OSError(28, "No space left on device")
            real(path)

        monkeypatch.setattr(aside, "_flush", flush)
        try:
            tokenize([folder], tmp_path / "data", tokenizer, processes=1)
            break
        except LeanLMError as error:
            assert "No space" in str(error) and "\n" not in str(error)
            assert "same command" in str(error)
        assert not list((tmp_path / "data").rglob(".*.partial"))
    assert written > 2 and contents(tmp_path / "whole") == contents(tmp_path / "data")


@pytest.mark.slow
def test_killed_outright(folder, tmp_path, tokenizer_folder, tokenizer):
    """kill -9 of a command with two processes; the same command completes the shards."""
    (folder / "d.jsonl").write_bytes(lines(texts(60_000, seed=5)))
    argv = [sys.executable, "-m", "leanlm", "data", "tokenize", str(folder), "--out", str(tmp_path / "data")]
    argv += ["--tokenizer", str(tokenizer_folder), "--processes", "2"]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(tmp_path.glob("data/.tokens-*")) and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "data" / "manifest.json").exists()
    subprocess.run(argv, check=True, capture_output=True)
    assert not examine(tmp_path / "data")
    assert Shards(tmp_path / "data").documents == 60_300


def test_a_damaged_part_is_done_again(folder, tmp_path, tokenizer, small_parts, monkeypatch):
    tokenize([folder], tmp_path / "whole", tokenizer, processes=1)
    tokenize([folder], tmp_path / "data", tokenizer, processes=1, share=(0, 2))
    shard = min((tmp_path / "data").glob("tokens-*.bin"))
    shard.write_bytes(shard.read_bytes()[:-2])
    tokenize([folder], tmp_path / "data", tokenizer, processes=1)
    assert contents(tmp_path / "whole") == contents(tmp_path / "data")


def test_other_jobs_do_not_mix(folder, tmp_path, tokenizer, small_parts):
    tokenize([folder], tmp_path / "begun", tokenizer, processes=1, share=(0, 2))
    tokenize([folder], tmp_path / "done", tokenizer, processes=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for name in ("begun", "done"):
        with pytest.raises(UsageError, match="name a new folder"):
            tokenize([folder], tmp_path / name, tokenizer, processes=1, min_tokens=9)
    with pytest.raises(UsageError, match="not empty"):
        tokenize([folder], tmp_path / "full", tokenizer, processes=1)


def test_ends_and_beginnings(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("the cat")
    cases = (
        ({}, (2, None)),
        ({"end_of_text": "<|end|>", "begin_of_text": "<s>"}, (3, 1)),
        ({"end_of_text": "3", "begin_of_text": 1}, (3, 1)),
    )
    for i, (settings, (end, begin)) in enumerate(cases):
        made = tokenize([tmp_path / "a.txt"], tmp_path / str(i), tokenizer, processes=1, **settings)
        assert (made.end_of_text, made.begin_of_text) == (end, begin)
        document = Shards(tmp_path / str(i)).document(0).tolist()
        assert document[-1] == end and (document[0] == 1) == (begin == 1)
    with pytest.raises(UsageError, match="'<eod>' is no token"):
        tokenize([tmp_path / "a.txt"], tmp_path / "x", tokenizer, end_of_text="<eod>")


def test_a_template_that_begins_texts_is_followed(tmp_path, tokenizer_folder):
    from tokenizers import Tokenizer as Core
    from tokenizers.processors import TemplateProcessing

    core = Core.from_file(str(tokenizer_folder / "tokenizer.json"))
    core.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    (tmp_path / "a.txt").write_text("the cat")
    made = tokenize([tmp_path / "a.txt"], tmp_path / "data", Tokenizer(core), end_of_text="</s>", processes=1)
    assert made.begin_of_text == 1
    ids = Shards(tmp_path / "data").document(0).tolist()
    assert ids[0] == 1 and ids[-1] == 2 and ids.count(1) == 1


def test_no_end_of_text(tmp_path, tokenizer_folder):
    from tokenizers import Tokenizer as Core

    (tmp_path / "a.txt").write_text("the cat")
    with pytest.raises(UsageError, match="--end-of-text"):
        tokenize([tmp_path / "a.txt"], tmp_path / "x", Tokenizer(Core.from_file(str(tokenizer_folder / "tokenizer.json"))))


BAD = {
    "not JSON": b'{"text": "a"}\n{"text": \n',
    "no field 'text'": b'{"body": "a"}\n',
    "is a int": b'{"text": 3}\n',
    "found: list": b"[1]\n",
    "no Unicode": b'{"text": "a \\ud800 b"}\n',
}


@pytest.mark.parametrize("what", BAD)
def test_bad_documents_are_named_and_skipped_when_asked(tmp_path, tokenizer, what):
    (tmp_path / "bad.jsonl").write_bytes(BAD[what] + b'{"text": "good"}\n')
    with pytest.raises(CheckpointError, match=rf"bad\.jsonl.*{what}.*--skip-invalid"):
        tokenize([tmp_path / "bad.jsonl"], tmp_path / "data", tokenizer, processes=1)
    made = tokenize([tmp_path / "bad.jsonl"], tmp_path / "skipped", tokenizer, processes=1, skip_invalid=True)
    assert made.invalid == 1 and read_back(tmp_path / "skipped", tokenizer)[-1] == "good"


def test_nothing_to_keep(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UsageError, match=r"no document was kept .1 too short"):
        tokenize([tmp_path / "a.txt"], tmp_path / "data", tokenizer, processes=1)


def die(job, folder, pieces, count):
    os.kill(os.getpid(), signal.SIGKILL)


def fill_up(job, folder, pieces, count):
    """A process that finds the disk full while another is in the middle of a shard."""
    (folder / f".busy-{os.getpid()}").touch()
    while len(list(folder.glob(".busy-*"))) < 2:
        time.sleep(0.01)
    if folder / f".busy-{os.getpid()}" == min(folder.glob(".busy-*")):
        time.sleep(0.1)
        raise OSError(28, "No space left on device")
    while True:
        yield [1, 2], 1
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "end, told", [(die, r"code -9 .*same command"), (fill_up, r"No space.*same command")], ids=["killed", "disk full"]
)
def test_the_end_of_one_process_is_noticed_and_leaves_nothing_of_the_others(
    folder, tmp_path, tokenizer, small_parts, end, told
):
    job = tokenising.plan([folder], tokenizer, "text", None, True, 1, False, 1000)
    jobs.begin(job, tmp_path / "data", tokenizer.files)
    with pytest.raises(LeanLMError, match=told):
        list(workers.spread(job, tmp_path / "data", end, [0, 1, 2], 2))
    assert not list((tmp_path / "data").rglob("*.partial"))


def test_lines_of_a_file_cut_anywhere(tmp_path):
    documents = texts(50)
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(documents) + b"\n\n")
    for size in (1, 7, 100, 999, 10**6):
        pieces = list(corpus.cut(path, size))
        assert [text for piece in pieces for text in corpus.texts(piece)] == documents
    assert len(list(corpus.cut(path, 1000))) > 3
