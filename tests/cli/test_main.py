"""The command's frame: help without torch, exit codes, one line per error, nothing lost on stdout."""

import os
import subprocess
import sys
import time
import types
import warnings

import pytest

from leanlm.cli import main as cli
from leanlm.errors import CheckFailed, CheckpointError, NotFound


def stub(monkeypatch, action):
    """A verb `probe` that runs `action` after parsing."""
    import dataclasses

    @dataclasses.dataclass
    class Command:
        """Probe."""

        top_k: int = 1

    module = types.ModuleType("probe")
    module.Command, module.run = Command, action
    monkeypatch.setitem(sys.modules, "probe", module)
    monkeypatch.setitem(cli.VERBS, "probe", ("probe", "probe"))


def fail(error):
    def action(command):
        raise error

    return action


def test_help_is_fast_and_loads_neither_torch_nor_tyro():
    code = (
        "import sys; from leanlm.cli.main import main; main(['--help']);"
        "print(sorted(m for m in ('torch', 'tyro', 'rich', 'tokenizers', 'huggingface_hub') if m in sys.modules))"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        seconds.append(time.perf_counter() - start)
        assert out.splitlines()[-1] == "[]"
        if seconds[-1] < 0.4:
            break
    assert min(seconds) < 0.4


def test_no_verb_prints_help_and_is_wrong_usage(capsys):
    assert cli.main([]) == 2
    assert "generate" in capsys.readouterr().err


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("leanlm ")


def test_unknown_verb_names_the_nearest(capsys):
    assert cli.main(["genrate", "x"]) == 2
    assert capsys.readouterr().err == "error: genrate: no such verb; did you mean generate?\n"


@pytest.mark.parametrize("flag", ["--top-k", "--top_k"])
def test_flags_with_either_spelling(monkeypatch, flag):
    seen = []
    stub(monkeypatch, lambda command: seen.append(command.top_k))
    assert cli.main(["probe", flag, "7"]) == 0
    assert seen == [7]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--top-k", "x"],
            "error: Error parsing --top-k: invalid literal for int() with base 10: 'x' (see leanlm probe --help)",
        ),
        (["--top-q", "3"], "error: Unrecognized options: --top-q, 3; did you mean --top-k? (see leanlm probe --help)"),
    ],
)
def test_usage_errors_are_one_line(monkeypatch, capsys, argv, message):
    stub(monkeypatch, lambda command: None)
    assert cli.main(["probe", *argv]) == 2
    assert capsys.readouterr().err == message + "\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (NotFound("x: absent"), 3, "error: x: absent"),
        (CheckpointError("two\nlines"), 4, "error: two lines"),
        (CheckFailed("no"), 5, "error: no"),
        (OSError(28, "No space left on device", "out"), 1, "error: out: No space left on device"),
        (ZeroDivisionError("odd"), 1, "error: unexpected ZeroDivisionError: odd; --debug shows where"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_are_one_line_with_their_code(monkeypatch, capsys, error, code, line):
    stub(monkeypatch, fail(error))
    assert cli.main(["probe"]) == code
    assert capsys.readouterr().err == line + "\n"


@pytest.mark.parametrize("argv", [["--debug", "probe"], ["probe", "--debug"]])
def test_debug_shows_the_traceback(monkeypatch, capsys, argv):
    stub(monkeypatch, fail(CheckFailed("no")))
    assert cli.main(argv) == 5
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("error: no\n")


def test_warnings_are_one_line_on_stderr(monkeypatch, capsys):
    def action(command):
        print("result")
        warnings.warn("past the\ncontext", UserWarning, stacklevel=1)

    stub(monkeypatch, action)
    assert cli.main(["probe"]) == 0
    assert capsys.readouterr() == ("result\n", "warning: past the context\n")


def test_a_reader_that_leaves_is_met_with_silence():
    reading, writing = os.pipe()
    os.close(reading)
    run = subprocess.run(
        [sys.executable, "-m", "leanlm", "--help"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (run.returncode, run.stderr) == (0, "")


def test_text_that_the_terminal_cannot_write_is_replaced(tmp_path):
    code = "import sys; from leanlm.cli import main as m; m.main = lambda argv: print('caf\\u00e9 \\u2603') or 0; m.run()"
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=True)
    assert run.stdout.split() == [b"caf?", b"?"]
