"""Results on disk: whole blocks, one evaluation at a time, nothing lost on a full disk."""

import json

import pytest

from leanlm.errors import CheckFailed, LeanLMError
from leanlm.evaluate.store import Store


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers" / "store.jsonl"


def test_whole_blocks_and_a_whole_end_are_kept(path):
    store = Store(path, "this", total=5, block=2)
    store.add([1, 2])
    store.add([3, 4])
    with path.open("a") as file:
        file.write('{"half')
    assert Store(path, "this", 5, 2).results == [1, 2, 3, 4]
    Store(path, "this", 5, 2).add([5])
    assert Store(path, "this", 5, 2).results == [1, 2, 3, 4, 5]
    assert Store(path, "this", 7, 2).results == [1, 2, 3, 4]


def test_two_at_once_are_noticed(path):
    one, other = Store(path, "this", 9), Store(path, "this", 9)
    one.add([1])
    with pytest.raises(CheckFailed, match="another evaluation writes here"):
        other.add([1])
    one.add([2])
    assert Store(path, "this", 9).results == [1, 2]


def test_an_empty_file_is_begun_and_others_are_refused(path):
    path.parent.mkdir()
    path.touch()
    assert Store(path, "this", 1).results == []
    with pytest.raises(CheckFailed, match="other texts or another model"):
        Store(path, "that", 1)
    path.write_text(json.dumps({"fingerprint": "this"}) + "\n1\n2\n")
    with pytest.raises(CheckFailed, match="is damaged"):
        Store(path, "this", 1)


def test_a_disk_that_refuses_is_said(path, monkeypatch):
    store = Store(path, "this", 2)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "open", full)
    with pytest.raises(LeanLMError, match=r"store\.jsonl: cannot write \(No space left on device\)"):
        store.add([1])
    monkeypatch.undo()
    assert Store(path, "this", 2).results == []
