"""A teacher's logits on disk: what is kept, rows across files, what is refused."""

import pytest
import torch

from hybrid_models import build
from leanlm.data.batches import Mixture
from leanlm.distill import kept_logits
from leanlm.distill.kept_logits import ROWS, Kept
from leanlm.errors import CheckpointError, UsageError
from leanlm.model.config import Attention, GatedMLP, ModelConfig
from leanlm.train import origin, start
from tiny_runs import recipe

CONFIG = ModelConfig(16, 300, ((Attention(2, 2, 8), GatedMLP(8)),))
COUNT = ROWS + 4


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Mixture:
    folder = tmp_path_factory.mktemp("rows")
    made = recipe(folder)
    return start.material(made, folder, origin.fresh(made), lambda _: None).rows


@pytest.fixture(scope="module")
def kept(rows, tmp_path_factory) -> Kept:
    folder = tmp_path_factory.mktemp("kept")
    kept_logits.fill(folder, rows, COUNT, 5, lambda: build(CONFIG), lambda _: None)
    return Kept(rows, folder)


def test_rows_come_with_the_most_probable_tokens(rows, kept):
    """Across the boundary of two files too; log-probabilities to the 11 bits of float16."""
    for position, size in ((0, 3), (ROWS - 2, 4), (ROWS, 4)):
        found, plain = kept.batch(position, size), rows.batch(position, size)
        assert torch.equal(found.tokens, plain.tokens) and torch.equal(found.targets, plain.targets)
        best = build(CONFIG)(plain.tokens, segments=plain.segments).log_softmax(-1).topk(5)
        ids, log_p = found.extra
        torch.testing.assert_close(log_p.float(), best.values, rtol=1e-3, atol=1e-5)
        assert (ids == best.indices).float().mean() > 0.99
    assert (kept.fingerprint, kept.vocab_size) == (rows.fingerprint, rows.vocab_size)


def test_what_is_there_is_not_made_again(rows, kept):
    kept_logits.fill(kept.folder, rows, COUNT, 5, lambda: pytest.fail("the teacher was asked"), lambda _: None)
    (kept.folder / kept_logits.name(1)).unlink()
    assert kept_logits.missing(kept.folder, COUNT) == [1]
    kept_logits.fill(kept.folder, rows, COUNT, 5, lambda: build(CONFIG), lambda _: None)
    assert not kept_logits.missing(kept.folder, COUNT) and kept_logits.missing(kept.folder, 2 * ROWS + 1) == [2]


def test_a_folder_is_of_one_teacher_and_text(tmp_path):
    about = {"teacher": "a", "top_k": 5, "rows": "f"}
    kept_logits.check(tmp_path, about)
    kept_logits.check(tmp_path, about)
    with pytest.raises(UsageError, match=r"another top_k \(5, not 6\)"):
        kept_logits.check(tmp_path, about | {"top_k": 6})


def test_a_damaged_file_is_named(rows, kept, tmp_path):
    (tmp_path / kept_logits.name(0)).write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="rows-00000000"):
        Kept(rows, tmp_path).batch(0, 1)


def test_all_tokens_are_too_many(rows, tmp_path):
    with pytest.raises(UsageError, match="300 of the teacher's 300 tokens"):
        kept_logits.fill(tmp_path, rows, 1, 300, lambda: build(CONFIG), lambda _: None)
