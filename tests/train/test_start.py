"""What a run starts from: the same weights wherever parts go, and data that fits the model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.data.shards import Shards
from leanlm.data.tokenize import tokenize
from leanlm.errors import CheckpointError, UsageError
from leanlm.families import get
from leanlm.model.language_model import LanguageModel
from leanlm.train import origin as origins
from leanlm.train.loop import train


def changed(recipe, section, **values):
    return replace(recipe, **{section: replace(getattr(recipe, section), **values)})


def test_parts_get_the_weights_that_the_whole_gets(recipe):
    origin = origins.fresh(recipe)
    module = origin.module
    assert all(parameter.is_meta for parameter in module.parameters())
    seen = 0
    for part in origin.parts(recipe):
        assert not any(parameter.is_meta for parameter in part.parameters())
        seen += 1
        with torch.no_grad():  # what becomes of a part does not matter for the next
            part.to(torch.float64)
    torch.manual_seed(recipe.seed)
    whole = LanguageModel(get("rene").to_config(recipe.model.config))
    whole.reset(recipe.model.init_std)
    assert seen == 2 + len(module.layers)
    for (name, ours), theirs in zip(module.named_parameters(), whole.parameters()):
        assert torch.equal(ours, theirs.double()), name


@pytest.fixture
def shards(recipe, tmp_path):
    """Two folders of shards made with the tokenizer of a finished run, and a recipe that reads them."""
    train(changed(recipe, "schedule", steps=1), tmp_path / "first")
    tokenizer = Tokenizer.from_folder(tmp_path / "first" / "model")
    for name in ("f0", "f1", "held"):
        tokenize([tmp_path / "text" / f"{name}.txt"], tmp_path / name, tokenizer, processes=1)
    sources = {str(tmp_path / "f0"): 0.5, str(tmp_path / "f1"): 1}
    return replace(recipe, data=replace(recipe.data, source="", held_out=(), sources=sources, held=str(tmp_path / "held")))


@pytest.fixture(autouse=True)
def as_text(recipe_file):
    for path in (recipe_file.parent / "text").glob("*.py"):
        path.with_suffix(".txt").write_text(path.read_text())


def test_a_mixture_of_shards_is_trained_on(shards, tmp_path):
    reports = []
    train(shards, tmp_path / "run", reports.append)
    assert reports[-1].bits_per_byte and (tmp_path / "run" / "model" / "tokenizer.json").is_file()
    assert not (tmp_path / "run" / "data").exists()


def test_something_must_be_left_to_learn_from(recipe, tmp_path):
    names = [path.name for path in Path(recipe.data.source).iterdir()]
    with pytest.raises(UsageError, match="names every document"):
        train(changed(recipe, "data", held_out=names), tmp_path / "run")


def test_shards_that_other_tokenizers_made_are_refused(shards, recipe, tmp_path):
    train(
        changed(changed(changed(recipe, "schedule", steps=1), "data", vocab_size=290), "model", config=smaller(recipe)),
        tmp_path / "o",
    )
    other = Tokenizer.from_folder(tmp_path / "o" / "model")
    tokenize([tmp_path / "text" / "f2.txt"], tmp_path / "f2", other, processes=1)
    with pytest.raises(CheckpointError, match="different tokenizers"):
        train(changed(shards, "data", sources={**shards.data.sources, str(tmp_path / "f2"): 1}), tmp_path / "run")
    with pytest.raises(CheckpointError, match="another tokenizer"):
        train(changed(shards, "data", held=str(tmp_path / "f2")), tmp_path / "run")


def smaller(recipe):
    return recipe.model.config | {"vocab_size": 290}


def test_a_model_with_too_few_tokens_is_refused(shards, tmp_path):
    with pytest.raises(UsageError, match="the model has 290 tokens and the data 300"):
        train(changed(shards, "model", config=smaller(shards)), tmp_path / "run")


def test_damaged_shards_are_named_and_left_out_only_when_asked(shards, tmp_path):
    broken = next((tmp_path / "f1").glob("tokens-*.bin"))
    broken.write_bytes(broken.read_bytes()[:-2])
    with pytest.raises(CheckpointError, match=broken.name):
        train(shards, tmp_path / "run")
    notes = []
    with pytest.raises(CheckpointError, match="none of its shards"):  # it was the only one
        train(changed(shards, "data", damaged="skip"), tmp_path / "run", lambda told: notes.append(told.note))
    assert Shards(tmp_path / "f0").tokens


@pytest.mark.parametrize("name", ["data", "held"])
def test_a_runs_own_shards_are_what_it_made(recipe, tmp_path, name):
    """To the byte: a run that goes on with others would not be the same run."""
    train(changed(recipe, "schedule", steps=1), tmp_path / "run")
    (shard,) = (path for path in (tmp_path / "run" / name).iterdir() if path.suffix == ".bin")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CheckpointError, match=shard.name):
        train(changed(recipe, "schedule", steps=2), tmp_path / "run")
