"""Token shards: read anywhere, damage named, skipped only when asked."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.made_shards import END, make
from leanlm.data import manifest as manifests
from leanlm.data.shards import Shards, examine
from leanlm.data.writer import write_shards
from leanlm.errors import CheckpointError, LeanLMError, NotFound

LENGTHS = (3, 50, 1, 70, 20, 9)


@pytest.fixture
def shards(tmp_path):
    return make(tmp_path / "data", LENGTHS)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20), size=st.integers(1, 60), data=st.data())
@settings(max_examples=50, deadline=None)
def test_any_span_of_the_stream(tmp_path_factory, lengths, size, data):
    shards = make(tmp_path_factory.mktemp("data"), lengths, shard_tokens=size)
    stream, begins, token = [], [], 2
    for length in lengths:
        begins.append(len(stream))
        stream += [*range(token, token + length), END]
        token += length
    assert shards.tokens == len(stream) and shards.documents == len(lengths)
    start = data.draw(st.integers(0, len(stream) - 1))
    length = data.draw(st.integers(1, len(stream) - start))
    assert shards.read(start, length).tolist() == stream[start : start + length]
    assert shards.beginnings(start, length).tolist() == [b - start for b in begins if start <= b < start + length]
    number = data.draw(st.integers(0, len(lengths) - 1))
    assert shards.document(number).tolist() == stream[begins[number] : begins[number] + lengths[number] + 1]
    assert shards.bytes.tolist() == [3 * n for n in lengths]


def test_written_text(tmp_path):
    texts = ["a" * n for n in LENGTHS]
    shards = write_shards(tmp_path / "data", texts, lambda text: [ord(c) for c in text], 0, 256, None, shard_tokens=50)
    assert len(shards.shards) > 1 and shards.dtype == np.uint16
    assert shards.bytes.tolist() == list(LENGTHS)
    assert [len(shards.document(i)) for i in range(6)] == [n + 1 for n in LENGTHS]
    assert not examine(shards.folder)


def test_other_checksum(shards):
    path = shards.folder / shards.shards[1].file
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    assert list(examine(shards.folder)) == [1] and "checksum" in examine(shards.folder)[1]
    Shards(shards.folder)  # sizes alone are right
    with pytest.raises(CheckpointError, match=rf"{path.name}.*checksum"):
        Shards(shards.folder, checksums=True)


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_damaged_shards_are_named_and_skipped_when_asked(shards, damage):
    path = shards.folder / shards.shards[1].file
    whole, lost = shards, shards.shards[1]
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(NotFound if damage == "missing" else CheckpointError, match=path.name):
        Shards(shards.folder)
    rest = Shards(shards.folder, damaged="skip")
    assert len(rest.skipped) == 1 and path.name in rest.skipped[0]
    assert rest.tokens == whole.tokens - lost.tokens and rest.documents == whole.documents - lost.documents
    assert rest.fingerprint != whole.fingerprint
    kept = [2 + sum(LENGTHS[:i]) for i in range(6)]
    firsts = [int(rest.document(i)[0]) for i in range(rest.documents)]
    assert set(firsts) < set(kept) and firsts == sorted(firsts)
    assert rest.bytes.tolist() == [3 * LENGTHS[kept.index(first)] for first in firsts]
    assert rest.beginnings(0, rest.tokens).tolist() == [i for i in range(rest.tokens) if i == 0 or rest.read(i - 1, 1) == END]


def test_a_file_cut_short_while_it_is_read(shards):
    path = shards.folder / shards.shards[0].file
    with path.open("r+b") as file:
        file.truncate(4)
    with pytest.raises(CheckpointError, match=rf"{path.name}: cut short"):
        shards.read(0, 3)


def test_nothing_left(shards):
    for shard in shards.shards:
        (shards.folder / shard.file).unlink()
    with pytest.raises(NotFound, match="and 3 more"):
        Shards(shards.folder)
    with pytest.raises(CheckpointError, match="none of its shards"):
        Shards(shards.folder, damaged="skip")


def test_missing_and_foreign_manifests(tmp_path, shards):
    with pytest.raises(NotFound, match="tokenise first"):
        Shards(tmp_path)
    (tmp_path / "job.json").touch()
    with pytest.raises(NotFound, match="same command again"):
        Shards(tmp_path)
    good = json.loads((shards.folder / "manifest.json").read_text())
    wrong = [{**good, "shards": [{}]}, {**good, "shards": 3}, {**good, "dtype": "O"}, {"format": 99}]
    for bad in ("", "[]", *wrong, {"format": manifests.FORMAT}):
        (shards.folder / "manifest.json").write_text(bad if isinstance(bad, str) else json.dumps(bad))
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            Shards(shards.folder)
    shard = {**good["shards"][0], "file": "../tokens.bin"}
    (shards.folder / "manifest.json").write_text(json.dumps({**good, "shards": [shard]}))
    with pytest.raises(CheckpointError, match="damaged"):
        Shards(shards.folder)


def test_damaged_index(shards):
    path = shards.folder / "documents.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(CheckpointError, match=path.name):
        Shards(shards.folder)
    path.write_bytes(whole[:-1] + b"\1")
    with pytest.raises(CheckpointError, match=rf"{path.name}: checksum"):
        examine(shards.folder)
    path.unlink()
    with pytest.raises(NotFound, match=path.name):
        Shards(shards.folder)


def test_another_tokenizer_is_refused(tmp_path):
    known, unknown = make(tmp_path / "known", LENGTHS), make(tmp_path / "unknown", LENGTHS, vocabulary=None)
    known.check_tokenizer("v", 5)
    with pytest.raises(CheckpointError, match="another tokenizer"):
        known.check_tokenizer("w", known.manifest.vocab_size)
    unknown.check_tokenizer("w", 1000)
    with pytest.raises(CheckpointError, match="ids up to 154"):
        unknown.check_tokenizer("w", 100)


def test_a_full_disk_leaves_what_stood_there(shards, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("leanlm.data.writer._flush", full)
    with pytest.raises(LeanLMError, match="No space"):
        write_shards(shards.folder, ["other"], lambda t: [1], 0, 256, None)
    assert Shards(shards.folder).fingerprint == shards.fingerprint
