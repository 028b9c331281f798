"""What is measured of CUDA devices."""

import pytest
import torch

from leanlm.runtime import card


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_measured_rates_are_those_of_a_card():
    assert card.copy_rate() > 1e11 and card.matrix_rate(torch.bfloat16) > 1e13
    assert torch.cuda.get_device_name(0) in card.describe(0)
