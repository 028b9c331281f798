"""Mixers as matrices: they reproduce what the mixer computes, and equal the formula on cases computed by hand."""

import math

import pytest
import torch

from hybrid_models import ONE_OF_EACH, alone, build
from leanlm import ops
from leanlm.model.config import Attention, DiscreteMamba2, Mamba2
from leanlm.model.language_model import ordinals
from leanlm.ops import matrices

LENGTH = 70
MIXERS = {
    name: mixer
    for name, mixer in ONE_OF_EACH.items()
    if isinstance(mixer, Attention | DiscreteMamba2) or (isinstance(mixer, Mamba2) and not mixer.d_per_channel)
}


def through_matrix(mixer, x, segments):
    """The mixer's output from its matrix, its values and its output projection."""
    matrix = mixer.matrix(x, segments)
    if isinstance(mixer.config, Attention):
        last = torch.arange(x.shape[1]).expand(x.shape[:2])
        v = mixer.project(x, last, None, segments)[2]
        v = v.repeat_interleave(mixer.config.n_heads // mixer.config.n_kv_heads, 2)
        return mixer.out_proj((matrix @ v.transpose(1, 2)).transpose(1, 2).flatten(2))
    values, *_, gate = mixer.project(x, None, segments)
    gate = gate if isinstance(mixer.config, Mamba2) else mixer.project(x, None, segments)[3]
    return mixer.finish((matrix @ values.transpose(1, 2)).transpose(1, 2), gate)


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "three documents"])
@pytest.mark.parametrize("name", MIXERS)
def test_a_matrix_reproduces_the_mixer(name, packed):
    mixer = build(alone(MIXERS[name])).layers[0][0].mixer
    x = torch.randn(2, LENGTH, 24, generator=torch.Generator().manual_seed(1))
    segments = None
    if packed:
        segments = ordinals(torch.cat([torch.full((2, n), mark) for n, mark in ((20, 4), (1, 7), (LENGTH - 21, 4))], 1))
    with torch.no_grad():
        torch.testing.assert_close(through_matrix(mixer, x, segments), mixer(x, None, segments), rtol=0, atol=1e-5)
        matrix = mixer.matrix(x, segments)
    assert matrix.shape[-2:] == (LENGTH, LENGTH) and not matrix.triu(1).any()
    if packed:
        assert not matrix[..., 21:, :21].any() and not matrix[..., 20, :20].any()


def test_discrete_mamba2_by_hand():
    """T[t, s] = (C_t . B_s) sigmoid(-a_{s+1}) ... sigmoid(-a_t), and D on the diagonal."""
    mixer = build(alone(DiscreteMamba2(4, 2, 2, 1, d_conv=1, conv_bias=False))).layers[0][0].mixer
    with torch.no_grad():
        mixer.in_proj.weight.zero_()
        mixer.conv.weight.fill_(1.0)
        mixer.D.copy_(torch.tensor([5.0, 7.0]))
        rows = {"B": 4, "C": 6, "a": 12}  # of head 0; x has four rows, B, C two each, z four
        for channel, row in enumerate(rows.values()):
            mixer.in_proj.weight[row, channel] = 1.0
        x = torch.zeros(1, 3, 24)
        B, C, a = [2.0, 3.0, 5.0], [1.0, -1.0, 0.5], [0.0, math.log(3.0), -math.log(3.0)]  # sigmoid(-a): 1/2, 1/4, 3/4
        x[0, :, :3] = torch.tensor([B, C, a]).T
        found = mixer.matrix(x)[0]
    wanted = [[2 + 5, 0, 0], [-2 * 0.25, -3 + 5, 0], [0.5 * 2 * 0.25 * 0.75, 0.5 * 3 * 0.75, 2.5 + 5]]
    torch.testing.assert_close(found[0], torch.tensor(wanted))
    torch.testing.assert_close(found[1], 7 * torch.eye(3))


def test_attention_by_hand():
    q, k = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, math.log(2.0), math.log(3.0)])
    at = torch.arange(3)[None]
    shape = (1, 3, 1, 1)
    found = matrices.attention(q.view(shape), k.view(shape), torch.zeros_like(at), at, scale=1.0)[0, 0]
    torch.testing.assert_close(found, torch.tensor([[1, 0, 0], [1 / 3, 2 / 3, 0], [1 / 14, 4 / 14, 9 / 14]]))


def test_the_scans_matrix_is_what_the_scan_makes_of_unit_vectors():
    generator = torch.Generator().manual_seed(3)
    decay = -torch.rand(2, LENGTH, 6, generator=generator) * 3
    B, C = torch.randn(2, 2, LENGTH, 3, 5, generator=generator)
    unit = torch.eye(LENGTH)[None, :, None].expand(2, -1, 6, -1)
    y, _ = ops.ssd(unit, decay, B, C)
    torch.testing.assert_close(matrices.ssd(decay, B, C), y.transpose(1, 2), rtol=0, atol=1e-5)
