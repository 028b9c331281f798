"""leanlm chat through a pipe."""

import pytest

import leanlm as library
from leanlm.generate.session import Session

SHORT = ("--genlen", "6")


@pytest.fixture(scope="module")
def model(talker):
    return library.load(talker)


def test_turns_go_through_the_template(leanlm, talker, model):
    session = Session(model)
    answers = [
        session.generate(text, 6, add_special=False) for text in ("user: hi there\nassistant:", "\nuser: and you\nassistant:")
    ]
    ran = leanlm("chat", "--model", talker, *SHORT, stdin="hi there\n\nand you\n/quit\nnever asked\n")
    assert (ran.code, ran.out) == (0, "".join(f"{answer}\n" for answer in answers))


def test_rewind_unsays(leanlm, talker):
    first = leanlm("chat", "--model", talker, *SHORT, stdin="hi\n").out
    once = leanlm("chat", "--model", talker, *SHORT, stdin="hi\nand you\n").out
    again = leanlm("chat", "--model", talker, *SHORT, stdin="hi\nsomething else\n/rewind\nand you\n").out
    afresh = leanlm("chat", "--model", talker, *SHORT, stdin="wrong\nfrom the start\n/rewind 2\nhi\nand you\n").out
    assert again.startswith(first)
    assert again.endswith(once.removeprefix(first))
    assert afresh.endswith(once)


def test_a_saved_chat_goes_on_where_it_was(leanlm, talker, tmp_path):
    file = tmp_path / "talk"
    whole = leanlm("chat", "--model", talker, *SHORT, stdin="hi\nand you\n").out
    first = leanlm("chat", "--model", talker, *SHORT, "--session", file, stdin="hi\n").out
    assert first + leanlm("chat", "--model", talker, *SHORT, "--session", file, stdin="and you\n").out == whole


def test_fork_leaves_the_first_file_alone(leanlm, talker, tmp_path):
    file, fork, copy = tmp_path / "talk", tmp_path / "fork", tmp_path / "copy"
    stdin = f"hi\n/save {copy}\n/fork {fork}\nand you\n"
    assert leanlm("chat", "--model", talker, *SHORT, "--session", file, stdin=stdin).code == 0
    about = {path: leanlm("state", "info", path).out for path in (file, copy, fork)}
    assert about[file] == about[copy] != about[fork]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/rewind 3", "error: turn -3: this session has 1 turns (0 is the first, -1 the last)"),
        ("/rewind x", "error: /rewind x: give the number of questions to unsay"),
        ("/save", "error: /save: name a file"),
        ("/fork", "error: /fork: name a file"),
    ],
)
def test_a_wrong_command_is_told_and_the_talk_goes_on(leanlm, talker, line, message):
    ran = leanlm("chat", "--model", talker, *SHORT, stdin=f"hi\n{line}\nand you\n")
    assert ran.code == 0
    assert ran.err == message + "\n"
    assert ran.out == leanlm("chat", "--model", talker, *SHORT, stdin="hi\nand you\n").out


def test_a_model_without_a_template_is_refused(leanlm, rene):
    ran = leanlm("chat", "--model", rene, stdin="hi\n")
    assert (ran.code, ran.err) == (2, f"error: {rene}: its tokenizer has no chat template; use leanlm generate\n")


def test_a_system_message_comes_first(leanlm, talker, tmp_path):
    file = tmp_path / "talk"
    leanlm("chat", "--model", talker, *SHORT, "--system", "be kind", "--session", file, stdin="hi\n")
    assert "system: be kind\\nuser: hi\\nassistant:" in leanlm("state", "info", file).out
