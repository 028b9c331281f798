"""Tiny models of the command-line tests."""

import pytest

from tiny_models import copy_case


@pytest.fixture(scope="session")
def rene(tmp_path_factory):
    return copy_case("rene/gqa_groups", tmp_path_factory.mktemp("rene"))


@pytest.fixture(scope="session")
def talker(tmp_path_factory):
    """A model with full attention and a chat template."""
    return copy_case("llama/bf16", tmp_path_factory.mktemp("talker"), chat=True)
