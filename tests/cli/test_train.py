"""train --plan and --find-lr, launch, average, recipe list: what they print."""

import json
import shlex

import pytest

import tiny_runs
from leanlm.cli.main import main
from leanlm.cli.progress import Line, clock
from leanlm.train import recipe
from leanlm.train.report import Report


def printed(capsys, *argv: str) -> tuple[str, str]:
    assert main(list(argv)) == 0
    return capsys.readouterr()


def test_a_plan_as_text_and_json(capsys):
    flags = ("train", "avengers-llama3-1.8b", "--plan", "--on", "h100", "--processes", "192", "--set", "schedule.micro=1")
    text, _ = printed(capsys, *flags)
    told = json.loads(printed(capsys, *flags, "--json")[0])
    assert "192 x H100, hsdp" in text and "assuming 35%" in text and "MFU" not in text
    assert told["parameters"] == 1_884_377_088 or f"{told['parameters'] / 1e9:.3f}" == "1.884"
    assert told["bytes"]["total"] == sum(v for k, v in told["bytes"].items() if k != "total")
    assert told["tokens"] == 33_000 * 768 * 4096 and told["passes_per_step"] == 4


def test_a_plan_warns_and_still_succeeds(capsys):
    _, said = printed(capsys, "train", "trilm-laptop", "--size", "0.6m", "--plan", "--on", "v100", "--processes", "3")
    assert "warning: " in said and "schedule.batch=" in said


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--plan", "--on", "h1000"), "choose here"),
        (("--plan", "--processes", "0"), "at least 1"),
        (("--plan", "--mfu", "1.5"), "from 0 to 1"),
        (("--plan", "--find-lr"), "one at a time"),
        (("--size", "huge"), "no size 'huge'"),
    ],
)
def test_mistakes(flags, says, capsys):
    assert main(["train", "rene", *flags]) == 2
    assert says in capsys.readouterr().err


def test_sizes_are_asked_for(capsys):
    assert main(["train", "trilm", "--plan"]) == 2
    assert "choose a size" in capsys.readouterr().err


def test_launch_prints_the_train_command(capsys):
    text, _ = printed(capsys, "launch", "trilm", "--size", "1.1b", "--nodes", "16", "--set", "data.length=1024")
    words = shlex.split(text)
    assert words[0] == "torchrun" and words[words.index("train") :] == [
        "train",
        "trilm",
        "--size",
        "1.1b",
        "--set",
        "data.length=1024",
    ]


def test_launch_writes_a_script_once(capsys, tmp_path):
    file = tmp_path / "job.sh"
    flags = ("launch", "rene", "--nodes", "4", "--slurm", "--write", str(file))
    text, _ = printed(capsys, *flags)
    assert text == f"sbatch {file}\n" and file.read_text().startswith("#!/bin/bash")
    assert main(list(flags)) == 2
    assert "exists already" in capsys.readouterr().err


def test_launch_refuses_processes_that_do_not_divide_the_batch(capsys):
    assert main(["launch", "rene", "--nodes", "3", "--gpus", "7"]) == 2
    assert "--set schedule.batch=504" in capsys.readouterr().err


def test_recipes_are_listed_with_their_sizes(capsys):
    text, _ = printed(capsys, "recipe", "list")
    assert all(name in text for name in recipe.shipped())
    assert "99m, 190m" in text
    rows = json.loads(printed(capsys, "recipe", "list", "--json")[0])
    assert {row["name"]: row["parameters"] for row in rows}["rene"] == [1_433_295_104]


def test_a_run_its_finder_and_its_mean(capsys, tmp_path):
    file, run = str(tiny_runs.file(tmp_path)), str(tmp_path / "run")
    found = json.loads(printed(capsys, "train", file, "--out", run, "--find-lr", "--json")[0])
    assert found["lr"] > 0
    out, said = printed(capsys, "train", file, "--out", run)
    assert out.strip() == f"{run}/model" and "held-out" in said and "MFU" in said and "left" in said
    out, _ = printed(capsys, "average", run, "--last", "2")
    assert out.strip() == f"{run}/average"


def test_the_progress_line_shows_what_is_known(capsys):
    line = Line()
    line(
        Report(
            20,
            100,
            loss=2.5,
            lr=1e-3,
            tokens=4096,
            grad_norm=0.5,
            tokens_per_second=4096.0,
            waited=0.25,
            validation=2.4,
            bits_per_byte=1.5,
        )
    )
    line(
        Report(
            40,
            100,
            loss=2.4,
            lr=1e-3,
            tokens=4096,
            grad_norm=0.5,
            tokens_per_second=4096.0,
            utilisation=0.31,
            memory=2 * 10**9,
            skipped=2,
        )
    )
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("step 20/100  loss 2.500  held-out 2.400 nats, 1.500 bits/byte  lr 1.00e-03  grad 0.50")
    assert "data 25%" in first and "0:01:20 left" in first
    assert "MFU 31%" in second and "2.00 GB" in second and "2 skipped" in second and "data" not in second


def test_clock():
    assert [clock(s) for s in (5, 3661, 90_000)] == ["0:00:05", "1:01:01", "1 d 1:00:00"]
