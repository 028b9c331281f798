"""leanlm generate against the API: where the prompt comes from, what is printed where, sessions."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import leanlm as library

SHORT = ("--genlen", "6")


@pytest.fixture(scope="module")
def expected(rene):
    """What the API says to "the cat"."""
    return library.load(rene).generate("the cat", max_new_tokens=6)


def test_text_to_stdout_and_figures_to_stderr(leanlm, rene, expected):
    ran = leanlm("generate", "the cat", "--model", rene, *SHORT)
    assert (ran.code, ran.out) == (0, expected + "\n")
    assert "49.7k parameters, float32 on cpu" in ran.err
    assert "prompt  5 tokens in" in ran.err
    assert "decode  5 tokens in" in ran.err
    assert "state   " in ran.err


def test_the_prompt_comes_from_argument_flag_file_or_pipe(leanlm, rene, expected, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("the cat\n")
    for argv, stdin in (
        (["--prompt", "the cat"], None),
        (["-f", file], None),
        (["--file", file], None),
        (["-f", "-"], "the cat\n"),
        ([], "the cat\n"),
        ([], "the cat"),
        (["the cat"], "not this"),
    ):
        assert leanlm("generate", *argv, "--model", rene, *SHORT, stdin=stdin).out == expected + "\n"


def test_echo_prints_the_prompt_first(leanlm, rene, expected):
    assert leanlm("generate", "the cat", "--model", rene, *SHORT, "--echo").out == f"the cat{expected}\n"


def test_json_holds_everything_and_nothing_else_is_printed(leanlm, rene, expected):
    ran = leanlm("generate", "the cat", "--model", rene, *SHORT, "--json", "--repeats", "2")
    found = json.loads(ran.out)
    assert (found["text"], found["prompt_tokens"], found["new_tokens"], found["runs"]) == (expected, 5, 6, 2)
    assert found["decode_seconds"] > 0 < found["prompt_tokens_per_second"]
    assert found["state_bytes"] == library.load(rene).new_state(1).nbytes
    assert ran.err == ""


@pytest.mark.parametrize("flags", [["--temperature", "1.0"], ["--top_k", "5"], ["--min-p", "0.1", "--top-p", "0.9"]])
def test_sampling_flags_and_seed_mean_what_the_api_means(leanlm, rene, flags):
    options = {name.lstrip("-").replace("-", "_"): json.loads(value) for name, value in zip(flags[::2], flags[1::2])}
    text = library.load(rene).generate("the cat", max_new_tokens=6, seed=7, **options)
    found = json.loads(leanlm("generate", "the cat", "--model", rene, *SHORT, "--seed", "7", "--json", *flags).out)
    assert found["text"] == text
    assert found["seed"] == 7


def test_a_drawn_seed_is_told_and_repeats_the_text(leanlm, rene):
    first = leanlm("generate", "the cat", "--model", rene, *SHORT, "--temperature", "2")
    seed = first.err.split("seed")[1].split()[0]
    assert leanlm("generate", "the cat", "--model", rene, *SHORT, "--temperature", "2", "--seed", seed).out == first.out


def test_stop_strings_end_the_text(leanlm, rene, expected):
    stop = expected[2:4]
    ran = leanlm("generate", "the cat", "--model", rene, *SHORT, "--json", "--stop", "nowhere", "--stop", stop)
    found = json.loads(ran.out)
    assert (found["text"], found["finish"]) == (expected[: expected.index(stop)], "stop")


def test_promptlen_makes_a_random_prompt_without_a_tokenizer(leanlm, tmp_path):
    from tiny_models import copy_case

    folder = copy_case("mamba1/hf_tri", tmp_path / "m", text=False)
    found = json.loads(leanlm("generate", "--model", folder, "--promptlen", "9", *SHORT, "--json").out)
    assert (found["prompt_tokens"], len(found["prompt"]), found["text"]) == (9, 9, None)
    ran = leanlm("generate", "--model", folder, "--promptlen", "9", *SHORT)
    assert ran.out.split() == [str(token) for token in found["ids"]]


def test_promptlen_gives_way_to_a_prompt(leanlm, rene, expected):
    assert leanlm("generate", "--model", rene, "--prompt", "the cat", "--promptlen", "100", *SHORT).out == expected + "\n"


def test_a_tokenizer_given_by_hand(leanlm, rene, expected, tmp_path):
    from tiny_models import copy_case

    mute = copy_case("rene/gqa_groups", tmp_path / "m", text=False)
    argv = ["generate", "the cat", "--model", mute, *SHORT, "--tokenizer"]
    assert leanlm(*argv, rene).out == leanlm(*argv, rene / "tokenizer.json").out == expected + "\n"


@pytest.mark.parametrize("choice", [[], ["--temperature", "1.5", "--seed", "3"]])
def test_a_session_in_pieces_says_what_one_run_says(leanlm, rene, tmp_path, choice):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run = ["generate", "--model", rene, "--json", *choice[:2]]
    said = json.loads(leanlm(*run, "the cat", "--session", whole, "--genlen", "12", *choice[2:]).out)["ids"]
    ids = []
    for argv in (["the cat", *choice[2:]], [], []):
        ids += json.loads(leanlm(*run, *argv, "--session", parts, "--genlen", "4").out)["ids"]
    assert ids == said


def test_a_session_takes_further_prompts(leanlm, rene, tmp_path):
    file = tmp_path / "s"
    for prompt in ("the cat", " and the"):
        ran = leanlm("generate", prompt, "--model", rene, "--session", file, *SHORT)
        assert ran.code == 0
    info = json.loads(leanlm("state", "info", file, "--json").out)
    assert (info["kind"], info["turns"]) == ("session", 2)
    assert " and the" in info["text"]


def test_state_fork_goes_its_own_way(leanlm, rene, tmp_path):
    file, fork = tmp_path / "s", tmp_path / "fork"
    run = ["generate", "--model", rene, "--json", *SHORT, "--session"]
    leanlm(*run, file, "the cat")
    assert leanlm("state", "fork", file, fork).out == f"{fork}\n"
    assert json.loads(leanlm(*run, file).out)["ids"] == json.loads(leanlm(*run, fork).out)["ids"]
    leanlm(*run, file)
    assert file.read_bytes() != fork.read_bytes()
    assert "ended by  length" in leanlm("state", "info", fork).out


def test_compat_reaches_the_filters(leanlm, rene):
    argv = ["generate", "the cat", "--model", rene, *SHORT, "--min-p", "0.5", "--temperature", "1", "--seed", "1"]
    text = library.load(rene).generate("the cat", max_new_tokens=6, seed=1, min_p=0.5, temperature=1.0, compat="mamba_ssm")
    assert leanlm(*argv, "--compat", "mamba_ssm").out.removesuffix("\n") == text


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_is_one_line_and_keeps_the_text(rene):
    argv = [sys.executable, "-m", "leanlm", "generate", "the cat", "--model", str(rene), "--genlen", "1000000"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first = process.stdout.read(1)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert (process.returncode, err.decode().strip()) == (130, "interrupted")
    assert len(first + rest) > 1
