"""Forms of text on disk."""

import gzip
import json

import pytest

from leanlm.data import corpus
from leanlm.data.corpus import Invalid, Piece
from leanlm.errors import CheckpointError, NotFound, UsageError

TEXTS = ["one", "zwei\nlines", "三"]
LINES = "".join(json.dumps({"text": text, "meta": {"a": 1}}) + "\n" for text in TEXTS).encode()


def read(path, field="text"):
    return list(corpus.texts(Piece(str(path)), field))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.JSONL", "a.b.ndjson"])
def test_json_lines(tmp_path, name):
    (tmp_path / name).write_bytes(LINES)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(LINES[:20]) + gzip.compress(LINES[20:]))
    assert read(tmp_path / name) == read(tmp_path / f"{name}.gz") == TEXTS


def test_zstd(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    path = tmp_path / "a.jsonl.zst"
    frames = [zstandard.ZstdCompressor().compress(part) for part in (LINES[:20], LINES[20:])]
    path.write_bytes(b"".join(frames))
    assert read(path) == TEXTS
    path.write_bytes(frames[0] + frames[1][:-3])
    with pytest.raises(CheckpointError, match=r"a\.jsonl\.zst: damaged or cut short"):
        read(path)
    path.write_bytes(b"not zstd at all")
    with pytest.raises(CheckpointError, match="damaged"):
        read(path)


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": [*TEXTS, None], "n": [1, 2, 3, 4]}), path)
    *found, last = read(path)
    assert found == TEXTS and isinstance(last, Invalid) and "row 4" in last.reason
    with pytest.raises(UsageError, match=r"no column 'body' .found: text, n"):
        read(path, "body")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"a\.parquet: damaged"):
        read(path)


def test_text_files(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    assert read(tmp_path / "a.txt") == ["one\ntwo\n"]
    assert "not UTF-8" in read(tmp_path / "b.txt")[0].reason


def test_gzip_cut_short(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES * 50)[:-20])
    with pytest.raises(CheckpointError, match=r"a\.jsonl\.gz: damaged or cut short"):
        read(tmp_path / "a.jsonl.gz")


def test_find(tmp_path):
    for name in ("b/x.jsonl.gz", "b/a.txt", "c.parquet", "d.csv", "e.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in corpus.find([tmp_path])] == ["b/a.txt", "b/x.jsonl.gz", "c.parquet"]
    assert corpus.find([tmp_path / "d.csv"]) == [tmp_path / "d.csv"]  # named, so meant
    with pytest.raises(UsageError, match="twice"):
        corpus.find([tmp_path / "b", tmp_path / "b" / "a.txt"])
    with pytest.raises(NotFound, match="nowhere"):
        corpus.find([tmp_path / "nowhere"])
    with pytest.raises(NotFound, match="holds no file"):
        corpus.find([tmp_path], (".arrow",))


def test_missing_packages_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    (tmp_path / "a.jsonl.zst").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"zstandard: pip install \"leanlm\[data\]\""):
        read(tmp_path / "a.jsonl.zst")
