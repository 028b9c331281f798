"""Steps run one at a time are the run."""

import pytest
import torch

from hybrid_models import build
from leanlm.model.config import Attention, GatedMLP, Mamba2, ModelConfig, Rope

pytest.importorskip("leanlm.ops.native", reason="the native library was not built")
from leanlm.bench import profile
from leanlm.runtime.native import NativeRuntime


def test_steps_one_at_a_time_leave_the_state_of_a_run():
    module = build(ModelConfig(24, 40, ((Mamba2(48, 12, 8),), (Attention(2, 1, 12, rope=Rope(12)), GatedMLP(30)))))
    tokens = torch.randint(40, (2, 5), generator=torch.Generator().manual_seed(0))
    alone, whole = module.new_state(2, capacity=15), module.new_state(2, capacity=15)
    with torch.inference_mode():
        rows = profile.of_call(module, tokens, alone, rounds=3)
        for _ in range(3):
            NativeRuntime(module)(tokens, whole, last_only=True)
    for (name, one), other in zip(alone.tensors().items(), whole.tensors().values(), strict=True):
        assert torch.equal(one, other), name
    steps = {row["step"]: row["count"] for row in rows}
    assert steps["ssd"] == steps["attend"] == steps["embed"] == steps["head 40 x 24"] == 1
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert [row["seconds"] for row in rows] == sorted((row["seconds"] for row in rows), reverse=True)
