"""Arithmetic of a model per token, from its config: what plans and the utilisation of a machine count. Loads no torch.

Every multiplication and every addition counts as one, of what the definitions need: products with weights; scores and
weighted values over the keys that a query sees; convolutions; scans as their recurrences. Not counted are norms,
activations, softmax and look-ups, nor what an implementation does beyond that: chunks of a scan that see more than they
need, masked halves of attention, recomputed blocks. So the utilisation is that of useful work, and comparable between
attention and scans.
"""

from leanlm.model import cost
from leanlm.model.config import Attention, DiscreteMamba2, Mamba1, Mamba2, Mixer, ModelConfig, Telescoping

BACKWARD = 2  # a product's backward pass is two products of the same size


def forward(config: ModelConfig, length: int) -> float:
    """FLOPs per token, the mean over a text of `length` tokens read at once; logits of every token included."""
    head = 2 * config.padded_vocab_size * config.d_model
    return 2 * cost.linear_parameters(config) + head + sum(_mixing(mixer, length) for mixer in config.sublayers)


def training(config: ModelConfig, length: int) -> float:
    """FLOPs per token of a forward and a backward pass."""
    return (1 + BACKWARD) * forward(config, length)


def scans(config: ModelConfig) -> float:
    """FLOPs per token of the recurrences alone, forward."""
    return sum(_scan(mixer) for mixer in config.sublayers)


def seen_keys(length: int, window: int | None) -> float:
    """Keys that a query sees, the mean over a text: query i sees the newest `window` of its i keys."""
    w = min(window or length, length)
    return (w * (w + 1) / 2 + (length - w) * w) / length


def _mixing(mixer: Mixer, length: int) -> float:
    """Beyond the products with weights."""
    convolved = 2 * cost.convolved(mixer) * getattr(mixer, "d_conv", 0)
    if isinstance(mixer, Attention):
        return convolved + 4 * mixer.n_heads * mixer.head_dim * seen_keys(length, mixer.window)
    if isinstance(mixer, Telescoping):
        merged = 3 * mixer.n_kv_heads * (mixer.head_dim + mixer.v_head_dim)  # an entry a token is made of two
        return merged + 2 * mixer.n_heads * (mixer.head_dim + mixer.v_head_dim) * mixer.slots
    return convolved + _scan(mixer)


def _scan(mixer: Mixer) -> float:
    """h = decay h + x B takes three per element of the state, y = h . C two, and Mamba-1's own decay per element, dt A, one."""
    match mixer:
        case Mamba1():
            return 6 * mixer.d_inner * mixer.d_state
        case Mamba2() | DiscreteMamba2():
            return 5 * mixer.d_inner * mixer.d_state
        case _:
            return 0
