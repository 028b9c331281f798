"""FLOPs against numbers that count their own arithmetic, and against torch's counter of products."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from leanlm.families import catalog
from leanlm.model import flops
from leanlm.model.config import MLP, Attention, GatedMLP, Mamba1, Mamba2, ModelConfig
from leanlm.model.language_model import LanguageModel


class Number:
    """A number that counts the operations done with it and its like."""

    done = 0

    def __mul__(self, other):
        Number.done += 1
        return Number()

    __add__ = __mul__


def counted(work) -> int:
    Number.done = 0
    work()
    return Number.done


def one(mixer, vocab_size=1, d_model=1) -> ModelConfig:
    return ModelConfig(d_model=d_model, vocab_size=vocab_size, layers=((mixer,),))


def ssd_step(channels, states, dt_per_state):
    for _ in range(channels):
        y = None
        for _ in range(states):
            decay = Number() * Number() if dt_per_state else Number()
            h = decay * Number() + Number() * Number()
            product = h * Number()
            y = product if y is None else y + product


@pytest.mark.parametrize(("channels", "states"), [(4, 3), (6, 8)])
def test_scans_are_their_recurrences(channels, states):
    """Up to the first addition of a sum, which is one less per channel."""
    mamba2 = one(Mamba2(d_inner=channels, head_dim=2, d_state=states))
    assert flops.scans(mamba2) - channels == counted(lambda: ssd_step(channels, states, False))
    mamba1 = one(Mamba1(d_inner=channels, d_state=states))
    assert flops.scans(mamba1) - channels == counted(lambda: ssd_step(channels, states, True))


@pytest.mark.parametrize("window", [None, 1, 3, 7, 20])
@pytest.mark.parametrize("length", [1, 5, 7, 12])
def test_attention_counts_the_pairs_that_see_each_other(length, window):
    pairs = sum(1 for i in range(length) for j in range(i + 1) if window is None or i - j < window)
    assert flops.seen_keys(length, window) == pytest.approx(pairs / length)
    attention = one(Attention(2, 1, 4, window))
    products = 2 * (1 * 8 + 2 * 4 + 8) + 2  # q, k, v, out and the head, all of width 1
    assert flops.forward(attention, length) == pytest.approx(products + 2 * pairs * 2 * 4 * 2 / length)


@pytest.mark.parametrize("mixer", [MLP(24), GatedMLP(40)])
def test_products_are_those_that_torch_counts(mixer):
    config = one(mixer, vocab_size=50, d_model=16)
    module = LanguageModel(config)
    tokens = torch.randint(0, 50, (2, 7))
    with FlopCounterMode(display=False) as counter:
        module(tokens).sum().backward()
    # The first sublayer's input is the embedding, whose gradient is wanted too: every product has a full backward pass.
    assert flops.training(config, 7) * tokens.numel() == counter.get_total_flops()


def test_a_large_transformer_is_near_the_rule_of_six():
    """6 N per token plus attention (facts of published utilisations): within 4 % for Llama-3 1.8B without its embedding."""
    config = catalog.resolve("avengers-llama3-1.8b").model
    products = config.padded_vocab_size * config.d_model
    attention = 6 * len(config.layers) * 4096 * 2048
    rule = 6 * (catalog.resolve("avengers-llama3-1.8b").parameters - products) + attention
    assert flops.training(config, 4096) == pytest.approx(rule, rel=0.04)
