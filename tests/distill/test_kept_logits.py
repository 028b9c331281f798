"""A teacher's logits on disk: what is kept, rows across files, what is refused."""

import shutil

import pytest
import torch

from hybrid_models import build
from leanlm.data.batches import Mixture
from leanlm.distill import kept_logits
from leanlm.distill.kept_logits import ROWS, Kept
from leanlm.errors import CheckpointError, UsageError
from leanlm.model.config import Attention, GatedMLP, ModelConfig
from leanlm.train import origin, start
from leanlm.train.processes import ALONE
from tiny_runs import recipe

CONFIG = ModelConfig(16, 300, ((Attention(2, 2, 8), GatedMLP(8)),))
COUNT = ROWS + 4


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Mixture:
    folder = tmp_path_factory.mktemp("rows")
    made = recipe(folder)
    return start.material(made, folder, origin.fresh(made), lambda _: None).rows


class Known:
    """A teacher that is there already."""

    @property
    def module(self):
        return build(CONFIG)


@pytest.fixture(scope="module")
def kept(rows, tmp_path_factory) -> Kept:
    made = Kept(rows, tmp_path_factory.mktemp("kept"))
    made.fill(Known(), COUNT, 5, ALONE, lambda _: None)
    return made


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


def test_what_is_there_is_not_made_again(kept):
    kept.fill(None, COUNT, 5, ALONE, lambda _: None)
    (kept.folder / kept_logits.name(1)).unlink()
    assert kept.missing(COUNT) == [1]
    kept.fill(Known(), COUNT, 5, ALONE, lambda _: None)
    assert not kept.missing(COUNT) and kept.missing(2 * ROWS + 1) == [2]


def test_a_folder_is_of_one_teacher_and_text(rows, teacher, tmp_path):
    """By name, and by weights where the name is a folder's; a teacher that is gone is believed to be the same."""
    mine, folder = tmp_path / "teacher", Kept(rows, tmp_path / "kept")
    shutil.copytree(teacher, mine)
    for _ in range(2):
        folder.claim(str(mine), 5)
    with pytest.raises(UsageError, match=r"other top_k \(5, not 6\)"):
        folder.claim(str(mine), 6)
    with pytest.raises(UsageError, match="other teacher"):
        folder.claim("another", 5)
    weights = mine / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UsageError, match="other weights"):
        folder.claim(str(mine), 5)
    shutil.rmtree(mine)
    folder.claim(str(mine), 5)


def test_a_damaged_file_is_named(rows, kept, tmp_path):
    (tmp_path / kept_logits.name(0)).write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="rows-00000000"):
        Kept(rows, tmp_path).batch(0, 1)
