"""Bytes of a decoding step, counted by hand."""

import torch

from hybrid_models import build
from leanlm.bench import traffic
from leanlm.model.config import Attention, GatedMLP, Mamba2, ModelConfig, Rope
from leanlm.quantize.convert import to_format

WIDTH, WORDS = 32, 48


def llama(**settings):
    layer = Attention(4, 2, 8, rope=Rope(8)), GatedMLP(40)
    return build(ModelConfig(WIDTH, WORDS, (layer, layer), **settings))


def test_a_llama():
    module = llama(tied=False).bfloat16()
    state = module.new_state(3, capacity=20)
    state.position += 5
    attention, mlp = WIDTH * 32 + 2 * WIDTH * 16 + 32 * WIDTH, 3 * WIDTH * 40
    matrices = 2 * (attention + mlp) + WORDS * WIDTH  # the head, in full
    rows, norms = 3 * WIDTH, (2 * 2 + 1) * WIDTH  # of the embedding, one row per text
    found = traffic.of_step(module, state, tokens=3)
    assert found["weights"] == 2 * (matrices + rows) + 4 * norms
    assert found["state"] == 0
    # The three tokens see 6, 7 and 8 keys of 2 heads of 8 numbers, and write one; two layers, keys and values, three texts.
    assert found["keys_values"] == 2 * 2 * 3 * (7 + 1) * (2 * 8) * 2


def test_a_tied_embedding_counts_once_and_packed_weights_as_stored():
    module = llama()
    to_format(module, "int8")
    matrices = 2 * (WIDTH * 32 + 2 * WIDTH * 16 + 32 * WIDTH + 3 * WIDTH * 40)
    outputs = 2 * (32 + 2 * 16 + WIDTH + 2 * 40 + WIDTH)
    scales = 4 if module.layers[0][0].mixer.q_proj.weight.scales.dtype == torch.float32 else 2
    found = traffic.of_step(module, module.new_state(1, capacity=4))
    assert found["weights"] == matrices + scales * outputs + 4 * WORDS * WIDTH + 4 * 5 * WIDTH


def test_a_mamba2():
    module = build(ModelConfig(WIDTH, WORDS, ((Mamba2(64, 16, 8),),) * 2)).bfloat16()
    state = module.new_state(3)
    heads, convolved = 4, 64 + 2 * 8
    matrices = 2 * (WIDTH * (64 + convolved + heads) + 64 * WIDTH) + WORDS * WIDTH  # embedding and head are one
    floats = 2 * (convolved * (4 + 1) + 3 * heads + 64 + WIDTH) + WIDTH
    found = traffic.of_step(module, state)
    assert found["weights"] == 2 * matrices + 4 * floats
    tails, scans = 3 * convolved * 3 * 2, 3 * 64 * 8 * 4
    assert found["state"] == 2 * 2 * (tails + scans)  # read and written, two layers
    assert found["keys_values"] == 0


def test_a_window_bounds_the_keys():
    module = build(ModelConfig(WIDTH, WORDS, ((Attention(2, 1, 8, window=6),),)))
    state = module.new_state(1)
    state.position += 100
    assert traffic.of_step(module, state, 10)["keys_values"] == 2 * (6 + 1) * 8 * 4
