"""Windows and mixtures: what a batch holds."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data.made_shards import BEGIN, END, make
from leanlm.checkpoint.load import load_module
from leanlm.data.batches import IGNORED, Mixture, Windows
from leanlm.data.feed import feed
from leanlm.errors import CheckpointError, UsageError

LENGTHS = (3, 50, 1, 70, 20, 9)


def equal(a, b):
    same = (a.segments is None) == (b.segments is None)
    return same and torch.equal(a.tokens, b.tokens) and torch.equal(a.targets, b.targets)


def test_every_token_is_predicted_once_per_epoch(tmp_path):
    shards = make(tmp_path / "data", LENGTHS)
    windows = Windows(shards, 8, seed=3)
    targets = windows.batch(windows.count, windows.count).targets.flatten()  # the second epoch
    assert sorted(targets[targets != IGNORED].tolist()) == sorted(shards.read(0, shards.tokens).tolist())
    assert (targets == IGNORED).sum() == windows.count * 8 - shards.tokens


def test_inputs_come_before_their_targets(tmp_path):
    shards = make(tmp_path / "data", LENGTHS)
    batch = Windows(shards, 8, seed=3).batch(0, 20)
    stream = shards.read(0, shards.tokens).tolist()
    before = {token: previous for previous, token in zip([END, *stream], stream) if token != END}
    for token, target in zip(batch.tokens.flatten().tolist(), batch.targets.flatten().tolist()):
        assert target in (END, IGNORED) or token == before[target]


def test_segments_mark_documents(tmp_path):
    """A document's segment begins with the end-of-text token that its first token is predicted from."""
    shards = make(tmp_path / "data", LENGTHS)
    batch = Windows(shards, 16, seed=0).batch(0, Windows(shards, 16, seed=0).count)
    begins = (batch.tokens == END) & (batch.targets != IGNORED)
    assert torch.equal(batch.segments.diff(dim=1) != 0, begins[:, 1:])


def test_documents_with_a_begin_of_text_token(tmp_path):
    shards = make(tmp_path / "data", LENGTHS, begin=True)
    windows = Windows(shards, 16, seed=0)
    batch = windows.batch(0, windows.count)
    assert torch.equal(batch.segments.diff(dim=1) != 0, batch.tokens[:, 1:] == BEGIN)
    assert not (batch.targets == BEGIN).any()
    learned = batch.targets[batch.targets != IGNORED].tolist()
    assert sorted(learned) == sorted(token for token in shards.read(0, shards.tokens).tolist() if token != BEGIN)


def test_no_segments_inside_one_document(tmp_path):
    one = make(tmp_path / "one", [99], shard_tokens=1000)
    assert Windows(one, 10, 0).batch(0, 5).segments is None


@pytest.mark.parametrize("begin", [False, True])
def test_packed_documents_teach_what_they_teach_alone(tmp_path, checkpoint, begin):
    """One row with all documents, and each document in a row of its own: the same gradient."""
    shards = make(tmp_path / "data", (5, 1, 7, 3), begin=begin)
    module = load_module(checkpoint("rene/gqa_groups"), torch.float32).module
    packed = Windows(shards, shards.tokens, 0).batch(0, 1)

    def gradient(batches):
        module.zero_grad()
        for tokens, targets, segments in batches:
            logits = module(tokens, segments=segments).flatten(0, 1).float()
            F.cross_entropy(logits, targets.flatten(), reduction="sum").backward()
        return torch.cat([p.grad.flatten() for p in module.parameters()])

    def alone():
        for number in range(shards.documents):
            ids = torch.tensor([[END, *shards.document(number).tolist()]])[:, int(begin) :]
            yield ids[:, :-1], ids[:, 1:], None

    together = gradient([(packed.tokens, packed.targets, packed.segments)])
    torch.testing.assert_close(together, gradient(alone()), rtol=1e-4, atol=1e-4 * together.abs().max().item())


def test_a_batch_is_a_function_of_its_position(tmp_path):
    windows = Windows(make(tmp_path / "data", LENGTHS), 8, seed=3)
    whole = windows.batch(windows.count - 3, 6)  # across the end of an epoch
    parts = [windows.batch(windows.count - 3, 2), windows.batch(windows.count - 1, 4)]
    assert torch.equal(whole.tokens, torch.cat([p.tokens for p in parts]))


def test_order_belongs_to_the_content_not_the_place(tmp_path):
    one, same = (Windows(make(tmp_path / name, LENGTHS), 8, seed=3) for name in "ab")
    assert equal(one.batch(0, 10), same.batch(0, 10))
    other = Windows(make(tmp_path / "c", LENGTHS[::-1]), 8, seed=3)
    assert not np.array_equal(one.order(np.arange(10)), other.order(np.arange(10)))
    assert Mixture([one]).fingerprint == Mixture([same]).fingerprint != Mixture([other]).fingerprint


def test_a_changed_mixture_goes_on_where_its_sources_stopped(tmp_path):
    a, b = (Windows(make(tmp_path / name, LENGTHS, first=first), 8, seed=3) for name, first in (("a", 2), ("b", 500)))
    first = Mixture([a, b], [3, 1])
    second = Mixture([a, b], [1, 3], begin=first.counts(10))
    seen = torch.cat([first.batch(0, 10).targets, second.batch(0, 10).targets])
    given = second.counts(10)
    alone = torch.cat([a.batch(0, given[0]).targets, b.batch(0, given[1]).targets])
    assert sorted(seen.tolist()) == sorted(alone.tolist()) and sum(given) == 20


def test_epochs(tmp_path):
    windows = Windows(make(tmp_path / "data", LENGTHS), 8, seed=3)
    first, second = windows.order(np.arange(2 * windows.count)).reshape(2, -1).tolist()
    assert first != second and sorted(first) == sorted(second)
    assert Mixture([windows]).epochs(3 * windows.count) == (3.0,)


def test_what_cannot_be_mixed(tmp_path):
    a, b = make(tmp_path / "a", LENGTHS), make(tmp_path / "b", LENGTHS, vocabulary="w")
    with pytest.raises(CheckpointError, match="different tokenizers"):
        Mixture([Windows(a, 8, 0), Windows(b, 8, 0)])
    with pytest.raises(UsageError, match="one length"):
        Mixture([Windows(a, 8, 0), Windows(a, 9, 0)])
    with pytest.raises(UsageError, match="2 sources with 1 weights"):
        Mixture([Windows(a, 8, 0)] * 2, [1])


def test_too_little_text(tmp_path):
    with pytest.raises(UsageError, match="too few"):
        Windows(make(tmp_path / "data", LENGTHS), 10_000, 0)


def test_ids_beyond_the_vocabulary_name_their_shard(tmp_path):
    shards = make(tmp_path / "data", LENGTHS)
    path = shards.folder / shards.shards[0].file
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(CheckpointError, match=path.name):
        Windows(shards, 8, 0).batch(0, 40)


def test_batches_that_cannot_be_divided(tmp_path):
    windows = Windows(make(tmp_path / "data", LENGTHS), 8, 0)
    with pytest.raises(UsageError, match="multiple of 4"):
        feed(windows, 0, 6, ranks=4)


def test_an_error_of_a_reading_thread_is_heard(tmp_path):
    shards = make(tmp_path / "data", LENGTHS)
    batches = feed(Windows(shards, 8, 0), 0, 4, workers=2)
    next(batches)
    for shard in shards.shards:
        with (shards.folder / shard.file).open("r+b") as file:
            file.truncate(0)
    with pytest.raises(CheckpointError, match="cut short"):
        for _ in range(10):
            next(batches)
