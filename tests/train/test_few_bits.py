"""Whole runs of ternary weights, from checkpoints and on conversations: what is learned, kept, resumed and published."""

import dataclasses
import json
import os
import signal

import pytest
import torch

import leanlm
from golden_cases import OWN
from leanlm.checkpoint.load import load_module
from leanlm.checkpoint.save import save_module
from leanlm.errors import CheckpointError, UsageError
from leanlm.evaluate import loss
from leanlm.model import ternary
from leanlm.model.packed import TernaryWeight
from leanlm.train import checkpoints, start
from leanlm.train import origin as origins
from leanlm.train.loop import train
from tiny_models import add_tokenizer, copy_case

QUESTIONS = [("where is it?", "on the mat"), ("and now?", "gone"), ("who was it?", "the cat, and nobody else")]


def changed(recipe, **sections):
    """The recipe with other settings, by section."""
    made = {name: dataclasses.replace(getattr(recipe, name), **settings) for name, settings in sections.items()}
    return dataclasses.replace(recipe, **made)


@pytest.fixture
def ternary_recipe(recipe):
    return changed(recipe, model={"weights": "ternary"}, keep={"dtype": "float16"})


def test_a_ternary_run_learns_and_publishes_packed_weights(ternary_recipe, tmp_path):
    reports = []
    folder = train(ternary_recipe, tmp_path / "run", reports.append)
    losses = [report.loss for report in reports if report.loss]
    assert losses[-1] < losses[0] - 0.5
    model = leanlm.load(folder)
    held = [weight for weight in model.module.weights().values() if isinstance(weight, TernaryWeight)]
    assert len(held) == len(ternary.linears(model.module))
    assert isinstance(model.generate("def ", max_new_tokens=3), str)


def test_what_is_validated_and_published_are_the_packed_weights(ternary_recipe, tmp_path):
    reports = []
    folder = train(ternary_recipe, tmp_path / "run", reports.append)
    material = start.material(ternary_recipe, tmp_path / "run", origins.of(ternary_recipe, tmp_path), print)
    documents = [(material.held.document(0)[:-1].tolist(), int(material.held.bytes[0]))]
    found = loss.measure(load_module(folder).module, documents, int(material.held.document(0)[-1]))
    assert found.bits_per_byte == pytest.approx(reports[-1].bits_per_byte, abs=1e-6)


@pytest.mark.parametrize("stop_after", [5, 7])
def test_a_ternary_run_resumes_to_the_same_bits(ternary_recipe, tmp_path, stop_after):
    whole = load_module(train(ternary_recipe, tmp_path / "whole")).module.weights()

    def stop(report):
        if report.loss and report.step == stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(ternary_recipe, tmp_path / "cut", stop)
    resumed = load_module(train(ternary_recipe, tmp_path / "cut")).module.weights()
    for name, weight in whole.items():
        assert weight.equal(resumed[name]) if isinstance(weight, TernaryWeight) else torch.equal(weight, resumed[name])


@pytest.mark.parametrize("compute", [{"dtype": "bfloat16"}, {"checkpoint_blocks": 0.5}, {"dtype": "float16"}])
def test_latents_stay_float32_however_it_is_computed(ternary_recipe, tmp_path, compute):
    train(changed(ternary_recipe, compute=compute), tmp_path / "run")
    state = checkpoints.complete(tmp_path / "run")
    assert state
    module = origins.of(ternary_recipe, tmp_path).module
    assert all(linear.weight.dtype == torch.float32 for linear in ternary.latent(module).values())


def test_a_trilm_trains_on_from_its_own_loss(recipe, tmp_path):
    """The first validation of a run with a learning rate of nearly nothing is that of the published model."""
    folder = tmp_path / "trilm"
    loaded = load_module(OWN / "trilm/trilm_mp3")
    save_module(folder, loaded.module, loaded.family, loaded.raw)
    add_tokenizer(folder)
    settings = {"family": "", "config": {}, "from_": str(folder), "weights": "ternary", "shards": 3}
    tiny = changed(
        recipe,
        model=settings,
        schedule={"steps": 1, "warmup": 0},
        optimiser={"lr": 1e-12, "weight_decay": 0.0},
        keep={"validate": 1, "dtype": "float16"},
    )
    notes = []
    finished = train(tiny, tmp_path / "run", notes.append)
    assert any("21 of 21 matrices are ternary already" in report.note for report in notes)
    before, after = loaded.module.weights(), load_module(finished).module.weights()
    for name, weight in after.items():
        values = weight.dequantize() if isinstance(weight, TernaryWeight) else weight
        assert torch.equal(values.float(), before[name].float()), name
    assert leanlm.load(finished).tokenizer is not None


def test_a_run_from_a_checkpoint_resumes_without_it(recipe, tmp_path):
    folder = copy_case("rene/gqa_groups", tmp_path / "m")
    tiny = changed(recipe, model={"family": "", "config": {}, "from_": str(folder)})
    whole = load_module(train(tiny, tmp_path / "whole")).module.weights()

    def stop(report):
        if report.loss and report.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tiny, tmp_path / "cut", stop)
    folder.rename(tmp_path / "elsewhere")
    resumed = load_module(train(tiny, tmp_path / "cut")).module.weights()
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


@pytest.fixture
def chat_recipe(recipe, tmp_path):
    folder = copy_case("rene/gqa_groups", tmp_path / "m", chat=True)
    lines = [json.dumps({"prompt": asked, "response": told}) for asked, told in QUESTIONS * 4]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines))
    return changed(
        recipe,
        model={"family": "", "config": {}, "from_": str(folder)},
        data={"source": "", "held_out": (), "chat": str(tmp_path / "chats.jsonl"), "length": 64},
        schedule={"steps": 30},
    )


def test_answers_are_learned_from_conversations(chat_recipe, tmp_path):
    reports = []
    model = leanlm.load(train(chat_recipe, tmp_path / "run", reports.append))
    losses = [report.loss for report in reports if report.loss]
    assert losses[-1] < losses[0] / 2
    assert any("12 conversations in" in report.note for report in reports)
    assert model.tokenizer.chat_template is not None


def test_conversations_that_changed_are_not_gone_on_with(chat_recipe, tmp_path):
    train(changed(chat_recipe, schedule={"steps": 2}), tmp_path / "run")
    with (tmp_path / "chats.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"prompt": "x", "response": "y"}))
    with pytest.raises(CheckpointError, match="other"):
        train(changed(chat_recipe, schedule={"steps": 4}), tmp_path / "run")


def test_conversations_need_a_model_that_has_a_tokenizer(recipe, chat_recipe, tmp_path):
    fresh = dataclasses.replace(chat_recipe, model=recipe.model)
    with pytest.raises(UsageError, match=r"data\.chat needs a model with a tokenizer"):
        train(fresh, tmp_path / "run")
