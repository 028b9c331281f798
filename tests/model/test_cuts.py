"""The contract of state: a text cut anywhere, continued, batched raggedly or packed gives what it gives whole and alone."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from hybrid_models import LONGEST, ONE_OF_EACH, alone, build, cut_texts, hybrids, text
from leanlm.model.config import Mamba2, ModelConfig

FLOAT32 = 3e-5  # of the largest logit (and of the largest entry of each state tensor)
BFLOAT16 = 0.02  # the same, beside twice the distance of the uncut bfloat16 values from those computed in float32
SEEDS = st.integers(0, 2**20)
UNSHRUNK = (Phase.explicit, Phase.generate)  # shrinking a failing model takes minutes
quick = settings(max_examples=12, deadline=None, derandomize=True, phases=UNSHRUNK)


def distance(found, wanted):
    """Largest difference, as a share of the largest wanted value (or of 1); infinite where one is -inf and the other not."""
    empty = wanted == -torch.inf
    if not torch.equal(found == -torch.inf, empty):
        return torch.inf
    found, wanted = found[~empty], wanted[~empty]
    if not wanted.numel():
        return 0.0
    return ((found.double() - wanted.double()).abs().max() / max(wanted.abs().max().item(), 1.0)).item()


def read(model, tokens, sizes, state=None, segments=None):
    """Logits and state after reading tokens in pieces of these sizes."""
    state = model.new_state(len(tokens)) if state is None else state
    marks = [None] * len(sizes) if segments is None else segments.split(sizes, 1)
    logits = [model(piece, state, mark) for piece, mark in zip(tokens.split(sizes, 1), marks)]
    return torch.cat(logits, 1), state


def same_state(found, wanted, tolerance):
    assert torch.equal(found.position, wanted.position)
    for name, tensor in wanted.tensors().items():
        assert distance(found.tensors()[name], tensor) <= tolerance, name


@torch.no_grad()
def check_cut(model, tokens, sizes, tolerance):
    plain = model(tokens)
    whole, whole_state = read(model, tokens, [tokens.shape[1]])
    cut, cut_state = read(model, tokens, sizes)
    assert torch.isfinite(plain).all()
    assert distance(whole, plain) <= tolerance, "with a state against without"
    assert distance(cut, plain) <= tolerance, f"cut into {sizes}"
    same_state(cut_state, whole_state, tolerance)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_any_cut_of_every_mixer(name):
    model = build(alone(ONE_OF_EACH[name]))

    @quick
    @given(cut_texts(), SEEDS)
    def check(cut, seed):
        length, sizes = cut
        check_cut(model, text(model.config, 2, length, seed), sizes, FLOAT32)

    check()


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_token_by_token(name):
    model = build(alone(ONE_OF_EACH[name]))
    check_cut(model, text(model.config, 2, 70), [1] * 70, FLOAT32)


@settings(max_examples=40, deadline=None, derandomize=True, phases=UNSHRUNK)
@given(hybrids(), cut_texts(), SEEDS)
def test_any_cut_of_any_hybrid(config, cut, seed):
    length, sizes = cut
    check_cut(build(config, seed), text(config, 2, length, seed), sizes, FLOAT32)


@settings(max_examples=40, deadline=None, derandomize=True, phases=UNSHRUNK)
@given(hybrids(), cut_texts(), SEEDS)
@torch.no_grad()
def test_any_cut_in_bfloat16(config, cut, seed):
    """Pieces take other products than the whole, which round elsewhere: that may cost about what bfloat16 itself costs."""
    length, sizes = cut
    model, tokens = build(config, seed, torch.bfloat16), text(config, 2, length, seed)
    (found, state), (wanted, whole) = read(model, tokens, sizes), read(model, tokens, [length])
    exact, exact_state = read(model.float(), tokens, [length])
    assert distance(found, wanted) <= BFLOAT16 + 2 * distance(wanted, exact)
    for name, tensor in whole.tensors().items():
        allowed = BFLOAT16 + 2 * distance(tensor, exact_state.tensors()[name])
        assert distance(state.tensors()[name], tensor) <= allowed, name


@settings(max_examples=6, deadline=None, derandomize=True, phases=UNSHRUNK)
@given(hybrids(), cut_texts(40), SEEDS)
def test_any_cut_by_the_reference_and_the_same_logits(config, cut, seed):
    length, sizes = cut
    model, tokens = build(config, seed), text(config, 2, length, seed)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        eager = model(tokens)
        patch.setenv("LEANLM_IMPL", "reference")
        check_cut(model, tokens, sizes, FLOAT32)
        assert distance(model(tokens), eager) <= FLOAT32


@torch.no_grad()
def check_ragged(model, lengths, continuation):
    """Texts of different lengths, read alone, then continued together in one state by pieces of these sizes."""
    texts = [text(model.config, 1, n + sum(continuation), seed) for seed, n in enumerate(lengths)]
    together = model.new_state(len(texts))
    for row, (tokens, n) in enumerate(zip(texts, lengths)):
        if n:
            together.write([row], read(model, tokens[:, :n], [n])[1])
    rest = torch.cat([tokens[:, n:] for tokens, n in zip(texts, lengths)])
    found, _ = read(model, rest, continuation, together)
    for row, (tokens, n) in enumerate(zip(texts, lengths)):
        wanted, final = read(model, tokens, [tokens.shape[1]])
        assert distance(found[row], wanted[0, n:]) <= FLOAT32, f"row {row}"
        same_state(together.select([row]), final, FLOAT32)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_rows_at_different_positions_continue_as_alone(name):
    model = build(alone(ONE_OF_EACH[name]))
    check_ragged(model, [0, 1, 5, 40, 7], [1, 1, 9, 1, 2])


@settings(max_examples=15, deadline=None, derandomize=True, phases=UNSHRUNK)
@given(hybrids(), st.lists(st.integers(0, 60), min_size=1, max_size=4), cut_texts(50), SEEDS)
def test_ragged_rows_of_any_hybrid(config, lengths, cut, seed):
    check_ragged(build(config, seed), lengths, cut[1])


def pack(lengths):
    """Marks [1, L] of packed documents: any integers, only differing from their neighbours."""
    marks = [3, -1, 7, 3, 0]
    return torch.cat([torch.full((1, n), marks[i % 5]) for i, n in enumerate(lengths)], 1)


DOCUMENTS = st.lists(st.integers(1, 40), min_size=1, max_size=5).filter(lambda lengths: sum(lengths) <= LONGEST)


def check_packed(model, lengths, tolerance=FLOAT32):
    """One row of documents against the documents one by one: logits and the gradients of all parameters."""
    tokens = text(model.config, 1, sum(lengths))
    weigh = torch.randn(1, sum(lengths), model.config.padded_vocab_size, generator=torch.Generator().manual_seed(1))
    weigh = weigh.to(tokens.device)
    parameters = dict(model.named_parameters())
    packed = model(tokens, segments=pack(lengths))
    apart = torch.cat([model(part) for part in tokens.split(lengths, 1)], 1)
    assert distance(packed, apart) <= tolerance
    found, wanted = (
        torch.autograd.grad((y * weigh).sum(), parameters.values(), allow_unused=True, materialize_grads=True)
        for y in (packed, apart)
    )
    for name, a, b in zip(parameters, found, wanted):
        assert distance(a, b) <= 10 * tolerance, f"gradient of {name}"
    return tokens, packed.detach()


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_packed_documents_are_what_they_are_alone(name):
    model = build(alone(ONE_OF_EACH[name]))
    for lengths in ([33, 1, 1, 40, 5], [64, 64], [5]):
        check_packed(model, lengths)


@settings(max_examples=20, deadline=None, derandomize=True, phases=UNSHRUNK)
@given(hybrids(), DOCUMENTS, SEEDS)
def test_packed_documents_of_any_hybrid(config, lengths, seed):
    check_packed(build(config, seed), lengths)


@settings(max_examples=6, deadline=None, derandomize=True, phases=UNSHRUNK)
@given(hybrids(), DOCUMENTS.filter(lambda lengths: sum(lengths) <= 50), SEEDS)
def test_packed_documents_by_the_reference(config, lengths, seed):
    model = build(config, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEANLM_IMPL", "reference")
        check_packed(model, lengths)


@torch.no_grad()
def check_packed_cut(model, lengths, cuts):
    """Cuts that fall inside documents: the first document of a piece continues the state."""
    ends = torch.tensor(lengths).cumsum(0).tolist()
    points = sorted({c for c in cuts if 0 < c < ends[-1] and c not in ends})
    sizes = [b - a for a, b in zip([0, *points], [*points, ends[-1]])]
    tokens, segments = text(model.config, 2, ends[-1]), pack(lengths).expand(2, -1)
    whole, whole_state = read(model, tokens, [ends[-1]], segments=segments)
    cut, state = read(model, tokens, sizes, segments=segments)
    assert distance(cut, whole) <= FLOAT32
    more = text(model.config, 2, 9, 5)  # without marks: the last document goes on
    after = torch.cat([tokens[:, ends[-1] - lengths[-1] :], more], 1)
    wanted, _ = read(model, after, [after.shape[1]])
    for continued in (state, whole_state):
        assert distance(read(model, more, [1, 8], continued)[0], wanted[:, lengths[-1] :]) <= FLOAT32


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_cut_inside_a_packed_row(name):
    model = build(alone(ONE_OF_EACH[name]))
    check_packed_cut(model, [3, 1, 30, 44], [2, 5, 6, 20, 40])
    check_packed_cut(model, [70, 5], [1, 64, 72])


@settings(max_examples=15, deadline=None, derandomize=True, phases=UNSHRUNK)
@given(hybrids(), DOCUMENTS.filter(lambda ls: sum(ls) < LONGEST - 9), st.lists(st.integers(1, 140), max_size=5), SEEDS)
def test_cuts_inside_packed_rows_of_any_hybrid(config, lengths, cuts, seed):
    check_packed_cut(build(config, seed), lengths, cuts)


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("length", [1, 40])
def test_a_call_with_a_state_has_the_gradients_of_one_without(name, length):
    model = build(alone(ONE_OF_EACH[name]))
    tokens = text(model.config, 2, length)
    weigh = torch.randn(2, length, model.config.padded_vocab_size, generator=torch.Generator().manual_seed(1))
    plain = torch.autograd.grad((model(tokens) * weigh).sum(), model.parameters(), allow_unused=True, materialize_grads=True)
    state = model.new_state(2)
    told = torch.autograd.grad(
        (model(tokens, state) * weigh).sum(), model.parameters(), allow_unused=True, materialize_grads=True
    )
    for (parameter, _), a, b in zip(model.named_parameters(), told, plain):
        assert distance(a, b) <= 10 * FLOAT32, parameter
    assert not any(t.requires_grad for t in state.tensors().values())


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("length", [1, 8])
def test_gradients_of_a_continued_call_do_not_depend_on_what_follows(name, length):
    """They reach the call's own tokens and stop at the state it was given, also when that is overwritten before backward."""
    model = build(alone(ONE_OF_EACH[name]))
    tokens = text(model.config, 2, 30)
    gradients = []
    for end in (12 + length, 30):
        with torch.no_grad():
            _, state = read(model, tokens[:, :12], [12])
        logits = model(tokens[:, 12:end], state)[:, :length]
        with torch.no_grad():
            model(tokens[:, :3], state)
        loss = logits.square().sum()
        gradients.append(torch.autograd.grad(loss, model.parameters(), allow_unused=True, materialize_grads=True))
    for (parameter, _), a, b in zip(model.named_parameters(), *gradients):
        assert distance(a, b) <= 10 * FLOAT32, parameter


def test_dt_limits_hold_in_prefill_and_in_steps():
    """A dt clamped to one value makes the input's own dt irrelevant, in both paths."""
    fixed = build(ModelConfig(12, 9, ((Mamba2(12, 3, 4, dt_min=0.1, dt_max=0.1),),)))
    tokens = text(fixed.config, 1, 10)
    with torch.no_grad():
        before = [fixed(tokens), read(fixed, tokens, [1] * 10)[0]]
        fixed.layers[0][0].mixer.dt_bias += 3.0
        for wanted, found in zip(before, (fixed(tokens), read(fixed, tokens, [1] * 10)[0])):
            assert torch.equal(found, wanted)


def test_streams_end_with_what_the_head_reads():
    model = build(alone(ONE_OF_EACH["mamba2"], tied=False, head_bias=True))
    tokens = text(model.config, 2, 8)
    with torch.no_grad():
        streams = list(model.streams(tokens))
        assert len(streams) == len(model.config.layers) + 2
        assert torch.equal(model.logits(streams[-1]), model(tokens))
        assert distance(model(tokens, last_only=True), model(tokens)[:, -1:]) <= FLOAT32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("forced", ["", "triton", "eager", "reference"])
@pytest.mark.parametrize("name", ONE_OF_EACH)
@torch.no_grad()
def test_the_gpu_gives_what_the_cpu_gives(name, forced, monkeypatch):
    monkeypatch.delenv("LEANLM_IMPL", raising=False)
    model, segments = build(alone(ONE_OF_EACH[name])), pack([30, 1, 64]).expand(2, -1)
    tokens = text(model.config, 2, 95)
    wanted, wanted_packed = model(tokens), model(tokens, segments=segments)
    monkeypatch.setenv("LEANLM_IMPL", forced)
    model.to("cuda")
    tokens, segments = tokens.to("cuda"), segments.to("cuda")
    assert distance(model(tokens).cpu(), wanted) <= 1e-3  # its products may round to TF32
    assert distance(read(model, tokens, [40, 1, 1, 53])[0].cpu(), wanted) <= 1e-3
    assert distance(read(model, tokens, [40, 55], segments=segments)[0].cpu(), wanted_packed) <= 1e-3
