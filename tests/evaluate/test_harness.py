"""The harness's adapter beside the harness's own Hugging Face backend, on the same weights and the same requests."""

import dataclasses
import random

import pytest

pytest.importorskip("lm_eval", reason='the harness is not installed: pip install -c constraints.txt ".[eval]"')
pytest.importorskip("accelerate", reason="the harness's backend needs it")
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from hybrid_models import build
from leanlm.api import Model
from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.evaluate.harness import HarnessModel
from leanlm.export import hf
from leanlm.model.config import Attention, GatedMLP, Mamba2, ModelConfig, Norm, Rope
from tiny_models import add_tokenizer

LLAMA = ModelConfig(
    32, 9, ((Attention(4, 2, 8, rope=Rope(8)), GatedMLP(48)),) * 2, norm=Norm(round_first=True), tied=False, context_length=512
)
MAMBA = ModelConfig(32, 9, ((Mamba2(64, 8, 8),),) * 3, norm=Norm(round_first=True), residual_in_fp32=True)
MODELS = {"hf_llama": LLAMA, "hf_mamba2": MAMBA}
LETTERS = "the and ing of was abcdefgh\n.,"


@pytest.fixture(scope="module", params=MODELS)
def both(request, tmp_path_factory):
    made = Tokenizer.from_folder(add_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    config = dataclasses.replace(MODELS[request.param], vocab_size=made.vocab_size, padded_vocab_size=0, eos_ids=made.eos_ids)
    model, stock = Model(build(config), request.param, made), tmp_path_factory.mktemp("hf") / "model"
    hf.export(stock, model.module, model.tokenizer)
    theirs = HFLM(pretrained=str(stock), dtype="float32", max_length=300, device="cpu", batch_size=8)
    return HarnessModel(model, max_length=300), theirs


def texts(seed: int, count: int, longest: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(LETTERS, k=draw.randint(1, longest))) for _ in range(count)]


def instances(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]


def test_likelihoods(both):
    """Mixed lengths, contexts that several choices share, spaces at their ends, none at all."""
    contexts = ["", *texts(0, 30, 350)]
    contexts += [context + " " for context in contexts[-10:]]
    pairs = [(context, choice) for context in contexts for choice in texts(len(context), 5, 12)]
    assert len(pairs) >= 200
    ours, theirs = (model.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True) for model in both)
    for mine, wanted in zip(ours, theirs, strict=True):
        assert mine[0] == pytest.approx(wanted[0], abs=1e-4) and mine[1] == wanted[1]


def test_rolling(both):
    wholes = [(text,) for text in texts(1, 12, 250)]
    ours, theirs = (
        model.loglikelihood_rolling(instances("loglikelihood_rolling", wholes), disable_tqdm=True) for model in both
    )
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_where_a_text_begins(both):
    """The harness's own rules for the token that begins texts (tests/models/test_bos_handling.py of its repository)."""
    ours, theirs = both
    begin = ours.tokenizer.decode([ours.prefix_token_id], skip_special=False)
    assert ours.prefix_token_id == theirs.prefix_token_id and ours.eot_token_id == theirs.eot_token_id
    for text in ("hello", begin + "hello", " the", "a\n"):
        assert ours.tok_encode(text) == theirs.tok_encode(text)
        for add in (True, False):
            assert ours.tok_encode(text, add_special_tokens=add) == theirs.tok_encode(text, add_special_tokens=add)
    for context, continuation in (("", "hello"), (begin, "hello"), ("", begin + "hello"), ("a b ", " c"), ("ab", "c")):
        pair = instances("loglikelihood", [(context, continuation)])
        mine, wanted = (model.loglikelihood(pair, disable_tqdm=True)[0] for model in both)
        assert mine == (pytest.approx(wanted[0], abs=1e-4), wanted[1])


def test_generated_texts_end_at_stop_strings(both):
    settings = {"until": ["\n", "the"], "max_gen_toks": 24}
    asked = [(text, settings) for text in texts(2, 10, 100)] + [
        (text, {"until": [], "max_new_tokens": 5}) for text in texts(3, 3, 40)
    ]
    ours, theirs = (model.generate_until(instances("generate_until", asked), disable_tqdm=True) for model in both)
    assert ours == theirs
    assert all("\n" not in text and "the" not in text for text in ours[:10])
