"""Telescoping attention beside the original code: outputs, gradients, what is looked at, states, whole models."""

import math

import pytest
import torch
import torch.nn.functional as F

from leanlm.errors import CheckpointError
from leanlm.families import names
from leanlm.model import telescoping
from leanlm.model.config import Telescoping
from leanlm.ops import merging
from telescoping_cases import cases, layer, model, ours


def near(found: torch.Tensor, wanted: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("path", cases("attn"), ids=lambda path: path.stem)
def test_a_layer_of_the_original(path):
    mixer, tensors, _ = layer(path)
    x = tensors["x"].requires_grad_()
    y = mixer(x)
    near(y, tensors["out"], 5e-5)
    if "grad_out" not in tensors:
        return
    y.backward(tensors["grad_out"])
    gradients = {name.removeprefix("grad."): tensor for name, tensor in tensors.items() if name.startswith("grad.")}
    wanted = {"x": gradients.pop("x"), **ours(mixer.config, gradients)}
    found = {"x": x.grad, **{name: weight.grad for name, weight in mixer.named_parameters()}}
    for name, gradient in wanted.items():
        near(found[name], gradient, 5e-5 * gradient.abs().max().item())


@pytest.mark.parametrize("path", cases("attn"), ids=lambda path: path.stem)
@torch.no_grad()
def test_what_the_original_looks_at(path):
    """Entries slot by slot, through their norms, as read token by token up to the listed ones."""
    mixer, tensors, _ = layer(path)
    state, read = mixer.new_state(len(tensors["x"])), 0
    pairs = mixer.config.head_dim
    for place, t in enumerate(tensors["sel_t"].tolist()):
        if t < read:  # listed twice
            continue
        mixer(tensors["x"][:, read : t + 1], state)
        read = t + 1
        k, v = merging.read_as(state["entry_k"], state["entry_v"], 1, mixer.reading._replace(mixed=False))
        wanted_k = tensors["cache_k"][:, place].transpose(1, 2).unflatten(-1, (pairs // 2, 2)).transpose(-1, -2).flatten(-2)
        wanted_v = tensors["cache_v"][:, place].transpose(1, 2)
        if mixer.config.value_is_key:
            wanted_v = wanted_v.unflatten(-1, (pairs // 2, 2)).transpose(-1, -2).flatten(-2)
        near(k, wanted_k, 1e-4)
        near(v, wanted_v, 1e-4)
        if "cache_used" in tensors:
            used = state["weight_k"][:, :, 0] > -math.inf
            assert torch.equal(used, tensors["cache_used"][place].bool().expand_as(used))


@pytest.mark.parametrize("path", cases("recur"), ids=lambda path: path.stem)
@torch.no_grad()
def test_states_of_the_original(path):
    """Read at once and token by token."""
    mixer, tensors, meta = layer(path)
    x, half = tensors["x"], mixer.config.head_dim // 2
    near(mixer(x), tensors["out_prefill"], 5e-5)
    steps, outputs, at_once, read = mixer.new_state(len(x)), [], mixer.new_state(len(x)), 0
    for n in meta["n_list"]:
        outputs += [mixer(x[:, t : t + 1], steps) for t in range(read, n)]
        mixer(x[:, read:n], at_once)
        read = n
        for state in (steps, at_once):
            wanted = tensors[f"state_k.n{n}"].transpose(1, 2).unflatten(-1, (half, 2)).transpose(-1, -2).flatten(-2)
            near(state["entry_k"], wanted, 1e-4)
            near(state["entry_v"], tensors[f"state_v.n{n}"].transpose(1, 2), 1e-4)
            weights = tensors[f"state_logw.n{n}"].transpose(1, 2)
            near(state["weight_k"], weights.masked_fill(weights <= -900, -math.inf), 5e-5)
    near(torch.cat(outputs, 1), tensors["out_prefill"][:, :read], 5e-5)


@pytest.mark.parametrize("path", cases("model"), ids=lambda path: path.stem)
def test_a_model_of_the_original(path):
    module, tensors, rules = model(path)
    logits = module(tensors["tokens"])
    near(logits, tensors["logits"], 5e-5)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tensors["tokens"][:, 1:].flatten())
    near(loss[None], tensors["loss"], 1e-5)
    gradients = {name.removeprefix("grad."): tensor for name, tensor in tensors.items() if name.startswith("grad.")}
    if gradients:
        loss.backward()
        found = dict(module.named_parameters())
        for name, gradient in names.to_ours(rules, gradients).items():
            near(found[name].grad, gradient, 5e-5 * gradient.abs().max().item())
    state, read = module.new_state(len(logits)), []
    with torch.no_grad():
        for piece in tensors["tokens"].split([1, 50, 1, logits.shape[1] - 52], 1):
            read.append(module(piece, state))
    near(torch.cat(read, 1), tensors["logits"], 5e-5)


@pytest.mark.parametrize(
    ("slots", "merges", "says"),
    [
        (8, (), "no slot where entries are merged"),
        (8, (1, 4), "two newer slots"),
        (8, (4, 4), "do not rise"),
        (8, (5, 3), "do not rise"),
        (8, (2, 8), "beyond the 8 slots"),
        (0, (2,), "slots: 0 is not a size"),
    ],
)
def test_tables_that_cannot_be(slots, merges, says):
    with pytest.raises(CheckpointError, match=says):
        Telescoping(2, 1, 4, slots, merges)


def test_positions_begin_again_with_every_document():
    segments = torch.tensor([[0, 0, 1, 1, 1, 2], [1, 1, 1, 2, 2, 2]])
    at, read = telescoping.positions([7, 3], 6, segments)
    assert at.tolist() == [[7, 8, 0, 1, 2, 0], [0, 1, 2, 0, 1, 2]] and read.tolist() == [1, 3]
    at, read = telescoping.positions([7, 0], 2, None)
    assert at.tolist() == [[7, 8], [0, 1]] and read.tolist() == [9, 2]
