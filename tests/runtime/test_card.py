"""What is said of CUDA devices, and where there is none."""

import pytest
import torch

from leanlm.errors import UsageError
from leanlm.runtime import card


def test_a_device_that_is_not_there_is_a_usage_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert card.named("cpu").type == "cpu"
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UsageError, match="no CUDA device: torch .* was built without CUDA; leanlm doctor"):
        card.named("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(UsageError, match="finds no device"):
        card.named("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_measured_rates_are_those_of_a_card():
    assert card.copy_rate() > 1e11 and card.matrix_rate(torch.bfloat16) > 1e13
    assert torch.cuda.get_device_name(0) in card.describe(0)
