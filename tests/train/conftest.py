"""A tiny recipe on text that tests make, and what its runs leave."""

import json
from pathlib import Path

import pytest

import leanlm
import tiny_runs
from leanlm.train import recipe as recipes


@pytest.fixture
def recipe_file(tmp_path) -> Path:
    return tiny_runs.file(tmp_path)


@pytest.fixture
def recipe(recipe_file):
    return recipes.read(recipe_file)


@pytest.fixture
def weights():
    """weights(folder): the parameters of a finished model by name."""
    return lambda folder: dict(leanlm.load(folder).module.named_parameters())


@pytest.fixture
def steps():
    """steps(folder): what a run's log says of every step, the last word where a step was taken twice."""

    def read(folder: Path) -> dict[int, dict]:
        records = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
        return {record["step"]: record for record in records if "loss" in record}

    return read
