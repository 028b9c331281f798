"""Where text comes from."""

import pytest

from leanlm.data import sources
from leanlm.data.vocabulary import train_bpe
from leanlm.errors import NotFound, UsageError


def test_the_standard_library_without_its_tests():
    documents = list(sources.read("python-library"))
    names = {d.name for d in documents}
    assert {"argparse.py", "json/decoder.py"} <= names
    assert not any(part in name.split("/") for name in names for part in ("test", "tests", "site-packages"))
    assert sum(len(d.text) for d in documents) > 5_000_000


def test_held_out_by_name_and_fingerprint(tmp_path):
    (tmp_path / "a").mkdir()
    for name, text in (("a/x.py", "one"), ("y.py", "two"), ("bad.py", None), ("z.txt", "no")):
        (tmp_path / name).write_bytes(b"\xff\xfe" if text is None else text.encode())
    documents = list(sources.read(str(tmp_path)))
    assert [(d.name, d.text) for d in documents] == [("a/x.py", "one"), ("y.py", "two")]
    learned, held = sources.split(documents, ["y.py"])
    assert [d.name for d in learned] == ["a/x.py"] and [d.name for d in held] == ["y.py"]
    assert sources.fingerprint(learned) != sources.fingerprint(held)


def test_absent_and_empty_sources(tmp_path):
    with pytest.raises(NotFound, match="no such"):
        list(sources.read(str(tmp_path / "nowhere")))
    with pytest.raises(NotFound, match="no readable"):
        list(sources.read(str(tmp_path)))


def test_a_file_in_another_encoding(tmp_path):
    (tmp_path / "latin.txt").write_bytes("na\u00efve".encode("latin-1"))
    with pytest.raises(UsageError, match=r"latin.txt: is not UTF-8 text \(byte 2\)"):
        list(sources.read(str(tmp_path / "latin.txt")))


def test_bpe_is_lossless():
    bpe = train_bpe(["def f(x):\n    return x + 1\n"] * 5, 300)
    text = "ünïcode \t\n\x00 日本 def f(x)"
    assert bpe.decode(bpe.encode(text).ids, skip_special_tokens=False) == text
    assert bpe.token_to_id("<|endoftext|>") == 0
