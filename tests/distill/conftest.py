"""One tiny teacher for all tests of distillation."""

import pytest

import tiny_distillations


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    return tiny_distillations.teacher(tmp_path_factory.mktemp("teacher"))
