"""Windows, their order, and the shards beneath them."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanlm.data.batches import Windows, permuted
from leanlm.data.shards import Shards, write_shards
from leanlm.errors import CheckpointError, NotFound, UsageError


@pytest.fixture
def shards(tmp_path):
    texts = ["a" * n for n in (3, 50, 1, 700, 20, 90)]
    encode = lambda text: [ord(c) for c in text]  # noqa: E731
    return write_shards(tmp_path / "data", texts, encode, 0, 256, "none", shard_tokens=50)


@given(count=st.integers(1, 300), key=st.text(max_size=5))
@settings(max_examples=50, deadline=None)
def test_permuted_is_a_permutation(count, key):
    assert sorted(permuted(p, count, key) for p in range(count)) == list(range(count))


def test_order_depends_on_the_key():
    assert [permuted(p, 50, "1/0") for p in range(50)] != [permuted(p, 50, "1/1") for p in range(50)]


def test_every_token_is_predicted_once_per_epoch(shards):
    windows = Windows(shards, 8, seed=3)
    batch = windows.batch(0, windows.count)
    targets = sorted(batch.targets.flatten().tolist())
    assert targets == sorted(shards.read(1, windows.count * 8).tolist())


def test_a_batch_is_a_function_of_its_position(shards):
    windows = Windows(shards, 8, seed=3)
    whole = windows.batch(windows.count - 3, 6)  # across the end of an epoch
    parts = [windows.batch(windows.count - 3, 2), windows.batch(windows.count - 1, 4)]
    assert torch.equal(whole.tokens, torch.cat([p.tokens for p in parts]))


def test_segments_mark_documents(shards):
    batch = Windows(shards, 16, seed=0).batch(0, Windows(shards, 16, seed=0).count)
    ends = batch.tokens[:, :-1] == 0
    assert torch.equal(batch.segments.diff(dim=1) != 0, ends)


def test_no_segments_inside_one_document(tmp_path):
    one = write_shards(tmp_path / "one", ["a" * 100], lambda t: [1] * len(t), 0, 256, "none")
    assert Windows(one, 10, 0).batch(0, 2).segments is None


def test_shards_read_across_files(shards):
    assert len(shards.manifest["shards"]) > 2
    everything = shards.read(0, shards.tokens)
    assert (everything == 0).sum() == 6
    assert np.array_equal(shards.document(3), everything[shards.starts[3] : shards.starts[4]])
    assert shards.bytes.tolist() == [3, 50, 1, 700, 20, 90]
    shards.verify()


def test_damage_is_named(shards):
    path = shards.folder / shards.manifest["shards"][1]["file"]
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{path.name}.*checksum"):
        Shards(shards.folder).verify()
    path.write_bytes(data[:-2])
    with pytest.raises(CheckpointError, match=path.name):
        Shards(shards.folder)
    path.unlink()
    with pytest.raises(NotFound, match=path.name):
        Shards(shards.folder)


def test_missing_and_foreign_manifests(tmp_path):
    with pytest.raises(NotFound, match=r"manifest\.json"):
        Shards(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(CheckpointError, match="format 1"):
        Shards(tmp_path)


def test_too_little_text(shards):
    with pytest.raises(UsageError, match="too few"):
        Windows(shards, 10_000, 0)
