"""Tokens that fms-fsdp and OpenLM prepared."""

import gzip
import io
import json
import tarfile

import numpy as np
import pytest

from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.data.batches import Windows
from leanlm.data.imports import bring
from leanlm.data.shards import Shards
from leanlm.errors import CheckpointError, NotFound, UsageError

KNOWN = {"vocab_size": 300, "end_of_text": 0, "processes": 1}


def documents(shards):
    return [shards.document(i).tolist() for i in range(shards.documents)]


def write_arrow(path, batches, column="tokens", kind=None):
    """As fms-fsdp reads it: the IPC file format, a record batch per document, one column of uint32."""
    pyarrow = pytest.importorskip("pyarrow")
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pyarrow.schema([pyarrow.field(column, kind or pyarrow.uint32())])
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, schema) as out:
        for ids in batches:
            out.write(pyarrow.record_batch([pyarrow.array(ids, schema.field(0).type)], schema))
    return path


def test_arrow(tmp_path):
    write_arrow(tmp_path / "in" / "sub" / "b.arrow", [[7, 8, 9], [10]])
    write_arrow(tmp_path / "in" / "a.arrow", [[5, 6, 0], [], [3, 4, 5, 9]])
    (tmp_path / "in" / "meta").mkdir()
    (tmp_path / "in" / "meta" / "x_counts_y.csv").write_text("dataset/filename,documents,tokens\n")
    made = bring([tmp_path / "in"], tmp_path / "out", strip=[9], **KNOWN)
    assert documents(Shards(tmp_path / "out")) == [[5, 6, 0], [3, 4, 5, 0], [7, 8, 0], [10, 0]]
    assert made.short == 1 and made.tokenizer_sha256 is None
    made = bring([tmp_path / "in"], tmp_path / "two", begin_of_text=1, min_tokens=2, **KNOWN)
    assert documents(Shards(tmp_path / "two")) == [[1, 5, 6, 0], [1, 3, 4, 5, 9, 0], [1, 7, 8, 9, 0]]
    assert made.short == 2
    assert bring([tmp_path / "in"], tmp_path / "two", begin_of_text=1, min_tokens=2, **KNOWN) == made


def test_arrow_with_the_tokenizer(tmp_path, tokenizer_folder):
    tokenizer = Tokenizer.from_folder(tokenizer_folder)
    write_arrow(tmp_path / "a.arrow", [tokenizer.encode("the cat"), tokenizer.encode("a mat")])
    bring([tmp_path / "a.arrow"], tmp_path / "out", tokenizer=tokenizer, processes=1)
    shards = Shards(tmp_path / "out")
    assert [tokenizer.decode(ids[:-1]) for ids in documents(shards)] == ["the cat", "a mat"]
    with pytest.raises(CheckpointError, match="another tokenizer"):
        shards.check_tokenizer("0" * 64, 1000)


def test_arrow_that_does_not_fit(tmp_path):
    write_arrow(tmp_path / "a.arrow", [[5, 400]])
    with pytest.raises(CheckpointError, match=r"a\.arrow: document 0 holds id 400"):
        bring([tmp_path / "a.arrow"], tmp_path / "out", **KNOWN)
    with pytest.raises(NotFound, match=r"no column 'ids' .found: tokens"):
        bring([tmp_path / "a.arrow"], tmp_path / "out2", column="ids", **KNOWN)
    (tmp_path / "a.arrow").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"a\.arrow: damaged"):
        bring([tmp_path / "a.arrow"], tmp_path / "out3", **KNOWN)


def write_tar(path, samples, kind="json.gz"):
    """As OpenLM reads it: rows of ids in members json.gz, json or txt (the text of a Python list)."""
    with tarfile.open(path, "w") as tar:
        for i, ids in enumerate(samples):
            data = (str(ids) if kind == "txt" else json.dumps(ids)).encode()
            data = gzip.compress(data) if kind == "json.gz" else data
            info = tarfile.TarInfo(f"{i:08}.{kind}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("kind", ["json.gz", "json", "txt"])
def test_openlm(tmp_path, kind):
    write_tar(tmp_path / "00000001.tar", [[5, 6, 0, 7, 8], [9, 0, 3, -1, -1], [-1, -1, -1, -1, -1]], kind)
    write_tar(tmp_path / "00000002.tar", [[4, 4, 4, 4, 0]], kind)
    (tmp_path / "manifest.jsonl").write_text('{"shard": "00000001", "num_sequences": 3}\n')
    bring([tmp_path], tmp_path / "out", **KNOWN)
    shards = Shards(tmp_path / "out")
    assert documents(shards) == [[5, 6, 0], [7, 8], [9, 0], [3], [4, 4, 4, 4, 0]]
    batch = Windows(shards, shards.tokens, 0).batch(0, 1)
    inputs, targets = batch.tokens[0].tolist(), batch.targets[0].tolist()
    assert targets == shards.read(0, shards.tokens).tolist()
    assert inputs == [0, 5, 6, 0, 7, 0, 9, 0, 0, 4, 4, 4, 4]  # a piece that was cut is not followed by an invented end
    assert np.flatnonzero(batch.segments[0].diff()).tolist() == [2, 4, 6, 7]


def test_openlm_that_does_not_fit(tmp_path):
    write_tar(tmp_path / "a.tar", [[5, 400]])
    with pytest.raises(CheckpointError, match=r"a\.tar: 00000000\.json\.gz holds ids beyond"):
        bring([tmp_path / "a.tar"], tmp_path / "out", **KNOWN)
    write_tar(tmp_path / "b.tar", [{"x": 1}], "json")
    with pytest.raises(CheckpointError, match=r"b\.tar: 00000000\.json holds no list"):
        bring([tmp_path / "b.tar"], tmp_path / "out2", **KNOWN)
    write_tar(tmp_path / "c.tar", [[5] * 3000] * 3)
    for size, what in ((600, "damaged"), (1024, "1 samples, 3 stated")):
        (tmp_path / "manifest.jsonl").write_text('{"shard": "b", "num_sequences": 1}\n{"shard": "c", "num_sequences": 3}\n')
        (tmp_path / "d").mkdir(exist_ok=True)
        (tmp_path / "d" / "c.tar").write_bytes((tmp_path / "c.tar").read_bytes()[:size])
        (tmp_path / "d" / "manifest.jsonl").write_bytes((tmp_path / "manifest.jsonl").read_bytes())
        with pytest.raises(CheckpointError, match=rf"c\.tar: {what}"):
            bring([tmp_path / "d"], tmp_path / f"out{size}", **KNOWN)
    with pytest.raises(UsageError, match="no begin-of-text"):
        bring([tmp_path / "a.tar"], tmp_path / "out4", begin_of_text=1, **KNOWN)


def test_what_must_be_told(tmp_path):
    write_tar(tmp_path / "a.tar", [[5]])
    (tmp_path / "b.arrow").touch()
    with pytest.raises(UsageError, match="--vocab-size"):
        bring([tmp_path / "a.tar"], tmp_path / "out", vocab_size=300)
    with pytest.raises(UsageError, match="--format"):
        bring([tmp_path], tmp_path / "out", **KNOWN)
