"""Exactly once, in exact shares, whoever reads and whatever happens: random corpora, mixtures, processes, crashes."""

import json
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.made_shards import END, make
from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.data.batches import IGNORED, Mixture, Windows
from leanlm.data.feed import feed
from leanlm.data.shards import Shards
from leanlm.data.tokenize import tokenize

SPACE = 10_000  # ids of one source, so that every token tells where it is from
LENGTH, BATCH = 8, 12
CORPUS = st.lists(st.integers(1, 30), min_size=4, max_size=25)


@st.composite
def mixtures(draw):
    """(lengths of the documents of each source, weights)."""
    corpora = draw(st.lists(CORPUS, min_size=1, max_size=4))
    return corpora, draw(st.lists(st.integers(1, 9), min_size=len(corpora), max_size=len(corpora)))


def opened(folders, weights):
    return Mixture([Windows(Shards(folder), LENGTH, seed=1) for folder in folders], weights)


def together(mixture, step, ranks, workers):
    """The rows that `ranks` processes get of the batch of a step, in order."""
    shares = [next(feed(mixture, step * BATCH, BATCH, rank, ranks, workers)) for rank in range(ranks)]
    return torch.cat([share.targets for share in shares]).tolist()


def check(mixture, weights, corpora, rows):
    """Exact shares after every row; of every source, in each of its epochs, every token once and nothing else."""
    source, _ = mixture.turns(np.arange(len(rows)))
    had = np.stack([np.cumsum(source == i) for i in range(len(weights))])
    for i, weight in enumerate(weights):
        wanted = [Fraction((n + 1) * weight, sum(weights)) for n in range(len(rows))]
        assert all(abs(given - share) < 1 for given, share in zip(had[i].tolist(), wanted))
    for i, lengths in enumerate(corpora):
        own, count = [row for row, s in zip(rows, source) if s == i], mixture.sources[i].count
        first = 2 + i * SPACE
        everything = Counter(range(first, first + sum(lengths))) + Counter({END: len(lengths)})
        for begin in range(0, len(own), count):
            epoch = own[begin : begin + count]
            seen = Counter(token for row in epoch for token in row if token != IGNORED)
            assert seen == everything if len(epoch) == count else seen <= everything


@given(mixture=mixtures(), data=st.data())
@settings(max_examples=40, deadline=None)
def test_exactly_once_through_crashes_and_other_numbers_of_processes(tmp_path_factory, mixture, data):
    """A run that is stopped, killed between checkpoints and resumed on other machines sees what an undisturbed one sees."""
    corpora, weights = mixture
    root = tmp_path_factory.mktemp("data")
    folders = [root / str(i) for i in range(len(corpora))]
    for i, lengths in enumerate(corpora):
        make(folders[i], lengths, first=2 + i * SPACE, shard_tokens=37)
    steps, saved_every = data.draw(st.integers(5, 20)), data.draw(st.integers(1, 4))
    step, lives, seen = 0, 0, {}
    while step < steps:
        lives += 1
        life = opened(folders, weights)
        ranks, workers = data.draw(st.sampled_from((1, 2, 3, 4, 6, 12))), data.draw(st.integers(0, 2))
        for _ in range(min(data.draw(st.integers(1, 8)), steps - step)):
            seen[step] = together(life, step, ranks, workers)
            step += 1
        if step < steps and lives < 6 and data.draw(st.booleans()):
            step -= step % saved_every  # killed: back to the last checkpoint, which holds this number and nothing else
    rows = [row for number in range(steps) for row in seen[number]]
    assert rows == opened(folders, weights).batch(0, steps * BATCH).targets.tolist()
    check(opened(folders, weights), weights, corpora, rows)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_any_number_of_processes_and_workers_gets_the_same_rows(tmp_path, ranks, workers):
    """fms-fsdp refuses numbers that do not divide its logical shards, and loses its buffers when they change."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for i, folder in enumerate(folders):
        make(folder, (3, 50, 1, 70, 20, 9), first=2 + i * SPACE)
    mixture = opened(folders, [2, 1])
    feeds = [feed(mixture, 5 * BATCH, BATCH, rank, ranks, workers, ahead=3) for rank in range(ranks)]
    for step in range(5, 15):
        rows = torch.cat([next(share).targets for share in feeds])
        assert torch.equal(rows, mixture.batch(step * BATCH, BATCH).targets)


def test_short_documents_do_not_lead_to_repeats(tmp_path, tokenizer_folder):
    """Of half the documents being too short fms-fsdp made 93 different ones in 100 draws before its epoch ended."""
    texts = [f"document {i} of many" if i % 2 else "x" for i in range(100)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = Tokenizer.from_folder(tokenizer_folder)
    made = tokenize([tmp_path / "text.jsonl"], tmp_path / "data", tokenizer, min_tokens=3, processes=1)
    assert (made.documents, made.short) == (50, 50)
    windows = Windows(Shards(tmp_path / "data"), LENGTH, seed=1)
    for epoch in range(2):
        order = windows.order(np.arange(epoch * windows.count, (epoch + 1) * windows.count))
        rows = windows.batch(epoch * windows.count, windows.count).targets
        stream = [token for window in np.argsort(order) for token in rows[window].tolist() if token != IGNORED]
        assert tokenizer.decode(stream, skip_special=False).split("</s>")[:-1] == texts[1::2]


def test_a_crash_in_a_save_leaves_no_state_to_be_missed(tmp_path):
    """fms-fsdp's workers write files of their own: one that is missing is an IndexError, a folder made too early a silent
    restart. Here reading writes nothing, and the position in the run's checkpoint (tests/train) is all there is to save."""
    folder = make(tmp_path / "data", (3, 50, 1, 70, 20, 9)).folder
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    batches = feed(opened([folder], [1]), 0, BATCH, workers=2)
    read = [next(batches).targets for _ in range(9)]
    batches.close()
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    again = feed(opened([folder], [1]), 4 * BATCH, BATCH, workers=1)
    assert all(torch.equal(next(again).targets, rows) for rows in read[4:])
