"""The cost formulas against modules that were really built."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leanlm.model import cost
from leanlm.model.language_model import LanguageModel
from leanlm.model.linear import Linear
from random_configs import CONFIGS

some = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
configs = st.one_of(*CONFIGS.values())


@some
@given(configs)
def test_parameters(config):
    with torch.device("meta"):
        module = LanguageModel(config)
    assert cost.parameters(config) == sum(p.numel() for p in module.parameters())
    inside = [m for m in module.layers.modules() if isinstance(m, Linear)]
    assert cost.linear_parameters(config) == sum(m.weight.numel() for m in inside)


@some
@given(configs, st.integers(1, 20), st.sampled_from([torch.float32, torch.bfloat16]))
def test_state_bytes(config, capacity, dtype):
    with torch.device("meta"):
        module = LanguageModel(config).to(dtype)
    measured = module.new_state(3, capacity=capacity).nbytes
    assert 3 * cost.state_bytes(config, capacity, dtype.itemsize) == measured
