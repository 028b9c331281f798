"""leanlm distill: what it prints, what becomes of the student in further commands, mistakes in one line."""

import json
import os
import shutil
import signal

import pytest
import torch

import leanlm
import tiny_distillations
from leanlm.cli.main import main
from leanlm.train import recipe as recipes


@pytest.fixture(scope="module")
def made(teacher, tmp_path_factory):
    """A recipe's file, and the folder of what was made with it."""
    folder = tmp_path_factory.mktemp("made")
    path = tiny_distillations.student_file(folder, teacher)
    assert main(["distill", str(path), "--out", str(folder / "run")]) == 0
    return path, folder / "run"


def test_the_report(made, capsys):
    path, folder = made
    assert main(["distill", str(path), "--out", str(folder)]) == 0
    text = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in text if not line.startswith(" ")] == [
        "matrices", "states", "logits", "held-out text", "memory of a text, 16 bits", "1.73k tokens in all; the student is in "
        f"{folder / 'model'}",
    ]  # fmt: skip
    assert sum(line.startswith("  layer ") for line in text) == 4
    assert main(["distill", str(path), "--out", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kept"] == pytest.approx(told["teacher"]["bits_per_byte"] / told["student"]["bits_per_byte"])
    assert told["memory"]["student"]["bytes"] == leanlm.load(folder / "model", dtype="bfloat16").new_state(1).nbytes


@pytest.mark.parametrize(("scheme", "bits", "nats"), [("int4-g16", 4, 0.06), ("int8-channel", 8, 0.001)])
def test_quantised_in_one_further_command(made, tmp_path, capsys, scheme, bits, nats):
    """`nats`: about twice the divergence that rounding to the nearest costs this model; 256 times less with 4 bits more."""
    flags = ("--scheme", scheme, "--method", "rtn", "--held-out", "none")
    assert main(["quantize", str(made[1] / "model"), str(tmp_path / "small"), *flags]) == 0
    model = leanlm.load(tmp_path / "small")
    found = {matrix.bits for name, matrix in model.module.matrices().items() if name.startswith("layers.")}
    assert all(bits <= each < bits + 2 for each in found)
    whole = leanlm.load(made[1] / "model")
    tokens = torch.randint(300, (1, 20), generator=torch.Generator().manual_seed(1))
    p, q = (m(tokens).float().log_softmax(-1) for m in (whole, model))
    assert 0 < (p.exp() * (p - q)).sum(-1).mean() < nats


def test_ternary_students_pack(teacher, tmp_path, capsys):
    path = tiny_distillations.student_file(tmp_path, teacher)
    argv = ["distill", str(path), "--out", str(tmp_path / "run"), "--set", "model.weights=ternary", "--stages", "logits"]
    assert main(argv) == 0
    assert main(["verify", str(tmp_path / "run" / "model")]) == 0
    assert "ternary" in capsys.readouterr().out


def test_stopped_and_gone_on_with(made, teacher, tmp_path, capsys, monkeypatch):
    path = tiny_distillations.student_file(tmp_path, teacher)
    from leanlm.cli import progress

    plain = progress.Line.__call__

    def interrupting(self, report):
        plain(self, report)
        if report.loss is not None and report.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(progress.Line, "__call__", interrupting)
    assert main(["distill", str(path), "--out", str(tmp_path / "run")]) == 130
    monkeypatch.setattr(progress.Line, "__call__", plain)
    assert main(["distill", str(path), "--out", str(tmp_path / "run")]) == 0
    one, other = (leanlm.load(folder / "model").module.state_dict() for folder in (made[1], tmp_path / "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_teacher_of_another_shape(teacher, tmp_path, capsys):
    text = tiny_distillations.student_file(tmp_path, "nowhere").read_text().replace("d_model = 32", "d_model = 64")
    (tmp_path / "other.toml").write_text(text)
    argv = ["distill", str(tmp_path / "other.toml"), "--out", str(tmp_path / "run"), "--teacher", str(teacher), "--json"]
    assert main([*argv, "--stages", "matrices"]) == 0
    assert leanlm.load(tmp_path / "run" / "model").config.d_model == 32
    assert json.loads(capsys.readouterr().out)["layers"] == [0, 1]


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (("--stages", "all"), 2, "no stage 'all'; it has matrices, states, logits"),
        (("--teacher", "./nowhere"), 3, "nowhere"),
        (("--set", "distill.top_k=-1"), 2, "distill.top_k must be 0"),
        (("--set", "model.config.d_model=64"), 2, "d_model = 32, the student 64"),
    ],
)
def test_mistakes(made, tmp_path, capsys, flags, code, says):
    path = shutil.copy(made[0], tmp_path / "mine.toml")
    assert main(["distill", str(path), "--out", str(tmp_path / "run"), *flags]) == code
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and says in error
    assert not (tmp_path / "run").exists()


def test_recipes_go_to_the_verb_that_runs_them(made, capsys):
    assert main(["train", str(made[0])]) == 2 and "leanlm distill" in capsys.readouterr().err
    assert main(["distill", "rene-laptop"]) == 2 and "leanlm train trains it" in capsys.readouterr().err
    assert main(["launch", "llamba", "--size", "1b"]) == 0
    assert "-m leanlm distill llamba --size 1b" in capsys.readouterr().out
    assert main(["train", "llamba", "--size", "1b", "--plan", "--on", "h100", "--processes", "8"]) == 0
    assert {"llamba", "llamba-laptop"} <= set(recipes.shipped())
