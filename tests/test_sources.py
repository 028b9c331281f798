"""Every command, snippet and check printed in the source documents that this version serves, as printed there.

Only program, import and class names change; the original line stands beside each changed one. A hub on this machine serves
tiny checkpoints under the published ids, with a tokenizer of their own, and the evaluations read data sets of a row.
Installation lines and `.cuda()` on a machine without a device are left out.
"""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from fake_hub import FakeHub
from tiny_models import add_tokenizer, copy_case

# The published id, the golden case that stands in for it, and whether its repository holds a tokenizer.
PUBLISHED = {
    "cartesia-ai/Rene-v0.1-1.3b-pytorch": ("rene/gqa_groups", False),
    "cartesia-ai/Llamba-8B": ("llamba/untied_qk_ne_v", False),
    "TRI-ML/mamba-7b-rw": ("mamba1/hf_tri", True),
    "SpectraSuite/TriLM_3.9B_Unpacked": ("trilm/trilm_mp3", True),
}
TOKENIZERS = ("allenai/OLMo-1B-hf", "meta-llama/Llama-3.1-8B")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    repos = {repo: copy_case(case, root / repo, text=text) for repo, (case, text) in PUBLISHED.items()}
    return repos | {repo: add_tokenizer(root / repo) for repo in TOKENIZERS}


@pytest.fixture(autouse=True)
def hub(published, monkeypatch):
    # The model card writes this id in lower case, which the hub forwards.
    with FakeHub({**published, "tri-ml/mamba-7b-rw": published["TRI-ML/mamba-7b-rw"]}) as fake:
        fake.patch(monkeypatch)
        yield fake


# Rene and Llamba: the generation commands. Original program: python -m evals.generation
COMMANDS = [
    """leanlm generate \
--model Rene \
--prompt "Rene Descartes was" \
--promptlen 100 \
--genlen 100 \
--dtype bfloat16 \
--temperature 1.0 \
--top_k 1 \
--top_p 0.99 \
--min_p 0.0 \
--repetition_penalty 1.0""",
    """leanlm generate \
--model Llamba-8B \
--prompt "My favorite book is" \
--promptlen 100 \
--genlen 100 \
--dtype bfloat16 \
--temperature 1.0 \
--top_k 1 \
--top_p 0.99 \
--min_p 0.0 \
--repetition_penalty 1.0298""",
]


@pytest.mark.parametrize("command", COMMANDS, ids=["rene", "llamba"])
def test_generation_commands(leanlm, command):
    program, *argv = shlex.split(command)
    assert program == "leanlm"
    ran = leanlm(*argv)
    assert ran.code == 0, ran.err
    assert ran.out.strip()
    assert "bfloat16 on cpu" in ran.err
    assert "tokens/s" in ran.err


def test_generation_command_is_greedy_with_the_penalty(leanlm):
    """top_k 1 leaves temperature, top_p and min_p without effect; the repetition penalty still counts."""
    import leanlm as library

    argv = shlex.split(COMMANDS[1])[1:]
    model = library.load("cartesia-ai/Llamba-8B", dtype="bfloat16")
    text = model.generate("My favorite book is", max_new_tokens=100, do_sample=False, repetition_penalty=1.0298)
    assert json.loads(leanlm(*argv, "--json").out)["text"] == text


# The evaluation commands. Original programs: python -m evals.cartesia_lm_eval, and lm_eval
EVALUATIONS = {
    "rene": "leanlm lm-eval --model rene_ssm --model_args pretrained=cartesia-ai/Rene-v0.1-1.3b-pytorch,trust_remote_code=True "
    "--trust_remote_code --tasks copa,hellaswag,piqa,arc_easy,arc_challenge,winogrande,openbookqa --cache_requests true "
    "--batch_size auto:4 --output_path outputs/rene_evals/",
    "llamba": "leanlm lm-eval --model llamba_ssm --model_args pretrained=cartesia-ai/Llamba-8B,trust_remote_code=True "
    "--trust_remote_code --tasks hellaswag,piqa,arc_easy,arc_challenge,winogrande,mmlu --cache_requests true "
    "--batch_size auto:4 --output_path outputs/llamba_evals/",
    "spectra": "leanlm lm-eval --model hf --model_args pretrained=SpectraSuite/TriLM_3.9B_Unpacked --tasks arc_easy,"
    "arc_challenge,hellaswag,boolq,piqa,winogrande,lambada_openai,sciq,logiqa,mmlu_continuation,triviaqa,"
    "crows_pairs_english,truthfulqa_mc1 --device auto --batch_size 1",
}
GROUPS = {"mmlu_continuation": "mmlu (continuation)"}  # as the harness shows them


@pytest.mark.slow
@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluation_commands(name, leanlm, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason='the harness is not installed: pip install -c constraints.txt ".[eval]"')
    from lm_eval.caching import cache

    import fake_datasets

    fake_datasets.patch(monkeypatch)
    monkeypatch.setattr(cache, "PATH", str(tmp_path / "requests"))
    monkeypatch.chdir(tmp_path)
    program, *argv = shlex.split(EVALUATIONS[name])
    assert program == "leanlm"
    ran = leanlm(*argv)
    assert ran.code == 0, ran.err
    for task in argv[argv.index("--tasks") + 1].split(","):
        assert re.search(rf"\|{re.escape(GROUPS.get(task, task))} *\|", ran.out)
    if "--output_path" in argv:
        assert list((tmp_path / "outputs").rglob("results_*.json"))


def test_rene_card_snippet(capsys):
    from leanlm import load  # from cartesia_pytorch import ReneLMHeadModel
    from leanlm.checkpoint.hub import download
    from leanlm.checkpoint.tokenizer import Tokenizer  # from transformers import AutoTokenizer

    # model = ReneLMHeadModel.from_pretrained("cartesia-ai/Rene-v0.1-1.3b-pytorch").half().cuda()
    model = load("cartesia-ai/Rene-v0.1-1.3b-pytorch").half()  # without .cuda() on a machine without a device
    # tokenizer = AutoTokenizer.from_pretrained("allenai/OLMo-1B-hf")
    tokenizer = Tokenizer.from_folder(download("allenai/OLMo-1B-hf", needs="tokenizer.json"))
    in_message = ["Rene Descartes was"]
    # inputs = tokenizer(in_message, return_tensors="pt")
    input_ids = torch.tensor([tokenizer.encode(message) for message in in_message])
    # outputs = model.generate(inputs.input_ids.cuda(), max_length=50, top_k=100, top_p=0.99)
    outputs = model.generate(input_ids, max_length=50, top_k=100, top_p=0.99)
    # out_message = tokenizer.batch_decode(outputs, skip_special_tokens=True)[0]
    out_message = [tokenizer.decode(row.tolist(), skip_special=True) for row in outputs][0]  # noqa: RUF015
    print(out_message)
    assert capsys.readouterr().out.startswith("Rene Descartes was")
    assert outputs.shape[0] == 1
    assert outputs.shape[1] == 50 or int(outputs[0, -1]) in model.vocabulary.eos_ids


def test_tri_card_snippet(capsys):
    from leanlm import load  # from transformers import AutoTokenizer, AutoModelForCausalLM

    # tokenizer = AutoTokenizer.from_pretrained("tri-ml/mamba-7b-rw")
    # model = AutoModelForCausalLM.from_pretrained("tri-ml/mamba-7b-rw")
    model = load("tri-ml/mamba-7b-rw")
    tokenizer = model.tokenizer
    # inputs = tokenizer(["The Toyota Supra"], return_tensors="pt")
    inputs = {"input_ids": torch.tensor([tokenizer.encode("The Toyota Supra")])}
    gen_kwargs = {"max_new_tokens": 50, "top_p": 0.8, "temperature": 0.8, "do_sample": True, "repetition_penalty": 1.1}
    output = model.generate(inputs["input_ids"], **gen_kwargs)
    # output = tokenizer.decode(output[0].tolist(), skip_special_tokens=True)
    output = tokenizer.decode(output[0].tolist(), skip_special=True)
    print(output)
    assert capsys.readouterr().out.startswith("The Toyota Supra")


def test_spectra_pipeline_snippet():
    import leanlm as tf  # import transformers as tf, torch

    model_id = "SpectraSuite/TriLM_3.9B_Unpacked"  # model_name = "SpectraSuite/TriLM_3.9B_Unpacked"
    # pipeline = tf.pipeline("text-generation", model=model_id, model_kwargs={"torch_dtype": torch.float16}, device_map="auto")
    pipeline = tf.load(model_id, dtype=torch.float16).generate
    # pipeline("Once upon a time")
    assert pipeline("Once upon a time")
    assert pipeline("Once upon a time", echo=True).startswith("Once upon a time")


def test_spectra_ternary_check():
    import leanlm as tf  # import transformers as tf

    # model = tf.AutoModelForCausalLM.from_pretrained("SpectraSuite/TriLM_3.9B_Unpacked")
    model = tf.load("SpectraSuite/TriLM_3.9B_Unpacked")
    pretraining_model_parallel = model.raw["pretraining_model_parallel"]  # model.config.pretraining_model_parallel
    checked = 0
    for v in model.module.layers.parameters():  # for v in model.model.layers.parameters():
        if len(v.shape) == 2:
            assert len(set(v.abs().flatten().tolist())) <= (1 + pretraining_model_parallel)
            checked += 1
    assert checked == 7 * len(model.config.layers)


def test_spectra_ternary_check_as_a_command(leanlm):
    ran = leanlm("verify", "SpectraSuite/TriLM_3.9B_Unpacked")
    assert ran.code == 0, ran.err
    assert "matrices are ternary" in ran.out


@pytest.mark.parametrize("repo", PUBLISHED)
def test_every_published_id_is_pulled_shown_and_used_offline(leanlm, hub, repo):
    assert (Path(leanlm("pull", repo).out.strip()) / "config.json").exists()
    shown = leanlm("show", repo)
    assert shown.code == 0, shown.err
    hub.stop()
    ran = leanlm("generate", "--model", repo, "--promptlen", "4", "--genlen", "2", "--offline")
    assert ran.code == 0, ran.err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_rene_card_snippet_on_a_device():
    from leanlm import load

    model = load("cartesia-ai/Rene-v0.1-1.3b-pytorch").half().cuda()
    outputs = model.generate(torch.tensor([[1, 2, 3]]).cuda(), max_length=50, top_k=100, top_p=0.99)
    assert outputs.is_cuda
